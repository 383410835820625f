"""Cursors: they round-trip, and all others are refused."""

import base64
import struct
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cases_service.cases.pagination import Collection, Cursor, Position, visitor_tag
from cases_service.cases.timestamps import FIRST, LAST, from_microseconds, microseconds_of_postgres
from cases_service.problems import InvalidCursorError

COLLECTION = Collection(UUID(int=7), "created_at")
YEARS_1_TO_9999 = st.integers(FIRST, LAST)
EDGES = st.sampled_from([UUID(int=0), UUID(int=1), UUID(int=2**128 - 2), UUID(int=2**128 - 1)])

positions = st.builds(Position, YEARS_1_TO_9999 | st.sampled_from([FIRST, LAST]), st.uuids() | EDGES)
cursors = st.builds(Cursor, positions, st.booleans(), st.binary(min_size=8, max_size=8))


@given(cursors)
def test_a_cursor_is_read_back(cursor: Cursor) -> None:
    text = cursor.encode(COLLECTION)
    assert Cursor.decode(text, COLLECTION) == cursor
    assert len(text) <= 300


@given(cursors, st.data())
def test_a_cursor_holds_for_its_own_collection(cursor: Cursor, data: st.DataObject) -> None:
    other = data.draw(
        st.builds(
            Collection,
            st.sampled_from([UUID(int=7), UUID(int=8)]),
            st.sampled_from(["created_at", "-created_at", "updated_at"]),
            st.sampled_from(["", "status=Open"]),
        )
    )
    text = cursor.encode(COLLECTION)
    if other == COLLECTION:
        assert Cursor.decode(text, other) == cursor
    else:
        with pytest.raises(InvalidCursorError):
            Cursor.decode(text, other)


@given(st.text(max_size=400) | st.binary(max_size=60).map(lambda raw: base64.urlsafe_b64encode(raw).decode()))
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InvalidCursorError):
        Cursor.decode(text, COLLECTION)


@pytest.mark.parametrize(
    ("version", "backward", "microseconds"),
    [(0, 0, 0), (2, 0, 0), (1, 2, 0), (1, 0, 2**63 - 1), (1, 0, -(2**63)), (1, 0, LAST + 2), (1, 0, FIRST - 2)],
)
def test_what_a_forger_could_digest_is_refused_by_its_values(version: int, backward: int, microseconds: int) -> None:
    body = struct.pack(">BBq16s8s", version, backward, microseconds, bytes(16), bytes(8))
    genuine = Cursor(Position(0, UUID(int=0)), backward=False, visitor_tag=bytes(8)).encode(COLLECTION)
    assert base64.urlsafe_b64decode(genuine)[:34] == struct.pack(">BBq16s8s", 1, 0, 0, bytes(16), bytes(8))
    from cases_service.cases import pagination as cursors  # noqa: PLC0415

    forged = base64.urlsafe_b64encode(body + cursors._digest(body, COLLECTION)).decode()
    with pytest.raises(InvalidCursorError):
        Cursor.decode(forged, COLLECTION)


@given(positions, positions)
def test_nothing_lies_between_a_position_and_the_following_one(one: Position, other: Position) -> None:
    def key(position: Position) -> tuple[int, int]:
        return position.microseconds, position.id.int

    assert key(one.following()) > key(one)
    assert key(one.preceding()) < key(one)
    assert one.following().preceding() == one.preceding().following() == one
    assert (key(other) > key(one)) == (key(other) >= key(one.following()))


@given(
    st.builds(Position, st.sampled_from([FIRST - 1, FIRST, FIRST + 1, LAST - 1, LAST, LAST + 1]), EDGES | st.uuids()),
    st.booleans(),
)
def test_what_lies_beside_a_cursor_that_is_taken_is_taken_too(position: Position, backward: bool) -> None:
    for beside in (position, position.following(), position.preceding()):
        cursor = Cursor(beside, backward, bytes(8))
        assert Cursor.decode(cursor.encode(COLLECTION), COLLECTION) == cursor


def test_a_cursor_names_its_visitor() -> None:
    visitor_id = uuid4()
    cursor = Cursor(Position(0, UUID(int=0)), backward=False, visitor_tag=visitor_tag(visitor_id))
    cursor.check_visitor(visitor_id)
    with pytest.raises(InvalidCursorError):
        cursor.check_visitor(uuid4())


def test_a_cursor_holds_nothing_of_the_visitors_id() -> None:
    visitor_id = uuid4()
    cursor = Cursor(Position(0, UUID(int=0)), backward=False, visitor_tag=visitor_tag(visitor_id))
    raw = base64.urlsafe_b64decode(cursor.encode(COLLECTION))
    assert visitor_id.bytes[:4] not in raw


@pytest.mark.parametrize("microseconds", [FIRST, -1, 0, 1, 870_000, 1_440_000_000_879_100, LAST])
def test_a_time_as_postgresql_prints_it_is_read_exactly(
    session_connection: psycopg.Connection, microseconds: int
) -> None:
    text = session_connection.execute(
        "select (%s::timestamptz at time zone 'UTC')::text || '+00'", [from_microseconds(microseconds)]
    ).fetchone()
    assert text is not None
    assert microseconds_of_postgres(text[0]) == microseconds
