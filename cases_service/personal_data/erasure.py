"""Erases everything about a visitor, and allows an erased visitor again.

A keyed hash of the external id stays, so no feed brings the visitor back (`loading/erased_visitors.py`).

An erasure takes its turn among the organization's loads. A request locks the case that it writes into, and then refers
to the case's contact. So an erasure locks all cases, then the contacts, and starts again if a contact got another case
meanwhile: it never waits for a case while it holds a contact.
"""

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeVar
from uuid import UUID

import psycopg

from cases_service.database.command_connection import limit_waiting
from cases_service.database.migrations import DEFAULT_WAIT, list_holders, lock_timeout
from cases_service.database.statements import statements
from cases_service.loading.erased_visitors import KEY_BYTES, hash_external_id
from cases_service.loading.load import update_statistics
from cases_service.loading.turns import take_turns
from cases_service.personal_data.export import NO_VISITOR, Connection, PersonalDataError, lines

T = TypeVar("T")

_SQL: Final = statements("personal_data")
_TRIES: Final = 5
# Children first.
_ERASURES: Final = {
    "event": "erase_events",
    "message": "erase_messages",
    "activity": "erase_activities",
    "case": "erase_cases",
    "contact": "erase_contacts",
    "visitor": "erase_visitor",
}


class ErasureBusyError(PersonalDataError):
    """Others use the visitor's rows. Nothing was erased; try again."""


class Extent(NamedTuple):
    """The numbers of a visitor's rows."""

    contacts: int
    cases: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The receipt of an erasure.

    Attributes:
        organization_id: The visitor's organization.
        erased_at: The time of the erasure, by the database's clock.
        removed: Numbers of rows by type in the load format; messages include notes among users.
        lines: The number of lines that an export had at that moment.
        sha256: The hash of these lines' bytes, in hexadecimal digits.

    """

    organization_id: UUID
    erased_at: datetime
    removed: dict[str, int]
    lines: int
    sha256: str


def measure(connection: Connection, *, organization_id: UUID, external_id: str) -> Extent:
    """Return the numbers of a visitor's rows.

    Raises:
        PersonalDataError: There is no such visitor.

    """
    about = {"organization_id": organization_id, "external_id": external_id}
    visitor_id = _visitor(connection, "find_visitor", about)
    contacts, cases = _row(connection, "count_of_visitor", **about, visitor_id=visitor_id) or (0, 0)
    return Extent(contacts, cases)


def erase_visitor(
    connection: Connection, *, organization_id: UUID, external_id: str, wait: float = DEFAULT_WAIT
) -> Receipt:
    """Erase everything about a visitor, or nothing, and keep a keyed hash of the external id.

    The connection must be in autocommit mode. `wait` is how many seconds to wait for a row that another session holds.
    A running load of the organization is waited for without a limit.

    Raises:
        PersonalDataError: There is no such visitor.
        ErasureBusyError: The wait timed out. Nothing has been erased.
        psycopg.OperationalError: The database went away. Nothing has been erased, unless it happened at the very end.

    """
    about = {"organization_id": organization_id, "external_id": external_id}

    def erase() -> Receipt:
        with connection.transaction():
            connection.execute(_SQL["begin_erasure"], prepare=False)
            take_turns(connection, [str(organization_id)])
            limit_waiting(connection, milliseconds=lock_timeout(wait))
            visitor_id = _visitor(connection, "lock_visitor", about)
            return _erase(connection, about | {"visitor_id": visitor_id})

    try:
        return _repeated(erase)
    except psycopg.errors.LockNotAvailable:
        holders = ", ".join(list_holders(connection)) or "another session"
        raise ErasureBusyError(f"gave up waiting for {holders}: nothing was erased, try again") from None


def renew_statistics(connection: Connection) -> bool:
    """Refresh the planner's statistics, which hold values of rows; return whether the server allowed it."""
    return update_statistics(connection, _SQL["forget_values"].encode())


def allow_visitor(connection: Connection, *, organization_id: UUID, external_id: str) -> None:
    """Allow lines to bring back an erased visitor.

    Raises:
        PersonalDataError: The organization has erased no such visitor.

    """
    about = {"organization_id": organization_id}
    key = _row(connection, "get_erasure_key", **about)
    if key is not None:
        hashed = hash_external_id(external_id, key=key[0])
        if connection.execute(_SQL["remove_erased_visitor"], about | {"external_id_hash": hashed}).rowcount:
            return
    raise PersonalDataError(f"organization {organization_id} has erased no visitor with this external id")


class _CasesAddedError(Exception):
    """A contact has got another case while the cases were locked."""


def _repeated(work: Callable[[], T]) -> T:
    """Return the result of a transaction, which is restarted if others got in its way."""
    for _ in range(_TRIES):
        try:
            return work()
        except (_CasesAddedError, psycopg.errors.DeadlockDetected):
            continue
    raise ErasureBusyError("others keep changing this visitor's cases: nothing was erased, try again")


def _erase(connection: Connection, about: dict[str, Any]) -> Receipt:
    """Erase a visitor whose row is locked, in the current transaction."""
    _lock(connection, about)
    digest, count = hashlib.sha256(), 0
    for line in lines(connection, about):
        digest.update(line)
        count += 1
    removed = {name: connection.execute(_SQL[statement], about).rowcount for name, statement in _ERASURES.items()}
    return Receipt(
        organization_id=about["organization_id"],
        erased_at=_remember(connection, about["organization_id"], about["external_id"]),
        removed=dict(reversed(removed.items())),
        lines=count,
        sha256=digest.hexdigest(),
    )


def _lock(connection: Connection, about: dict[str, Any]) -> None:
    """Lock everything about a visitor against changes, additions and removals."""
    locked = _row(connection, "lock_cases", **about)
    _row(connection, "lock_contacts", **about)
    _, cases = _row(connection, "count_of_visitor", **about) or (0, 0)
    if locked != (cases,):
        raise _CasesAddedError
    _row(connection, "lock_events", **about)


def _remember(connection: Connection, organization_id: UUID, external_id: str) -> datetime:
    """Record that a visitor is erased, and return the time."""
    about = {"organization_id": organization_id}
    connection.execute(_SQL["add_erasure_key"], about | {"key": secrets.token_bytes(KEY_BYTES)})
    (key,) = _row(connection, "get_erasure_key", **about) or (b"",)
    hashed = hash_external_id(external_id, key=key)
    (erased_at,) = _row(connection, "add_erased_visitor", **about, external_id_hash=hashed) or (None,)
    assert isinstance(erased_at, datetime)  # noqa: S101  for the type checker
    return erased_at


def _visitor(connection: Connection, statement: str, about: dict[str, Any]) -> UUID:
    """Return the id of the visitor that a statement found."""
    found = _row(connection, statement, **about)
    if found is None:
        raise PersonalDataError(NO_VISITOR.format(about["organization_id"]) + _since(connection, **about))
    visitor_id: UUID = found[0]
    return visitor_id


def _since(connection: Connection, *, organization_id: UUID, external_id: str) -> str:
    """Return the time of a visitor's erasure, in words."""
    key = _row(connection, "get_erasure_key", organization_id=organization_id)
    if key is None:
        return ""
    hashed = hash_external_id(external_id, key=key[0])
    found = _row(connection, "get_erased_visitor", organization_id=organization_id, external_id_hash=hashed)
    return "" if found is None else f": it was erased at {found[0]:%Y-%m-%dT%H:%M:%SZ}"


def _row(connection: Connection, statement: str, **parameters: Any) -> tuple[Any, ...] | None:
    return connection.execute(_SQL[statement], parameters).fetchone()
