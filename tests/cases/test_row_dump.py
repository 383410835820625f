"""The compiled dump of rows gives what marshmallow's own dump gives, for any rows."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from marshmallow import Schema, fields

from cases_service.cases import timestamps as instants
from cases_service.cases.compiled_serialization import compile_row_dump
from cases_service.cases.schemas import CaseSchema, Instant, Label

Columns = dict[str, st.SearchStrategy[Any]]

INSTANTS = st.datetimes(min_value=datetime(1, 1, 2), timezones=st.just(UTC))  # noqa: DTZ001
BY_TYPE: list[tuple[type[fields.Field[Any]], st.SearchStrategy[Any]]] = [
    (Instant, INSTANTS),
    (fields.UUID, st.uuids().map(str)),
    (fields.Integer, st.integers(1, 5)),
    (Label, st.integers(1, 5)),
    (fields.Boolean, st.booleans()),
    (fields.String, st.text()),
]


def columns_of(schema: Schema, path: str = "") -> Columns:
    """Return each column that a schema reads, with values that a row may hold there."""
    columns: Columns = {}
    for name, field in schema.dump_fields.items():
        column = path + (field.attribute or name)
        if isinstance(field, fields.Nested):
            columns |= columns_of(field.schema, f"{column}.")
        else:
            values = next(values for kind, values in BY_TYPE if isinstance(field, kind))
            columns[column] = values if field.required else st.none() | values
    return columns


def document_of(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row as the nested dictionary that marshmallow dumps; an object without id is null."""
    document: dict[str, Any] = {}
    for column, value in row.items():
        *path, name = column.split(".")
        target = document
        for step in path:
            target = target.setdefault(step, {})
        target[name] = value
    return {k: None if isinstance(v, dict) and v["id"] is None else v for k, v in document.items()}


CASE_COLUMNS = columns_of(CaseSchema()) | {"owner.id": st.none() | st.uuids().map(str)}


@given(st.lists(st.fixed_dictionaries(CASE_COLUMNS), max_size=4))
def test_compiled_and_interpreted_dumps_are_equal(rows: list[dict[str, Any]]) -> None:
    names = sorted(CASE_COLUMNS)
    dump = compile_row_dump(CaseSchema(), names)
    expected = CaseSchema(many=True).dump([document_of(row) for row in rows])
    found = dump.dump([tuple(row[name] for name in names) for row in rows])
    assert found == expected
    assert [list(case) for case in found] == [list(case) for case in expected]


def as_postgres_writes(value: Any) -> Any:
    if not isinstance(value, datetime):
        return value
    decimals = f".{value.microsecond:06}".rstrip("0").rstrip(".")
    return f"{value.year:04}-{value:%m-%d %H:%M:%S}{decimals}+00"


@given(st.lists(st.fixed_dictionaries(CASE_COLUMNS), max_size=4))
def test_times_as_postgres_writes_them_are_dumped_as_times_are(rows: list[dict[str, Any]]) -> None:
    names = sorted(CASE_COLUMNS)
    dump = compile_row_dump(CaseSchema(), names, converted={Instant: instants.from_postgres})
    expected = CaseSchema(many=True).dump([document_of(row) for row in rows])
    assert dump.dump([tuple(as_postgres_writes(row[name]) for name in names) for row in rows]) == expected


def test_a_field_that_changes_its_value_does_so_here() -> None:
    class Shouted(fields.String):
        def _serialize(self, value: Any, attr: str | None, obj: Any, **_options: Any) -> str:
            return f"{value}!"

    class OrderSchema(Schema):
        item = Shouted(data_key="the item")
        placed_at = fields.DateTime()
        price = fields.Decimal(as_string=True)

    rows = [{"item": "tea", "placed_at": datetime(2020, 1, 1, tzinfo=UTC), "price": 3}]
    dump = compile_row_dump(OrderSchema(), ["price", "item", "placed_at"])
    assert dump.dump([(3, "tea", datetime(2020, 1, 1, tzinfo=UTC))]) == OrderSchema(many=True).dump(rows)


def test_only_some_fields_need_only_their_columns() -> None:
    dump = compile_row_dump(CaseSchema(only=("id", "owner.full_name")), ["owner.full_name", "owner.id", "id"])
    assert dump.dump([("Ada", "x", "1"), (None, None, "2")]) == [
        {"id": "1", "owner": {"full_name": "Ada"}},
        {"id": "2", "owner": None},
    ]
    assert dump.pick(("Ada", "x", "1")) == ("Ada", "x", "1")
    assert compile_row_dump(CaseSchema(only=("id", "status")), ["id", "subject", "status"]).pick("abc") == ("a", "c")


def test_an_object_nested_in_several_rows_is_made_once() -> None:
    dump = compile_row_dump(
        CaseSchema(only=("owner.full_name", "created_by_user.full_name")),
        ["owner.id", "owner.full_name", "created_by_user.id", "created_by_user.full_name"],
    )
    first, second = dump.dump([("x", "Ada", "y", "Grace"), ("y", "Grace", "x", "Ada")])
    assert first == {"owner": {"full_name": "Ada"}, "created_by_user": {"full_name": "Grace"}}
    assert second["owner"] is first["created_by_user"]
    assert second["created_by_user"] is first["owner"]
    (later,) = dump.dump([("x", "Ada Lovelace", None, None)])
    assert later == {"owner": {"full_name": "Ada Lovelace"}, "created_by_user": None}


def test_a_field_without_a_column_is_an_error() -> None:
    with pytest.raises(KeyError):
        compile_row_dump(CaseSchema(), ["id"])


def test_times_are_written_alike_from_a_datetime_and_from_text() -> None:
    field = Instant()
    moment = datetime(2020, 2, 29, 1, 2, 3, 4005, tzinfo=UTC)
    assert field.serialize("at", {"at": moment}) == "2020-02-29T01:02:03.004Z"
    assert field.serialize("at", {"at": "2020-02-29T01:02:03.004Z"}) == "2020-02-29T01:02:03.004Z"
