"""Reads SQL with PostgreSQL's own parser, and tells which tables a statement does not pin to an organization."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Final, get_args

from pglast import ast, parse_sql
from pglast.enums import A_Expr_Kind, BoolExprType, JoinType

from cases_service.cases.organization_filters import Source
from cases_service.database.statements import number, statements
from cases_service.store import organization_pages
from cases_service.store.page_statements import (
    COLUMNS,
    Rendered,
    case_statement,
    nested_sets,
    page_shapes,
    page_statement,
)

ORGANIZATION = "the organization of the request"
SOURCES: Final = get_args(Source)
Column = tuple[str, str]
"""The name that a relation has in its scope, and a column."""


def rendered_statements() -> list[Rendered]:
    """Return the statement of every shape of a page and of a case, a visitor's and an organization's."""
    ways = product(SOURCES, COLUMNS, (True, False), nested_sets())
    pages = [
        organization_pages.page_statement(source, column, ascending=ascending, nested=nested)
        for source, column, ascending, nested in ways
    ]
    visitors = [*map(page_statement, page_shapes()), *map(case_statement, nested_sets())]
    return [*visitors, *pages, organization_pages.case_statement()]


def as_written(statement: Rendered) -> str:
    """Return a rendered statement with its parameters by name, as those of the other subjects are."""
    names = [f"%({name})s" for name in statement.parameters]
    return re.sub(r"\$(\d+)", lambda match: names[int(match[1]) - 1], statement.text.decode())


def statements_of_requests() -> dict[str, str]:
    """Return every statement that serves a request by its name: what is rendered as the server gets it."""
    plain = {
        f"{subject}.{name}": text for subject in ("access", "summary") for name, text in statements(subject).items()
    }
    return plain | {one.name.decode(): as_written(one) for one in rendered_statements()}


@dataclass
class Scope:
    """The relations of one FROM clause, what is demanded of its rows, and the scope around it."""

    outer: "Scope | None"
    tables: dict[str, str] = field(default_factory=dict)
    others: set[str] = field(default_factory=set)
    demands: list[Any] = field(default_factory=list)

    def find(self, name: str) -> "Scope | None":
        if name in self.tables or name in self.others:
            return self
        return None if self.outer is None else self.outer.find(name)


class Statement:
    """A statement, as a reader of `keys` (the organization's column of each relation) understands it.

    `unpinned` are the names of distributed relations whose organization is not the request's, nor that of a relation
    in `free`: rows that are nobody's yet, such as staged ones, each of which says itself whose it is.
    """

    def __init__(self, text: str, keys: Mapping[str, str], free: Mapping[str, str] | None = None) -> None:
        self._keys = {**keys, **(free or {})}
        self._free = frozenset(free or {})
        self.relations: list[str] = []
        self.unpinned: list[str] = []
        self.pins: set[str] = set()
        numbered = number("", text)
        self._names = numbered.parameters
        (statement,) = parse_sql(numbered.text.decode())
        self.kind = type(statement.stmt)
        self._visit(statement.stmt, None, frozenset())

    def _visit(self, node: Any, outer: Scope | None, known: frozenset[str]) -> None:
        """Look at every query in a node; `known` are the names of WITH that it sees."""
        if isinstance(node, (tuple, list)):
            for part in node:
                self._visit(part, outer, known)
        elif is_a(node, ast.SelectStmt, ast.InsertStmt, ast.UpdateStmt, ast.DeleteStmt):
            self._visit_query(node, outer, known)
        elif is_a(node, ast.Node):
            for name in node:
                self._visit(getattr(node, name), outer, known)

    def _visit_query(self, node: Any, outer: Scope | None, known: frozenset[str]) -> None:
        with_clause = getattr(node, "withClause", None)
        if with_clause is not None and with_clause.recursive:
            known |= {query.ctename for query in with_clause.ctes}
        for query in () if with_clause is None else with_clause.ctes:
            self._visit(query.ctequery, outer, known)
            known |= {query.ctename}
        scope = Scope(outer)
        if is_a(node, ast.UpdateStmt, ast.DeleteStmt):
            self._enter(node.relation, scope, known)
        for source in getattr(node, "fromClause", None) or getattr(node, "usingClause", None) or ():
            self._enter(source, scope, known)
        if is_a(node, ast.InsertStmt):
            self._check_insert(node)
        else:
            scope.demands += conjuncts(getattr(node, "whereClause", None))
        self._check(scope)
        for name in node:
            if name not in ("withClause", "fromClause", "usingClause", "relation"):
                self._visit(getattr(node, name), scope, known)
        for demand in scope.demands:
            self._visit(demand, scope, known)

    def _enter(self, source: Any, scope: Scope, known: frozenset[str]) -> None:
        if is_a(source, ast.JoinExpr):
            self._enter(source.larg, scope, known)
            self._enter(source.rarg, scope, known)
            assert source.jointype in (JoinType.JOIN_INNER, JoinType.JOIN_LEFT), source.jointype
            scope.demands += conjuncts(source.quals)
        elif is_a(source, ast.RangeVar) and source.relname not in known:
            name = source.alias.aliasname if source.alias else source.relname
            scope.tables[name] = source.relname
            self.relations.append(source.relname)
        elif is_a(source, ast.RangeVar):
            scope.others.add(source.alias.aliasname if source.alias else source.relname)
        else:
            scope.others.add(source.alias.aliasname)
            inner = source.subquery if is_a(source, ast.RangeSubselect) else source.functions
            self._visit(inner, scope if source.lateral else scope.outer, known)

    def _check(self, scope: Scope) -> None:
        pinned = {name for name, table in scope.tables.items() if table in self._free}
        equalities = [pair for demand in scope.demands if (pair := self._equality(demand, scope))]
        while True:
            more = {
                one
                for pair in equalities
                for one, other in (pair, pair[::-1])
                if one in scope.tables and one not in pinned and self._holds(other, scope, pinned)
            }
            if not more:
                break
            pinned |= more
        self.unpinned += [name for name in scope.tables if name not in pinned]

    def _holds(self, other: str, scope: Scope, pinned: set[str]) -> bool:
        """Tell whether this is the organization itself, or a relation that is known to be pinned."""
        if other == ORGANIZATION:
            self.pins.add(ORGANIZATION)
            return True
        if other in scope.tables:
            return other in pinned
        # One of an outer scope, which is checked for itself.
        return scope.find(other) is not None

    def _equality(self, demand: Any, scope: Scope) -> tuple[str, str] | None:
        if not is_a(demand, ast.A_Expr) or demand.kind != A_Expr_Kind.AEXPR_OP or demand.name[0].sval != "=":
            return None
        sides = [self._side(side, scope) for side in (demand.lexpr, demand.rexpr)]
        return None if None in sides else (str(sides[0]), str(sides[1]))

    def _side(self, node: Any, scope: Scope) -> str | None:
        """Return the name of the relation whose organization this is, or what stands for the request's."""
        if is_a(node, ast.ParamRef):
            return ORGANIZATION if self._names[node.number - 1] == "organization_id" else None
        if not is_a(node, ast.ColumnRef) or not all(is_a(part, ast.String) for part in node.fields):
            return None
        *qualifier, column = (part.sval for part in node.fields)
        name = qualifier[0] if qualifier else (next(iter(scope.tables)) if len(scope.tables) == 1 else "")
        owner = scope.find(name)
        table = "" if owner is None else owner.tables.get(name, "")
        return name if self._keys.get(table) == column else None

    def _check_insert(self, node: Any) -> None:
        """The organization is written, is the request's or the source row's, and is part of what may conflict."""
        table = node.relation.relname
        self.relations.append(table)
        columns = [target.name for target in node.cols]
        position = columns.index(self._keys[table]) if self._keys.get(table) in columns else None
        if position is None or not self._gives_organization(node.selectStmt, position):
            self.unpinned.append(table)
        conflict = node.onConflictClause
        if conflict is not None and self._keys[table] not in [e.name for e in conflict.infer.indexElems]:
            self.unpinned.append(table)

    def _gives_organization(self, query: Any, position: int) -> bool:
        rows = query.valuesLists or [[target.val for target in query.targetList]]
        scope = Scope(None)
        for source in query.fromClause or ():
            self._names_only(source, scope)
        return all(self._side(row[position], scope) is not None for row in rows)

    def _names_only(self, source: Any, scope: Scope) -> None:
        if is_a(source, ast.JoinExpr):
            self._names_only(source.larg, scope)
            self._names_only(source.rarg, scope)
        else:
            scope.tables[source.alias.aliasname if source.alias else source.relname] = source.relname


def is_a(node: Any, *kinds: type) -> bool:
    """Tell whether a node is of one of these kinds. Unlike `isinstance` it lets the type checker forget again that
    pglast declares every attribute of a node as one that may be missing.
    """
    return isinstance(node, kinds)


def conjuncts(condition: Any) -> Iterator[Any]:
    """Yield what must hold, each by itself, for a condition to hold."""
    if is_a(condition, ast.BoolExpr) and condition.boolop == BoolExprType.AND_EXPR:
        for part in condition.args:
            yield from conjuncts(part)
    elif condition is not None:
        yield condition
