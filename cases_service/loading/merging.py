"""Decides which lines count: one for each row, none that is stale, with the stored values of fields left out."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Final

from cases_service.loading.line_errors import Fault
from cases_service.loading.outcome import LoadOptions
from cases_service.loading.removals import skip_removed
from cases_service.loading.session import LoadSession
from cases_service.loading.statements import DATED, TABLES

_LAST: Final = ("merge_lines", "keep_last_lines")


def keep_one_line(session: LoadSession, record_type: str, options: LoadOptions) -> Counter[str]:
    """Keep only the line of each row that counts, and return how many others each organization had."""
    table = TABLES[record_type].name
    session.execute(f"analyze_staging {table}")
    is_by_time = is_dated(record_type, options)
    merge, keep = ("merge_newest", "keep_newest") if is_by_time else _LAST
    late = session.count(f"skip_late {table}") if is_by_time and options.keeps_left_out else Counter[str]()
    merged = session.count(f"{merge} {table}") if options.keeps_left_out else Counter[str]()
    surplus = late + session.count(f"{keep} {table}") - merged
    if options.mode == "each":
        session.execute(f"index_staging {table}")
    return surplus


def is_dated(record_type: str, options: LoadOptions) -> bool:
    """Tell whether the newest line of a row counts, and the others are stale; else the last line counts."""
    return options.if_newer and record_type in DATED


def exclude_wrong_among_others(
    session: LoadSession, record_type: str, options: LoadOptions, *, wrong: Mapping[int, Fault]
) -> dict[int, Fault]:
    """Exclude the wrong line of each row that has several, and return these lines by place.

    `wrong` says what was wrong with rows, by the place of the line that counted. Of lines that were merged, the wrong
    one is the last that gave the wrong field.
    """
    table = TABLES[record_type]
    exclude = "exclude_wrong_newest" if is_dated(record_type, options) else "exclude_wrong_last"
    places = defaultdict(list)
    for place, fault in wrong.items():
        places[fault].append(place)
    excluded: dict[int, Fault] = {}
    for fault, concerned in places.items():
        given = 1 << table.columns.index(fault.field) if fault.field in table.optional else 0
        found = session.exclude(f"{exclude} {table.name}", places=concerned, given=given)
        excluded |= dict.fromkeys(found, fault)
    return excluded


def compare_with_stored(
    session: LoadSession, record_type: str, options: LoadOptions, *, organizations: Iterable[str]
) -> Counter[str]:
    """Fill in the fields that keep their values, exclude stale lines, and return how many each organization had."""
    table, stale = TABLES[record_type], Counter[str]()
    if record_type in DATED and (options.if_newer or options.keeps_left_out):
        for organization_id in organizations:
            session.execute(f"lock_rows {table.name}", organization_id=organization_id).fetchone()
    if record_type in DATED and options.if_newer:
        stale += session.count(f"skip_stale {table.name}")
        stale += skip_removed(session, record_type)
    if options.keeps_left_out and table.optional:
        session.execute(f"fill_left_out {table.name}")
    return stale
