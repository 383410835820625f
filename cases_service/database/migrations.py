"""Creates the schema in an empty database and upgrades an older one, one numbered file of migrations/ at a time.

`schema.sql` is always the newest schema; migration 1 is the first. A migration leaves what the previous release of
the service reads as it was, so that the two can run side by side during an upgrade.
"""

from pathlib import Path
from typing import Any, Final

import psycopg

from cases_service.database.statements import source, statements

_SCHEMA: Final = statements("schema")


class SchemaError(RuntimeError):
    """The database cannot take the schema. The message says why."""


def _files() -> dict[int, Path]:
    return {int(file.name[:4]): file for file in sorted(source("migrations").glob("[0-9]*.sql"))}


SCHEMA_VERSION: Final = max(_files())
"""The schema that this release needs. It also runs on a newer one."""


def init_db(connection: psycopg.Connection[Any], *, service_role: str | None = None) -> tuple[int, int]:
    """Bring a database to the newest schema, in one transaction, and return the versions before and after.

    Safe to repeat, and to run from several processes at once: one works, the others wait and find it done. Each time
    the roles get the rights that this release needs, and no more: who serves, and who runs this where that is not the
    owner.

    Args:
        connection: Not inside a transaction; its role owns the schema or may create it, or is a member of one that
            does.
        service_role: Who serves, where that is another one.

    Raises:
        SchemaError: The database does not store UTF-8, its schema is newer than this release, or there is no such role.

    """
    if connection.info.parameter_status("server_encoding") != "UTF8":
        raise SchemaError("the database must store text as UTF-8: create it with encoding UTF8")
    with connection.transaction():
        connection.execute(_SCHEMA["lock_schema"])
        before = version_of(connection)
        if before > SCHEMA_VERSION:
            raise SchemaError(f"the schema has version {before} and this release knows {SCHEMA_VERSION}: upgrade it")
        _run(connection, "find_owner")
        connection.execute(_SCHEMA["see_every_organization"])
        for file in [source("schema.sql")] if before == 0 else _after(before):
            connection.execute(file.read_bytes(), prepare=False)
        connection.execute(_SCHEMA["set_schema_version"], {"version": SCHEMA_VERSION})
        _run(connection, "list_administration_grants")
        if service_role is not None:
            if connection.execute(_SCHEMA["has_role"], {"role": service_role}).fetchone() == (False,):
                raise SchemaError(f"there is no role {service_role}, which DATABASE_URL names: see docs/security.md")
            _run(connection, "list_service_grants", role=service_role)
    return before, SCHEMA_VERSION


def version_of(connection: psycopg.Connection[Any]) -> int:
    """Return the version of a database's schema, 0 where it has none."""
    row = connection.execute(_SCHEMA["has_schema"]).fetchone()
    if row is None or not row[0]:
        return 0
    row = connection.execute(_SCHEMA["get_schema_version"]).fetchone()
    return 0 if row is None else int(row[0])


def _run(connection: psycopg.Connection[Any], name: str, **parameters: str) -> None:
    """Run the statements that a statement puts together, each name quoted by the server."""
    for (statement,) in connection.execute(_SCHEMA[name], parameters or None).fetchall():
        connection.execute(statement, prepare=False)


def _after(version: int) -> list[Path]:
    return [file for number, file in _files().items() if number > version]
