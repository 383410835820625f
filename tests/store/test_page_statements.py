"""The template of the page's statement, and the statements printed from it."""

import re
from uuid import uuid4

import psycopg
import pytest

from cases_service.cases.filters import Filters
from cases_service.store import page_statements
from cases_service.store.page_statements import PageShape, main, page_shapes, page_statement

TEMPLATE = page_statements._TEMPLATES["list_by_status_and_created_at_ascending"]
PARAMETERS = {
    "organization_id": uuid4(),
    "external_id": "nobody",
    "row_limit": 26,
    "after": "-infinity",
    "after_id": uuid4(),
    "furthest": "infinity",
    "rearmost": "-infinity",
    **Filters().parameters(),
}


def test_the_template_runs_as_it_stands(connection: psycopg.Connection) -> None:
    text = re.sub(r"(?<!:):(\w+)", r"%(\1)s", TEMPLATE)
    assert connection.execute(text.encode(), PARAMETERS).fetchall() == []


def test_all_that_is_replaced_is_in_the_template() -> None:
    tables = (page_statements._DESCENDING, page_statements._BY_UPDATE, *page_statements._INDEXED.values())
    assert [literal for table in tables for literal in table if literal not in TEMPLATE] == []


def test_what_descends_ascends_nowhere() -> None:
    pairs = [(shape, page_statement(shape).text) for shape in page_shapes() if shape.versions and not shape.ascending]
    assert len(pairs) == 56
    for shape, text in pairs:
        ahead, _, behind = text.decode().partition("exists (")
        orders = re.findall(r"order by (?:\w+\.)?(?:moment|created_at|updated_at), .*", ahead)
        assert (orders, ">" in re.sub(r">=", "", ahead)) == ([], False), shape
        assert re.search(r"order by c\.\w+, c\.id\n", behind) or not shape.behind, shape


def test_the_command_prints_whole_pages_and_cases_for_psql(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["page_statements"])
    main()
    printed = capsys.readouterr().out
    assert len(re.findall(r"^-- \w+\.\w+$", printed, re.MULTILINE)) == 17
    assert not re.search(r"\$\d|%\(", printed)
    for statement in printed.split(";\n"):
        used = set(re.findall(r":'(\w+)'", statement))
        assert used == set(re.findall(r"^\\set (\w+) \S+$", statement, re.MULTILINE))


def test_the_command_prints_what_begins_with_a_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = page_statement(PageShape(column="updated_at", ascending=False, behind=True)).name.decode()
    monkeypatch.setattr("sys.argv", ["page_statements", name])
    main()
    assert re.findall(r"^-- (.*)$", capsys.readouterr().out, re.MULTILINE) == [name]
