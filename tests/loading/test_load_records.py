import json
import tracemalloc
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid5

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_ec_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from cases_service.cases import timestamps as instants
from cases_service.credentials import algorithms
from cases_service.loading.outcome import IMPORTED_TYPES
from cases_service.loading.records import (
    RECORDS,
    FieldError,
    Reading,
    Record,
    Removal,
    left_out,
    organization_of,
    read_record,
    values,
)

ORGANIZATION_ID = "53b97666-d364-5ae6-931e-d7745d57c1ac"
ID = "4e2eaa46-e7cc-5813-837c-3179d9be3031"
OTHER_ID = "2b90f673-d7d7-58ab-a9dd-3fb6d2d31420"
TIME = "2018-06-26T14:58:54.123456Z"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SECRET = "correct horse battery staple, and then some"
REQUIRED: dict[str, dict[str, Any]] = {
    "organization": {"id": ID, "name": "Acme", "subscription_status": "active"},
    "user": {"id": ID, "organization_id": ORGANIZATION_ID},
    "signing_key": {"id": ID, "organization_id": ORGANIZATION_ID, "algorithm": "HS256"},
    "visitor": {"id": ID, "organization_id": ORGANIZATION_ID, "external_id": "ada"},
    "contact": {"id": ID, "organization_id": ORGANIZATION_ID},
    "case_funnel_stage": {"id": ID, "organization_id": ORGANIZATION_ID, "name": "Intake", "position": 1},
    "case": {
        "id": ID,
        "organization_id": ORGANIZATION_ID,
        "case_number": "1",
        "status": "Open",
        "priority": 3,
        "created_at": TIME,
        "updated_at": TIME,
    },
    "activity": {
        "id": ID,
        "organization_id": ORGANIZATION_ID,
        "case_id": OTHER_ID,
        "channel": "email",
        "created_at": TIME,
    },
    "message": {
        "id": ID,
        "organization_id": ORGANIZATION_ID,
        "activity_id": OTHER_ID,
        "sender_type": "user",
        "text": "Hello",
        "created_at": TIME,
        "is_private": False,
    },
    "event": {
        "organization_id": ORGANIZATION_ID,
        "position": 1,
        "event_type": "case_read",
        "created_at": TIME,
        "external_id": "ada",
        "case_id": OTHER_ID,
        "case_number": "1",
    },
}
OPTIONAL: dict[str, dict[str, Any]] = {
    "organization": {"subscription_ends_at": TIME},
    "user": dict.fromkeys(("email", "first_name", "last_name", "alias", "title", "avatar_url"), "text"),
    "signing_key": {"retired_at": TIME},
    "visitor": {},
    "contact": {
        **dict.fromkeys(("first_name", "last_name", "email", "phone"), "text"),
        "visitor_id": OTHER_ID,
        "created_at": TIME,
        "updated_at": TIME,
    },
    "case_funnel_stage": {},
    "case": {
        **dict.fromkeys(("subject", "description"), "text"),
        **dict.fromkeys(("contact_id", "owner_id", "created_by_user_id", "updated_by_user_id"), OTHER_ID),
        "case_funnel_stage_id": OTHER_ID,
        "latest_messaging_channel": "email",
        "channel_priority": 4,
    },
    "activity": {"updated_at": TIME, "ended_at": TIME},
    "message": {"sender_user_id": OTHER_ID, "read_at": TIME},
    "event": {},
}
NOT_NULL_WITH_DEFAULT = {"is_waiting": True, "unread_message_count": 7, "visitor_unread_message_count": 7}
REQUIRED_FIELDS = [(name, field) for name, fields in REQUIRED.items() for field in fields]
NULLABLE_FIELDS = [(name, field) for name, fields in OPTIONAL.items() for field in fields]
IDS = [
    (name, field)
    for name in RECORDS
    for field in (*REQUIRED[name], *OPTIONAL[name])
    if field == "id" or field.endswith("_id")
    if field != "external_id"
]
UUIDS = [one for one in IDS if one[1] == "organization_id" or one[0] in ("organization", "signing_key")]
OWN_IDS = [one for one in IDS if one not in UUIDS]
TEXTS = [
    *[(name, field) for name in RECORDS for field, value in OPTIONAL[name].items() if value == "text"],
    ("organization", "name"),
    ("visitor", "external_id"),
    ("case_funnel_stage", "name"),
    ("case", "case_number"),
    ("message", "text"),
    ("event", "external_id"),
    ("event", "case_number"),
]
TIMES = [
    *[(name, field) for name in RECORDS for field, value in (REQUIRED[name] | OPTIONAL[name]).items() if value == TIME],
    ("case", "closed_at"),
]


def line(record_type: str, **fields: Any) -> bytes:
    """Return a line with all required fields and these."""
    material = {"secret": SECRET} if record_type == "signing_key" else {}
    return json.dumps({"type": record_type, **REQUIRED[record_type], **material, **fields}).encode()


def case(**fields: Any) -> bytes:
    return line("case", **fields)


def read_fields(content: bytes) -> dict[str, Any]:
    """Return what a line holds, by field, with what stands for the fields that it leaves out."""
    record = read_record(content)
    if isinstance(record, Removal):
        held = msgspec.structs.asdict(record)
        return {name: value for name, value in held.items() if value is not msgspec.UNSET}
    return {"type": record.__struct_config__.tag, **dict(zip(record.__struct_fields__, values(record), strict=True))}


def refusal(content: bytes) -> tuple[str | None, str]:
    """Return the field and the reason that a line is refused with."""
    with pytest.raises(FieldError) as caught:
        read_fields(content)
    return caught.value.field, caught.value.reason


def refused_field(content: bytes) -> str | None:
    return refusal(content)[0]


def without(content: bytes, field: str) -> bytes:
    fields = json.loads(content)
    del fields[field]
    return json.dumps(fields).encode()


def public_pem(private_key: Any) -> str:
    pem: bytes = private_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem.decode()


@pytest.mark.parametrize("record_type", RECORDS)
def test_the_required_fields_make_a_line(record_type: str) -> None:
    fields = read_fields(line(record_type))

    assert fields["type"] == record_type
    assert REQUIRED[record_type].items() <= fields.items()


@pytest.mark.parametrize("record_type", RECORDS)
def test_every_field_of_the_contract_is_known(record_type: str) -> None:
    more = {**OPTIONAL[record_type], **(NOT_NULL_WITH_DEFAULT if record_type == "case" else {})}

    assert more.items() <= read_fields(line(record_type, **more)).items()


@pytest.mark.parametrize(("record_type", "field"), REQUIRED_FIELDS)
def test_a_required_field_may_not_be_left_out(record_type: str, field: str) -> None:
    assert refusal(without(line(record_type), field)) == (field, "required")


@pytest.mark.parametrize(("record_type", "field"), REQUIRED_FIELDS)
def test_a_required_field_may_not_be_null(record_type: str, field: str) -> None:
    assert refused_field(line(record_type, **{field: None})) == field


@pytest.mark.parametrize(("record_type", "field"), NULLABLE_FIELDS)
def test_a_nullable_field_may_be_null(record_type: str, field: str) -> None:
    assert read_fields(line(record_type, **{field: None}))[field] is None


@pytest.mark.parametrize("field", NOT_NULL_WITH_DEFAULT)
def test_a_field_with_a_default_may_be_left_out_but_not_null(field: str) -> None:
    assert read_fields(case())[field] in (False, 0)
    assert refused_field(case(**{field: None})) == field


@pytest.mark.parametrize("record_type", RECORDS)
def test_an_unknown_field_is_named(record_type: str) -> None:
    assert refusal(line(record_type, colour="red")) == ("colour", "unknown field")


def test_an_attribute_of_the_api_that_is_no_field_of_the_format_is_unknown() -> None:
    assert refusal(case(is_closed=False)) == ("is_closed", "unknown field")


def test_the_name_of_an_unknown_field_is_shown_on_one_line_of_sane_length() -> None:
    field = refused_field(case(**{"line\n\x1b[31m" + "x" * 1000: 1}))

    assert field is not None
    assert field.isprintable()
    assert field.startswith(r"line\n\x1b[31mxxx")
    assert len(field) == 64


@pytest.mark.parametrize("value", ["tickets", "Case", "", None, 1, ["case"]])
def test_an_unknown_type_is_refused_with_those_that_are_known(value: Any) -> None:
    field, reason = refusal(case(type=value))

    assert field == "type"
    assert reason == (
        "expected one of organization, user, signing_key, visitor, contact, case_funnel_stage, case, activity, message,"
        " event"
    )


def test_a_line_without_a_type_is_refused() -> None:
    assert refusal(without(case(), "type")) == ("type", "required")


@pytest.mark.parametrize("content", [b"[]", b"[1, 2]", b'"case"', b"3", b"null", b"true", b"1e999", b"[" * 100_000])
def test_a_line_that_is_no_object_is_refused(content: bytes) -> None:
    assert refusal(content) == (None, "not a JSON object")


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"}",
        b"case",
        b"{'type': 'case'}",
        b'{"type": "case",}',
        case() + b" " + case(),
        case() + b", ",
        b'{"type": NaN}',
        b'{"type": "a\tb"}',
        b'{"type": "a\x00b"}',
        b"\xff\xfe{\x00}\x00",
        b'\xef\xbb\xbf{"type": "case"}',
    ],
)
def test_a_line_that_is_not_json_is_refused(content: bytes) -> None:
    field, reason = refusal(content)

    assert field is None
    assert reason.startswith("not a JSON object (")


@pytest.mark.parametrize("text", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\x80", b"\xf5\x80\x80\x80"])
def test_a_line_that_is_not_utf_8_is_refused(text: bytes) -> None:
    broken = case(subject="HERE").replace(b"HERE", text)

    assert refusal(broken) == (None, "not a JSON object in UTF-8")


@pytest.mark.parametrize("depth", [1, 500, 990, 100_000])
def test_a_nested_value_is_refused_however_deep(depth: int) -> None:
    nested = b"[" * depth + b"]" * depth

    assert refusal(case(subject="HERE").replace(b'"HERE"', nested)) in [
        ("subject", "expected a text of at most 1,000 characters or null"),
        (None, "nested too deeply"),
    ]
    assert refusal(b'{"x": ' + nested + b"," + case()[1:]) in [
        ("x", "unknown field"),
        (None, "nested too deeply"),
    ]


@pytest.mark.parametrize("second", ['"case"', '"visitor"', '"nothing"'])
def test_a_type_that_is_given_twice_is_refused(second: str) -> None:
    assert refusal(case()[:-1] + f', "type": {second}}}'.encode()) in [
        ("type", "given twice"),
        ("type", refusal(case(type="nothing"))[1]),
    ]


@pytest.mark.parametrize("name", ['"subject":', '"subject" :', '"subject"\t:', '"subject"\r:', r'"s\u0075bject":'])
@pytest.mark.parametrize("value", ['"b"', "null", '"\\":\\":"'])
def test_a_name_that_is_given_twice_is_refused(name: str, value: str) -> None:
    assert refusal(case(subject="a")[:-1] + f", {name} {value}}}".encode()) == ("subject", "given twice")


def test_a_name_that_is_given_twice_is_refused_where_one_of_its_values_is_wrong() -> None:
    assert refused_field(case(priority=9)[:-1] + b', "priority": 3}') == "priority"


@pytest.mark.parametrize("text", ['":', '"subject":', 'a":"b', '\\":', '" :', "\\\\"])
def test_a_text_that_looks_like_a_name_is_no_name(text: str) -> None:
    assert read_fields(case(subject=text))["subject"] == text


@pytest.mark.parametrize(("record_type", "field"), TEXTS)
def test_a_nul_is_refused_in_every_text(record_type: str, field: str) -> None:
    assert refusal(line(record_type, **{field: "a\0b"})) == (
        field,
        "a NUL character (\\u0000) cannot be stored",
    )


@pytest.mark.parametrize("half", ["\\ud800", "\\udfff", "\\udc00\\ud800", "\\ud800x"])
@pytest.mark.parametrize(("record_type", "field"), TEXTS)
def test_half_of_a_surrogate_pair_is_refused_in_every_text(record_type: str, field: str, half: str) -> None:
    assert refusal(line(record_type, **{field: "HERE"}).replace(b"HERE", half.encode())) == (
        field,
        "half of a surrogate pair (\\ud800 to \\udfff) cannot be stored",
    )


def test_a_backslash_before_u0000_is_no_nul() -> None:
    assert read_fields(case(subject="\\u0000"))["subject"] == "\\u0000"


@pytest.mark.parametrize(("record_type", "field"), TEXTS)
@pytest.mark.parametrize("value", [1, 1.5, True, ["a"], {"a": 1}])
def test_a_text_is_nothing_else(record_type: str, field: str, value: Any) -> None:
    assert refused_field(line(record_type, **{field: value})) == field


@pytest.mark.parametrize(("record_type", "field"), UUIDS)
@pytest.mark.parametrize(
    "value",
    [
        "4e2eaa46e7cc5813837c3179d9be3031",
        "{4e2eaa46-e7cc-5813-837c-3179d9be3031}",
        "urn:uuid:4e2eaa46-e7cc-5813-837c-3179d9be3031",
        "4e2eaa46-e7cc-5813-837c-3179d9be303",
        "4e2eaa46-e7cc-5813-837c-3179d9be30312",
        "4e2eaa46-e7cc-5813-837c-3179d9be303g",
        "4e2eaa46-e7cc-5813-837c-3179d9be303\uff11",
        "4e2eaa46-e7cc-5813-837c3179-d9be3031",
        " 4e2eaa46-e7cc-5813-837c-3179d9be3031",
        "4e2eaa46-e7cc-5813-837c-3179d9be3031\n",
        "",
        1,
    ],
)
def test_a_uuid_has_the_form_of_36_characters_with_dashes(record_type: str, field: str, value: Any) -> None:
    assert refused_field(line(record_type, **{field: value})) == field


@pytest.mark.parametrize(("record_type", "field"), OWN_IDS)
@pytest.mark.parametrize("text", ["1", "35436", "4e2eaa46e7cc5813837c3179d9be3031", ID + " ", "\u00e9\n", "x" * 128])
def test_an_id_that_is_no_uuid_stands_for_one_of_its_organization_and_type(
    record_type: str, field: str, text: str
) -> None:
    record = RECORDS[record_type]
    kind = (record.parents | record.mentions).get(field, record_type)
    expected = str(uuid5(UUID(ORGANIZATION_ID), f"{kind}:{text}"))
    assert read_fields(line(record_type, **{field: text}))[field] == expected


@pytest.mark.parametrize(
    ("field", "kind"),
    [
        ("contact_id", "contact"),
        ("owner_id", "user"),
        ("created_by_user_id", "user"),
        ("updated_by_user_id", "user"),
        ("case_funnel_stage_id", "case_funnel_stage"),
    ],
)
def test_a_reference_by_an_own_id_is_the_id_of_that_row(field: str, kind: str) -> None:
    assert read_fields(case(**{field: "7"}))[field] == read_fields(line(kind, id="7"))["id"]


def test_an_own_id_is_not_the_same_row_in_another_organization() -> None:
    other = {"id": "7", "organization_id": str(UUID(int=1))}
    assert read_fields(case(id="7"))["id"] != read_fields(case(**other))["id"]


def test_a_removal_takes_own_ids() -> None:
    removal = {"type": "case", "id": "7", "organization_id": ORGANIZATION_ID.upper(), "deleted": True}
    assert read_fields(json.dumps(removal).encode())["id"] == read_fields(case(id="7"))["id"]


@pytest.mark.parametrize(("record_type", "field"), OWN_IDS)
@pytest.mark.parametrize("value", ["", "x" * 129, 7, True, ["7"]])
def test_an_own_id_is_a_text_of_1_to_128_characters(record_type: str, field: str, value: Any) -> None:
    assert refused_field(line(record_type, **{field: value})) == field


@pytest.mark.parametrize("field", ["id", "contact_id"])
def test_an_own_id_holds_no_nul(field: str) -> None:
    assert refused_field(case(**{field: "a\0"})) == field


def test_a_removal_by_an_own_id_with_a_nul_is_refused() -> None:
    removal = {"type": "case", "id": "a\0", "organization_id": ORGANIZATION_ID, "deleted": True}
    assert refused_field(json.dumps(removal).encode()) == "id"


class TestForOneOrganization:
    reading = Reading(organization_id=ORGANIZATION_ID, types=IMPORTED_TYPES)

    def refused(self, content: bytes) -> tuple[str | None, str]:
        with pytest.raises(FieldError) as caught:
            read_record(content, self.reading)
        return caught.value.field, caught.value.reason

    @pytest.mark.parametrize("record_type", IMPORTED_TYPES)
    def test_a_line_may_leave_the_organization_out(self, record_type: str) -> None:
        record = read_record(without(line(record_type), "organization_id"), self.reading)
        assert organization_of(record) == ORGANIZATION_ID

    def test_a_line_may_name_it_in_capitals(self) -> None:
        content = line("user", organization_id=ORGANIZATION_ID.upper())
        assert organization_of(read_record(content, self.reading)).lower() == ORGANIZATION_ID

    @pytest.mark.parametrize("record_type", IMPORTED_TYPES)
    def test_a_line_of_another_one_is_refused(self, record_type: str) -> None:
        field, reason = self.refused(line(record_type, organization_id=OTHER_ID))
        assert (field, reason) == ("organization_id", "another organization than the one that this is for")

    @pytest.mark.parametrize(
        "content", [line("organization"), line("signing_key", secret=SECRET), line("event"), b'{"type": "x"}']
    )
    def test_a_line_of_another_type_is_refused(self, content: bytes) -> None:
        assert self.refused(content) == ("type", f"expected one of {', '.join(IMPORTED_TYPES)}")


def test_a_removal_may_say_when() -> None:
    removal = {"type": "case", "id": ID, "organization_id": ORGANIZATION_ID, "deleted": True}
    assert read_fields(json.dumps({**removal, "updated_at": "2018-06-26T14:58:54.1234567Z"}).encode()) == {
        **removal,
        "updated_at": "2018-06-26T14:58:54.123456+00:00",
    }
    assert refused_field(json.dumps({**removal, "updated_at": "now"}).encode()) == "updated_at"
    assert refused_field(json.dumps({**removal, "updated_at": None}).encode()) == "updated_at"


@pytest.mark.parametrize(
    ("status", "closed_at", "left_out_is_kept"),
    [("Closed", TIME, False), ("Closed", None, True), ("Open", None, False)],
)
def test_what_is_kept_of_a_closing_depends_on_the_status(
    status: str, closed_at: str | None, left_out_is_kept: bool
) -> None:
    fields = {} if closed_at is None else {"closed_at": closed_at}
    record = read_record(case(status=status, **fields), Reading(keeps=True))
    is_left_out = bool(left_out(record) & 1 << record.__struct_fields__.index("closed_at"))  # type: ignore[arg-type]
    assert is_left_out is left_out_is_kept


@pytest.mark.parametrize(("record_type", "field"), IDS)
def test_an_id_may_have_capitals(record_type: str, field: str) -> None:
    assert UUID(read_fields(line(record_type, **{field: ID.upper()}))[field]) == UUID(ID)


@pytest.mark.parametrize(
    "value",
    [
        "infinity",
        "-infinity",
        "now",
        "",
        "2018-06-26",
        "2018-06-26T14:58:54",
        "2018-06-26T14Z",
        "2018-06-26T24:00:00Z",
        "2018-06-26T22:59:60Z",
        "2018-06-26T23:59:60+01:00",
        "2018-06-26T23:59:61Z",
        "9999-12-31T23:59:60Z",
        "2018-06-26T14:58:54 02:00",
        "2018-06-26T14:60:00Z",
        "2018-02-29T14:58:54Z",
        "2018-13-01T14:58:54Z",
        "2018-06-26T14:58:54.Z",
        "2018-06-26T14:58:54,5Z",
        "2018-06-26T14:58:54 UTC",
        "2018-06-26T14:58:54 Europe/Berlin",
        "2018-06-26T14:58:54+24:00",
        "20180626T145854Z",
        "2018-W26-2T14:58:54Z",
        "0000-12-31T23:59:59Z",
        "0001-01-01T00:00:00+00:01",
        "9999-12-31T23:59:59-00:01",
        "10000-01-01T00:00:00Z",
        "-0044-03-15T12:00:00Z",
        "\u0662018-06-26T14:58:54Z",
        1530031801,
        1530031801.5,
        True,
    ],
)
def test_a_time_is_a_finite_point_in_time(value: Any) -> None:
    assert refusal(case(updated_at=value)) == (
        "updated_at",
        "expected a time in ISO 8601 with a zone, such as 2024-05-31T16:32:17.879Z, in years 1 to 9999",
    )


@pytest.mark.parametrize(("record_type", "field"), TIMES)
def test_every_time_needs_a_zone(record_type: str, field: str) -> None:
    status = {"status": "Closed"} if field == "closed_at" else {}

    assert refused_field(line(record_type, **{field: "2018-06-26T14:58:54"}, **status)) == field


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("2018-06-26 14:58:54+00", "2018-06-26T14:58:54Z"),
        ("2018-06-26 14:58:54.12-07", "2018-06-26T21:58:54.120Z"),
        ("2018-06-26T14:58Z", "2018-06-26T14:58:00Z"),
        ("2018-06-26T14:58+02:00", "2018-06-26T12:58:00Z"),
        ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00Z"),
        ("2016-12-31T15:59:60.5-08:00", "2017-01-01T00:00:00.500Z"),
        ("2018-06-26T14:58:54Z", "2018-06-26T14:58:54Z"),
        ("2018-06-26T14:58:54.1Z", "2018-06-26T14:58:54.100Z"),
        ("2018-06-26t14:58:54.123456z", "2018-06-26T14:58:54.123456Z"),
        ("2018-06-26 14:58:54Z", "2018-06-26T14:58:54Z"),
        ("2018-06-26T14:58:54+02:00", "2018-06-26T12:58:54Z"),
        ("2018-06-26T14:58:54+0530", "2018-06-26T09:28:54Z"),
        ("2018-06-26T14:58:54-23:59", "2018-06-27T14:57:54Z"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
        ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999Z"),
    ],
)
def test_a_time_is_read_in_its_zone(given: str, meant: str) -> None:
    read = read_fields(case(created_at=given))["created_at"]

    assert datetime.fromisoformat(read) == datetime.fromisoformat(meant)


@pytest.mark.parametrize("zone", ["Z", "+02:00"])
def test_decimals_beyond_microseconds_are_cut_off(zone: str) -> None:
    read = read_fields(case(created_at=f"2018-06-26T14:58:54.123456999{zone}"))["created_at"]

    assert datetime.fromisoformat(read) == datetime.fromisoformat(f"2018-06-26T14:58:54.123456{zone}")


@pytest.mark.parametrize(
    "text",
    [
        "2024-05-31 16:32:17+00", "2024-05-31T16:32Z", "2016-12-31T23:59:60Z", "2016-12-31T23:59:60.25+00:00",
        "9999-12-31T23:59:59.999999Z", "2018-06-26t14:58:54.123456z", "2018-06-26T14:58:54-0730",
    ],
)  # fmt: skip
def test_a_filter_of_the_api_takes_the_same_times(text: str) -> None:
    read = read_fields(case(created_at=text))["created_at"]

    assert (datetime.fromisoformat(read) - EPOCH) // timedelta(microseconds=1) == instants.to_microseconds(text)


@pytest.mark.parametrize("text", ["2018-06-26T24:00:00Z", "2018-06-26T22:59:60Z", "9999-12-31T23:59:60Z"])
def test_a_filter_of_the_api_refuses_the_same_times(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        instants.to_microseconds(text)
    assert refused_field(case(created_at=text)) == "created_at"


def test_decimals_are_cut_off_before_a_limit_is_looked_at() -> None:
    read = read_fields(case(created_at="9999-12-31T23:59:59.9999995Z"))["created_at"]

    assert datetime.fromisoformat(read) == datetime.fromisoformat("9999-12-31T23:59:59.999999Z")


@given(
    st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30)),  # noqa: DTZ001
    st.integers(-14 * 60, 14 * 60),
)
def test_a_time_of_any_zone_is_read_to_the_microsecond(local: datetime, offset_minutes: int) -> None:
    time = local.replace(tzinfo=timezone(timedelta(minutes=offset_minutes)))

    read = read_fields(case(created_at=time.isoformat()))["created_at"]

    assert datetime.fromisoformat(read).astimezone(UTC) == time


@pytest.mark.parametrize(
    ("record_type", "field", "lowest", "highest"),
    [
        ("case", "priority", 1, 5),
        ("case", "channel_priority", 1, 4),
        ("case", "unread_message_count", 0, 2**31 - 1),
        ("case", "visitor_unread_message_count", 0, 2**31 - 1),
        ("case_funnel_stage", "position", -(2**31), 2**31 - 1),
        ("event", "position", 1, 2**52),
    ],
)
class TestIntegers:
    def test_the_limits_are_accepted(self, record_type: str, field: str, lowest: int, highest: int) -> None:
        for value in (lowest, highest):
            assert read_fields(line(record_type, **{field: value}))[field] == value

    def test_beyond_the_limits_is_refused(self, record_type: str, field: str, lowest: int, highest: int) -> None:
        for value in (lowest - 1, highest + 1, 2**64, -(2**64), 10**60, 10**4000):
            assert refused_field(line(record_type, **{field: value})) == field

    def test_nothing_else_is_an_integer(self, record_type: str, field: str, lowest: int, highest: int) -> None:
        for value in (True, False, float(highest), lowest + 0.5, str(lowest), [lowest]):
            assert refused_field(line(record_type, **{field: value})) == field


def test_a_number_that_no_float_holds_is_refused_with_its_field() -> None:
    assert refused_field(case(priority="HERE").replace(b'"HERE"', b"1e999")) == "priority"


@pytest.mark.parametrize("value", [0, 1, "true", "f", []])
@pytest.mark.parametrize(("record_type", "field"), [("case", "is_waiting"), ("message", "is_private")])
def test_a_flag_is_true_or_false(record_type: str, field: str, value: Any) -> None:
    assert refusal(line(record_type, **{field: value})) == (field, "expected true or false")


@pytest.mark.parametrize(
    ("record_type", "field", "known"),
    [
        ("organization", "subscription_status", ["active", "inactive"]),
        ("case", "latest_messaging_channel", ["email", "whatsapp", "webchat"]),
        ("activity", "channel", ["telephony", "webchat", "whatsapp", "email"]),
        ("message", "sender_type", ["visitor", "user", "system"]),
        ("event", "event_type", ["case_closed", "case_reopened", "case_read"]),
    ],
)
def test_an_enumeration_takes_its_values_and_says_which(record_type: str, field: str, known: list[str]) -> None:
    for value in known:
        assert read_fields(line(record_type, **{field: value}))[field] == value
    for value in ("", "other-value", known[0].upper(), known[0] + " "):
        named, reason = refusal(line(record_type, **{field: value}))
        assert named == field
        assert all(value in reason for value in known)
        assert "other-value" not in reason


@pytest.mark.parametrize("status", ["open", "In progress", "InProgress", "closed", "", None, 1])
def test_a_status_is_one_of_four(status: Any) -> None:
    assert refusal(case(status=status)) == ("status", "expected Open, In Progress, Pending or Closed")


@pytest.mark.parametrize("status", ["Open", "In Progress", "Pending"])
def test_a_case_that_is_not_closed_has_no_closed_at(status: str) -> None:
    assert read_fields(case(status=status))["status"] == status
    assert refused_field(case(status=status, closed_at=TIME)) == "closed_at"


def test_a_closed_case_has_a_closed_at() -> None:
    assert read_fields(case(status="Closed", closed_at=TIME))["closed_at"] == TIME
    assert refused_field(case(status="Closed")) == "closed_at"
    assert refused_field(case(status="Closed", closed_at=None)) == "closed_at"


@pytest.mark.parametrize("sender_type", ["visitor", "system"])
def test_only_a_users_message_has_a_sender_who_is_a_user(sender_type: str) -> None:
    assert read_fields(line("message", sender_user_id=ID))["sender_user_id"] == ID
    assert read_fields(line("message", sender_type=sender_type, sender_user_id=None))["sender_user_id"] is None
    refused = refusal(line("message", sender_type=sender_type, sender_user_id=ID))
    assert refused == ("sender_user_id", "expected null: sender_type is not user")


@pytest.mark.parametrize(("sender_type", "is_allowed"), [("visitor", False), ("user", True), ("system", True)])
def test_a_visitor_writes_no_notes(sender_type: str, is_allowed: bool) -> None:
    content = line("message", sender_type=sender_type, is_private=True)
    if is_allowed:
        assert read_fields(content)["is_private"] is True
    else:
        assert refusal(content) == ("is_private", "expected false: a visitor writes no notes")


@pytest.mark.parametrize(("sender_type", "is_kept"), [("visitor", False), ("user", True), ("system", False)])
def test_the_user_who_is_stored_stays_only_with_a_users_message(sender_type: str, is_kept: bool) -> None:
    record = read_record(line("message", sender_type=sender_type), Reading(keeps=True))
    place = record.__struct_fields__.index("sender_user_id")
    assert isinstance(record, Record)
    assert bool(left_out(record) >> place & 1) is is_kept


def test_an_event_about_a_message_and_no_other_says_which() -> None:
    about = {"event_type": "message_created", "message_id": ID}
    assert read_fields(line("event", **about))["message_id"] == ID
    reason = "an id is required where event_type is message_created, and null elsewhere"
    for wrong in ({"event_type": "message_created"}, {"message_id": ID}):
        assert refusal(line("event", **wrong)) == ("message_id", reason)
    own = read_fields(line("event", event_type="message_created", message_id="7"))["message_id"]
    assert own == read_fields(line("message", id="7"))["id"]


@pytest.mark.parametrize(
    ("record_type", "field"),
    [("case", "case_number"), ("visitor", "external_id"), ("event", "case_number"), ("event", "external_id")],
)
def test_numbers_and_identities_have_1_to_256_characters(record_type: str, field: str) -> None:
    for text in ("a", "\U0001f600" * 256, " "):
        assert read_fields(line(record_type, **{field: text}))[field] == text
    assert refusal(line(record_type, **{field: ""})) == (field, "expected a text of 1 to 256 characters")


def longest(record_type: str, field: str) -> int:
    return {"subject": 1_000, "description": 65_536, "avatar_url": 2_048, "text": 10_000}.get(field, 256)


@pytest.mark.parametrize(("record_type", "field"), TEXTS)
def test_a_text_is_as_long_as_its_bound_and_no_longer(record_type: str, field: str) -> None:
    bound = longest(record_type, field)
    for character in ("a", "\U0001f600"):
        assert read_fields(line(record_type, **{field: character * bound}))[field] == character * bound
        refused = refusal(line(record_type, **{field: character * (bound + 1)}))
        assert refused == (field, f"longer than {bound:,} characters")


def test_a_message_says_something() -> None:
    assert refusal(line("message", text="")) == ("text", "expected a text of 1 to 10,000 characters")


def test_key_material_is_bounded() -> None:
    assert refusal(line("signing_key", secret="s" * 1_025)) == ("secret", "longer than 1,024 characters")
    pem = {"algorithm": "EdDSA", "secret": None, "public_key": "p" * 8_193}
    assert refusal(line("signing_key", **pem)) == ("public_key", "longer than 8,192 characters")


def test_a_line_of_very_many_values_is_refused_in_little_memory() -> None:
    wide = b'{"type": "visitor", "x": [' + b"[]," * 300_000 + b"[]]}"
    tracemalloc.start()
    try:
        assert refusal(wide) == ("x", "unknown field")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("algorithm", algorithms.HMAC_ALGORITHMS)
def test_an_hmac_key_has_a_secret_of_32_bytes(algorithm: str) -> None:
    assert read_fields(line("signing_key", algorithm=algorithm, secret="s" * 32))["secret"] == "s" * 32
    assert read_fields(line("signing_key", algorithm=algorithm, secret="\u00e9" * 16))["secret"] == "\u00e9" * 16
    assert refusal(line("signing_key", algorithm=algorithm, secret="s" * 31)) == (
        "secret",
        "an HMAC secret has at least 32 bytes",
    )


def test_an_hmac_key_has_nothing_but_a_secret() -> None:
    pem = public_pem(Ed25519PrivateKey.generate())

    assert refusal(line("signing_key", secret=None)) == ("secret", "required for HS256")
    assert refusal(line("signing_key", public_key=pem)) == ("public_key", "HS256 takes a secret instead")
    assert refused_field(line("signing_key", secret=None, public_key=pem)) == "public_key"


def test_an_asymmetric_key_has_nothing_but_a_public_key() -> None:
    pem = public_pem(Ed25519PrivateKey.generate())

    fields = read_fields(line("signing_key", algorithm="EdDSA", secret=None, public_key=pem))

    assert fields["public_key"] == pem
    assert refused_field(line("signing_key", algorithm="EdDSA", secret=None)) == "public_key"
    assert refused_field(line("signing_key", algorithm="EdDSA", public_key=pem)) == "secret"


def test_a_public_key_fits_its_algorithm() -> None:
    pem = public_pem(generate_ec_key(SECP256R1()))

    assert read_fields(line("signing_key", algorithm="ES256", secret=None, public_key=pem))["public_key"] == pem
    for algorithm in ("ES384", "RS256", "EdDSA"):
        assert refused_field(line("signing_key", algorithm=algorithm, secret=None, public_key=pem)) == "public_key"


@pytest.mark.parametrize("algorithm", ["none", "HS1", "hs256", "", None])
def test_an_unknown_algorithm_is_refused_with_those_that_are_known(algorithm: Any) -> None:
    field, reason = refusal(line("signing_key", algorithm=algorithm))

    assert field == "algorithm"
    assert reason == "expected one of HS256, HS384, HS512, RS256, RS384, RS512, ES256, ES384, EdDSA"


def test_the_algorithms_of_a_line_are_those_of_the_service() -> None:
    _, reason = refusal(line("signing_key", algorithm="none"))

    for algorithm in algorithms.ALGORITHMS:
        assert refusal(line("signing_key", algorithm=algorithm, secret=None))[0] in ("secret", "public_key")
        assert algorithm in reason


PRIVATE_PEM = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


@pytest.mark.parametrize(
    "content",
    [
        line("signing_key", secret=SECRET[:31]),
        line("signing_key", secret=[SECRET]),
        line("signing_key", secret=SECRET + "\0"),
        line("signing_key", algorithm="EdDSA"),
        line("signing_key", algorithm=SECRET),
        line("signing_key", id=SECRET),
        line("signing_key", organization_id=SECRET),
        line("signing_key", retired_at=SECRET),
        line("signing_key", type=SECRET),
        line("signing_key", public_key=SECRET, secret=None, algorithm="EdDSA"),
        line("signing_key", public_key=PRIVATE_PEM, secret=None, algorithm="EdDSA"),
        line("signing_key", deleted=True),
        line("signing_key", retired=True),
        line("signing_key")[:-1],
        line("signing_key") + b"}",
        line("signing_key").replace(SECRET.encode(), SECRET.encode() + b"\xff"),
        line("signing_key")[:-1] + f', "secret": "{SECRET}"}}'.encode(),
    ],
)
def test_no_error_quotes_a_secret(content: bytes) -> None:
    with pytest.raises(FieldError) as caught:
        read_fields(content)

    said = repr(caught.value)
    assert SECRET[:10] not in said
    assert PRIVATE_PEM.splitlines()[1] not in said
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("record_type", ["visitor", "contact", "case_funnel_stage", "case", "activity", "message"])
def test_a_row_is_removed_by_its_ids_alone(record_type: str) -> None:
    removal = {"type": record_type, "id": ID, "organization_id": ORGANIZATION_ID, "deleted": True}

    assert read_fields(json.dumps(removal).encode()) == removal


@pytest.mark.parametrize("record_type", ["organization", "user", "signing_key", "event"])
def test_rows_of_other_types_cannot_be_removed(record_type: str) -> None:
    removal = {"type": record_type, "id": ID, "organization_id": ORGANIZATION_ID, "deleted": True}

    assert refusal(json.dumps(removal).encode()) == (
        "deleted",
        "only rows of these types can be removed: visitor, contact, case_funnel_stage, case, activity, message",
    )
    assert refused_field(json.dumps({"type": record_type, "id": ID, "deleted": True}).encode()) == "deleted"


def test_a_line_that_deletes_has_no_other_fields() -> None:
    assert refusal(case(deleted=True)) == ("case_number", "not a field of a line that deletes")


@pytest.mark.parametrize("field", ["id", "organization_id"])
def test_a_line_that_deletes_has_both_ids(field: str) -> None:
    removal = {"type": "case", "id": ID, "organization_id": ORGANIZATION_ID, "deleted": True}

    assert refusal(without(json.dumps(removal).encode(), field)) == (field, "required")
    assert refused_field(json.dumps({**removal, field: 1}).encode()) == field


@pytest.mark.parametrize("value", [False, None, 1, "true"])
def test_deleted_is_true(value: Any) -> None:
    removal = {"type": "case", "id": ID, "organization_id": ORGANIZATION_ID, "deleted": value}

    assert refused_field(json.dumps(removal).encode()) == "deleted"


def test_a_line_that_deletes_names_no_field_twice() -> None:
    removal = {"type": "case", "id": ID, "organization_id": ORGANIZATION_ID, "deleted": True}

    assert refusal(json.dumps(removal).encode()[:-1] + b', "id": "%s"}' % OTHER_ID.encode()) == (
        "id",
        "given twice",
    )
