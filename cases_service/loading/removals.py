"""What a load removes, and what it remembers of that.

A line with `deleted` removes its row, and a snapshot also removes the rows that no line names. With `if_newer`, the
time of each removal of a contact or case is remembered (`removed_rows`): an older line does not bring the row back, and
lines about the contents of a removed case or activity that come later are stale, too.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Final

from cases_service.loading.line_errors import UNNAMED
from cases_service.loading.outcome import LoadError, LoadOptions
from cases_service.loading.records import RECORDS
from cases_service.loading.session import LoadSession
from cases_service.loading.statements import TABLES

REMOVABLE: Final = tuple(name for name, record in RECORDS.items() if record.removable)
"""The types of rows that a line can remove."""

_MEMORIES: Final = {
    "contact": ("remember_removed contacts",),
    "case": ("remember_removed cases", "remember_contents"),
    "activity": ("remember_removed_activities",),
}
"""What is remembered of the removals of a type, before the rows are removed."""


def remove_rows(session: LoadSession, record_type: str, *, if_newer: bool) -> Counter[str]:
    """Remove the rows of a type that lines remove, and return how many of each organization existed.

    With `if_newer`, the times of the removals of contacts and cases are remembered, and which activities were removed.
    """
    if record_type not in REMOVABLE:
        return Counter()
    table = TABLES[record_type].name
    if if_newer:
        for statement in _MEMORIES.get(record_type, ()):
            session.execute(statement)
    return session.count(f"remove {table}")


def skip_removed(session: LoadSession, record_type: str) -> Counter[str]:
    """Exclude the lines that are older than the removal of their row, and return how many of each organization."""
    return session.count(f"skip_removed {TABLES[record_type].name}")


def remember_named(session: LoadSession, record_type: str) -> None:
    """Remember which rows the lines of a snapshot name, before stale lines are excluded."""
    session.execute(f"remember_named {TABLES[record_type].name}")


def stage_unnamed(session: LoadSession, record_type: str, *, organizations: Iterable[str], options: LoadOptions) -> int:
    """Stage the removal of the rows of a type that no line of a snapshot names, and return how many.

    Raises:
        LoadError: They are a larger share of an organization's rows than the options allow.

    """
    table = TABLES[record_type].name
    given = {"organizations": list(organizations), "spares_newer": options.if_newer}
    share = options.maximum_removals or 0.0
    for organization_id, rows, unnamed in session.execute(f"count_unnamed {table}", **given).fetchall():
        if unnamed > share * rows:
            raise LoadError(
                None,
                None,
                None,
                f"nothing was loaded: the files name all but {unnamed:,} of the {rows:,} {table} of organization"
                f" {organization_id}, and more than {share:.4g} of them are not removed (--max-removals)",
            )
    return session.execute(f"stage_unnamed {table}", place=UNNAMED, **given).rowcount
