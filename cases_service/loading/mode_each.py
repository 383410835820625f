"""Mode `each`: the right lines become or remove rows, and the wrong ones are excluded beforehand and reported.

Conflicts over numbers and identities are found before anything is written, unless they depend on a removal that fails
or on another session's change: then everything is written again without the conflicting lines.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import psycopg

from cases_service.credentials.secret_encryption import SecretBox
from cases_service.loading.conversations import StagedConversations
from cases_service.loading.erased_visitors import ERASED
from cases_service.loading.line_errors import UNNAMED, Fault
from cases_service.loading.outcome import Changes, LoadBusyError, LoadOptions
from cases_service.loading.references import (
    STILL_NEEDED,
    exclude_still_needed,
    exclude_without_parent,
    references_of,
    references_to,
)
from cases_service.loading.removals import REMOVABLE, remove_rows
from cases_service.loading.session import LoadSession
from cases_service.loading.signing_keys import (
    TOO_MANY,
    exclude_keys_beyond_limit,
    find_changed_keys,
    lock_signing_keys,
)
from cases_service.loading.statements import TABLES
from cases_service.loading.unique_fields import UniqueField, unique_fields
from cases_service.loading.writing import (
    NOT_CLOSED,
    OTHER_EVENT,
    exclude_closed_without_time,
    exclude_other_events,
    hold_positions,
    write_events,
    write_rows,
)

_TRIES: Final = 3


class RightLines:
    """Writes and removes the rows of the right lines, and collects what is wrong with the others.

    Attributes:
        wrong: What is wrong with the excluded lines, by place.

    """

    def __init__(
        self,
        session: LoadSession,
        *,
        box: SecretBox,
        options: LoadOptions,
        conversations: StagedConversations,
    ) -> None:
        self._session = session
        self._box = box
        self._options = options
        self._conversations = conversations
        self.wrong: dict[int, Fault] = {}

    def write(self, staged_types: Sequence[str], *, erased: Mapping[str, Sequence[int]]) -> Changes:
        """Write and remove every row that can be, and collect the other lines.

        Args:
            staged_types: The types that have a staging table, parents first.
            erased: The lines about erased visitors, by type.

        """
        for field in unique_fields(self._session, staged_types):
            field.index_lines()
        in_the_way: dict[int, Fault] = {}
        for _ in range(_TRIES):
            self.wrong = dict(in_the_way)
            try:
                with self._session.savepoint():
                    changes = self._try(staged_types, erased, sorted(in_the_way))
            except _InTheWayError as error:
                refused = {place: fault for place, fault in self.wrong.items() if fault == STILL_NEEDED}
                in_the_way |= refused | error.lines
            except psycopg.errors.ForeignKeyViolation:
                # Another session has removed, or refers to, a row that was read a moment ago.
                continue
            else:
                return changes
        raise LoadBusyError(None, None, None, "others change the same rows: nothing was loaded, try again")

    def _try(
        self, staged_types: Sequence[str], erased: Mapping[str, Sequence[int]], in_the_way: Sequence[int]
    ) -> Changes:
        written, removed = {}, {}
        for record_type in staged_types:
            if in_the_way:
                self._exclude(record_type, in_the_way)
            number = len(self.wrong)
            self._exclude_wrong(record_type, erased.get(record_type, ()))
            if record_type == "activity" and "case" in staged_types and len(self.wrong) > number:
                self._conversations.skip_left_behind(unnamed=UNNAMED)
            if record_type != "event":
                written[record_type] = write_rows(self._session, record_type, self._conversations)
        for record_type in reversed(staged_types):
            removed[record_type] = self._remove(record_type)
        if "message" in staged_types:
            self._conversations.count()
        for field in unique_fields(self._session, staged_types):
            self._find_in_the_way(field)
        if "event" in staged_types:
            hold_positions(self._session)
            self._note(exclude_other_events(self._session), OTHER_EVENT)
            written["event"] = write_events(self._session)
        return Changes(written, removed)

    def _remove(self, record_type: str) -> Counter[str]:
        if record_type == "activity":
            self._conversations.remove_contents()
        if record_type in REMOVABLE:
            self.wrong |= exclude_still_needed(self._session, references_to(record_type))
        return remove_rows(self._session, record_type, if_newer=self._options.if_newer)

    def _exclude_wrong(self, record_type: str, erased: Sequence[int]) -> None:
        """Exclude the lines of a type that conflict with other rows."""
        if erased:
            self._exclude(record_type, erased)
            self._note(erased, ERASED)
        if record_type == "signing_key":
            self._guard_signing_keys()
        if record_type == "case" and self._options.keeps_left_out:
            self._note(exclude_closed_without_time(self._session), NOT_CLOSED)
        self.wrong |= exclude_without_parent(self._session, references_of(record_type, self._options))
        for field in unique_fields(self._session, [record_type]):
            self._note(field.exclude_repeated(), field.fault)

    def _guard_signing_keys(self) -> None:
        """Exclude the lines that change existing keys, and those whose keys would be too many."""
        lock_signing_keys(self._session)
        changed = find_changed_keys(self._session, self._box)
        self._exclude("signing_key", changed)
        self.wrong |= changed
        self._note(exclude_keys_beyond_limit(self._session), TOO_MANY)

    def _find_in_the_way(self, field: UniqueField) -> None:
        if field.holds():
            return
        places = field.list_repeated()
        if places or not self._session.is_on_citus:
            raise _InTheWayError(dict.fromkeys(places, field.fault)) from None

    def _exclude(self, record_type: str, places: Iterable[int]) -> None:
        self._session.exclude(f"exclude_lines {TABLES[record_type].name}", places=list(places))

    def _note(self, places: Iterable[int], fault: Fault) -> None:
        self.wrong |= dict.fromkeys(places, fault)


class _InTheWayError(Exception):
    """Lines conflict with other rows, found only while writing."""

    def __init__(self, lines: dict[int, Fault]) -> None:
        super().__init__()
        self.lines = lines
