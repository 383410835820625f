"""Writes cases for their organization: the new values of a case, and the transaction that writes them.

A transaction takes two round trips: the first locks and reads the case, and checks the change's references; the second
writes, reads the result, and commits. If two transactions conflict, exactly one succeeds.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID, uuid4

import psycopg

from cases_service.cases.preconditions import Preconditions
from cases_service.cases.write_bodies import CaseBody, Error, invalid
from cases_service.database.connection import Connection
from cases_service.database.connection_pool import Database
from cases_service.database.fair_turns import Whose
from cases_service.database.transaction import Transaction
from cases_service.problems import (
    CaseNotFoundError,
    CaseNumberTakenError,
    ProblemError,
    UnavailableError,
)
from cases_service.store import organization_cases as case_store
from cases_service.store.organization_cases import REFERENCES, Situation, StoredCase

_TRIES: Final = 3
_SHARD: Final = re.compile(r"_\d{6,}$")
_NOT_FOUND: Final = "The organization has no case with this id."
_OPTIONAL: Final = (
    "contact_id",
    "owner_id",
    "subject",
    "description",
    "latest_messaging_channel",
    "channel_priority",
    "case_funnel_stage_id",
)
_COLUMNS: Final = ("case_number", "priority", "status", "created_by_user_id", "updated_by_user_id", *_OPTIONAL)


@dataclass(frozen=True, slots=True)
class Written:
    """A case after a change, and whether the change created it."""

    case: StoredCase
    is_new: bool = False


@dataclass(frozen=True, kw_only=True)
class CaseWriter:
    """Writes cases of one organization, in the name of the API token's user.

    Every method raises the errors of `Database.change`, and OutcomeUnknownError if the connection dies before the
    server confirms the commit. Each may then be repeated.
    """

    database: Database
    organization_id: UUID
    user_id: UUID

    def create(self, body: CaseBody) -> Written:
        """Create a case under a new id.

        Raises:
            InvalidBodyError: The body is wrong, or refers to a missing object.
            CaseNumberTakenError: Another case has the number.

        """
        return self._settle(_Change(uuid4(), body, self.user_id, creates=True, replaces=False))

    def put(self, case_id: UUID | None, body: CaseBody, conditions: Preconditions) -> Written:
        """Create a case under the caller's id, or replace the existing one.

        Raises:
            InvalidBodyError: The body is wrong, or refers to a missing object.
            CaseNotFoundError: The id is missing.
            PreconditionFailedError: The case does not match the conditions.
            CaseNumberTakenError: Another case has the number.

        """
        return self._settle(
            _Change(case_id, body, self.user_id, conditions, creates=case_id is not None, replaces=True)
        )

    def patch(self, case_id: UUID | None, body: CaseBody, conditions: Preconditions) -> Written:
        """Change the attributes of a case that the body names. Without an id there is no such case.

        Raises:
            InvalidBodyError: The body is wrong, or refers to a missing object.
            CaseNotFoundError: There is no such case.
            PreconditionFailedError: The case does not match the conditions.
            CaseNumberTakenError: Another case has the number.

        """
        return self._settle(_Change(case_id, body, self.user_id, conditions, creates=False, replaces=False))

    def remove(self, case_id: UUID | None, conditions: Preconditions) -> None:
        """Remove a case.

        Raises:
            CaseNotFoundError: There is no such case.
            PreconditionFailedError: The case does not match the conditions.

        """
        about: dict[str, Any] = {"organization_id": self.organization_id, "case_id": case_id}
        removal = case_store.remove_case(**about)

        def work(connection: Connection) -> bool:
            with Transaction(connection, self.organization_id) as transaction:
                if not conditions.are_set:
                    (is_removed,) = transaction.write(removal)
                    return bool(is_removed)
                _, found = transaction.begin(case_store.lock_case(**about), case_store.get_case(**about))
                if found is None:
                    return False
                conditions.check(found.tag)
                transaction.commit(removal)
                return True

        if not self.database.change(work, whose=Whose(self.organization_id)):
            raise CaseNotFoundError(_NOT_FOUND)

    def _settle(self, change: "_Change") -> Written:
        """Make a change. If only another transaction can have upset it, check again."""
        for _ in range(_TRIES):
            try:
                written = self.database.change(
                    lambda connection: self._attempt(connection, change), whose=Whose(self.organization_id)
                )
            except psycopg.errors.UniqueViolation:
                continue
            except psycopg.errors.ForeignKeyViolation as error:
                raise _dangling(change.body, error) from None
            if written is not None:
                return written
        raise UnavailableError("Others change the same. Nothing was changed. Try again.")

    def _attempt(self, connection: Connection, change: "_Change") -> Written | None:
        """Return the case after the change; None if another transaction created it in between."""
        about: dict[str, Any] = {"organization_id": self.organization_id, "case_id": change.case_id}
        read = case_store.get_case(**about)
        look = case_store.check_case(**about, values=change.body.values)
        with Transaction(connection, self.organization_id) as transaction:
            if change.replaces or not change.creates:
                _, found, situation = transaction.begin(case_store.lock_case(**about), read, look)
            else:
                found, (situation,) = None, transaction.begin(look)
            change.check(found, situation)
            before = None if found is None else found.values(_COLUMNS)
            values = change.values(before)
            given = {**about, "now": situation.now, "values": values}
            if found is None:
                is_new, case = transaction.commit(case_store.add_case(**given), read)
                return Written(case, is_new=True) if is_new else None
            if values == before:
                return Written(found)
            _, case = transaction.commit(case_store.change_case(**given), read)
            return Written(case)


@dataclass(frozen=True, slots=True)
class _Change:
    """A requested change: the values, the user, and the conditions."""

    case_id: UUID | None
    body: CaseBody
    user_id: UUID
    conditions: Preconditions = field(default_factory=Preconditions)
    creates: bool = field(kw_only=True)
    replaces: bool = field(kw_only=True)

    def check(self, found: StoredCase | None, situation: Situation) -> None:
        """Check the change against the existing case.

        Raises:
            ProblemError: The change is refused; the first reason in the order of the checks.

        """
        self.body.check(*self._missing(found, situation))
        if found is None and not self.creates:
            raise CaseNotFoundError(_NOT_FOUND)
        if self.conditions.are_set:
            self.conditions.check(None if found is None else found.tag)
        if situation.holder_id is not None:
            raise CaseNumberTakenError(situation.holder_id)

    def _missing(self, found: StoredCase | None, situation: Situation) -> list[Error]:
        # A case's creator never changes, so the value in the body does not matter.
        ignored = set() if found is None else {"created_by_user_id"}
        return [_no_such(self.body, name) for name in REFERENCES if name in situation.missing - ignored]

    def values(self, before: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the new values of the columns, given their values `before`."""
        given = dict(self.body.values)
        closes = given.pop("is_closed", None)
        if before is None:
            made = {"created_by_user_id": str(self.user_id), "updated_by_user_id": str(self.user_id)}
            given = {**dict.fromkeys(_OPTIONAL), **made, **given}
            return {**given, "status": _status(given["owner_id"], before=None, closes=bool(closes))}
        if self.replaces:
            given, closes = {**dict.fromkeys(_OPTIONAL), **given}, bool(closes)
        after = {**before, **given, "created_by_user_id": before["created_by_user_id"]}
        after["status"] = _status(after["owner_id"], before=before["status"], closes=closes)
        if after != before and "updated_by_user_id" not in given:
            after["updated_by_user_id"] = str(self.user_id)
        return after


def _status(owner_id: str | None, *, before: str | None, closes: bool | None) -> str:
    """Return the status after a change that closes or opens a case, or leaves it unchanged (None)."""
    is_closed = before == "Closed"
    if closes:
        return "Closed"
    if before is None or (closes is False and is_closed):
        return "Open" if owner_id is None else "In Progress"
    return before


def _no_such(body: CaseBody, name: str) -> Error:
    thing = {"contact_id": "contact", "case_funnel_stage_id": "stage"}.get(name, "user")
    return {"pointer": body.pointers.get(name, f"/{name}"), "detail": f"The organization has no such {thing}."}


def _dangling(body: CaseBody, error: psycopg.errors.ForeignKeyViolation) -> ProblemError:
    """Return the error for a reference whose object was removed during the write."""
    # Citus names it in the message alone, and after its shard.
    named = re.findall(r"\w+", error.diag.constraint_name or error.diag.message_primary or "")
    violated = {_SHARD.sub("", name) for name in named}
    names = [name for name, constraint in REFERENCES.items() if constraint in violated]
    return invalid(*(_no_such(body, name) for name in names)) if names else UnavailableError()
