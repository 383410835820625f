"""Asks several queries on Citus in one call, which the node of their organization answers.

Citus plans each statement on its tables anew, with its values, on the coordinator and again on the node. A call of
ask_organization() (deploy/citus.sql) it hands to the node as it is. There the function prepares one statement of all
the queries for each shard, on the shard's own tables, which has a generic plan and sees one state of the database.

Rows come back as text in one array for each query, sent as bytes, and are read as PostgreSQL's own rows are, by the
loaders of their columns' types.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg import abc
from psycopg.adapt import AdaptersMap, Transformer
from psycopg.pq import Format
from psycopg.pq.abc import PGresult
from psycopg.types.string import ByteaBinaryLoader

from cases_service.database.pipeline import Exchange, Query, Result, Row, dumped
from cases_service.database.statements import Statement, numbered

TABLES: Final = (
    "activities",
    "api_tokens",
    "case_funnel_stages",
    "cases",
    "contacts",
    "event_positions",
    "events",
    "import_runs",
    "messages",
    "organizations",
    "signing_keys",
    "users",
    "visitors",
)
"""The tables that statements of requests read: each has a shard for an organization."""

_SQL: Final = numbered("session")
_PLANNING: Final = _SQL["plan_with_values"]
_CALL: Final = _SQL["ask_organization"]
_TRIES: Final = 2
_MAXIMUM_KNOWN: Final = 1000
_BOOLEAN: Final = psycopg.adapters.types["bool"].oid
_TEXTS: Final = psycopg.adapters.types["text"].array_oid
_AS_BYTES: Final = "(select array_send(array_agg(array[{values}])) from (\n{text}\n) q ({names}))"
_PARAMETER: Final = re.compile(r"\$(\d+)")
_TABLE: Final = re.compile(rf"\b(from|join) ({'|'.join(TABLES)})\b")


@dataclass(frozen=True, slots=True)
class NodeStatement:
    """A statement that answers several: %1$s in its text stands for the shard of the first of its tables, and so on."""

    name: str
    text: str
    tables: str
    """As PostgreSQL writes an array."""


@lru_cache(maxsize=2048)
def combined(statements: tuple[Statement, ...], booleans: tuple[tuple[bool, ...], ...]) -> NodeStatement:
    """Return the statement that answers these, with the parameters of the first, then those of the next, and so on.

    For each statement `booleans` says which of its columns are booleans.
    """
    parts: list[str] = []
    first = 0
    for statement, are_booleans in zip(statements, booleans, strict=True):
        parts.append(_as_bytes(statement, are_booleans, first))
        first += len(statement.parameters)
    text = "select array[\n" + ",\n".join(parts) + "\n]"
    tables = list(dict.fromkeys(match[2] for match in _TABLE.finditer(text)))
    placed = with_tables(text.replace("%", "%%"), {table: f"%{place}$s" for place, table in enumerate(tables, 1)})
    return NodeStatement(blake2b(placed.encode(), digest_size=16).hexdigest(), placed, f"{{{','.join(tables)}}}")


def with_tables(text: str, tables: Mapping[str, str]) -> str:
    """Return a statement with other names for its tables."""
    return _TABLE.sub(lambda match: f"{match[1]} {tables[match[2]]}", text)


def _as_bytes(statement: Statement, are_booleans: Sequence[bool], first: int) -> str:
    """Return a statement's rows in their order as one value, with `first` parameters before its own."""
    text = statement.text.decode().rstrip("; \n")
    text = _PARAMETER.sub(lambda match: f"${int(match[1]) + first}", text)
    names = [f"c{place}" for place in range(len(are_booleans))]
    # As the type's own output: a cast of a boolean says "true".
    values = [f"left({n}::text, 1)" if b else f"{n}::text" for n, b in zip(names, are_booleans, strict=True)]
    return _AS_BYTES.format(values=", ".join(values), text=text, names=", ".join(names))


class _Bytes(abc.AdaptContext):
    """Reads an array of texts as one of bytes."""

    connection = None
    adapters = AdaptersMap(psycopg.adapters)


_Bytes.adapters.register_loader("text", ByteaBinaryLoader)


class CallingExchange(Exchange):
    """An exchange with the coordinator of a Citus whose `ask` is one call, and if need be several statements."""

    def __init__(self, connection: psycopg.Connection[Any], **options: Any) -> None:
        super().__init__(connection, **options)
        self._calls = True
        self._known: dict[tuple[bytes, ...], tuple[NodeStatement, list[PGresult]]] = {}
        self._split = Transformer(_Bytes()).get_loader(_TEXTS, Format.BINARY).load

    def ask(self, organization_id: UUID, queries: Sequence[Query[Any]], *, notes: bool = False) -> list[Any]:
        """Do what the exchange does."""
        if self._calls and not self.writes:
            for _ in range(_TRIES):
                try:
                    return self._call(organization_id, queries, notes=notes)
                except psycopg.errors.UndefinedTable:
                    # The shard has moved since the coordinator looked where it is.
                    continue
                except psycopg.errors.UndefinedFunction:
                    self._calls = False
                    break
        return super().ask(organization_id, queries, notes=notes)

    def _call(self, organization_id: UUID, queries: Sequence[Query[Any]], *, notes: bool) -> list[Any]:
        statement, described = self._combined(tuple(query.statement for query in queries))
        transformer = Transformer(self._connection)
        values = [value for query in queries for value in dumped(query, transformer)]
        given = {
            "organization_id": organization_id,
            "notes": notes,
            "name": statement.name,
            "statement": statement.text,
            "tables": statement.tables,
            "parameters": _array(values),
        }
        _, answers = self.step((Query(_PLANNING, {}, _first), Query(_CALL, given, _first, is_binary=True)))
        results = [Result(self._rows(*one), one[1]) for one in zip(answers, described, strict=True)]
        return [query.read(result) for query, result in zip(queries, results, strict=True)]

    def _combined(self, statements: tuple[Statement, ...]) -> tuple[NodeStatement, list[PGresult]]:
        """Return the statement that answers these, and the server's description of each."""
        names = tuple(statement.name for statement in statements)
        known = self._known.get(names)
        if known is None:
            described = [self.describe(statement) for statement in statements]
            if len(self._known) >= _MAXIMUM_KNOWN:
                self._known.clear()
            known = self._known[names] = combined(statements, tuple(map(_booleans, described))), described
        return known

    def _rows(self, answer: bytes | None, described: PGresult) -> list[Row]:
        """Return the rows of a statement, as the server would have sent them itself."""
        if answer is None:
            return []
        transformer = Transformer(self._connection)
        transformer.set_pgresult(described)
        return [transformer.load_sequence(row) for row in self._split(answer)]


def _array(values: Sequence[abc.Buffer | None]) -> str:
    """Return an array of texts as PostgreSQL reads it: a tenth of the time of psycopg's, which knows of other types."""
    texts = ["null" if value is None else f'"{_quoted(bytes(value).decode())}"' for value in values]
    return f"{{{','.join(texts)}}}"


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _first(result: Result) -> Any:
    return result.rows[0][0]


def _booleans(described: PGresult) -> tuple[bool, ...]:
    """Return which columns are booleans."""
    return tuple(described.ftype(place) == _BOOLEAN for place in range(described.nfields))
