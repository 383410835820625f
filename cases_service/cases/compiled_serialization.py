"""Compiles a marshmallow schema into a function that turns a query's rows into the schema's dictionaries.

`Schema.dump` looks up the attribute and the form of each field of each object again. If the rows' columns are known,
that can be compiled once. A column has its field's path: `id`, `owner.id`, `owner.title`. A nested object is null if
its column `id` is null; the same id in other rows is the same object, and gets the same dictionary. Values of the
fields in `PASSED_ON` are passed on unchanged. For columns in another form than the field expects, the caller gives a
function that converts a value. Any other field serializes its value itself, so the result always equals that of
`Schema.dump`.
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
    """A compiled schema."""

    dump: Callable[[Iterable[Row]], list[dict[str, Any]]]
    """Turns rows into dictionaries, as the schema's own `dump` would."""

    pick: Callable[[Row], Any]
    """Returns a row's values in the columns that `dump` reads."""


PASSED_ON: Final[tuple[type[fields.Field[Any]], ...]] = (fields.String, fields.Integer, fields.Boolean, fields.UUID)
"""Fields whose columns already hold the serialized value: str, int, bool, the text of a UUID, or null."""


def compile_row_dump(
    schema: Schema,
    columns: Sequence[str],
    *,
    converted: Mapping[type[fields.Field[Any]], Callable[[Any], Any]] = MappingProxyType({}),
    equal: Mapping[str, str] = MappingProxyType({}),
) -> RowDump:
    """Compile a function that turns rows with these columns into the list that `schema.dump(many=True)` returns.

    Args:
        schema: The schema to dump by.
        columns: The columns' field paths, in order; the schema ignores other paths.
        converted: By type of field, the function that serializes a column's value if it is not null.
        equal: For fields without a column, by path: the path of the field with the same value.

    Raises:
        KeyError: A field of the schema has no column.

    """
    compiler = _Compiler({name: index for index, name in enumerate(columns)}, converted, equal)
    row = "".join(f"column_{index}, " for index in range(len(columns)))
    dictionary = compiler.object(schema, "")
    shared = compiler.shared.values()
    source = f"lambda rows: (lambda {', '.join(shared)}: [{dictionary} for ({row}) in rows])({'{}, ' * len(shared)})"
    dump = eval(compile(source, "<row dump>", "eval"), compiler.names)  # noqa: S307
    return RowDump(dump, itemgetter(*sorted(compiler.read)))


class _Compiler:
    """Writes the expression for a schema. All names and values in it come from the schema itself."""

    def __init__(
        self,
        columns: Mapping[str, int],
        converted: Mapping[type[fields.Field[Any]], Callable[[Any], Any]],
        equal: Mapping[str, str],
    ) -> None:
        self.columns = columns
        self.converted = converted
        self.equal = equal
        self.names: dict[str, Any] = {}
        self.shared: dict[tuple[type[Schema], tuple[str, ...]], str] = {}
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
            return self.nested(field.schema, column)
        value = self.column(column)
        if type(field) in PASSED_ON:
            return value
        if type(field) in self.converted:
            return f"None if {value} is None else {self.named(self.converted[type(field)])}({value})"
        return f"{self.named(field._serialize)}({value}, {name!r}, None)"  # noqa: SLF001

    def nested(self, schema: Schema, path: str) -> str:
        identity, dictionary = self.column(f"{path}.id"), self.object(schema, f"{path}.")
        kind = type(schema), tuple(schema.dump_fields)
        known = self.shared.setdefault(kind, f"shared_{len(self.shared)}")
        return (
            f"None if {identity} is None else {known}.get({identity}) or {known}.setdefault({identity}, {dictionary})"
        )

    def column(self, path: str) -> str:
        index = self.columns[self.equal.get(path, path)]
        self.read.add(index)
        return f"column_{index}"

    def named(self, function: Callable[..., Any]) -> str:
        name = f"function_{len(self.names)}"
        self.names[name] = function
        return name
