"""Decides which lines count: one for each row, none that is stale, with the stored values of fields left out."""

from collections.abc import Iterable

from cases_service.loading.outcome import LoadOptions
from cases_service.loading.removals import skip_removed
from cases_service.loading.session import LoadSession
from cases_service.loading.statements import DATED, TABLES


def keep_one_line(session: LoadSession, record_type: str, options: LoadOptions) -> int:
    """Keep only the line of each row that counts, and return how many of the others were stale."""
    table = TABLES[record_type].name
    session.execute(f"analyze_staging {table}")
    is_dated = options.if_newer and record_type in DATED
    merge, keep = ("merge_newest", "keep_newest") if is_dated else ("merge_lines", "keep_last_lines")
    merged = session.execute(f"{merge} {table}").rowcount if options.keeps_left_out else 0
    surplus = session.execute(f"{keep} {table}").rowcount - merged
    if options.mode == "each":
        session.execute(f"index_staging {table}")
    return surplus if is_dated else 0


def compare_with_stored(
    session: LoadSession, record_type: str, options: LoadOptions, *, organizations: Iterable[str]
) -> int:
    """Fill in the fields that keep their values, exclude stale lines, and return how many these were."""
    table, stale = TABLES[record_type], 0
    if record_type in DATED and (options.if_newer or options.keeps_left_out):
        for organization_id in organizations:
            session.execute(f"lock_rows {table.name}", organization_id=organization_id).fetchone()
    if record_type in DATED and options.if_newer:
        stale += session.execute(f"skip_stale {table.name}").rowcount
        stale += skip_removed(session, record_type)
    if options.keeps_left_out and table.optional:
        session.execute(f"fill_left_out {table.name}")
    return stale
