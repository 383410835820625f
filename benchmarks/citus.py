"""Measures a visitor's page on databases side by side: on Citus, and on the same PostgreSQL without it.

Each database is given as NAME=URL, for a superuser, with the schema (and on Citus after deploy/citus.sql). The name
"nodes" stands for a Citus whose nodes are connected to, as with CASES_CITUS_NODES. A database is filled, where it is
empty, with 40 organizations of 2,500 cases each. The service's role and its exchange ask for pages of 25, single cases
and pages of the organization's own, each with what the API token opens, one at a time over one connection, by turns. It
prints the medians of the rounds, and, where all servers run on this machine, the CPU time that their sessions took.
"""

import argparse
import hashlib
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final, NamedTuple
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from cases_service.cases.filters import Filters
from cases_service.cases.organization_filters import OrganizationFilters
from cases_service.database.command_connection import is_citus
from cases_service.database.connection_pool import Database
from cases_service.database.migrations import init_db
from cases_service.database.nodes import DatabaseOfNodes
from cases_service.database.pipeline import Query
from cases_service.settings import Settings
from cases_service.store import cases, organization_pages

ORGANIZATIONS: Final = 40
VISITORS: Final = 100
_ROLE: Final = "cases_benchmark"
_SESSIONS: Final = f"select string_agg(pid::text, ',') from pg_stat_activity where usename = '{_ROLE}'"  # noqa: S608
_SESSIONS_ON_CITUS: Final = f"select result from run_command_on_all_nodes($${_SESSIONS}$$)"  # noqa: S608
_FILL: Final = (
    """
    insert into organizations (organization_id, name, subscription_status)
    select md5('organization ' || o)::uuid, 'Benchmark', 'active' from generate_series(1, %(organizations)s) o
    """,
    """
    insert into users (organization_id, id, email, first_name, last_name)
    select md5('organization ' || o)::uuid, md5('user ' || u)::uuid, 'agent@example.com', 'Ada', 'Byron'
    from generate_series(1, %(organizations)s) o, generate_series(1, 10) u
    """,
    """
    insert into case_funnel_stages (organization_id, id, name, position)
    select md5('organization ' || o)::uuid, md5('stage ' || s)::uuid, 'Stage', s
    from generate_series(1, %(organizations)s) o, generate_series(1, 4) s
    """,
    """
    insert into visitors (organization_id, id, external_id)
    select md5('organization ' || o)::uuid, md5('visitor ' || v)::uuid, 'visitor-' || v
    from generate_series(1, %(organizations)s) o, generate_series(1, %(visitors)s) v
    """,
    """
    insert into contacts (organization_id, id, visitor_id, first_name, created_at, updated_at)
    select md5('organization ' || o)::uuid, md5('contact ' || v || c)::uuid, md5('visitor ' || v)::uuid, 'Grace',
        '2024-01-01Z', '2024-01-01Z'
    from generate_series(1, %(organizations)s) o, generate_series(1, %(visitors)s) v, generate_series(1, 2) c
    """,
    """
    insert into cases (organization_id, id, case_number, contact_id, owner_id, created_by_user_id, updated_by_user_id,
        case_funnel_stage_id, subject, description, status, priority, created_at, updated_at)
    select md5('organization ' || o)::uuid, md5('case ' || v || '-' || n)::uuid, v || '-' || n,
        md5('contact ' || v || 1 + n %% 2)::uuid, md5('user ' || 1 + n %% 10)::uuid, md5('user ' || 1 + n %% 10)::uuid,
        md5('user ' || 1 + n %% 7)::uuid, md5('stage ' || 1 + n %% 4)::uuid, 'A subject', repeat('words ', 50), 'Open',
        3,
        '2024-01-01Z'::timestamptz + n * interval '1 hour', '2024-01-01Z'::timestamptz + n * interval '1 hour'
    from generate_series(1, %(organizations)s) o, generate_series(1, %(visitors)s) v, generate_series(1, 25) n
    """,
    "analyze",
)


class _Round(NamedTuple):
    """What a request took in one round: seconds until its answer, and of the CPU in all servers."""

    time: float
    cpu: float


@dataclass(frozen=True, slots=True)
class _Contestant:
    """A database as the service opens it, and a connection of a superuser."""

    database: Database
    superuser: psycopg.Connection[Any]
    is_citus: bool

    def cpu(self) -> float:
        """Return the seconds that the role's sessions have taken on all servers."""
        statement = _SESSIONS_ON_CITUS if self.is_citus else _SESSIONS
        rows = self.superuser.execute(statement.encode()).fetchall()
        pids = [pid for (listed,) in rows for pid in (listed or "").split(",") if pid]
        return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in pids) / 1e9


def main() -> None:
    """Run, and print a line for each request and database."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.citus", description=__doc__)
    parser.add_argument("databases", nargs="+", metavar="NAME=URL")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--pages", type=int, default=50, help="requests of a round")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        opened: dict[str, _Contestant] = {}
        for given in arguments.databases:
            name, _, url = given.partition("=")
            opened[name] = stack.enter_context(_opened(url, has_nodes=name == "nodes"))
        for asked, query in _ASKED.items():
            for contestant in opened.values():
                _round(contestant, query, max(arguments.pages, ORGANIZATIONS))
            rounds = [
                {name: _round(contestant, query, arguments.pages) for name, contestant in opened.items()}
                for _ in range(arguments.rounds)
            ]
            _report(asked, rounds)


def _report(asked: str, rounds: list[dict[str, _Round]]) -> None:
    first = next(iter(rounds[0]))
    for name in rounds[0]:
        figures = []
        for figure in _Round._fields:
            ms = median(getattr(one[name], figure) for one in rounds) * 1000
            ratio = median(getattr(one[name], figure) / getattr(one[first], figure) for one in rounds)
            figures.append(f"{ms:.2f} ms of {figure} ({ratio:.2f} times {first})")
        sys.stdout.write(f"{asked}, {name}: {', '.join(figures)}\n")


@contextmanager
def _opened(url: str, *, has_nodes: bool = False) -> Iterator[_Contestant]:
    """Lend the database as the service opens it, filled."""
    with psycopg.connect(url, autocommit=True) as connection:
        if connection.execute("select from pg_roles where rolname = %s", [_ROLE]).fetchone() is None:
            role = sql.Identifier(_ROLE)
            connection.execute(sql.SQL("create role {} login password {}").format(role, sql.Literal(_ROLE)))
        init_db(connection, service_role=_ROLE)
        if connection.execute("select from organizations limit 1").fetchone() is None:
            for statement in _FILL:
                given = {"organizations": ORGANIZATIONS, "visitors": VISITORS} if "%(" in statement else None
                connection.execute(statement.encode(), given)
        generic = connection.execute("select current_setting('cases.generic_plans', true)").fetchone() != ("off",)
    settings = Settings(database_url=url, workers=1, threads=1, pool_size=1, generic_plans=generic)
    kind = DatabaseOfNodes if has_nodes else Database
    database = kind(make_conninfo(url, user=_ROLE, password=_ROLE), settings)
    database.open()
    with psycopg.connect(url, autocommit=True) as superuser:
        try:
            yield _Contestant(database, superuser, is_citus(superuser))
        finally:
            database.close()


def _page(organization_id: UUID, number: int) -> Query[Any]:
    return cases.list_cases(
        organization_id=organization_id,
        external_id=f"visitor-{1 + number % VISITORS}",
        ordering="-created_at",
        filters=Filters(),
        fields=None,
        cursor=None,
        page_size=25,
    )


def _case(organization_id: UUID, number: int) -> Query[Any]:
    visitor = 1 + number % VISITORS
    case_id = _uuid_of(f"case {visitor}-{1 + number % 25}")
    return cases.get_case(
        organization_id=organization_id, external_id=f"visitor-{visitor}", case_id=case_id, fields=None
    )


def _organization_page(organization_id: UUID, _: int) -> Query[Any]:
    filters = OrganizationFilters(common=Filters())
    return organization_pages.list_cases(
        organization_id=organization_id, ordering="-created_at", filters=filters, fields=None, cursor=None, page_size=25
    )


_ASKED: Final = {"page": _page, "case": _case, "organization's page": _organization_page}


def _round(contestant: _Contestant, query: Callable[[UUID, int], Query[Any]], number: int) -> _Round:
    """Return the median of the times of requests, and the mean of their CPU times."""
    before = contestant.cpu()
    seconds = median(_seconds(contestant.database, query, one) for one in range(number))
    return _Round(seconds, (contestant.cpu() - before) / number)


def _seconds(database: Database, query: Callable[[UUID, int], Query[Any]], number: int) -> float:
    organization_id = _uuid_of(f"organization {1 + number % ORGANIZATIONS}")
    access = cases.get_access(organization_id=organization_id, token_hash=b"\0" * 32)
    asked = query(organization_id, number)
    started = perf_counter()
    _, found = database.ask_both(organization_id, access, asked)
    seconds = perf_counter() - started
    if not (found.case if isinstance(found, cases.Found) else len(found.rows) == 25):  # noqa: PLR2004
        sys.exit("expected a case, or 25 of them")
    return seconds


def _uuid_of(text: str) -> UUID:
    return UUID(hashlib.md5(text.encode(), usedforsecurity=False).hexdigest())


if __name__ == "__main__":
    main()
