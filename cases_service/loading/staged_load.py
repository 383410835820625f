"""One load, inside its transaction: lines are staged, compared with what is stored, and written or removed."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from math import inf
from time import monotonic
from typing import Any, Final
from uuid import UUID

import psycopg

from cases_service.credentials.secret_encryption import SecretBox
from cases_service.database.command_connection import limit_waiting
from cases_service.database.migrations import DEFAULT_WAIT, lock_timeout
from cases_service.loading.conversations import StagedConversations
from cases_service.loading.erased_visitors import find_erased_lines
from cases_service.loading.line_errors import UNNAMED, Fault
from cases_service.loading.merging import (
    compare_with_stored,
    exclude_wrong_among_others,
    is_dated,
    keep_one_line,
)
from cases_service.loading.mode_all import AllLines
from cases_service.loading.mode_each import RightLines
from cases_service.loading.outcome import DEFAULT_OPTIONS, Changes, LoadOptions, LoadSummary, OrganizationCounts
from cases_service.loading.removals import REMOVABLE, remember_named, stage_unnamed
from cases_service.loading.session import LoadSession
from cases_service.loading.staging import Staging
from cases_service.loading.statements import CONVERSATION
from cases_service.loading.turns import turn_keys

_TRIES: Final = 8
"""How often the lines of rows are reduced, before a row keeps its stored state although an earlier line was right."""


class Load:
    """One load inside its transaction: it stages lines, source by source, and then writes them."""

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        *,
        box: SecretBox,
        options: LoadOptions = DEFAULT_OPTIONS,
        wait: float = DEFAULT_WAIT,
        deadline: float = inf,
    ) -> None:
        self._session = LoadSession(connection, deadline=deadline)
        self._staging = Staging(self._session, box=box, options=options)
        self._conversations = StagedConversations(self._session)
        self._box = box
        self._options = options
        self._wait = wait
        self._wrong: dict[int, Fault] = {}
        self._unnamed = 0
        self._surplus = 0
        self._stale: Counter[str] = Counter()
        self._limit_waiting()

    @classmethod
    def of_request(cls, connection: psycopg.Connection[Any], options: LoadOptions, *, deadline: float) -> "Load":
        """Return a load that ends by a deadline (of `monotonic`), including its waits for others.

        It collects errors in both modes: the caller decides whether to commit.
        """
        work = cls(connection, box=SecretBox([]), options=replace(options, mode="each"), deadline=deadline)
        milliseconds = lock_timeout(deadline - monotonic())
        work._session.execute("limit_request", milliseconds=milliseconds)
        if work._session.is_on_citus:
            limit_waiting(connection, milliseconds=milliseconds)
        return work

    def stage(self, source: str, lines: Iterable[tuple[int, bytes]]) -> None:
        """Check every line, with its number, and copy it into the staging table of its type."""
        self._staging.stage(source, lines)

    def write(self) -> LoadSummary:
        """Apply the staged lines to the tables."""
        self._create_tables()
        if self._options.mode == "all":
            return self._summary(self._apply())
        for _ in range(_TRIES):
            with self._session.savepoint():
                changes = self._apply()
                if self._wrong and self._surplus:
                    raise psycopg.Rollback
                return self._summary(changes)
            if not self._exclude_wrong_among_others():
                break
        return self._summary(self._apply())

    def _exclude_wrong_among_others(self) -> bool:
        """Exclude wrong lines of rows that have other lines, and tell whether there were any.

        Only those of one type, as the lines that refer to them may be right then.
        """
        for record_type in self._staging.types:
            excluded = exclude_wrong_among_others(self._session, record_type, self._options, wrong=self._wrong)
            self._add_errors(excluded)
            if excluded:
                return True
        return False

    def _apply(self) -> Changes:
        self._stale = Counter()
        self._surplus = self._unnamed = 0
        organizations = self._staging.organizations
        staged_types = self._keep_what_counts()
        self._take_turn()
        erased = find_erased_lines(self._session, staged_types, organizations=organizations)
        if self._staging.has_conversations:
            self._conversations.lock(organizations)
        for record_type in staged_types:
            self._stale += compare_with_stored(self._session, record_type, self._options, organizations=organizations)
        if self._is_snapshot:
            self._stage_unnamed()
        if self._staging.has_conversations:
            self._prepare_conversations(staged_types)
        return self._write(staged_types, erased)

    @property
    def _is_snapshot(self) -> bool:
        return self._options.maximum_removals is not None

    def _create_tables(self) -> None:
        """Create the staging tables of types that have no lines but are read."""
        for record_type in REMOVABLE if self._is_snapshot else ():
            self._staging.create_table(record_type)
        if self._staging.has_conversations:
            for record_type in (*CONVERSATION, *(("case",) if self._options.if_newer else ())):
                self._staging.create_table(record_type)

    def _keep_what_counts(self) -> list[str]:
        """Keep one line of each row, and return the staged types, parents first."""
        staged_types = self._staging.types
        for record_type in staged_types:
            surplus = keep_one_line(self._session, record_type, self._options)
            self._surplus += surplus.total()
            if is_dated(record_type, self._options):
                self._stale += surplus
        for record_type in REMOVABLE if self._is_snapshot else ():
            remember_named(self._session, record_type)
        return staged_types

    def _limit_waiting(self) -> None:
        if self._session.deadline == inf:
            limit_waiting(self._session.connection, milliseconds=lock_timeout(self._wait))

    def _take_turn(self) -> None:
        if self._session.deadline == inf:
            # The turn may take as long as another load does.
            limit_waiting(self._session.connection, milliseconds="0")
        self._session.execute("take_turns", keys=turn_keys(self._staging.organizations)).fetchall()
        self._session.execute("defer_constraints")
        self._limit_waiting()

    def _stage_unnamed(self) -> None:
        """Stage the removal of the rows that no line of a snapshot names."""
        for record_type in REMOVABLE:
            organizations = self._staging.conversing.get(record_type, self._staging.organizations)
            self._unnamed += stage_unnamed(
                self._session, record_type, organizations=organizations, options=self._options
            )

    def _prepare_conversations(self, staged_types: Sequence[str]) -> None:
        """Read the stored conversations. Rows removed with their case need no line."""
        if self._is_snapshot:
            self._conversations.lock(self._staging.organizations)
        self._conversations.prepare()
        if self._options.if_newer:
            self._stale += self._conversations.skip_late()
        if "case" in staged_types:
            self._unnamed -= self._conversations.skip_taken_along(unnamed=UNNAMED)

    def _write(self, staged_types: Sequence[str], erased: Mapping[str, Sequence[int]]) -> Changes:
        staging = self._staging
        common: dict[str, Any] = {"box": self._box, "options": self._options, "conversations": self._conversations}
        if self._options.mode == "all":
            return AllLines(self._session, sources=staging.sources, **common).write(staged_types, erased=erased)
        right = RightLines(self._session, **common)
        changes = right.write(staged_types, erased=erased)
        self._wrong = right.wrong
        return changes

    def _add_errors(self, wrong: Mapping[int, Fault]) -> None:
        for place, fault in wrong.items():
            organization_id = self._session.organizations_of_wrong.get(place)
            self._staging.errors.add(place, fault, organization_id=organization_id)

    def _summary(self, changes: Changes) -> LoadSummary:
        staging, errors, stale = self._staging, self._staging.errors, self._stale.total()
        self._add_errors(self._wrong)
        written, removed = map(_total_by_type, changes)
        changed = sum(written.values()) + sum(removed.values())
        nothing = dict.fromkeys(self._options.reading.types, 0)
        return LoadSummary(
            lines=staging.lines,
            written=nothing | written,
            removed=nothing | removed,
            unchanged=staging.lines - changed + self._unnamed - stale - errors.count,
            stale=stale,
            error_count=errors.count,
            errors=errors.list_first(staging.sources),
            organizations=self._count_by_organization(changes),
        )

    def _count_by_organization(self, changes: Changes) -> dict[UUID, OrganizationCounts]:
        """Return the counts by id, whatever the spelling of the id."""
        staging = self._staging
        counted = {
            "lines": [staging.organizations, staging.refused],
            "written": changes.written.values(),
            "removed": changes.removed.values(),
            "stale": [self._stale],
            "wrong": [staging.errors.organizations],
        }
        found: defaultdict[UUID, Counter[str]] = defaultdict(Counter)
        for name, counters in counted.items():
            for organization_id, number in chain.from_iterable(counter.items() for counter in counters):
                found[UUID(organization_id)][name] += number
        return {organization_id: OrganizationCounts(**counts) for organization_id, counts in found.items()}


def _total_by_type(counted: Mapping[str, Counter[str]]) -> dict[str, int]:
    return {record_type: counts.total() for record_type, counts in counted.items()}
