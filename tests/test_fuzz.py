"""Generated input: whatever is read, the outcome is a value of the promised form or one of the documented errors.

In the everyday run the examples are the same each time and few; `make fuzz` tries many, and others each time.
"""

import json
import string
import time
from typing import Any, Final
from urllib.parse import quote, urlencode
from uuid import UUID

import psycopg
import pytest
from flask.testing import FlaskClient
from hypothesis import example, given
from hypothesis import strategies as st

from cases_service.api.parameters import (
    CollectionParameters,
    DetailParameters,
    FilterParameters,
    read_parameters,
)
from cases_service.application import Application
from cases_service.cases.pagination import Collection, Cursor, Position
from cases_service.credentials.api_tokens import ApiToken, new_token
from cases_service.credentials.secret_encryption import SecretBox
from cases_service.credentials.visitor_jwt import VerificationKey, signed_claims, subject
from cases_service.loading.records import RECORDS, FieldError, Removal, read_record
from cases_service.problems import InvalidCursorError, InvalidParameterError, VisitorTokenError
from cases_service.settings import Settings
from tests.factories import Organization, Visitor, b64, cases_path, get, hs256

pytestmark = pytest.mark.fuzz

SECRET: Final = "s" * 32
KEYS: Final = [VerificationKey(UUID(int=n), f"HS{256 + 128 * n}", lambda: SECRET) for n in range(2)]
COLLECTION: Final = Collection(UUID(int=7), "created_at")
SCHEMAS: Final = [CollectionParameters(), DetailParameters(), FilterParameters()]
NAMES: Final = sorted({field.data_key or name for schema in SCHEMAS for name, field in schema.load_fields.items()})

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def objects(**known: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with some of the known names, with sensible values or with any."""
    return st.fixed_dictionaries({}, optional={name: value | json_values for name, value in known.items()})


headers = objects(
    alg=st.sampled_from(["HS256", "HS384", "HS512", "none", "RS256"]),
    typ=st.just("JWT"),
    kid=st.sampled_from([str(key.id) for key in KEYS]),
)
times = st.integers(-10, 10**12) | st.floats() | st.builds(lambda n: int(time.time()) + n, st.integers(-99, 99999))
claims = objects(sub=st.text(max_size=300), exp=times, nbf=times, iat=times, aud=st.text(), iss=st.text())


def cut_and_pasted(text: st.SearchStrategy[str], alphabet: str) -> st.SearchStrategy[str]:
    """A text with a part of it replaced."""

    def paste(original: str, start: int, length: int, patch: str) -> str:
        start %= len(original) + 1
        return original[:start] + patch + original[start + length :]

    return st.builds(paste, text, st.integers(0, 9999), st.integers(0, 5), st.text(alphabet, max_size=5))


def verify(token: str) -> str:
    return subject(signed_claims(token, KEYS).claims, Settings())


def assert_verified_or_refused(token: str) -> None:
    try:
        external_id = verify(token)
    except VisitorTokenError as error:
        assert error.status == 400
        assert error.code.startswith("token_")
    else:
        assert 1 <= len(external_id) <= 256
        assert external_id.encode()


@given(headers, claims, st.sampled_from(["sha256", "sha384"]))
@example({"alg": "HS256"}, {"sub": "me", "exp": 10**400}, "sha256")
def test_signed_claims_of_any_kind_are_verified_or_refused(
    header: dict[str, Any], claims: dict[str, Any], digest: str
) -> None:
    assert_verified_or_refused(hs256(claims, header, SECRET, digest))


@given(st.text() | st.builds(lambda parts: ".".join(map(b64, parts)), st.lists(st.binary(), min_size=2, max_size=4)))
def test_any_text_is_no_token_of_a_visitor(token: str) -> None:
    with pytest.raises(VisitorTokenError):
        verify(token)


valid_tokens = st.builds(
    lambda subject: hs256({"sub": subject, "exp": int(time.time()) + 600}, {"alg": "HS256"}, SECRET),
    st.text(string.ascii_letters, min_size=1, max_size=9),
)


@given(cut_and_pasted(valid_tokens, string.ascii_letters + string.digits + "-_.=+/ \n\u00e9\ud800"))
def test_a_patched_token_of_a_visitor_is_verified_or_refused(token: str) -> None:
    assert_verified_or_refused(token)


@given(st.text() | cut_and_pasted(st.builds(new_token, st.uuids()), string.printable + "\u00e9\ud800"))
def test_any_text_is_an_api_token_or_none(text: str) -> None:
    token = ApiToken.parse(text)
    assert token is None or (isinstance(token.organization_id, UUID) and len(token.hash) == 32)


cursors = st.builds(
    Cursor,
    st.builds(Position, st.integers(-62135596800000000, 253402300799999999), st.uuids()),
    st.booleans(),
    st.binary(min_size=8, max_size=8),
).map(lambda cursor: cursor.encode(COLLECTION))


@given(st.text(), cut_and_pasted(cursors, string.printable + "\u00e9\ud800"), cursors)
def test_a_cursor_is_read_as_it_was_made_or_refused(text: str, patched: str, whole: str) -> None:
    assert Cursor.decode(whole, COLLECTION).encode(COLLECTION) == whole
    for other in (text, patched):
        try:
            assert Cursor.decode(other, COLLECTION).encode(COLLECTION) == other
        except InvalidCursorError:
            assert other != whole


date_times = st.builds(
    lambda moment, zone: f"{moment.isoformat()}{zone}",
    st.datetimes(),
    st.sampled_from(["Z", "z", "+00:00", " 14:00", "-2359", "-24:00", "+99", ""]),
)
values = (
    st.text(max_size=12)
    | date_times
    | cursors
    | st.sampled_from(["true", "false", "json", "Open", "Open,Closed", "1,5", "null", "email,null", "id", "contact,id"])
    | st.sampled_from(["created_at", "-created_at", "updated_at", "-updated_at", "1", "100", "101", "0", ""])
)
pairs = st.lists(st.tuples(st.sampled_from(NAMES) | st.text(max_size=8), values), max_size=5)
queries = (
    pairs.map(lambda given: urlencode(given, errors="replace").encode())
    | st.binary(max_size=60)
    | st.text(string.printable, max_size=60).map(str.encode)
)


@given(st.sampled_from(SCHEMAS), queries)
def test_any_query_is_read_or_refused(schema: Any, query: bytes) -> None:
    try:
        parameters = read_parameters(schema, query)
    except InvalidParameterError as error:
        assert error.errors
        assert all(fault["detail"] for fault in error.errors)
    else:
        assert set(parameters) <= {*schema.load_fields, "filters"}
        assert ("filters" in parameters) == ("status" in schema.load_fields)
        if "status" in schema.load_fields:
            assert isinstance(parameters["filters"].canonical(), str)


@pytest.fixture(scope="module")
def visitor(session_connection: psycopg.Connection, box: SecretBox) -> Visitor:
    visitor = Organization(session_connection, box).visitor(contacts=2)
    visitor.cases(3)
    return visitor


@pytest.fixture(scope="module")
def shared_client(app: Application) -> FlaskClient:
    return app.test_client()


@given(queries, st.sampled_from(["", "/summary", f"/{UUID(int=1)}"]))
@example(b"created_since=0001-01-01T00:00:00%2B23:59&updated_until=9999-12-31T23:59:59.999999-23:59", "")
def test_any_query_is_answered_through_the_database(
    shared_client: FlaskClient, visitor: Visitor, query: bytes, place: str
) -> None:
    path = cases_path(visitor.organization.id, "-") + place
    identity = {"X-External-Identity": visitor.organization.jwt(visitor.external_id)}
    target = f"{path}?{quote(query, safe='=&%+;')}"
    answer = get(shared_client, visitor.organization, target, **identity)
    codes: dict[int, set[str | None]] = {
        200: {None},
        400: {"invalid_parameter", "invalid_cursor"},
        404: {"case_not_found"},
    }
    assert answer.get_json().get("code") in codes[answer.status_code]


header_texts = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\0"), max_size=40)


@given(
    st.dictionaries(
        st.sampled_from(
            ["Authorization", "X-External-Identity", "X-Request-ID", "If-None-Match", "Host", "Accept", "Cookie",
             "X-Forwarded-For", "X-Forwarded-Host", "Range", "Content-Type", "Content-Length"]
        ),
        header_texts | st.sampled_from(["*", 'W/"x"', "Token cst_", "Bearer x", "localhost:0", "[::1]"]),
    ),
    st.sampled_from(["-", "a.b.c"]) | st.text(max_size=10).map(lambda text: quote(text, safe="", errors="replace")),
)  # fmt: skip
def test_any_header_and_path_get_an_answer_that_is_documented(
    shared_client: FlaskClient, visitor: Visitor, headers: dict[str, str], token: str
) -> None:
    given = visitor.organization.headers() | headers
    answer = shared_client.get(cases_path(visitor.organization.id, token), headers=given)
    assert answer.status_code in (400, 401, 404)
    assert answer.get_json()["code"]


lines = objects(
    type=st.sampled_from([*RECORDS, "unknown"]),
    id=st.uuids().map(str),
    organization_id=st.uuids().map(str),
    external_id=st.text(max_size=300),
    case_number=st.text(max_size=9),
    status=st.sampled_from(["Open", "Closed"]),
    priority=st.integers(-1, 6),
    created_at=date_times,
    updated_at=date_times,
    closed_at=date_times,
    algorithm=st.sampled_from(["HS256", "RS256"]),
    secret=st.text(max_size=40),
    deleted=st.booleans(),
).map(lambda line: json.dumps(line).encode("utf-8", "surrogatepass"))


@given(lines | st.binary() | cut_and_pasted(lines.map(bytes.decode), string.printable).map(str.encode))
@example(b"[" * 100_000)
@example(b'{"type":"user","x":' + b"9" * 5000 + b"}")
def test_any_line_is_loaded_or_refused_in_one_line(line: bytes) -> None:
    try:
        record = read_record(line)
    except FieldError as error:
        assert error.reason
        assert "\n" not in f"{error.field}{error.reason}"
    else:
        assert isinstance(record, (*RECORDS.values(), Removal))
