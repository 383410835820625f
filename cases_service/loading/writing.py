"""Writes the staged lines of a type as rows: new ones are added, existing ones changed."""

from collections import Counter
from typing import Final

import psycopg

from cases_service.loading.conversations import StagedConversations
from cases_service.loading.line_errors import Fault
from cases_service.loading.session import LoadSession
from cases_service.loading.signing_keys import write_signing_keys
from cases_service.loading.statements import TABLES, TIMED

OTHER_EVENT: Final = Fault("position", "another event of the organization has this position")
NOT_CLOSED: Final = Fault("closed_at", "a time is required: the case has not been closed yet")


def write_rows(session: LoadSession, record_type: str, conversations: StagedConversations) -> Counter[str]:
    """Write the rows of a type other than events, and return how many of each organization were added or changed."""
    if record_type == "signing_key":
        return write_signing_keys(session)
    table = TABLES[record_type].name
    if record_type in TIMED:
        session.execute(f"fill_times {table}")
        session.execute(f"fill_new_times {table}")
    if record_type == "activity":
        conversations.hide()
    if record_type == "message":
        conversations.place()
        return _write_messages(session, conversations)
    written = session.count(f"write {table}")
    if record_type == "activity" and session.is_on_citus:
        session.execute("follow_activities")
    return written


def _write_messages(session: LoadSession, conversations: StagedConversations) -> Counter[str]:
    """Write messages, and know for each that was stored which activity counts it.

    A request may write a message with the id of a line at the same moment, into a case that no line is about.
    """
    while True:
        try:
            with session.savepoint():
                added = session.count("write_new messages")
        except psycopg.errors.UniqueViolation:
            # At least one more message is known each time.
            conversations.find_counted()
        else:
            return added + session.count("write messages")


def exclude_closed_without_time(session: LoadSession) -> list[int]:
    """Exclude the closed cases without a closing time in line or row, and return their places."""
    return session.exclude("exclude_closed_without_time")


def hold_positions(session: LoadSession) -> None:
    """Lock out new events until the transaction ends. Pruned events stay pruned."""
    session.execute("lock_positions")
    session.execute("skip_pruned")


def exclude_other_events(session: LoadSession) -> list[int]:
    """Exclude the events whose position belongs to another one, and return their places."""
    return session.exclude("exclude_other_events")


def write_events(session: LoadSession) -> Counter[str]:
    """Add the events that are not stored yet, and return how many of each organization."""
    return session.count("write_events")
