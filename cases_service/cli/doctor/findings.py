"""What a check reports, and how it says it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, TypeAlias
from uuid import UUID

import psycopg

from cases_service.cases import timestamps
from cases_service.embedded.command_database import explain

Status: TypeAlias = Literal["ok", "warning", "failure"]
Verdict: TypeAlias = tuple[Status, str]
AnyConnection: TypeAlias = psycopg.Connection[tuple[Any, ...]]

_NAMED: Final = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. `message` is one line, holds no secret, and says what to do if something is wrong."""

    check: str
    status: Status
    message: str


def found(check: str, look: Callable[[], Verdict]) -> Finding:
    """Return the finding of a check, which is a failure if the database refuses the question."""
    try:
        return Finding(check, *look())
    except psycopg.Error as error:
        return Finding(check, "failure", one_line(explain(error)))


def describe(thing_id: UUID, organization_id: UUID, at: datetime) -> str:
    """Name a key or token, its organization, and the time at which it ends."""
    return f"{thing_id} of organization {organization_id} at {timestamps.from_datetime(at)}"


def list_some(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def one_line(text: str) -> str:
    """Return a text with its line breaks and runs of spaces as single spaces."""
    return " ".join(text.split())


def value_of(connection: AnyConnection, statement: str) -> Any:
    """Return the single value of a statement."""
    row = connection.execute(statement).fetchone()
    return None if row is None else row[0]
