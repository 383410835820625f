"""Compiles a marshmallow schema into a function that turns rows of a query straight into the schema's dictionaries.

`Schema.dump` asks each field of each object for its attribute and its form again. Where the rows' columns are known,
all of that can be settled once. A column is found by its field's path: `id`, `owner.id`, `owner.title`. A nested
object is null where its column `id` is null. What a field does not do to the values of its column (see `PASSED_ON`)
is left out, and what a column holds in another form than the field expects is put into the field's form by a function
that the caller gives; any other field serializes its value itself, so that the result is always that of `Schema.dump`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from types import MappingProxyType
from typing import Any, Final

from marshmallow import Schema, fields

Row = Sequence[Any]


@dataclass(frozen=True, slots=True)
class RowDump:
    """Turns rows into dictionaries, and tells from what."""

    dump: Callable[[Iterable[Row]], list[dict[str, Any]]]
    """Returns what the schema's own dump would."""

    pick: Callable[[Row], Any]
    """Returns what a row holds in the columns that `dump` reads."""


PASSED_ON: Final[tuple[type[fields.Field[Any]], ...]] = (fields.String, fields.Integer, fields.Boolean, fields.UUID)
"""Fields whose columns hold str, int, bool and the text of a UUID, or null: what they would serialize to."""


def compile_row_dump(
    schema: Schema,
    columns: Sequence[str],
    *,
    converted: Mapping[type[fields.Field[Any]], Callable[[Any], Any]] = MappingProxyType({}),
) -> RowDump:
    """Return what turns rows with these columns into the list that `schema.dump(many=True)` gives for them.

    Args:
        schema: What the rows are dumped by.
        columns: The paths of the fields that the columns hold; others are passed over.
        converted: For the columns of some types of fields, what turns a value that is not null into the dumped one.

    Raises:
        KeyError: A field of the schema has no column.

    """
    compiler = _Compiler({name: index for index, name in enumerate(columns)}, converted)
    row = "".join(f"column_{index}, " for index in range(len(columns)))
    source = f"lambda rows: [{compiler.object(schema, '')} for ({row}) in rows]"
    dump = eval(compile(source, "<row dump>", "eval"), compiler.names)  # noqa: S307
    return RowDump(dump, itemgetter(*sorted(compiler.read)))


class _Compiler:
    """Writes the expression of a schema. No name or value of it comes from anywhere but the schema itself."""

    def __init__(
        self, columns: Mapping[str, int], converted: Mapping[type[fields.Field[Any]], Callable[[Any], Any]]
    ) -> None:
        self.columns = columns
        self.converted = converted
        self.names: dict[str, Any] = {}
        self.read: set[int] = set()

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
            return f"None if {self.column(f'{column}.id')} is None else {nested}"
        value = self.column(column)
        if type(field) in PASSED_ON:
            return value
        if type(field) in self.converted:
            return f"None if {value} is None else {self.named(self.converted[type(field)])}({value})"
        return f"{self.named(field._serialize)}({value}, {name!r}, None)"  # noqa: SLF001

    def column(self, path: str) -> str:
        index = self.columns[path]
        self.read.add(index)
        return f"column_{index}"

    def named(self, function: Callable[..., Any]) -> str:
        name = f"function_{len(self.names)}"
        self.names[name] = function
        return name
