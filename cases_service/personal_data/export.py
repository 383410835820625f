"""Exports everything about a visitor, apart from notes, as lines of the load format."""

from collections.abc import Iterator
from typing import Any, Final
from uuid import UUID

import msgspec
import psycopg
from psycopg.rows import dict_row

from cases_service.database.statements import statements

EXPORTS: Final = (
    "export_visitor",
    "export_contacts",
    "export_cases",
    "export_activities",
    "export_messages",
    "export_events",
)
"""The statements of an export, in the order of its lines."""

NO_VISITOR: Final = "organization {} has no visitor with this external id"

Connection = psycopg.Connection[tuple[Any, ...]]

_SQL: Final = statements("personal_data")
_ROWS_AT_A_TIME: Final = 1_000


class PersonalDataError(Exception):
    """There is no such visitor, or none to allow again. The message is one line, and names nobody."""


def export_visitor(connection: Connection, *, organization_id: UUID, external_id: str) -> Iterator[bytes]:
    """Yield everything about a visitor as lines that `load` accepts, from one state of the database.

    The same data gives the same bytes. Rows are read as they are yielded, and need not fit into memory. The connection
    must be in autocommit mode.

    Raises:
        PersonalDataError: There is no such visitor. Nothing has been yielded.

    """
    about = {"organization_id": organization_id, "external_id": external_id}
    with connection.transaction():
        connection.execute(_SQL["begin_export"], prepare=False)
        found = connection.execute(_SQL["find_visitor"], about).fetchone()
        if found is None:
            raise PersonalDataError(NO_VISITOR.format(organization_id))
        yield from lines(connection, {**about, "visitor_id": found[0]})


def lines(connection: Connection, about: dict[str, Any]) -> Iterator[bytes]:
    """Yield the lines about a visitor, whose `organization_id`, `visitor_id` and `external_id` are given.

    The connection must be in a transaction.
    """
    for name in EXPORTS:
        with connection.cursor(name, row_factory=dict_row) as rows:
            rows.itersize = _ROWS_AT_A_TIME
            for row in rows.execute(_SQL[name], about):
                yield msgspec.json.encode(row) + b"\n"
