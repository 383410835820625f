"""Erases everything about a visitor, and lets one who was erased back in.

A keyed hash of the external id stays, so that no feed brings the visitor back (`loading.erased`).

An erasure takes its turn among the organization's loads. A request holds the case that it writes into, and then refers
to the case's contact. So an erasure locks all cases, then the contacts, and starts again if a contact has got another
case meanwhile: it never waits for a case while it holds a contact.
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
from cases_service.loading.erased import KEY_BYTES, hash_external_id
from cases_service.loading.load import take_turns, update_statistics
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
    """How much there is about a visitor."""

    contacts: int
    cases: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What an erasure has removed.

    Attributes:
        organization_id: Whose visitor it was.
        erased_at: When, by the database's clock.
        removed: How many rows, by their type in the load format; messages include notes among users.
        lines: How many lines an export had at that moment.
        sha256: Of the bytes of these lines, in hexadecimal digits.

    """

    organization_id: UUID
    erased_at: datetime
    removed: dict[str, int]
    lines: int
    sha256: str


def measure(connection: Connection, *, organization_id: UUID, external_id: str) -> Extent:
    """Return how much there is about a visitor.

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
    """Erase everything about a visitor, or nothing; and remember the visitor by a keyed hash of the external id.

    The connection is in autocommit mode. `wait` is for how many seconds to wait for a row that somebody else holds. A
    load of the organization is waited for as long as it takes.

    Raises:
        PersonalDataError: There is no such visitor.
        ErasureBusyError: The wait was in vain. Nothing has been erased.
        psycopg.OperationalError: The database went away. Nothing has been erased, unless that was at the very end.

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
    """Renew the planner's statistics, which keep values of rows, and return whether the server let this role do so."""
    return update_statistics(connection, _SQL["forget_values"].encode())


def allow_visitor(connection: Connection, *, organization_id: UUID, external_id: str) -> None:
    """Let lines bring a visitor back who was erased.

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
    """Return what a transaction returns, which is begun anew where others were in its way."""
    for _ in range(_TRIES):
        try:
            return work()
        except (_CasesAddedError, psycopg.errors.DeadlockDetected):
            continue
    raise ErasureBusyError("others keep changing this visitor's cases: nothing was erased, try again")


def _erase(connection: Connection, about: dict[str, Any]) -> Receipt:
    """Erase a visitor whose row is locked, in the transaction that there is."""
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
    """Keep everybody else from changing, adding and removing what is about a visitor."""
    locked = _row(connection, "lock_cases", **about)
    _row(connection, "lock_contacts", **about)
    _, cases = _row(connection, "count_of_visitor", **about) or (0, 0)
    if locked != (cases,):
        raise _CasesAddedError
    _row(connection, "lock_events", **about)


def _remember(connection: Connection, organization_id: UUID, external_id: str) -> datetime:
    """Note that a visitor is erased, and return when."""
    about = {"organization_id": organization_id}
    connection.execute(_SQL["add_erasure_key"], about | {"key": secrets.token_bytes(KEY_BYTES)})
    (key,) = _row(connection, "get_erasure_key", **about) or (b"",)
    hashed = hash_external_id(external_id, key=key)
    (erased_at,) = _row(connection, "add_erased_visitor", **about, external_id_hash=hashed) or (None,)
    assert isinstance(erased_at, datetime)  # noqa: S101  for the type checker
    return erased_at


def _visitor(connection: Connection, statement: str, about: dict[str, Any]) -> UUID:
    """Return the id of a visitor, who was found by a statement."""
    found = _row(connection, statement, **about)
    if found is None:
        raise PersonalDataError(NO_VISITOR.format(about["organization_id"]) + _since(connection, **about))
    visitor_id: UUID = found[0]
    return visitor_id


def _since(connection: Connection, *, organization_id: UUID, external_id: str) -> str:
    """Return since when a visitor is erased, in words."""
    key = _row(connection, "get_erasure_key", organization_id=organization_id)
    if key is None:
        return ""
    hashed = hash_external_id(external_id, key=key[0])
    found = _row(connection, "get_erased_visitor", organization_id=organization_id, external_id_hash=hashed)
    return "" if found is None else f": it was erased at {found[0]:%Y-%m-%dT%H:%M:%SZ}"


def _row(connection: Connection, statement: str, **parameters: Any) -> tuple[Any, ...] | None:
    return connection.execute(_SQL[statement], parameters).fetchone()
