"""Writes to conversations: messages, read marks, closing and reopening by visitors, and the resulting updates of cases.

Each change is one transaction of two round trips, as in `case_writing`: the first locks the case and reads its state;
the second writes all changes, including the event for a visitor's action, and commits. Cases are locked before the
positions of events. A visitor's transaction does not see internal notes, so that its results cannot depend on one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Final, Literal, TypeVar
from uuid import UUID, uuid4

import psycopg

from cases_service.cases.write_bodies import invalid
from cases_service.database.connection import Connection
from cases_service.database.connection_pool import Database
from cases_service.database.fair_turns import Whose
from cases_service.database.pipeline import Query
from cases_service.database.transaction import Transaction
from cases_service.problems import CaseClosedError, CaseNotFoundError, IdTakenError
from cases_service.store import conversations as store
from cases_service.store import organization_cases as case_store
from cases_service.store.conversations import Conversation, OpenActivity
from cases_service.store.events import EventType, add_event
from cases_service.store.organization_cases import StoredCase

T = TypeVar("T")
Side = Literal["visitor", "user"]

CHANNEL_OF_VISITORS: Final = "webchat"
"""The channel of visitors' messages, whatever other channels the case has."""

_TRIES: Final = 3
_PRIORITIES: Final = {"telephony": 4, "webchat": 3, "whatsapp": 2, "email": 1}
_COLUMNS: Final = (
    "status",
    "is_waiting",
    "unread_message_count",
    "visitor_unread_message_count",
    "latest_messaging_channel",
    "channel_priority",
)
# The column's limit: a loaded count may be any number.
_MOST: Final = 2**31 - 1
_NO_CASE: Final = "The organization has no case with this id."


@dataclass(frozen=True, slots=True, kw_only=True)
class NewMessage:
    """A message to write to a case. Without an id it gets a new one; without a channel, the case's present one."""

    text: str
    id: str | None = None
    channel: str | None = None
    is_private: bool = False
    sender_user_id: str | None = None


@dataclass(frozen=True, slots=True)
class Said:
    """A message, as its organization sees it, and whether it has just been written."""

    message: dict[str, Any]
    is_new: bool


@dataclass(frozen=True, kw_only=True)
class ConversationWriter:
    """Writes to one case, for the visitor that `external_id` names, or else for its organization.

    Every method raises the errors of `Database.change`; CaseNotFoundError if there is no such case or it is no longer
    the visitor's; and OutcomeUnknownError if the connection breaks before the server confirms the commit. Each may then
    be repeated.
    """

    database: Database
    organization_id: UUID
    case_id: UUID
    external_id: str | None = None
    closed_is_final: bool = False

    def say(self, new: NewMessage) -> Said:
        """Write a message, or return it if it was written before.

        Raises:
            InvalidBodyError: There is no such user.
            IdTakenError: Another message has its id.
            CaseClosedError: The case is closed, and that is final.

        """
        new = replace(new, id=new.id or str(uuid4()))
        for _ in range(_TRIES):
            try:
                return self._change(lambda transaction: self._say(transaction, new))
            except psycopg.errors.UniqueViolation:
                # Another writer has just taken the id, or a note has it, which this side does not see.
                continue
        raise IdTakenError

    def mark_read(self, until: str | None) -> StoredCase:
        """Mark the other side's messages as read, all or those up to a message, and return the case.

        Raises:
            InvalidBodyError: The case has no such message.

        """
        return self._change(lambda transaction: self._mark_read(transaction, until))

    def set_closed(self, is_closed: bool) -> StoredCase:  # noqa: FBT001
        """Close or reopen the case, and return it.

        Raises:
            CaseClosedError: The case is closed, and that is final.

        """
        return self._change(lambda transaction: self._set_closed(transaction, is_closed=is_closed))

    @property
    def _side(self) -> Side:
        return "user" if self.external_id is None else "visitor"

    @property
    def _about(self) -> dict[str, Any]:
        return {"organization_id": self.organization_id, "case_id": self.case_id}

    def _change(self, work: Callable[[Transaction], T]) -> T:
        def attempt(connection: Connection) -> T:
            with Transaction(connection, self.organization_id, notes=self._side == "user") as transaction:
                return work(transaction)

        return self.database.change(attempt, whose=Whose(self.organization_id, self.external_id))

    def _begin(
        self, transaction: Transaction, *queries: Query[Any], sender: str | None = None
    ) -> tuple[Conversation | None, Sequence[Any]]:
        """Lock the case, and return its state, if it exists, with the results of queries."""
        lock = (
            case_store.lock_case(**self._about)
            if self.external_id is None
            else store.lock_case(**self._about, external_id=self.external_id)
        )
        conversation = store.get_conversation(**self._about, sender_user_id=sender)
        is_locked, found, *answers = transaction.begin(lock, conversation, *queries)
        return (found if is_locked else None), answers

    def _say(self, transaction: Transaction, new: NewMessage) -> Said:
        message_id = str(new.id)
        read = store.get_message(organization_id=self.organization_id, message_id=message_id)
        activities = store.list_open_activities(**self._about)
        found, (present, open_) = self._begin(transaction, read, activities, sender=new.sender_user_id)
        if found is not None and new.sender_user_id is not None and not found.has_sender:
            raise invalid({"pointer": "/sender_user_id", "detail": "The organization has no such user."})
        if found is None:
            raise CaseNotFoundError(_NO_CASE if self._side == "user" else "")
        if present is not None:
            self._check_same(present, new)
            return Said(present, is_new=False)
        if self._side == "visitor" and self.closed_is_final and found.status == "Closed":
            raise CaseClosedError
        *_, written = transaction.commit(*self._message(found, open_, new), read)
        return Said(written, is_new=True)

    def _check_same(self, present: Mapping[str, Any], new: NewMessage) -> None:
        """Raise IdTakenError unless an existing message equals the new one."""
        said = str(self.case_id), self._side, new.text, new.is_private
        if said != tuple(present[name] for name in ("case_id", "sender_type", "text", "is_private")):
            raise IdTakenError

    def _message(self, found: Conversation, open_: Sequence[OpenActivity], new: NewMessage) -> list[Query[Any]]:
        """Return the queries that write a message and update the case."""
        message_id, now = str(new.id), found.now
        channel = new.channel or _channel(found, open_, notes=new.is_private)
        activity = _activity(open_, channel, notes=new.is_private)
        activity_id = str(uuid4()) if activity is None else activity.id
        queries: list[Query[Any]] = []
        if activity is None:
            queries.append(
                store.add_activity(
                    **self._about, activity_id=activity_id, channel=channel, now=now, is_private=new.is_private
                )
            )
        queries.append(
            store.add_message(
                **self._about,
                message_id=message_id,
                activity_id=activity_id,
                sender_type=self._side,
                sender_user_id=new.sender_user_id,
                text=new.text,
                now=now,
                is_private=new.is_private,
            )
        )
        queries.append(
            store.count_message(
                organization_id=self.organization_id, activity_id=activity_id, now=now, is_private=new.is_private
            )
        )
        if new.is_private:
            return queries
        if self._side == "user":
            queries.append(store.mark_read(**self._about, now=now, sender_type="visitor"))
        channels = {channel, *(each.channel for each in open_ if not each.is_private)}
        queries += self._write(found, _after_message(found, self._side, channel, channels))
        return queries + self._event("message_created", now, message_id)

    def _mark_read(self, transaction: Transaction, until: str | None) -> StoredCase:
        other: Side = "visitor" if self._side == "user" else "user"
        unread_ = store.count_unread(**self._about, sender_type=other, until=until)
        found, (unread, case) = self._begin(transaction, unread_, case_store.get_case(**self._about))
        if found is None:
            raise CaseNotFoundError(_NO_CASE if self._side == "user" else "")
        if until is not None and unread.until_at is None:
            raise invalid({"pointer": "/until", "detail": "The case has no such message."})
        name = "unread_message_count" if self._side == "user" else "visitor_unread_message_count"
        values = _values(found) | {name: unread.remaining}
        if unread.all == unread.remaining and values == _values(found):
            return _stored(case)
        place = None if until is None else (unread.until_at, until)
        marks = store.mark_read(**self._about, now=found.now, sender_type=other, until=place)
        return self._commit(transaction, marks, *self._write(found, values), *self._event("case_read", found.now))

    def _set_closed(self, transaction: Transaction, *, is_closed: bool) -> StoredCase:
        found, (case,) = self._begin(transaction, case_store.get_case(**self._about))
        if found is None:
            raise CaseNotFoundError
        if (found.status == "Closed") == is_closed:
            return _stored(case)
        if self.closed_is_final and not is_closed:
            raise CaseClosedError
        values = _values(found) | {"status": "Closed" if is_closed else _opened(found)}
        kind: EventType = "case_closed" if is_closed else "case_reopened"
        return self._commit(transaction, *self._write(found, values), *self._event(kind, found.now))

    def _write(self, found: Conversation, values: Mapping[str, Any]) -> list[Query[Any]]:
        return [store.change_conversation(**self._about, now=found.now, values=values)]

    def _event(self, kind: EventType, now: str, message_id: str | None = None) -> list[Query[Any]]:
        """Return the query that records a visitor's action as an event; users' actions are not recorded."""
        if self.external_id is None:
            return []
        return list(add_event(kind, **self._about, external_id=self.external_id, now=now, message_id=message_id))

    def _commit(self, transaction: Transaction, *queries: Query[Any]) -> StoredCase:
        *_, case = transaction.commit(*queries, case_store.get_case(**self._about))
        return _stored(case)


def _channel(found: Conversation, open_: Sequence[OpenActivity], *, notes: bool) -> str:
    """Return a case's present channel. A note does not change what visitors see."""
    seen = (each.channel for each in open_ if notes or not each.is_private)
    return next(chain(seen, (found.latest_messaging_channel,)), None) or CHANNEL_OF_VISITORS


def _activity(open_: Sequence[OpenActivity], channel: str, *, notes: bool) -> OpenActivity | None:
    """Return the activity for a message, if there is one; a note prefers one that visitors see."""
    fitting = [each for each in open_ if each.channel == channel and (notes or not each.is_private)]
    return min(fitting, key=lambda each: each.is_private, default=None)


def _values(found: Conversation) -> dict[str, Any]:
    """Return the values of the columns that a change writes."""
    return {name: getattr(found, name) for name in _COLUMNS}


def _after_message(found: Conversation, side: Side, channel: str, channels: set[str]) -> dict[str, Any]:
    """Return the columns' values after a message that is not a note. `channels` are those of the open activities."""
    values = _values(found) | {"channel_priority": max(_PRIORITIES[each] for each in channels)}
    if channel != "telephony":
        values["latest_messaging_channel"] = channel
    if side == "visitor":
        values |= {"is_waiting": True, "unread_message_count": min(found.unread_message_count + 1, _MOST)}
        if found.status in ("Pending", "Closed"):
            values["status"] = _opened(found)
        return values
    values |= {
        "is_waiting": False,
        "unread_message_count": 0,
        "visitor_unread_message_count": min(found.visitor_unread_message_count + 1, _MOST),
    }
    if found.status != "Closed":
        values["status"] = "Pending"
    return values


def _opened(found: Conversation) -> str:
    return "Open" if found.owner_id is None else "In Progress"


def _stored(case: StoredCase | None) -> StoredCase:
    # It is locked, so it exists.
    if case is None:
        raise CaseNotFoundError
    return case
