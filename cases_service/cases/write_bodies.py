"""Parses the bodies of writes strictly, and names every wrong member at once.

`OrganizationCaseSchema` says which attributes a request may write and what each accepts. Here its fields are read with
JSON's types, without conversions: only a number is a number.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from marshmallow import Schema, ValidationError, fields, missing

from cases_service.cases.schemas import OrganizationCaseSchema
from cases_service.problems import InvalidBodyError

MAXIMUM_BODY: Final = 1024 * 1024
_UUID: Final = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
_UNSTORABLE: Final = re.compile("[\0\ud800-\udfff]")
# A body of a mebibyte holds a hundred thousand unknown names.
_MOST_ERRORS: Final = 100
_LONGEST_NAME: Final = 64

Error = dict[str, str]


class Strict(fields.Field[Any]):
    """A value of one JSON type within its limits, or null if that is allowed.

    Args:
        expected: Describes the accepted values to the caller.
        accepts: Tells whether a value other than null is accepted.

    """

    def __init__(self, expected: str, accepts: Callable[[Any], bool], **kwargs: Any) -> None:
        words = f"{expected}, or null" if kwargs.get("allow_none") else expected
        messages: dict[str, Any] = {
            "required": f"Required: {words}.",
            "null": f"Expected {words}.",
            "invalid": f"Expected {words}.",
        }
        super().__init__(error_messages=messages, **kwargs)
        self.accepts = accepts

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        if not self.accepts(value):
            raise self.make_error("invalid")
        return value


class Identifier(Strict):
    """A UUID, in the form that it has in answers."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("a UUID", lambda value: isinstance(value, str) and bool(_UUID.fullmatch(value)), **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        return super()._deserialize(value, attr, data, **kwargs).lower()


class Reference(Strict):
    """An object of which only the id counts; its other members are ignored."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("an object with the member id", lambda value: isinstance(value, dict), **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        given = super()._deserialize(value, attr, data, **kwargs)
        return _REFERENCE.load(given)["id"]


class _ReferenceSchema(Schema):
    class Meta:
        unknown = "exclude"

    id = Identifier(required=True)


_REFERENCE: Final = _ReferenceSchema()


@dataclass(frozen=True, slots=True)
class CaseBody:
    """A parsed body: the valid values, and the errors.

    `values` has the body's values by the column to write, and `pointers` the JSON pointer of each.
    """

    values: Mapping[str, Any]
    pointers: Mapping[str, str]
    errors: list[Error]

    def check(self, *errors: Error) -> None:
        """Raise InvalidBodyError if the body has errors, or if further ones are given."""
        if self.errors or errors:
            raise invalid(*self.errors, *errors)


class Kind(NamedTuple):
    """A kind of body: the schema of its members, and the attributes that it ignores."""

    schema: Schema
    read_only: frozenset[str]
    is_partial: bool


def _strict(field: fields.Field[Any], *, required: bool) -> Strict:
    """Return the strict field that reads the attribute of a response's field."""
    limits = field.metadata
    given = {"allow_none": field.allow_none, "required": required}
    match field:
        case fields.Nested():
            return Reference(**given)
        case fields.UUID():
            return Identifier(**given)
        case fields.Boolean():
            return flag(**given)
        case fields.Integer():
            first, last = limits["minimum"], limits["maximum"]
            whole = f"a whole number from {first} to {last}"
            return Strict(whole, lambda value: type(value) is int and first <= value <= last, **given)
        case _ if "enum" in limits:
            return one_of([choice for choice in limits["enum"] if choice is not None], **given)
        case _:
            return text(limits.get("minLength", 0), limits["maxLength"], **given)


def text(shortest: int, longest: int, **given: Any) -> Strict:
    """Return a field for a text that can be stored, within limits of its length."""

    def accepts(value: Any) -> bool:
        return isinstance(value, str) and shortest <= len(value) <= longest and not _UNSTORABLE.search(value)

    length = f"{shortest} to {longest:,}" if shortest else f"at most {longest:,}"
    return Strict(f"a text of {length} characters, without U+0000 and lone surrogates", accepts, **given)


def flag(**given: Any) -> Strict:
    """Return a field for true or false."""
    return Strict("true or false", lambda value: isinstance(value, bool), **given)


def one_of(choices: Sequence[str], **given: Any) -> Strict:
    """Return a field for one of several texts."""
    return Strict(f"one of {', '.join(choices)}", lambda value: value in choices, **given)


def _kind(*, creates: bool, is_partial: bool = False) -> Kind:
    described = OrganizationCaseSchema().fields
    written = {
        name: _strict(field, required=not is_partial and field.metadata["editable"] == "required")
        for name, field in described.items()
        if field.metadata.get("editable") in ("required", "optional", *(["on creation"] if creates else []))
    }
    return Kind(Schema.from_dict(dict(written))(), frozenset(described) - frozenset(written), is_partial)


WHOLE: Final = _kind(creates=True)
"""The body of a new case, or of a replacement."""

CHANGE: Final = _kind(creates=False, is_partial=True)
"""The body of a change: attributes that it does not name stay as they are (RFC 7396)."""


def read_case_body(body: bytes, kind: Kind) -> CaseBody:
    """Parse the body of a write to a case.

    Raises:
        InvalidBodyError: It is no JSON object.

    """
    given = _parse(body)
    twice = [_error(path, "Expected once.") for path in _repeated(given)]
    asked = {name: value for name, value in given.items() if name not in kind.read_only}
    known = {name: value for name, value in asked.items() if name in kind.schema.fields}
    values, found = _load(kind.schema, known, is_partial=kind.is_partial)
    unknown = [_error((name,), "There is no such attribute.") for name in asked if name not in known]
    return _settled(values, [*found, *twice, *unknown])


def read_members(body: bytes, schema: Schema) -> dict[str, Any]:
    """Parse a body other than a case's by a schema.

    Raises:
        InvalidBodyError: It is no JSON object, or names each wrong member.

    """
    given = _parse(body)
    twice = [_error(path, "Expected once.") for path in _repeated(given)]
    known = {name: value for name, value in given.items() if name in schema.fields}
    values, found = _load(schema, known)
    unknown = [_error((name,), "There is no such member.") for name in given if name not in known]
    if errors := [*found, *twice, *unknown]:
        raise invalid(*errors)
    return values


def invalid(*errors: Error) -> InvalidBodyError:
    """Return the error for a body, with at most the first hundred errors."""
    return InvalidBodyError(errors=list(errors[:_MOST_ERRORS]))


def _load(schema: Schema, given: Mapping[str, Any], *, is_partial: bool = False) -> tuple[dict[str, Any], list[Error]]:
    """Return the values of a schema's fields, and the errors. `Schema.load` would also look for hooks: it has none."""
    values: dict[str, Any] = {}
    errors: list[Error] = []
    for name, field in schema.fields.items():
        if is_partial and name not in given:
            continue
        try:
            value = field.deserialize(given.get(name, missing), name, given)
        except ValidationError as error:
            errors += _errors((name,), error.messages)
        else:
            if value is not missing:
                values[name] = value
    return values, errors


def _errors(path: tuple[str, ...], messages: Any) -> Iterator[Error]:
    if isinstance(messages, dict):
        for name, inner in messages.items():
            yield from _errors((*path, name), inner)
    else:
        yield _error(path, messages[0])


def _settled(values: dict[str, Any], errors: list[Error]) -> CaseBody:
    """Move each nested object's id into its column, with an error if it differs from the id given beside it."""
    settled = {name: value for name, value in values.items() if name not in _COLUMN_OF}
    pointers = {name: f"/{name}" for name in settled}
    for name, column in _COLUMN_OF.items():
        if name not in values:
            continue
        if column in settled and settled[column] != values[name]:
            errors.append(_error((name, "id"), f"Expected the same id as in {column}, or one of the two."))
        elif column not in settled:
            settled[column] = values[name]
            pointers[column] = f"/{name}/id"
    return CaseBody(settled, pointers, errors)


_COLUMN_OF: Final = {
    name: f"{name}_id"
    for name, field in OrganizationCaseSchema().fields.items()
    if isinstance(field, fields.Nested) and "editable" in field.metadata
}


class _Object(dict[str, Any]):
    """A JSON object that remembers which names came more than once."""

    repeated: tuple[str, ...] = ()


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    made = _Object(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        made.repeated = tuple(dict.fromkeys(name for name, _ in pairs if name in seen or seen.add(name)))  # type: ignore[func-returns-value]
    return made


def _no_number(_text: str) -> Any:
    raise ValueError


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_number)


def _parse(body: bytes) -> dict[str, Any]:
    try:
        given = _DECODER.decode(body.decode())
    except (ValueError, RecursionError):
        # Not UTF-8, not JSON, a number of thousands of digits, or nested too deeply.
        raise invalid({"pointer": "", "detail": "Expected JSON in UTF-8."}) from None
    if not isinstance(given, dict):
        raise invalid({"pointer": "", "detail": "Expected an object."})
    return given


def _repeated(given: Any) -> Iterator[tuple[str, ...]]:
    """Yield the path of each name that an object has more than once, at any depth."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), given)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, _Object):
            yield from ((*path, name) for name in value.repeated)
            waiting += [((*path, name), inner) for name, inner in value.items()]
        elif isinstance(value, list):
            waiting += [((*path, str(index)), inner) for index, inner in enumerate(value)]


def _error(path: tuple[str, ...], detail: str) -> Error:
    return {"pointer": "".join(f"/{_escaped(name)}" for name in path), "detail": detail}


def _escaped(name: str) -> str:
    """Escape a name by RFC 6901, cut to a length, with U+FFFD for characters that cannot be stored."""
    text = _UNSTORABLE.sub("\ufffd", name[:_LONGEST_NAME])
    return text.replace("~", "~0").replace("/", "~1")
