"""Lends commands the database that the settings name."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

# A completion imports all commands at each press of the key. What a command needs, it imports itself.
if TYPE_CHECKING:
    import psycopg

    from cases_service.credentials.secret_encryption import SecretBox
    from cases_service.embedded.command_database import CommandDatabase


@contextmanager
def opened_database(*, may_make: bool = False) -> Iterator["CommandDatabase"]:
    """Lend the database; where none is named, that of an embedded server, which `may_make` creates."""
    from cases_service.embedded.command_database import open_database
    from cases_service.settings import read_settings

    with open_database(read_settings(), may_make=may_make) as database:
        yield database


@contextmanager
def connected() -> Iterator[tuple["psycopg.Connection[Any]", "SecretBox"]]:
    """Lend a connection to a database that has the schema, and what opens its secrets."""
    from cases_service.credentials.secret_encryption import SecretBox

    with opened_database() as database, database.connect() as connection:
        yield connection, SecretBox(database.settings.secret_keys)
