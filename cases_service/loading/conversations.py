"""What a load derives for conversations: the case of a message, who sees an activity, and how many messages it has.

A line of a message names its activity and no case; and neither line says how many messages an activity has, or whether
visitors see it. All of that follows from the lines and from what is stored.
"""

from collections.abc import Callable, Iterable
from typing import Any

import psycopg

from cases_service.loading.statements import CONVERSATION, TABLES

Execute = Callable[..., psycopg.Cursor[tuple[Any, ...]]]


class StagedConversations:
    """The staged lines of activities and messages of one load, in the order of the methods."""

    def __init__(self, execute: Execute) -> None:
        self._execute = execute

    def lock(self, organizations: Iterable[str]) -> None:
        """Let nobody else write into the conversations of organizations that lines are about until the end."""
        for organization_id in organizations:
            self._execute("lock_conversations", organization_id=organization_id).fetchone()

    def prepare(self) -> None:
        """Look at what is stored of them, once it can no longer change."""
        self._execute("create_staging_of_counts")
        self._execute("index_messages")
        self._execute("fill_counted")

    def skip_taken_along(self, *, unnamed: int) -> int:
        """Leave out what is in a case that lines remove, and return how many of it are rows that no line names."""
        self._execute("fill_cases_of_removed")
        self._execute("fill_cases")
        self._execute("fill_staged_cases")
        dropped = [
            self._execute(f"skip_taken_along {TABLES[name].name}", unnamed=unnamed).fetchone() for name in CONVERSATION
        ]
        return sum(row[0] for row in dropped if row is not None)

    def hide(self) -> None:
        """Decide which activities visitors see, before these are written."""
        self._execute("fill_hidden")
        self._execute("fill_hidden_as_stored")

    def place(self) -> None:
        """Put messages into the cases of their activities, which have been written."""
        self._execute("fill_cases")

    def count(self) -> None:
        """Count the messages of activities, after they have been written and removed."""
        self._execute("create_counts")
        self._execute("write_counts")
