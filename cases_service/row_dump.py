"""Compiles a marshmallow schema into a function that turns rows of a query straight into the schema's dictionaries.

`Schema.dump` asks each field of each object for its attribute and its form again. Where the rows' columns are known,
all of that can be settled once. A column is found by its field's path: `id`, `owner.id`, `owner.title`. A nested
object is null where its column `id` is null. What a field does not do to the values of its column (see `PASSED_ON`)
is left out; any other field serializes its value itself, so that the result is always that of `Schema.dump`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from marshmallow import Schema, fields

Row = Sequence[Any]
RowDump = Callable[[Iterable[Row]], list[dict[str, Any]]]

PASSED_ON: Final[tuple[type[fields.Field[Any]], ...]] = (fields.String, fields.Integer, fields.Boolean, fields.UUID)
"""Fields whose columns hold str, int, bool and the text of a UUID, or null: what they would serialize to."""


def compile_row_dump(
    schema: Schema, columns: Sequence[str], *, passed_on: tuple[type[fields.Field[Any]], ...] = PASSED_ON
) -> RowDump:
    """Return a function from rows with these columns to the list that `schema.dump(many=True)` gives for them.

    Raises:
        KeyError: A field of the schema has no column.

    """
    compiler = _Compiler({name: index for index, name in enumerate(columns)}, passed_on)
    source = f"lambda rows: [{compiler.object(schema, '')} for row in rows]"
    return eval(compile(source, "<row dump>", "eval"), compiler.names)  # type: ignore[no-any-return]  # noqa: S307


class _Compiler:
    """Writes the expression of a schema. No name or value of it comes from anywhere but the schema itself."""

    def __init__(self, columns: Mapping[str, int], passed_on: tuple[type[fields.Field[Any]], ...]) -> None:
        self.columns = columns
        self.passed_on = passed_on
        self.names: dict[str, Any] = {}

    def object(self, schema: Schema, path: str) -> str:
        items = (
            f"{(field.data_key or name)!r}: {self.value(field, name, path)}"
            for name, field in schema.dump_fields.items()
        )
        return "{" + ", ".join(items) + "}"

    def value(self, field: fields.Field[Any], name: str, path: str) -> str:
        column = path + (field.attribute or name)
        if isinstance(field, fields.Nested):
            nested = self.object(field.schema, f"{column}.")
            return f"None if row[{self.columns[f'{column}.id']}] is None else {nested}"
        value = f"row[{self.columns[column]}]"
        if type(field) in self.passed_on:
            return value
        serialize = f"serialize_{len(self.names)}"
        self.names[serialize] = field._serialize  # noqa: SLF001
        return f"{serialize}({value}, {name!r}, None)"
