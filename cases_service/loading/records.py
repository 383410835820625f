"""Knows the load format: the types of lines, their fields, and what each field may hold."""

import json
import math
from collections import Counter
from datetime import UTC, datetime
from types import NoneType
from typing import Annotated, Any, ClassVar, Final, Literal, get_args, get_type_hints

import msgspec
from msgspec import Meta

from cases_service.credentials import signing_keys

Id = Annotated[
    str,
    Meta(
        pattern=r"\A[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}\Z",
        description="a UUID: 36 characters, with dashes",
    ),
]
Text = Annotated[str, Meta(description="a text")]
Name = Annotated[str, Meta(min_length=1, max_length=256, description="a text of 1 to 256 characters")]
Flag = Annotated[bool, Meta(description="true or false")]
Time = Annotated[
    datetime,
    Meta(
        tz=True,
        description="a time in ISO 8601 with a zone, such as 2024-05-31T16:32:17.879Z, in years 1 to 9999",
    ),
]
Position = Annotated[int, Meta(ge=-(2**31), lt=2**31, description="an integer of 32 bits")]
Count = Annotated[int, Meta(ge=0, lt=2**31, description="an integer from 0 to 2147483647")]
Priority = Annotated[int, Meta(ge=1, le=5, description="an integer from 1 to 5")]
ChannelPriority = Annotated[int, Meta(ge=1, le=4, description="an integer from 1 to 4")]
Channel = Annotated[Literal["email", "whatsapp", "webchat"], Meta(description="one of email, whatsapp, webchat")]
Status = Annotated[
    Literal["Open", "In Progress", "Pending", "Closed"],
    Meta(description="Open, In Progress, Pending or Closed"),
]
SubscriptionStatus = Annotated[Literal["active", "inactive"], Meta(description="active or inactive")]
Algorithm = Annotated[
    Literal["HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "ES256", "ES384", "EdDSA"],
    Meta(description=f"one of {', '.join(signing_keys.ALGORITHMS)}"),
]


class FieldError(Exception):
    """A line is not as the load format has it. Of what the line holds, only names of fields are quoted."""

    def __init__(self, field: str | None, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason


class Record(msgspec.Struct, tag_field="type", forbid_unknown_fields=True, kw_only=True, gc=False):
    """What a line of one type holds. The class only checks: see `read_fields`."""

    removable: ClassVar[bool] = False

    id: Id

    def check(self) -> None:
        """Raise FieldError where the fields do not fit each other."""


class Organization(Record, tag="organization", kw_only=True):
    """A company. Its `id` is what the other types call `organization_id`."""

    name: Text
    subscription_status: SubscriptionStatus
    subscription_ends_at: Time | None = None


class User(Record, tag="user", kw_only=True):
    """A person who works for an organization."""

    organization_id: Id
    email: Text | None = None
    first_name: Text | None = None
    last_name: Text | None = None
    alias: Text | None = None
    title: Text | None = None
    avatar_url: Text | None = None


class SigningKey(Record, tag="signing_key", kw_only=True):
    """What verifies visitors' JWTs: a secret for HMAC, a public key for the other algorithms."""

    organization_id: Id
    algorithm: Algorithm
    secret: Text | None = None
    public_key: Text | None = None
    retired_at: Time | None = None

    def check(self) -> None:
        """Raise FieldError unless there is key material of the one kind that the algorithm takes."""
        hmac = self.algorithm in signing_keys.HMAC_ALGORITHMS
        wanted, other = ("secret", "public_key") if hmac else ("public_key", "secret")
        if getattr(self, other) is not None:
            raise FieldError(other, f"{self.algorithm} takes a {wanted} instead")
        if getattr(self, wanted) is None:
            raise FieldError(wanted, f"required for {self.algorithm}")
        try:
            if self.secret is not None:
                signing_keys.check_secret(self.secret)
            if self.public_key is not None:
                signing_keys.check_public_key(self.public_key, algorithm=self.algorithm)
        except signing_keys.KeyMaterialError as error:
            raise FieldError(wanted, str(error)) from None


class Visitor(Record, tag="visitor", kw_only=True):
    """A signed-in customer."""

    removable: ClassVar[bool] = True

    organization_id: Id
    external_id: Name


class Contact(Record, tag="contact", kw_only=True):
    """One way a person was met."""

    removable: ClassVar[bool] = True

    organization_id: Id
    visitor_id: Id | None = None
    first_name: Text | None = None
    last_name: Text | None = None
    email: Text | None = None
    phone: Text | None = None
    created_at: Time | None = None
    updated_at: Time | None = None


class CaseFunnelStage(Record, tag="case_funnel_stage", kw_only=True):
    """A step that an organization moves its cases through."""

    removable: ClassVar[bool] = True

    organization_id: Id
    name: Text
    position: Position


class Case(Record, tag="case", kw_only=True):
    """A case."""

    removable: ClassVar[bool] = True

    organization_id: Id
    case_number: Name
    contact_id: Id | None = None
    owner_id: Id | None = None
    subject: Text | None = None
    description: Text | None = None
    status: Status
    priority: Priority
    latest_messaging_channel: Channel | None = None
    channel_priority: ChannelPriority | None = None
    closed_at: Time | None = None
    is_waiting: Flag = False
    unread_message_count: Count = 0
    created_at: Time
    updated_at: Time
    created_by_user_id: Id | None = None
    updated_by_user_id: Id | None = None
    case_funnel_stage_id: Id | None = None

    def check(self) -> None:
        """Raise FieldError unless a closed case, and no other, says when it was closed."""
        if (self.closed_at is not None) != (self.status == "Closed"):
            raise FieldError("closed_at", "a time is required where status is Closed, and null where it is not")


class Deletion(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, gc=False):
    """What a line that removes a row holds, of whichever type."""

    type: Text
    id: Id
    organization_id: Id
    deleted: Flag


AnyRecord = Organization | User | SigningKey | Visitor | Contact | CaseFunnelStage | Case

RECORDS: Final[dict[str, type[Record]]] = {str(record.__struct_config__.tag): record for record in get_args(AnyRecord)}

_SHAPES: Final[tuple[type[msgspec.Struct], ...]] = (*RECORDS.values(), Deletion)
_HINTS: Final = {
    shape: {
        field.name: get_type_hints(shape, include_extras=True)[field.name] for field in msgspec.structs.fields(shape)
    }
    for shape in _SHAPES
}
_TIMES: Final = {
    name: tuple(field for field, hint in _HINTS[record].items() if Time in (hint, *get_args(hint)))
    for name, record in RECORDS.items()
}
_OBJECT: Final = msgspec.json.Decoder(dict[str, Any])
_RECORD: Final[msgspec.json.Decoder[Record]] = msgspec.json.Decoder(AnyRecord)
_LONGEST_TIME: Final = len("2015-08-31T16:32:17.879123Z")
_DIGITS_OF_64_BITS: Final = 19
_NAME_SHOWN: Final = 64
_HALF_PAIR: Final = frozenset(map(chr, range(0xD800, 0xE000)))


def read_fields(line: bytes) -> dict[str, Any]:
    """Return what stands in a line of the load format, by field, checked.

    Ids stay texts, in either case. Times become texts that PostgreSQL reads as the same instant; decimals
    beyond microseconds are cut off. `deleted` is there in a line that removes a row, and is true then.

    Raises:
        FieldError: The line is not as the format has it.

    """
    # Decoded twice: the record is what is checked; the object has the texts that COPY takes, and shows which
    # fields are there. This is faster than to check the object, or to make texts of the record's values.
    fields = _object(line)
    if "deleted" in fields:
        _check_deletion(fields)
    else:
        record = _record(line, fields)
        for name in _TIMES[fields["type"]]:
            if fields.get(name) is not None:
                fields[name] = _instant(name, fields[name])
        record.check()
    _refuse_repeated_names(line, fields)
    _refuse_nul(line, fields)
    return fields


def _object(line: bytes) -> dict[str, Any]:
    try:
        return _OBJECT.decode(line)
    except msgspec.ValidationError:
        pass
    except msgspec.DecodeError as error:
        raise _half_pair(line) or FieldError(None, f"not a JSON object ({error})") from None
    except UnicodeDecodeError:
        raise FieldError(None, "not a JSON object in UTF-8") from None
    except RecursionError:
        raise FieldError(None, "nested too deeply") from None
    raise _fault(_object_with_wide_numbers(line))


def _half_pair(line: bytes) -> FieldError | None:
    """Return which field holds half of a surrogate pair: JSON's grammar allows it, msgspec and UTF-8 do not."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return None
    for name, value in fields.items() if isinstance(fields, dict) else ():
        if isinstance(value, str) and not _HALF_PAIR.isdisjoint(value):
            return FieldError(_shown(name), "half of a surrogate pair (\\ud800 to \\udfff) cannot be stored")
    return None


def _object_with_wide_numbers(line: bytes) -> dict[str, Any]:
    """Return an object that has numbers outside of what msgspec takes, so that their field can be named."""
    try:
        fields = json.loads(line, parse_int=_bounded_int)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise FieldError(None, "not a JSON object")
    return fields


def _bounded_int(digits: str) -> float:
    return int(digits) if len(digits) < _DIGITS_OF_64_BITS else math.inf


def _record(line: bytes, fields: dict[str, Any]) -> Record:
    try:
        return _RECORD.decode(line)
    except msgspec.ValidationError:
        pass
    _refuse_repeated_names(line, fields)
    raise _fault(fields)


def _check_deletion(fields: dict[str, Any]) -> None:
    if not _record_type(fields).removable:
        removable = ", ".join(name for name, record in RECORDS.items() if record.removable)
        raise FieldError("deleted", f"only rows of these types can be removed: {removable}")
    if not _fits(fields, Deletion):
        raise _fault(fields)
    if not fields["deleted"]:
        raise FieldError("deleted", "expected true; a row that stays has no such field")


def _record_type(fields: dict[str, Any]) -> type[Record]:
    if "type" not in fields:
        raise FieldError("type", "required")
    name = fields["type"]
    if not isinstance(name, str) or name not in RECORDS:
        raise FieldError("type", f"expected one of {', '.join(RECORDS)}")
    return RECORDS[name]


def _fault(fields: dict[str, Any]) -> FieldError:
    """Return what is wrong with an object that is no line of the format. msgspec would quote values."""
    record = _record_type(fields)
    shape, stranger = (
        (Deletion, "not a field of a line that deletes") if "deleted" in fields else (record, "unknown field")
    )
    hints = _HINTS[shape]
    for name in fields:
        if name not in hints and name != "type":
            return FieldError(_shown(name), stranger)
    for field in msgspec.structs.fields(shape):
        if field.required and field.name not in fields:
            return FieldError(field.name, "required")
    for name, value in fields.items():
        if name != "type" and not _fits(value, hints[name]):
            return FieldError(name, f"expected {_expectation(hints[name])}")
    return FieldError(None, f"not a line of type {fields['type']}")


def _fits(value: Any, hint: Any) -> bool:
    try:
        msgspec.convert(value, hint)
    except msgspec.ValidationError:
        return False
    return True


def _expectation(hint: Any) -> str:
    if hasattr(hint, "__metadata__"):
        return str(hint.__metadata__[0].description)
    return " or ".join("null" if option is NoneType else _expectation(option) for option in get_args(hint))


def _shown(name: str) -> str:
    """Return a name from a line in a form that keeps an error on one line of sane length."""
    return (name if name.isprintable() else ascii(name)[1:-1])[:_NAME_SHOWN]


def _instant(name: str, text: str) -> str:
    if text[-1] == "Z" and len(text) <= _LONGEST_TIME:
        return text
    try:
        # Cuts decimals beyond microseconds off, where msgspec and PostgreSQL would round.
        return datetime.fromisoformat(text.upper()).astimezone(UTC).isoformat()
    except (ValueError, OverflowError):
        raise FieldError(name, f"expected {_expectation(Time)}") from None


def _refuse_repeated_names(line: bytes, fields: dict[str, Any]) -> None:
    # Without white space, `":` ends each name and stands elsewhere only inside a text. So where these are no
    # more than there are different names, no name comes twice; where they are more, it takes a closer look.
    if line.translate(None, b" \t\r\n").count(b'":') == len(fields):
        return
    try:
        pairs = json.loads(line, object_pairs_hook=tuple)
    except RecursionError:
        raise FieldError(None, "nested too deeply") from None
    name, times = Counter(name for name, _ in pairs).most_common(1)[0]
    if times > 1:
        raise FieldError(_shown(name), "given twice")


def _refuse_nul(line: bytes, fields: dict[str, Any]) -> None:
    if b"\\u0000" in line:
        for name, value in fields.items():
            if isinstance(value, str) and "\0" in value:
                raise FieldError(name, "a NUL character (\\u0000) cannot be stored")
