"""Parses query parameters strictly: names every wrong, empty, unknown or repeated one. Only lists may be repeated."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

from marshmallow import RAISE, Schema, ValidationError, fields, post_load, validate

from cases_service.cases import timestamps as instants
from cases_service.cases.filters import CHANNELS, PRIORITIES, STATUSES, Filters
from cases_service.cases.schemas import CASE_ATTRIBUTES, says
from cases_service.errors import InvalidParameterError
from cases_service.store.cases import ORDERINGS

DEFAULT_PAGE_SIZE: Final = 25
MAXIMUM_PAGE_SIZE: Final = 100
# The largest integer that JSON numbers hold exactly in every program.
MAXIMUM_POSITION: Final = 2**53 - 1
_NAME_LENGTH: Final = 64
# Each says what is accepted; for the thousands of names that fit into a URL, that would be a megabyte.
_MOST_ERRORS: Final = 32


class WholeNumber(fields.Integer):
    """A number within limits, in ASCII digits only, without sign, blanks or leading zeros."""

    def __init__(self, minimum: int, maximum: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.limits = range(minimum, maximum + 1)
        self.error_messages["invalid"] = f"Expected a whole number from {minimum} to {maximum}."

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> int:
        if not re.fullmatch(r"0|[1-9][0-9]{0,18}", value) or int(value) not in self.limits:
            raise self.make_error("invalid")
        return int(value)


class CommaSeparated(fields.Field[Any]):
    """A list of known values, separated by commas or in repeated parameters."""

    def __init__(self, choices: Iterable[object], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.choices = {str(choice): choice for choice in choices}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> frozenset[Any]:
        items = value.split(",")
        if not all(item in self.choices for item in items):
            raise ValidationError(
                f"Expected one or more of {', '.join(self.choices)}, separated by commas or repeated."
            )
        return frozenset(self.choices[item] for item in items)


class Flag(fields.Boolean):
    """`true` or `false`, and no other spelling."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> bool:
        if value not in ("true", "false"):
            raise ValidationError("Expected true or false.")
        return bool(value == "true")


class Moment(fields.Field[int]):
    """A point in time with a zone, as microseconds since 1970."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> int:
        try:
            return instants.to_microseconds(value)
        except ValueError:
            raise ValidationError("Expected a date-time with a zone, such as 2026-01-31T09:30:00Z.") from None


class Parameters(Schema):
    """The parameters of every endpoint. Unknown ones are errors."""

    class Meta:
        """Marshmallow's options: unknown names are errors."""

        unknown = RAISE

    format = fields.String(
        validate=validate.OneOf(["json"], error="Expected json, the only format."),
        metadata=says("The format of the answer; there is one."),
    )


def _page_size(things: str) -> WholeNumber:
    return WholeNumber(
        1,
        MAXIMUM_PAGE_SIZE,
        load_default=DEFAULT_PAGE_SIZE,
        metadata=says(f"The maximum number of {things} on a page."),
    )


def _cursor() -> fields.String:
    return fields.String(
        load_default=None,
        validate=validate.Length(min=1, error="Expected the cursor of a link next or previous."),
        metadata=says("The place to continue from, from a link `next` or `previous`. Follow the links unchanged."),
    )


class ConversationParameters(Parameters):
    """The parameters of a page of a case's activities or messages."""

    ordering = fields.String(
        load_default="created_at",
        validate=validate.OneOf(("created_at", "-created_at"), error="Expected one of {choices}."),
        metadata=says("The order; `-` is newest first. Ties are broken by `id`."),
    )
    page_size = _page_size("activities or messages")
    cursor = _cursor()


class EventParameters(Parameters):
    """The parameters of a page of events."""

    after = WholeNumber(
        0,
        MAXIMUM_POSITION,
        load_default=0,
        metadata=says("The position to continue from: `last` of the previous answer. Without it, the beginning."),
    )
    page_size = _page_size("events")


def _attributes() -> CommaSeparated:
    return CommaSeparated(
        CASE_ATTRIBUTES,
        data_key="fields",
        load_default=None,
        metadata=says(
            "The attributes that a case has in the answer, in their documented order. Without it, all."
            " With it, the answer is a `PartialCase` or a `PageOfPartialCases`."
        ),
    )


class DetailParameters(Parameters):
    """The parameters of one case."""

    attributes = _attributes()


class ImportParameters(Parameters):
    """The parameters of an import."""

    mode = fields.String(
        load_default="all",
        validate=validate.OneOf(["all", "each"], error="Expected all or each."),
        metadata=says("`all`: every line or none. `each`: the right lines are stored, and the wrong ones reported."),
    )
    if_newer = Flag(
        load_default=False,
        metadata=says(
            "Whether a contact or case, or its removal, counts only if its `updated_at` is later than the stored one."
        ),
    )
    left_out = fields.String(
        load_default="null",
        validate=validate.OneOf(["null", "keep"], error="Expected null or keep."),
        metadata=says("What happens to fields that a line leaves out: they become `null`, or `keep` their values."),
    )


class FilterParameters(Parameters):
    """The parameters that filter a visitor's cases. They load as one value, `filters`."""

    status = CommaSeparated(STATUSES, load_default=None, metadata=says("Only cases with one of these statuses."))
    is_closed = Flag(load_default=None, metadata=says("Only closed cases, or only those that are not."))
    priority = CommaSeparated(PRIORITIES, load_default=None, metadata=says("Only cases with one of these priorities."))
    latest_messaging_channel = CommaSeparated(
        CHANNELS,
        load_default=None,
        metadata=says(
            "Only cases whose latest message came through one of these channels; `null` for those without a message."
        ),
    )
    created_since = Moment(load_default=None, metadata=says("Only cases created at this time or later."))
    created_until = Moment(load_default=None, metadata=says("Only cases created before this time."))
    updated_since = Moment(load_default=None, metadata=says("Only cases last changed at this time or later."))
    updated_until = Moment(load_default=None, metadata=says("Only cases last changed before this time."))

    @post_load
    def _gather(self, parameters: dict[str, Any], **_: Any) -> dict[str, Any]:
        filters = Filters(
            statuses=parameters.pop("status"),
            is_closed=parameters.pop("is_closed"),
            priorities=parameters.pop("priority"),
            channels=parameters.pop("latest_messaging_channel"),
            created_since=parameters.pop("created_since"),
            created_until=parameters.pop("created_until"),
            updated_since=parameters.pop("updated_since"),
            updated_until=parameters.pop("updated_until"),
        )
        return {**parameters, "filters": filters}


class CollectionParameters(FilterParameters):
    """The parameters of a page of cases."""

    ordering = fields.String(
        load_default="created_at",
        validate=validate.OneOf(ORDERINGS, error="Expected one of {choices}."),
        metadata=says("The order; `-` is newest first. Ties are broken by `id`."),
    )
    page_size = _page_size("cases")
    cursor = _cursor()
    attributes = _attributes()


class ImportRunParameters(Parameters):
    """The parameters of the latest loads and imports."""

    page_size = WholeNumber(
        1, MAXIMUM_PAGE_SIZE, load_default=DEFAULT_PAGE_SIZE, metadata=says("The maximum number of results.")
    )


@lru_cache(maxsize=256)
def read_parameters(schema: Schema, query: bytes) -> Mapping[str, Any]:
    """Return the parameters of a query string by a schema. Results are cached by the string.

    Raises:
        InvalidParameterError: It names each wrong parameter (the first ones, if there are very many) and what it
            accepts.

    """
    given = _pairs(query)
    known = [field.data_key or name for name, field in schema.load_fields.items()]
    lists = {field.data_key or name for name, field in schema.load_fields.items() if isinstance(field, CommaSeparated)}
    times = Counter(name for name, _ in given)
    errors = {name: "Expected once." for name in known if times[name] > 1 and name not in lists}
    joined = {name: ",".join(value for other, value in given if other == name) for name in lists & times.keys()}
    try:
        parameters: dict[str, Any] = schema.load(dict(given) | joined)
    except ValidationError as error:
        for name, messages in error.messages_dict.items():
            unknown = f"Unknown parameter. The parameters are: {', '.join(known)}."
            errors.setdefault(name, messages[0] if name in known else unknown)
        parameters = {}
    if errors:
        # Known names first, then the caller's order.
        wrong = sorted((name for name in dict(given) if name in errors), key=lambda name: name not in known)
        found = [{"parameter": name[:_NAME_LENGTH], "detail": errors[name]} for name in wrong]
        raise InvalidParameterError(errors=found[:_MOST_ERRORS])
    return MappingProxyType(parameters)


@lru_cache(maxsize=256)
def without_cursor(query: bytes) -> str:
    """Return a query string that `read_parameters` accepted, without its cursor, for a link to another page."""
    return urlencode([(name, value) for name, value in _pairs(query) if name != "cursor"])


def _pairs(query: bytes) -> list[tuple[str, str]]:
    return parse_qsl(query.decode("utf-8", "replace"), keep_blank_values=True)
