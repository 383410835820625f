"""Mode `all`: every staged line becomes or removes a row, or the first wrong line found ends the load."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain

from cases_service.credentials.secret_encryption import SecretBox
from cases_service.loading.conversations import StagedConversations
from cases_service.loading.erased_visitors import ERASED
from cases_service.loading.line_errors import Sources
from cases_service.loading.outcome import Changes, LoadError, LoadOptions
from cases_service.loading.references import change, references_of, references_to, refuse_broken
from cases_service.loading.removals import remove_rows
from cases_service.loading.session import LoadSession
from cases_service.loading.signing_keys import TOO_MANY, find_changed_keys, find_key_beyond_limit, lock_signing_keys
from cases_service.loading.unique_fields import unique_fields
from cases_service.loading.writing import (
    NOT_CLOSED,
    OTHER_EVENT,
    exclude_closed_without_time,
    exclude_other_events,
    hold_positions,
    write_events,
    write_rows,
)


class AllLines:
    """Writes and removes the rows of all staged lines, or raises LoadError that names a line."""

    def __init__(
        self,
        session: LoadSession,
        *,
        box: SecretBox,
        options: LoadOptions,
        sources: Sources,
        conversations: StagedConversations,
    ) -> None:
        self._session = session
        self._box = box
        self._options = options
        self._sources = sources
        self._conversations = conversations

    def write(self, staged_types: Sequence[str], *, erased: Mapping[str, Sequence[int]]) -> Changes:
        """Write and remove the rows of some types, given parents first.

        Args:
            staged_types: The types that have a staging table.
            erased: The lines about erased visitors, by type.

        """
        if refused := list(chain.from_iterable(erased.values())):
            raise self._sources.error_at(min(refused), ERASED)
        if self._options.keeps_left_out and "case" in staged_types:
            for place in exclude_closed_without_time(self._session):
                raise self._sources.error_at(place, NOT_CLOSED)
        written = {record_type: self._write(record_type) for record_type in staged_types if record_type != "event"}
        if "signing_key" in staged_types:
            self._limit_live_keys()
        removed = {record_type: self._remove(record_type) for record_type in reversed(staged_types)}
        if "message" in staged_types:
            self._conversations.count()
        self._check_unique_fields(staged_types)
        if "event" in staged_types:
            written["event"] = self._write("event")
        return Changes(written, removed)

    def _write(self, record_type: str) -> Counter[str]:
        if record_type == "signing_key":
            self._guard_signing_keys()
        references = references_of(record_type, self._options)
        write = partial(self._write_rows, record_type)
        return change(self._session, self._sources, write, diagnosis="find_without_parent", references=references)

    def _write_rows(self, record_type: str) -> Counter[str]:
        if record_type == "event":
            hold_positions(self._session)
            for place in exclude_other_events(self._session):
                raise self._sources.error_at(place, OTHER_EVENT)
            return write_events(self._session)
        return write_rows(self._session, record_type, self._conversations)

    def _remove(self, record_type: str) -> Counter[str]:
        references = references_to(record_type)
        if record_type == "activity":
            self._conversations.remove_contents()
            # The database would remove its messages, too.
            refuse_broken(self._session, self._sources, "find_still_needed", references)
        remove = partial(remove_rows, self._session, record_type, if_newer=self._options.if_newer)
        return change(self._session, self._sources, remove, diagnosis="find_still_needed", references=references)

    def _guard_signing_keys(self) -> None:
        lock_signing_keys(self._session)
        for place, fault in find_changed_keys(self._session, self._box).items():
            raise self._sources.error_at(place, fault)

    def _limit_live_keys(self) -> None:
        place = find_key_beyond_limit(self._session)
        if place is not None:
            raise self._sources.error_at(place, TOO_MANY)

    def _check_unique_fields(self, staged_types: Sequence[str]) -> None:
        for field in unique_fields(self._session, staged_types):
            if field.holds():
                continue
            place = field.find_repeated()
            if place is not None:
                raise self._sources.error_at(place, field.fault)
            if not self._session.is_on_citus:
                raise LoadError(None, None, None, f"the database refuses a row ({field.column} is not unique)")
