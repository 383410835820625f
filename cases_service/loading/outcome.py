"""What a load is asked for and what it comes to: its options, its summary, and what is wrong with lines."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple
from uuid import UUID

from cases_service.loading.records import RECORDS, Reading

MAXIMUM_ERRORS: Final = 100
"""How many errors a load keeps by default. It counts all of them."""

IMPORTED_TYPES: Final = tuple(name for name in RECORDS if name not in ("organization", "signing_key", "event"))
"""The types of an organization's rows, without credentials and events."""


class LineError(NamedTuple):
    """An error in a line. It quotes only ids and names of fields."""

    file: str
    line: int
    field: str | None
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How lines are loaded.

    Attributes:
        mode: `all` loads every line or none; `each` loads the right ones, and reports the others.
        if_newer: A contact or case, and its removal, counts only if its `updated_at` is later than the stored one.
        keeps_left_out: Fields missing from a line keep their values if the row exists, instead of becoming null.
        organization_id: The only organization allowed. Lines may leave it out, and may be no organizations or keys.
        maximum_errors: How many errors are kept, from the first; None for all.
        maximum_removals: If set, rows that no line names are removed, for the organizations in the files; nothing is
            loaded if that would be a larger share than this of an organization's rows of a type. Activities and
            messages are removed only for organizations that have lines of that type. Mode `all` only. With
            `if_newer`, rows that changed after every line of their type stay: they are newer than the files.

    """

    mode: Literal["all", "each"] = "all"
    if_newer: bool = False
    keeps_left_out: bool = False
    organization_id: UUID | None = None
    maximum_errors: int | None = MAXIMUM_ERRORS
    maximum_removals: float | None = None

    @property
    def reading(self) -> Reading:
        """How lines are read."""
        if self.organization_id is None:
            return Reading(keeps=self.keeps_left_out)
        return Reading(organization_id=str(self.organization_id), types=IMPORTED_TYPES, keeps=self.keeps_left_out)


DEFAULT_OPTIONS: Final = LoadOptions()


class Changes(NamedTuple):
    """How many rows a load wrote and removed, by type and then by organization."""

    written: dict[str, Counter[str]]
    removed: dict[str, Counter[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganizationCounts:
    """The result of a load for one organization: its lines, rows written and removed, lines stale and wrong."""

    lines: int = 0
    written: int = 0
    removed: int = 0
    stale: int = 0
    wrong: int = 0

    def __add__(self, later: "OrganizationCounts") -> "OrganizationCounts":
        """Return the combined result of two loads."""
        return OrganizationCounts(
            lines=self.lines + later.lines,
            written=self.written + later.written,
            removed=self.removed + later.removed,
            stale=self.stale + later.stale,
            wrong=self.wrong + later.wrong,
        )


_NOTHING: Final = OrganizationCounts()


@dataclass(frozen=True, slots=True)
class LoadSummary:
    """The result of a load.

    Attributes:
        lines: The non-blank lines read. Each of them is counted in one of the following.
        written: Rows that were added or changed, by type.
        removed: Rows that were removed, by type.
        unchanged: Lines that changed nothing: the row is already like that or gone, or a later line names it.
        stale: Lines that were older than their row.
        error_count: Lines that are wrong.
        errors: The first errors.
        without_statistics: Changed tables whose statistics the server did not let this role update.
        organizations: The result for each organization that lines name. Wrong lines that name none count for none.

    """

    lines: int
    written: Mapping[str, int]
    removed: Mapping[str, int]
    unchanged: int = 0
    stale: int = 0
    error_count: int = 0
    errors: Sequence[LineError] = ()
    without_statistics: Sequence[str] = ()
    organizations: Mapping[UUID, OrganizationCounts] = field(default_factory=dict)

    def __add__(self, later: "LoadSummary") -> "LoadSummary":
        """Return the combined result of two loads."""
        return LoadSummary(
            lines=self.lines + later.lines,
            written=Counter(self.written) + Counter(later.written),
            removed=Counter(self.removed) + Counter(later.removed),
            unchanged=self.unchanged + later.unchanged,
            stale=self.stale + later.stale,
            error_count=self.error_count + later.error_count,
            errors=[*self.errors, *later.errors],
            without_statistics=list(dict.fromkeys([*self.without_statistics, *later.without_statistics])),
            organizations={
                one: self.organizations.get(one, _NOTHING) + later.organizations.get(one, _NOTHING)
                for one in {**self.organizations, **later.organizations}
            },
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the result of a load as its JSON object."""
        names = ("lines", "written", "removed", "unchanged", "stale", "error_count")
        return {name: getattr(self, name) for name in names} | {"errors": [error._asdict() for error in self.errors]}


class LoadError(Exception):
    """Nothing was loaded. The message is one line and quotes only ids and names of fields."""

    def __init__(self, file: str | None, line: int | None, field: str | None, reason: str) -> None:
        super().__init__(file, line, field, reason)
        self.file = file
        self.line = line
        self.field = field
        self.reason = reason

    def __str__(self) -> str:
        """Return FILE:LINE: field: reason, without unknown parts."""
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return ": ".join(part for part in (place, self.field, self.reason) if part is not None)


class LoadBusyError(LoadError):
    """Nothing was loaded because of what others do with the same rows or tables: the same load may succeed later."""
