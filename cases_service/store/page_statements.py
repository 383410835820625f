"""Renders the statements of pages and of single cases from the templates of queries/cases.sql.

The templates are filled from the tables below, and never from a request. Run as a program, it prints the finished
statements for psql: `python -m cases_service.store.page_statements [NAME]`.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, product
from typing import Final, Literal

from cases_service.cases.filters import Index
from cases_service.cases.schemas import NESTED_ATTRIBUTES
from cases_service.database.statements import Statement, number, templates

Column = Literal["created_at", "updated_at"]

COLUMNS: Final[tuple[Column, ...]] = ("created_at", "updated_at")
INDEXES: Final[tuple[Index | None, ...]] = (None, "status", "priority", "channel")
NESTED: Final = frozenset(NESTED_ATTRIBUTES)

_TEMPLATES: Final = templates("cases")
_PAGE: Final = _TEMPLATES["list_by_status_and_created_at_ascending"]
_CASE: Final = _TEMPLATES["get_case"]
_DESCENDING: Final = {
    "(c.created_at, c.id) > (": "(c.created_at, c.id) < (",
    "(c.created_at, c.id) <= (": "(c.created_at, c.id) >= (",
    "c.created_at <= ": "c.created_at >= ",
    "c.created_at >= ": "c.created_at <= ",
    "max(n.moment)": "min(n.moment)",
    "order by c.created_at, c.id": "order by c.created_at desc, c.id desc",
    "order by c.created_at desc, c.id desc": "order by c.created_at, c.id",
    "order by moment, id": "order by moment desc, id desc",
    **{
        f"order by {name}.moment, {name}.id": f"order by {name}.moment desc, {name}.id desc" for name in ("key", *"nkp")
    },
}
_BY_UPDATE: Final = {
    "c.created_at": "c.updated_at",
    "w.updated_at": "w.created_at",
    ":updated_since": ":created_since",
    ":updated_until": ":created_until",
}
_INDEXED: Final[Mapping[Index, Mapping[str, str]]] = {
    "status": {},
    "priority": {"c.status": "c.priority", ":statuses::text[]": ":priorities::smallint[]"},
    "channel": {"c.status": "c.channel_number", ":statuses::text[]": ":channels::smallint[]"},
}
_DEFAULTS: Final = {
    "organization_id": "00000000-0000-0000-0000-000000000000",
    "external_id": "customer",
    "case_id": "00000000-0000-0000-0000-000000000000",
    "row_limit": "26",
    "after": "-infinity",
    "after_id": "00000000-0000-0000-0000-000000000000",
    "furthest": "infinity",
    "rearmost": "-infinity",
    "statuses": "{Open,Pending}",
    "priorities": "{1,2,3,4,5}",
    "channels": "{0,1,2,3}",
    **dict.fromkeys(("created_since", "updated_since"), "-infinity"),
    **dict.fromkeys(("created_until", "updated_until"), "infinity"),
}
"""Initial values for psql; a descending page needs the opposite infinities."""
_SAME: Final = re.compile(r"(?m)^ *-- the same (\w+)$")
_MARK: Final = re.compile(r"^(?P<text>.*?) *-- (?P<word>if|end) ?(?P<parts>[a-z_, ]*)$")
_PARAMETER: Final = re.compile(r"(?<!:):(\w+)")
_SELECTED: Final = re.compile(r'^    (?:\w+\.(?P<own>\w+)|.* as "?(?P<given>[\w.]+)"?),?$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Rendered(Statement):
    """A statement, and the names of the columns that it returns."""

    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PageShape:
    """Everything that the statement of a page depends on.

    `others` means filters besides the index's, `behind` a cursor. A page of all attributes has the `whole` cases and
    the `versions` of their rows; one of chosen attributes has no versions and some `nested` objects; one that is only
    compared with the caller's copy has the versions alone.
    """

    column: Column
    ascending: bool
    index: Index | None = None
    others: bool = False
    behind: bool = False
    whole: bool = True
    versions: bool = True
    nested: frozenset[str] = NESTED


def page_shapes() -> Iterator[PageShape]:
    """Yield every shape that a page can have."""
    kinds = [
        PageShape(column="created_at", ascending=True),
        PageShape(column="created_at", ascending=True, whole=False),
    ]
    kinds += [replace(kinds[0], versions=False, nested=nested) for nested in nested_sets()]
    for column, ascending, index, others, behind in product(
        COLUMNS, (True, False), INDEXES, (False, True), (False, True)
    ):
        for kind in kinds if index is not None or not others else ():
            yield replace(kind, column=column, ascending=ascending, index=index, others=others, behind=behind)


def nested_sets() -> Iterator[frozenset[str]]:
    """Yield every choice of nested objects."""
    for number_ in range(len(NESTED_ATTRIBUTES) + 1):
        yield from map(frozenset, combinations(NESTED_ATTRIBUTES, number_))


@cache
def page_statement(shape: PageShape) -> Rendered:
    """Return the statement of a page."""
    parts = {"joins", "whole" if shape.whole else "alone", *shape.nested}
    parts |= {name for name in ("others", "behind", "versions") if getattr(shape, name)}
    text = _PAGE
    if shape.index is not None:
        parts |= {"index", shape.index}
        text = replaced(text, _INDEXED[shape.index])
    text = _keep(text, parts)
    if not shape.ascending:
        text = replaced(text, _DESCENDING)
    if shape.column == "updated_at":
        text = replaced(text, _BY_UPDATE)
    return _rendered(_page_name(shape), text)


@cache
def case_statement(nested: frozenset[str] = NESTED) -> Rendered:
    """Return the statement of one case, with these of its nested objects."""
    return with_whole_cases(f"cases.get_case{variant(NESTED - nested)}", _CASE, nested)


def with_whole_cases(name: str, template: str, nested: frozenset[str]) -> Rendered:
    """Return the statement of a template with "the same whole" and "the same joins" in place of the page's lines."""
    text = _SAME.sub(lambda match: _block(match[1]), template)
    return _rendered(name, _keep(text, nested))


def _page_name(shape: PageShape) -> str:
    """Return a unique name for the statement; PostgreSQL uses its first 63 bytes."""
    subject = "" if shape.index is None else f"_by_{shape.index}"
    by = "" if shape.index is None else f"{shape.index}_and_"
    order = f"{shape.column}_{'ascending' if shape.ascending else 'descending'}"
    left_out = NESTED - shape.nested if shape.whole else NESTED
    return f"cases{subject}.list_by_{by}{order}{variant(left_out, shape.others, shape.behind, not shape.versions)}"


def variant(left_out: frozenset[str], *flags: bool) -> str:
    """Return the suffix of a statement's name: a number for the parts that it lacks, nothing if it has all."""
    bits = [name in left_out for name in NESTED_ATTRIBUTES] + list(flags)
    number_ = sum(bit << place for place, bit in enumerate(bits))
    return f"#{number_:02x}" if number_ else ""


def _keep(template: str, parts: frozenset[str] | set[str]) -> str:
    """Return the lines of a template that belong to these parts, or to none."""
    kept: list[str] = []
    blocks: list[bool] = []
    for line in template.splitlines():
        mark = _MARK.match(line)
        wanted = mark is None or not parts.isdisjoint(mark["parts"].split(", "))
        if mark is None or mark["text"].strip():
            if wanted and all(blocks) and not line.startswith("--"):
                kept.append(mark["text"] if mark else line)
        elif mark["word"] == "if":
            blocks.append(wanted)
        else:
            blocks.pop()
    return "\n".join(kept)


def _block(part: str) -> str:
    """Return the lines of the page's template between the marks of a part."""
    _, _, rest = _PAGE.partition(f"-- if {part}\n")
    depth, lines = 1, []
    for line in rest.splitlines():
        mark = _MARK.match(line)
        if mark and not mark["text"].strip():
            depth += 1 if mark["word"] == "if" else -1
        if not depth:
            break
        lines.append(line)
    return "\n".join(lines)


def replaced(text: str, table: Mapping[str, str]) -> str:
    """Return a text with each of a table's literals replaced once, the longest that fits first."""
    if not table:
        return text
    literals = sorted(table, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, literals)), lambda match: table[match[0]], text)


def _rendered(name: str, text: str) -> Rendered:
    statement = number(name, _PARAMETER.sub(r"%(\1)s", text))
    _, _, selected = text.rpartition("\nselect\n")
    columns = tuple(match["own"] or match["given"] for match in _SELECTED.finditer(selected.partition("\nfrom ")[0]))
    return Rendered(statement.name, statement.text, statement.parameters, columns)


def main() -> None:
    """Print every statement whose name begins with the argument, or those of whole pages, for psql."""
    chosen = sys.argv[1] if len(sys.argv) > 1 else None
    for statement in (*map(page_statement, page_shapes()), *map(case_statement, nested_sets())):
        name = statement.name.decode()
        if "#" not in name if chosen is None else name.startswith(chosen):
            sys.stdout.write(_for_psql(name, statement))


def _for_psql(name: str, statement: Rendered) -> str:
    """Return a statement with psql's variables for its parameters: set them, and paste it."""
    defaults = "".join(f"\\set {parameter} {_DEFAULTS[parameter]}\n" for parameter in statement.parameters)
    text = re.sub(r"\$(\d+)", lambda match: f":'{statement.parameters[int(match[1]) - 1]}'", statement.text.decode())
    return f"-- {name}\n{defaults}{text};\n\n"


if __name__ == "__main__":
    main()
