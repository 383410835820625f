"""The load format: the types of lines, their fields, and the values of each field."""

import json
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from types import NoneType
from typing import Annotated, Any, ClassVar, Final, Literal, get_args, get_type_hints
from uuid import UUID, uuid5

import msgspec
from msgspec import UNSET, Meta, UnsetType

from cases_service.cases import timestamps as instants
from cases_service.credentials import algorithms, signing_keys
from cases_service.terminal import printable


def _text(maximum: int, *, minimum: int = 0) -> Meta:
    length = f"{minimum} to {maximum:,}" if minimum else f"at most {maximum:,}"
    return Meta(min_length=minimum, max_length=maximum, description=f"a text of {length} characters")


_UUID_PATTERN: Final = r"\A[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}\Z"

Uuid = Annotated[str, Meta(pattern=_UUID_PATTERN, description="a UUID: 36 characters, with dashes")]
# An id of the caller's own: a text that is not a UUID stands for one. See `own_id`.
Id = Annotated[str, _text(128, minimum=1)]
# The schema has the same bounds; a key's secret is stored encrypted, and longer.
Text = Annotated[str, _text(256)]
Name = Annotated[str, _text(256, minimum=1)]
Subject = Annotated[str, _text(1_000)]
Description = Annotated[str, _text(65_536)]
MessageText = Annotated[str, _text(10_000, minimum=1)]
Address = Annotated[str, _text(2_048)]
Secret = Annotated[str, _text(1_024)]
PublicKey = Annotated[str, _text(8_192)]
Flag = Annotated[bool, Meta(description="true or false")]
Time = Annotated[str, Meta(description=instants.EXPECTED)]
Position = Annotated[int, Meta(ge=-(2**31), lt=2**31, description="an integer of 32 bits")]
Count = Annotated[int, Meta(ge=0, lt=2**31, description="an integer from 0 to 2147483647")]
# Half of what `after` takes: a client can still continue from the positions that events to come get.
EventPosition = Annotated[int, Meta(ge=1, le=2**52, description="an integer from 1 to 4503599627370496")]
Priority = Annotated[int, Meta(ge=1, le=5, description="an integer from 1 to 5")]
ChannelPriority = Annotated[int, Meta(ge=1, le=4, description="an integer from 1 to 4")]
Channel = Annotated[Literal["email", "whatsapp", "webchat"], Meta(description="one of email, whatsapp, webchat")]
ActivityChannel = Annotated[
    Literal["telephony", "webchat", "whatsapp", "email"],
    Meta(description="one of telephony, webchat, whatsapp, email"),
]
SenderType = Annotated[Literal["visitor", "user", "system"], Meta(description="visitor, user or system")]
EventType = Annotated[
    Literal["message_created", "case_closed", "case_reopened", "case_read"],
    Meta(description="one of message_created, case_closed, case_reopened, case_read"),
]
Status = Annotated[
    Literal["Open", "In Progress", "Pending", "Closed"],
    Meta(description="Open, In Progress, Pending or Closed"),
]
SubscriptionStatus = Annotated[Literal["active", "inactive"], Meta(description="active or inactive")]
Algorithm = Annotated[
    Literal["HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "ES256", "ES384", "EdDSA"],
    Meta(description=f"one of {', '.join(algorithms.ALGORITHMS)}"),
]


class FieldError(Exception):
    """A line does not match the load format. Only its field names are quoted, never its values."""

    def __init__(self, field: str | None, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason


class Record(msgspec.Struct, tag_field="type", forbid_unknown_fields=True, kw_only=True, gc=False):
    """The fields of a line of one type. UNSET marks a field that the line leaves out; see `values`."""

    removable: ClassVar[bool] = False
    defaults: ClassVar[dict[str, Any]] = {}
    parents: ClassVar[dict[str, str]] = {}
    """The fields that refer to a row of the same organization, and its type."""
    mentions: ClassVar[dict[str, str]] = {}
    """The fields that hold an id of the same organization, and its type; the row need not exist."""

    def check(self, *, keeps: bool) -> None:
        """Raise FieldError if the fields contradict each other. A missing field may keep its stored value."""


class Organization(Record, tag="organization", kw_only=True):
    """A company. The other types refer to its `id` as `organization_id`."""

    id: Uuid
    name: Text
    subscription_status: SubscriptionStatus
    subscription_ends_at: Time | UnsetType | None = UNSET


class User(Record, tag="user", kw_only=True):
    """A person who works for an organization."""

    id: Id
    organization_id: Uuid | UnsetType = UNSET
    email: Text | UnsetType | None = UNSET
    first_name: Text | UnsetType | None = UNSET
    last_name: Text | UnsetType | None = UNSET
    alias: Text | UnsetType | None = UNSET
    title: Text | UnsetType | None = UNSET
    avatar_url: Address | UnsetType | None = UNSET


class SigningKey(Record, tag="signing_key", kw_only=True):
    """A key that verifies visitors' JWTs: a secret for HMAC, a public key for the other algorithms."""

    id: Uuid
    organization_id: Uuid | UnsetType = UNSET
    algorithm: Algorithm
    secret: Secret | UnsetType | None = UNSET
    public_key: PublicKey | UnsetType | None = UNSET
    retired_at: Time | UnsetType | None = UNSET

    def check(self, *, keeps: bool) -> None:
        """Raise FieldError unless there is key material of the one kind that the algorithm takes."""
        hmac = self.algorithm in algorithms.HMAC_ALGORITHMS
        wanted, other = ("secret", "public_key") if hmac else ("public_key", "secret")
        if getattr(self, other) not in (None, UNSET):
            raise FieldError(other, f"{self.algorithm} takes a {wanted} instead")
        if getattr(self, wanted) in (None, UNSET):
            raise FieldError(wanted, f"required for {self.algorithm}")
        try:
            if isinstance(self.secret, str):
                signing_keys.check_secret(self.secret)
            if isinstance(self.public_key, str):
                signing_keys.check_public_key(self.public_key, algorithm=self.algorithm)
        except signing_keys.KeyMaterialError as error:
            raise FieldError(wanted, str(error)) from None


class Visitor(Record, tag="visitor", kw_only=True):
    """A signed-in customer."""

    removable: ClassVar[bool] = True

    id: Id
    organization_id: Uuid | UnsetType = UNSET
    external_id: Name


class Contact(Record, tag="contact", kw_only=True):
    """One address or telephone number of a person."""

    removable: ClassVar[bool] = True
    parents: ClassVar[dict[str, str]] = {"visitor_id": "visitor"}

    id: Id
    organization_id: Uuid | UnsetType = UNSET
    visitor_id: Id | UnsetType | None = UNSET
    first_name: Text | UnsetType | None = UNSET
    last_name: Text | UnsetType | None = UNSET
    email: Text | UnsetType | None = UNSET
    phone: Text | UnsetType | None = UNSET
    created_at: Time | UnsetType | None = UNSET
    updated_at: Time | UnsetType | None = UNSET


class CaseFunnelStage(Record, tag="case_funnel_stage", kw_only=True):
    """A step in an organization's workflow of cases."""

    removable: ClassVar[bool] = True

    id: Id
    organization_id: Uuid | UnsetType = UNSET
    name: Text
    position: Position


class Case(Record, tag="case", kw_only=True):
    """A case."""

    removable: ClassVar[bool] = True
    defaults: ClassVar[dict[str, Any]] = {
        "is_waiting": False,
        "unread_message_count": 0,
        "visitor_unread_message_count": 0,
    }
    parents: ClassVar[dict[str, str]] = {
        "contact_id": "contact",
        "owner_id": "user",
        "created_by_user_id": "user",
        "updated_by_user_id": "user",
        "case_funnel_stage_id": "case_funnel_stage",
    }

    id: Id
    organization_id: Uuid | UnsetType = UNSET
    case_number: Name
    contact_id: Id | UnsetType | None = UNSET
    owner_id: Id | UnsetType | None = UNSET
    subject: Subject | UnsetType | None = UNSET
    description: Description | UnsetType | None = UNSET
    status: Status
    priority: Priority
    latest_messaging_channel: Channel | UnsetType | None = UNSET
    channel_priority: ChannelPriority | UnsetType | None = UNSET
    closed_at: Time | UnsetType | None = UNSET
    is_waiting: Flag | UnsetType = UNSET
    unread_message_count: Count | UnsetType = UNSET
    created_at: Time
    updated_at: Time
    created_by_user_id: Id | UnsetType | None = UNSET
    updated_by_user_id: Id | UnsetType | None = UNSET
    case_funnel_stage_id: Id | UnsetType | None = UNSET
    visitor_unread_message_count: Count | UnsetType = UNSET

    def check(self, *, keeps: bool) -> None:
        """Raise FieldError unless a closed case, and only a closed one, has a closing time."""
        if keeps and self.closed_at is UNSET:
            # A case that is already closed keeps its time, which only the database knows. An open one has none.
            self.closed_at = UNSET if self.status == "Closed" else None
            return
        if bool(self.closed_at) != (self.status == "Closed"):
            raise FieldError("closed_at", "a time is required where status is Closed, and null where it is not")


class Activity(Record, tag="activity", kw_only=True):
    """A conversation in a case, on one channel."""

    removable: ClassVar[bool] = True
    parents: ClassVar[dict[str, str]] = {"case_id": "case"}

    id: Id
    organization_id: Uuid | UnsetType = UNSET
    case_id: Id
    channel: ActivityChannel
    created_at: Time
    updated_at: Time | UnsetType | None = UNSET
    ended_at: Time | UnsetType | None = UNSET


class Message(Record, tag="message", kw_only=True):
    """One message of an activity."""

    removable: ClassVar[bool] = True
    parents: ClassVar[dict[str, str]] = {"activity_id": "activity", "sender_user_id": "user"}

    id: Id
    organization_id: Uuid | UnsetType = UNSET
    activity_id: Id
    sender_type: SenderType
    sender_user_id: Id | UnsetType | None = UNSET
    text: MessageText
    created_at: Time
    read_at: Time | UnsetType | None = UNSET
    is_private: Flag

    def check(self, *, keeps: bool) -> None:
        """Raise FieldError if the sender does not fit the message."""
        if self.sender_type == "visitor" and self.is_private:
            raise FieldError("is_private", "expected false: a visitor writes no notes")
        if self.sender_type == "user":
            return
        if self.sender_user_id not in (None, UNSET):
            raise FieldError("sender_user_id", "expected null: sender_type is not user")
        if keeps:
            # The stored user is kept only for a user's message.
            self.sender_user_id = None


class Event(Record, tag="event", kw_only=True):
    """An event of a visitor, at its position in the organization. It outlives its case and message."""

    mentions: ClassVar[dict[str, str]] = {"case_id": "case", "message_id": "message"}

    organization_id: Uuid | UnsetType = UNSET
    position: EventPosition
    event_type: EventType
    created_at: Time
    external_id: Name
    case_id: Id
    case_number: Name
    message_id: Id | UnsetType | None = UNSET

    def check(self, *, keeps: bool) -> None:
        """Raise FieldError unless an event about a message, and only such an event, names the message."""
        if (self.message_id not in (None, UNSET)) != (self.event_type == "message_created"):
            raise FieldError("message_id", "an id is required where event_type is message_created, and null elsewhere")


class Removal(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, gc=False):
    """The fields of a line that removes a row, for every type."""

    type: Literal["visitor", "contact", "case_funnel_stage", "case", "activity", "message"]
    id: Id
    organization_id: Uuid | UnsetType = UNSET
    deleted: Flag
    updated_at: Time | UnsetType = UNSET


class _Kind(msgspec.Struct, gc=False):
    """The type of a refused line, as far as it can be told."""

    type: Any = UNSET
    deleted: Any = UNSET


class _Whose(msgspec.Struct, gc=False):
    """Whose a refused line is, as far as it can be told."""

    type: Any = UNSET
    id: Any = UNSET
    organization_id: Any = UNSET


AnyRecord = Organization | User | SigningKey | Visitor | Contact | CaseFunnelStage | Case | Activity | Message | Event

RECORDS: Final[dict[str, type[Record]]] = {str(record.__struct_config__.tag): record for record in get_args(AnyRecord)}

_HINTS: Final = {shape: get_type_hints(shape, include_extras=True) for shape in (*RECORDS.values(), Removal)}
_TIMES: Final = {
    record: tuple(field for field, hint in _HINTS[record].items() if Time in (hint, *get_args(hint)))
    for record in RECORDS.values()
}
_DEFAULTS: Final = {
    record: [(record.__struct_fields__.index(field), default) for field, default in record.defaults.items()]
    for record in RECORDS.values()
}
_TYPE_OF: Final = {record: name for name, record in RECORDS.items()}
_IDS: Final = {
    record: (
        *((("id", name),) if "id" in record.__struct_fields__ else ()),
        *record.parents.items(),
        *record.mentions.items(),
    )
    for name, record in RECORDS.items()
}
"""The fields of each type that hold ids, each with the type it refers to."""
_UUID: Final = re.compile(_UUID_PATTERN)
_RECORD: Final[msgspec.json.Decoder[Record]] = msgspec.json.Decoder(AnyRecord)
_REMOVAL: Final = msgspec.json.Decoder(Removal)
_KIND: Final = msgspec.json.Decoder(_Kind)
_WHOSE: Final = msgspec.json.Decoder(_Whose)
_WRONG_FIELD: Final = re.compile(r" - at `\$\.(\w+)`\Z")
_TOO_LONG: Final = re.compile(r"of length <= (\d+)")
_MISSING: Final = re.compile(r"Object missing required field `(\w+)`")
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_NAME_SHOWN: Final = 64
_NUL: Final = "a NUL character (\\u0000) cannot be stored"
_HALF_PAIR: Final = re.compile("[\ud800-\udfff]")
_HALF_PAIR_WRITTEN: Final = re.compile(rb"\\u[dD][89a-fA-F]")


@dataclass(frozen=True, slots=True)
class Reading:
    """How lines are read.

    Attributes:
        organization_id: The organization of all lines, which may leave it out. None: each line names its own.
        types: The types allowed.
        keeps: Whether fields missing from a line keep their values if the row exists.

    """

    organization_id: str | None = None
    types: tuple[str, ...] = tuple(RECORDS)
    keeps: bool = False


def read_record(line: bytes, reading: Reading = Reading()) -> Record | Removal:
    """Return the record of a line of the load format, checked.

    Ids are UUIDs as texts, in either case; an id of the caller's own is replaced by the UUID that it stands for. Times
    become texts that PostgreSQL reads as the same instant; decimals beyond microseconds are cut off.

    Raises:
        FieldError: The line does not match the format.

    """
    try:
        record = _RECORD.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if b'"deleted"' in line and (removal := _removal(line)):
            _settle_ids(removal, reading)
            return removal
        raise _fault(line, error, reading.types) from None
    # By identity: comparing each value with UNSET, as `count` does, takes longer than decoding them.
    given = [value for value in msgspec.structs.astuple(record) if value is not UNSET]
    _refuse_repeated_names(line, len(("type",)) + len(given))
    for name in _TIMES[type(record)]:
        text = getattr(record, name)
        if isinstance(text, str) and (instant := _instant(name, text)) != text:
            setattr(record, name, instant)
    record.check(keeps=reading.keeps)
    if b"\\" in line and b"\\u0000" in line:
        _refuse_nul(record)
    _settle_ids(record, reading)
    return record


def own_id(organization_id: UUID, record_type: str, text: str) -> str:
    """Return the UUID that an id of the caller's own stands for: the same text always means the same row."""
    return str(uuid5(organization_id, f"{record_type}:{text}"))


def organization_of(record: Any) -> str:
    """Return the id of the organization that a record belongs to, or is."""
    organization_id: str = record.id if isinstance(record, Organization) else record.organization_id
    return organization_id


def organization_in(line: bytes) -> str | None:
    """Return the id of the organization that a refused line names, or None if it names none."""
    try:
        whose = _WHOSE.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    organization_id = whose.id if whose.type == "organization" else whose.organization_id
    return organization_id if isinstance(organization_id, str) and _UUID.match(organization_id) else None


def _settle_ids(record: Any, reading: Reading) -> None:
    """Give a record its organization, and replace ids of the caller's own by UUIDs."""
    record_type = record.type if isinstance(record, Removal) else _TYPE_OF[type(record)]
    if record_type not in reading.types:
        raise FieldError("type", f"expected one of {', '.join(reading.types)}")
    if isinstance(record, Organization):
        return
    if record.organization_id is UNSET:
        if reading.organization_id is None:
            raise FieldError("organization_id", "required")
        record.organization_id = reading.organization_id
    elif reading.organization_id is not None and record.organization_id.lower() != reading.organization_id:
        raise FieldError("organization_id", "another organization than the one that this is for")
    for field, whose in (("id", record_type),) if isinstance(record, Removal) else _IDS[type(record)]:
        _settle_id(record, field, whose)


def _settle_id(record: Any, field: str, record_type: str) -> None:
    text = getattr(record, field)
    if isinstance(text, str) and not _UUID.match(text):
        setattr(record, field, own_id(UUID(record.organization_id), record_type, text))


def left_out(record: Record) -> int:
    """Return the fields that a line leaves out, as bits counted from the first field."""
    return sum(1 << place for place, value in enumerate(msgspec.structs.astuple(record)) if value is UNSET)


def values(record: Record) -> list[Any]:
    """Return the values of a record in field order, with defaults for those that the line left out."""
    given = msgspec.structs.astuple(record)
    held = [None if value is UNSET else value for value in given]
    for place, default in _DEFAULTS[type(record)]:
        if given[place] is UNSET:
            held[place] = default
    return held


def _removal(line: bytes) -> Removal | None:
    """Return the removal in a line, or None if the line is not a valid removal."""
    try:
        removal = _REMOVAL.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not removal.deleted:
        raise FieldError("deleted", "expected true; a row that stays has no such field") from None
    given = [value for value in msgspec.structs.astuple(removal) if value is not UNSET]
    _refuse_repeated_names(line, len(given))
    if isinstance(removal.updated_at, str):
        removal.updated_at = _instant("updated_at", removal.updated_at)
    if "\0" in removal.id:
        raise FieldError("id", _NUL)
    return removal


def _fault(line: bytes, error: Exception, types: Collection[str]) -> FieldError:
    """Return the error of a line that msgspec refuses, without the values that msgspec quotes."""
    match error:
        case msgspec.ValidationError():
            return _fault_of_field(line, str(error), types)
        case RecursionError():
            return FieldError(None, "nested too deeply")
        case UnicodeDecodeError():
            return FieldError(None, "not a JSON object in UTF-8")
        case _:
            return _half_pair(line) or FieldError(None, f"not a JSON object ({error})")


def _fault_of_field(line: bytes, message: str, types: Collection[str]) -> FieldError:
    try:
        kind = _KIND.decode(line)
    except msgspec.ValidationError:
        return FieldError(None, "not a JSON object")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return _fault(line, error, types)
    record = RECORDS.get(kind.type) if isinstance(kind.type, str) else None
    if record is None or kind.type not in types:
        return FieldError("type", "required" if kind.type is UNSET else f"expected one of {', '.join(types)}")
    if kind.deleted is not UNSET:
        return _fault_of_removal(line, record)
    return _named(message, record, stranger="unknown field")


def _fault_of_removal(line: bytes, record: type[Record]) -> FieldError:
    if not record.removable:
        removable = ", ".join(name for name, record in RECORDS.items() if record.removable)
        return FieldError("deleted", f"only rows of these types can be removed: {removable}")
    try:
        _REMOVAL.decode(line)
    except msgspec.ValidationError as error:
        return _named(str(error), Removal, stranger="not a field of a line that deletes")
    return FieldError("deleted", "expected its name without escapes")


def _named(message: str, shape: type[msgspec.Struct], *, stranger: str) -> FieldError:
    """Return the reason in a msgspec message about a field."""
    if found := _UNKNOWN.fullmatch(message):
        return FieldError(_shown(found[1]), stranger)
    if found := _MISSING.fullmatch(message):
        return FieldError(found[1], "required")
    found = _WRONG_FIELD.search(message)
    name = found[1] if found else "type"
    if too_long := _TOO_LONG.search(message):
        return FieldError(name, f"longer than {int(too_long[1]):,} characters")
    return FieldError(name, "given twice" if name == "type" else f"expected {_expectation(_HINTS[shape][name])}")


def _expectation(hint: Any) -> str:
    if hasattr(hint, "__metadata__"):
        return str(hint.__metadata__[0].description)
    options = [option for option in get_args(hint) if option is not UnsetType]
    return " or ".join("null" if option is NoneType else _expectation(option) for option in options)


def _shown(name: str) -> str:
    """Return a name from a line, shortened and escaped so that the error stays on one line."""
    return printable(name)[:_NAME_SHOWN]


def _instant(name: str, text: str) -> str:
    try:
        return instants.to_postgres(text)
    except ValueError:
        raise FieldError(name, f"expected {instants.EXPECTED}") from None


def _half_pair(line: bytes) -> FieldError | None:
    """Return the field that holds a lone surrogate: JSON's grammar allows it, msgspec and UTF-8 do not."""
    try:
        fields = json.loads(line) if _HALF_PAIR_WRITTEN.search(line) else None
    except (ValueError, RecursionError):
        return None
    for name, value in fields.items() if isinstance(fields, dict) else ():
        if isinstance(value, str) and _HALF_PAIR.search(value):
            return FieldError(_shown(name), "half of a surrogate pair (\\ud800 to \\udfff) cannot be stored")
    return None


def _refuse_repeated_names(line: bytes, names: int) -> None:
    # Without white space, `":` ends each name and otherwise occurs only inside a text. So if there are no more
    # of them than distinct names, no name is repeated; if there are more, a closer look is needed.
    if line.translate(None, b" \t\r\n").count(b'":') == names:
        return
    pairs = json.loads(line, object_pairs_hook=tuple)
    name, times = Counter(name for name, _ in pairs).most_common(1)[0]
    if times > 1:
        raise FieldError(_shown(name), "given twice")


def _refuse_nul(record: Record) -> None:
    for name in record.__struct_fields__:
        value = getattr(record, name)
        if isinstance(value, str) and "\0" in value:
            raise FieldError(name, _NUL)
