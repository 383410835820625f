"""By organization, everything can lie on one of many machines: shown without them, statement by statement."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from pglast import ast, parse_sql

from cases_service.cases.filters import Filters
from cases_service.cases.organization_filters import OrganizationFilters
from cases_service.database.pipeline import preamble
from cases_service.database.statements import statements
from cases_service.loading.statements import STATEMENTS, STATEMENTS_ON_CITUS
from tests import citus
from tests.statements import ORGANIZATION, Statement, rendered_statements, statements_of_requests

SCRIPT = (Path(__file__).parents[2] / "deploy/citus.sql").read_text()
REQUESTS = ("access", "cases", "organization_cases", "summary")
PLACES = ("row_limit", "after", "after_id", "furthest", "rearmost", "look_behind")
ONE_BY_ONE = (
    *("administration", "conversations", "demo", "doctor", "events", "import_runs", "last_use", "personal_data"),
    "writing",
)
# What the version of the schema and the server's state are read with concerns nobody's rows.
NOBODYS = ("schema", "session", "replication", "embedded")
# rotate-secrets asks all shards whose secrets there are, and then goes through them organization by organization.
# prune-events goes through the organizations that have old ones.
# doctor looks at what opens the service, whoever's it is, and for feeds that stopped; a load may be of several;
# list-organizations lists them all.
ACROSS_ORGANIZATIONS = {
    "list_organizations",
    "list_organizations_with_secrets",
    "has_live_key_anywhere",
    "has_live_token_anywhere",
    "list_retiring_keys_everywhere",
    "list_live_secrets_everywhere",
    "list_ending_tokens_everywhere",
    "list_organizations_with_events_before_everywhere",
    "list_late_feeds_everywhere",
    "list_existing",
    "prune_removed_rows_everywhere",
    "list_erased_everywhere",
}


@pytest.fixture(scope="session")
def keys(session_connection: psycopg.Connection) -> dict[str, str]:
    """The column of each table and view that is the organization's id; of a view, the one its table has for it."""
    rows = session_connection.execute("""
        select c.relname, a.attname
        from pg_class c
        join pg_attribute a on a.attrelid = c.oid
        where c.relnamespace = 'public'::regnamespace
            and c.relkind in ('r', 'v')
            and a.attname ~ '(^|[.])organization_id$'
    """).fetchall()
    return dict(rows)


def staged(keys: dict[str, str]) -> dict[str, str]:
    """The tables that `load` brings its lines into, on one machine: each line names its organization.

    On Citus, rows that they are compared with, too.
    """
    return {f"{kind}_{name}": "organization_id" for name in (*keys, "counts") for kind in ("staged", "holders")}


def named(*subjects: str) -> list[tuple[str, str]]:
    return [(subject, name) for subject in subjects for name in statements(subject)]


def test_a_statement_of_a_request_reads_the_rows_of_one_organization(keys: dict[str, str]) -> None:
    found = statements_of_requests()
    assert len(found) > 1900
    for name, text in found.items():
        statement = Statement(text, keys)
        assert statement.kind is ast.SelectStmt, name
        assert set(statement.relations) <= set(keys), name
        assert statement.unpinned == [], name
        assert statement.pins == {ORGANIZATION}, name


def test_a_rendered_statement_has_a_name_of_its_own_and_the_columns_that_it_says() -> None:
    """PostgreSQL looks at the first 63 bytes of a prepared statement's name."""
    rendered = rendered_statements()
    assert len({one.name for one in rendered}) == len({one.text for one in rendered}) == len(rendered)
    assert max(len(one.name) for one in rendered) <= 63
    for one in rendered:
        (statement,) = parse_sql(one.text.decode())
        targets: Any = getattr(statement.stmt, "targetList", ())
        assert one.columns == tuple(target.name or target.val.fields[-1].sval for target in targets)


def test_a_rendered_statement_has_no_marks_and_no_switches() -> None:
    """What the planner folds to a constant is more than Citus can pass on."""
    for one in rendered_statements():
        text = one.text.decode()
        assert not re.search(r"--|\bcase\b|\n\n", text), one.name
        filters = Filters() if one.name.startswith(b"cases") else OrganizationFilters(common=Filters())
        assert set(one.parameters) <= {"organization_id", "external_id", "case_id", *PLACES, *filters.parameters()}


@pytest.mark.parametrize(("subject", "name"), named(*ONE_BY_ONE))
def test_a_statement_of_a_command_touches_one_organization(subject: str, name: str, keys: dict[str, str]) -> None:
    statement = Statement(statements(subject)[name], keys)
    assert set(statement.relations) <= set(keys)
    assert bool(statement.unpinned) is (name in ACROSS_ORGANIZATIONS)


LOOKED_AT = ("write", "remove", "find", "list", "lock", "fill", "skip", "exclude", "follow")


@pytest.mark.parametrize("texts", [STATEMENTS, STATEMENTS_ON_CITUS], ids=["elsewhere", "on Citus"])
@pytest.mark.parametrize("name", [name for name in STATEMENTS if name.startswith(LOOKED_AT)])
def test_a_statement_of_a_load_brings_no_line_to_another_organization(
    name: str, texts: dict[str, str], keys: dict[str, str]
) -> None:
    statement = Statement(texts[name], keys, staged(keys))
    assert set(statement.relations) <= set(keys) | set(staged(keys))
    assert statement.unpinned == []


@pytest.mark.parametrize(("subject", "name"), named(*NOBODYS))
def test_what_is_read_of_the_server_is_nobodys(subject: str, name: str, keys: dict[str, str]) -> None:
    statement = Statement(statements(subject)[name], {"schema_version": "version"})
    catalogs = {"pg_settings", "pg_class", "pg_attribute", "pg_roles", "pg_database", "pg_policies"}
    catalogs |= {"pg_locks", "pg_stat_activity"}
    catalogs |= {f"pg_dist_{name}" for name in ("shard_placement", "placement", "local_group", "partition")}
    assert set(statement.relations) <= {"schema_version", *catalogs}


def test_every_statement_is_of_a_kind_that_is_looked_at() -> None:
    subjects = {file.stem for file in (Path(__file__).parents[2] / "queries").glob("*.sql")}
    assert subjects == {*REQUESTS, *NOBODYS, *ONE_BY_ONE, "loading"}
    # The rest of a load touches staged lines, statistics and locks alone. A snapshot compares the rows of the
    # organizations in its files, which may be several, with what their lines name.
    rest = {re.split("[ _]", name)[0] for name in STATEMENTS} - set(LOOKED_AT)
    assert rest == {
        *("begin", "limit", "take", "defer", "check", "is", "analyze"),
        *("create", "copy", "merge", "keep", "index"),
        *("remember", "count", "stage"),
    }


@pytest.mark.parametrize(
    ("text", "unpinned"),
    [
        ("select 1 from cases c", ["c"]),
        ("select 1 from cases where organization_id = :own", []),
        ("select 1 from cases c where c.organization_id = %(id)s", ["c"]),
        ("select 1 from cases c where c.id = :own", ["c"]),
        ("select 1 from cases c where c.organization_id <> :own", ["c"]),
        ("select 1 from cases c where c.organization_id = :own or c.is_closed", ["c"]),
        ("select 1 from cases c where not (c.organization_id = :own)", ["c"]),
        ("select 1 from cases c join contacts x on x.id = c.contact_id where c.organization_id = :own", ["x"]),
        ("select 1 from cases c join contacts x using (id) where c.organization_id = :own", ["x"]),
        ("select 1 from cases c join users u on u.organization_id = c.organization_id", ["c", "u"]),
        (
            """select 1 from cases c join users u on u.organization_id = c.organization_id
            where c.organization_id = :own""",
            [],
        ),
        ("select (select 1 from users u where u.id = c.owner_id) from cases c where c.organization_id = :own", ["u"]),
        ("with w as (select 1 from visitors) select 1 from w", ["visitors"]),
        ("select 1 from lateral (select 1 from contacts x limit 1) y", ["x"]),
        ("select 1 from users where organization_id = :own union all select 1 from contacts", ["contacts"]),
        ("""select 1 from case_owners o where o."owner.id" = :own""", ["o"]),
        ("""select 1 from case_owners o where o."owner.organization_id" = :own""", []),
        ("update users set alias = 'a' where id = %(id)s", ["users"]),
        ("delete from users u using contacts x where u.organization_id = :own", ["x"]),
        ("insert into users (organization_id, id) values (:own, %(id)s)", []),
        ("insert into users (organization_id, id) values (%(id)s, :own)", ["users"]),
        ("insert into users (id) values (%(id)s)", ["users"]),
        ("insert into users (organization_id) values (:own) on conflict (id) do update set alias = 'a'", ["users"]),
    ],
)
def test_a_statement_that_leaves_the_organization_open_is_found(
    text: str, unpinned: list[str], keys: dict[str, str]
) -> None:
    assert sorted(Statement(text.replace(":own", "%(organization_id)s"), keys).unpinned) == sorted(unpinned)


def test_on_citus_a_statement_is_planned_with_its_values() -> None:
    """Citus finds the shard by the organization, and has no plan for a join while that is not known."""
    before_settings_are_handed_on = preamble(UUID(int=1), is_citus=True)[1]
    assert before_settings_are_handed_on == b"set local plan_cache_mode = 'force_custom_plan'"


def test_every_key_and_reference_contains_the_organization(session_connection: psycopg.Connection) -> None:
    rows = session_connection.execute("""
        select c.conname,
            exists (
                select
                from pg_attribute a
                where a.attrelid = c.conrelid and a.attnum = any(c.conkey) and a.attname = 'organization_id'
            ),
            c.contype <> 'f' or exists (
                select
                from unnest(c.conkey, c.confkey) as pair (own, foreign_)
                join pg_attribute o on o.attrelid = c.conrelid and o.attnum = pair.own
                join pg_attribute f on f.attrelid = c.confrelid and f.attnum = pair.foreign_
                where o.attname = 'organization_id' and f.attname = 'organization_id'
            )
        from pg_constraint c
        where c.connamespace = 'public'::regnamespace
            and c.contype in ('p', 'u', 'f', 'x')
            and c.conrelid <> 'schema_version'::regclass
    """).fetchall()
    assert len(rows) > 10
    assert [name for name, own, foreign in rows if not (own and foreign)] == []


def test_every_index_begins_with_the_organization(session_connection: psycopg.Connection) -> None:
    rows = session_connection.execute("""
        select i.indexrelid::regclass::text, a.attname
        from pg_index i
        join pg_class c on c.oid = i.indrelid
        join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
        where c.relnamespace = 'public'::regnamespace and c.relname <> 'schema_version'
    """).fetchall()
    assert len(rows) > 10
    assert [name for name, first in rows if first != "organization_id"] == []


def test_the_schema_has_nothing_that_needs_the_machine_to_be_one(session_connection: psycopg.Connection) -> None:
    """No sequence, no trigger of ours, no rule, and no generated column that decides where a row lies."""
    (counts,) = session_connection.execute("""
        select
            (select count(*) from pg_class where relnamespace = 'public'::regnamespace and relkind = 'S'),
            (select count(*) from pg_trigger where not tgisinternal),
            (select count(*) from pg_attribute where attname = 'organization_id' and attgenerated <> '')
    """).fetchall()
    assert counts == (0, 0, 0)


# What of Citus the script asks for: the tables that are distributed, in their order.
STAND_IN = """
    create schema stand_in;
    set local search_path = public, stand_in;
    create table stand_in.pg_dist_partition (logicalrelid regclass, place serial, together text);
    create function create_reference_table(name text) returns void
        begin atomic insert into pg_dist_partition (logicalrelid) values (name::regclass); end;
    create function create_distributed_table(
        name text, key text, shard_count integer default null, colocate_with text default null
    ) returns void
        begin atomic
            insert into pg_dist_partition (logicalrelid, together)
            values (name::regclass, key || ' of ' || coalesce(colocate_with, name));
        end;
    create function create_distributed_function(name regprocedure, argument text, colocate_with text) returns void
        begin atomic end;
"""


@pytest.fixture
def distributed(session_connection: psycopg.Connection) -> Iterator[psycopg.Connection]:
    """A transaction in which the script has run, with a stand-in for Citus. test_citus.py has the real one."""
    if citus.IS_USED:
        pytest.skip("the database is distributed already")
    script = SCRIPT.replace("create extension if not exists citus;", STAND_IN)
    with session_connection.transaction(force_rollback=True):
        session_connection.execute(script.encode())
        yield session_connection


def test_the_script_distributes_every_table_by_organization_and_parents_first(
    distributed: psycopg.Connection, keys: dict[str, str]
) -> None:
    rows = distributed.execute("select logicalrelid::text, together from pg_dist_partition order by place").fetchall()
    (first, _), *others = rows
    tables = distributed.execute(
        "select relname from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r'"
    ).fetchall()
    order = [table for table, _ in others]
    assert first == "schema_version"
    assert sorted([first, *order]) == sorted(name for (name,) in tables)
    assert {together for _, together in others} == {"organization_id of organizations"}
    references = distributed.execute("""
        select conrelid::regclass::text, confrelid::regclass::text
        from pg_constraint where contype = 'f' and connamespace = 'public'::regnamespace
    """).fetchall()
    assert [(child, parent) for child, parent in references if order.index(parent) > order.index(child)] == []


def test_the_script_fits_the_policies_to_the_nodes(distributed: psycopg.Connection) -> None:
    """Citus distributes no table whose policies have subqueries, and makes restrictive ones permissive on its nodes."""
    rows = distributed.execute("select tablename, policyname, permissive, qual from pg_policies").fetchall()
    assert len(rows) > 20
    assert [table for table, *_, condition in rows if "select" in condition.lower()] == []
    assert {permissive for _, _, permissive, _ in rows} == {"PERMISSIVE"}
    own = {table: condition for table, policy, _, condition in rows if policy == "own_organization"}
    assert {table for table, condition in own.items() if "is_private" in condition} == {"activities", "messages"}


def test_the_script_may_be_repeated(distributed: psycopg.Connection) -> None:
    before = distributed.execute("select * from pg_policies order by 1, 2, 3").fetchall()
    distributed.execute("select distribute_tables()")
    assert distributed.execute("select * from pg_policies order by 1, 2, 3").fetchall() == before


def test_the_script_defers_what_nobody_can_defer_on_the_nodes(distributed: psycopg.Connection) -> None:
    rows = distributed.execute("""
        select conname, condeferred, confupdtype <> 'c'
        from pg_constraint where condeferrable and connamespace = 'public'::regnamespace
    """).fetchall()
    assert len(rows) == 3
    assert {(is_deferred, cascades_no_update) for _, is_deferred, cascades_no_update in rows} == {(True, True)}
