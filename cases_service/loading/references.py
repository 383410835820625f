"""Checks that a row's references lead to rows: to its parents when it is written, from its children when it is removed.

In mode `all` the database finds a broken reference, and a query then finds its line. In mode `each` the lines are found
beforehand.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import psycopg

from cases_service.loading.line_errors import Fault, Sources
from cases_service.loading.outcome import LoadOptions
from cases_service.loading.session import LoadSession
from cases_service.loading.statements import REFERENCES, Reference

STILL_NEEDED: Final = Fault("deleted", "other rows still refer to this one when all files are read")
_NO_PARENT: Final = "there is no such row in this organization when all files are read"


def references_of(record_type: str, options: LoadOptions) -> list[Reference]:
    """Return the references of a type. A caller's own organization is known to exist."""
    is_known = options.organization_id is not None
    references = [one for one in REFERENCES if one.record_type == record_type]
    return [one for one in references if not (is_known and one.parent_type == "organization")]


def references_to(record_type: str) -> list[Reference]:
    """Return the references that prevent the removal of a row of a type. A case's contents go with it."""
    return [one for one in REFERENCES if one.parent_type == record_type and one.parent_type != "case"]


def exclude_without_parent(session: LoadSession, references: Sequence[Reference]) -> dict[int, Fault]:
    """Exclude the lines that refer to no row, and return them by place."""
    wrong: dict[int, Fault] = {}
    for reference in references:
        fault = Fault(reference.field, _NO_PARENT)
        wrong |= dict.fromkeys(session.exclude(f"exclude_without_parent {reference.name}"), fault)
    return wrong


def exclude_still_needed(session: LoadSession, references: Sequence[Reference]) -> dict[int, Fault]:
    """Exclude the removals of rows to which others refer, and return them by place."""
    statements = [f"exclude_still_needed {reference.name}" for reference in references]
    return {place: STILL_NEEDED for statement in statements for place in session.exclude(statement)}


def refuse_broken(session: LoadSession, sources: Sources, diagnosis: str, references: Sequence[Reference]) -> None:
    """Raise LoadError for the first line with a broken reference, if there is one.

    The diagnosis is `find_without_parent`, or `find_still_needed` about removals.
    """
    places = [(session.find_place(f"{diagnosis} {reference.name}"), reference.field) for reference in references]
    wrong = [(place, field) for place, field in places if place is not None]
    if not wrong:
        return
    place, field = min(wrong, key=lambda found: found[0])
    fault = STILL_NEEDED if diagnosis == "find_still_needed" else Fault(field, _NO_PARENT)
    raise sources.error_at(place, fault) from None


def change(
    session: LoadSession,
    sources: Sources,
    work: Callable[[], Counter[str]],
    *,
    diagnosis: str,
    references: Sequence[Reference],
) -> Counter[str]:
    """Return the result of a change, or raise LoadError for the line whose reference prevents it."""
    try:
        with session.savepoint():
            return work()
    except (psycopg.errors.ForeignKeyViolation, psycopg.errors.NotNullViolation):
        # A message without an activity has no case.
        refuse_broken(session, sources, diagnosis, references)
        raise
