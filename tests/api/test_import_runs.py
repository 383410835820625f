"""GET …/import: what the latest loads and imports of an organization came to."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from flask.testing import FlaskClient

from cases_service.loading.runs import Run, record_run
from tests.factories import LONG_AGO, Organization, assert_problem
from tests.metrics import samples, value


def path(organization: Organization) -> str:
    return f"/api/v5/orgs/{organization.id}/import"


@pytest.fixture
def headers(organization: Organization) -> dict[str, str]:
    return {"Authorization": f"Token {organization.token_with('cases:read')}"}


def test_the_newest_runs_come_first(client: FlaskClient, organization: Organization, headers: dict[str, str]) -> None:
    token_id = uuid4()
    organization.import_run(LONG_AGO, lines=3, stale=2, wrong=1, source="import", api_token_id=token_id)
    organization.import_run(LONG_AGO + timedelta(days=1), lines=5, written=4, removed=1)
    Organization(organization.connection, organization.box).import_run()
    newest, oldest = client.get(path(organization), headers=headers).get_json()["results"]
    assert list(newest) == [
        "id", "finished_at", "source", "api_token_id", "is_stored", "lines", "written", "removed", "stale", "wrong",
        "duration_ms",
    ]  # fmt: skip
    assert (newest["lines"], newest["written"], newest["removed"], newest["source"]) == (5, 4, 1, "load")
    assert (oldest["lines"], oldest["stale"], oldest["wrong"], oldest["is_stored"]) == (3, 2, 1, True)
    assert (oldest["finished_at"], oldest["api_token_id"]) == ("2015-08-31T16:32:17.879Z", str(token_id))


def test_page_size_says_how_many(client: FlaskClient, organization: Organization, headers: dict[str, str]) -> None:
    for second in range(30):
        organization.import_run(LONG_AGO + timedelta(seconds=second))
    assert len(client.get(path(organization), headers=headers).get_json()["results"]) == 25
    found = client.get(f"{path(organization)}?page_size=2", headers=headers).get_json()["results"]
    assert [run["finished_at"][17:19] for run in found] == ["46", "45"]
    problem = assert_problem(
        client.get(f"{path(organization)}?page_size=101", headers=headers), 400, "invalid_parameter"
    )
    assert problem["errors"][0]["parameter"] == "page_size"


def test_it_needs_the_scope(client: FlaskClient, organization: Organization) -> None:
    assert_problem(client.get(path(organization), headers=organization.headers()), 403, "scope_missing")


def test_an_organization_without_any_has_an_empty_list(
    client: FlaskClient, organization: Organization, headers: dict[str, str]
) -> None:
    assert client.get(path(organization), headers=headers).get_json() == {"results": []}


def test_the_latest_thousand_are_kept(organization: Organization) -> None:
    connection = organization.connection
    connection.execute(
        "insert into import_runs (organization_id, finished_at, source, is_stored, lines, written, removed, stale,"
        " wrong, duration_ms) select %s, now() - make_interval(secs => n), 'load', true, n, 0, 0, 0, 0, 0"
        " from generate_series(1, 1000) n",
        [organization.id],
    )
    other = Organization(connection, organization.box)
    other.import_run()
    for _ in range(2):
        record_run(connection, Run(organization_id=organization.id, source="load", lines=0, duration_ms=1))
    found = connection.execute(
        "select count(*), max(lines) from import_runs where organization_id = %s", [organization.id]
    ).fetchone()
    assert found == (1000, 998)
    left = connection.execute("select count(*) from import_runs where organization_id = %s", [other.id]).fetchone()
    assert left == (1,)


@pytest.mark.parametrize(
    ("minutes", "pause", "is_late"),
    [(11, 1, True), (9, 1, False), (60, 20, False), (101, 20, True), (31 * 24 * 60, 20, False)],
)
def test_a_feed_is_late_after_five_pauses_and_ten_minutes(
    organization: Organization, minutes: int, pause: int, is_late: bool
) -> None:
    now = datetime.now(UTC)
    for number in range(20):
        organization.import_run(now - timedelta(minutes=minutes + number * pause))
    found = organization.connection.execute(
        "select usual_pause from late_feeds where organization_id = %s", [organization.id]
    ).fetchall()
    assert found == ([(timedelta(minutes=pause),)] if is_late else [])


def test_what_came_a_few_times_or_was_refused_is_no_feed(organization: Organization) -> None:
    now = datetime.now(UTC)
    for number in range(20):
        organization.import_run(now - timedelta(hours=3, minutes=number), is_stored=number < 5)
    assert (
        organization.connection.execute(
            "select 1 from late_feeds where organization_id = %s", [organization.id]
        ).fetchall()
        == []
    )


def send(client: FlaskClient, organization: Organization, *lines: dict[str, Any], **parameters: str) -> Any:
    body = "".join(json.dumps(line) + "\n" for line in lines)
    given = {"Authorization": f"Token {organization.token_with('cases:write')}"}
    return client.post(
        path(organization), data=body, query_string=parameters, content_type="application/x-ndjson", headers=given
    )


USER = {"type": "user", "id": "7"}
WRONG = {"type": "user", "id": "8", "alias": 5}


def test_an_import_leaves_what_it_came_to_and_by_which_token(
    client: FlaskClient, organization: Organization, headers: dict[str, str]
) -> None:
    assert send(client, organization, USER, WRONG, mode="each").status_code == 200
    (run,) = client.get(path(organization), headers=headers).get_json()["results"]
    token_ids = organization.connection.execute(
        "select id::text from api_tokens where organization_id = %s and 'cases:write' = any(scopes)", [organization.id]
    ).fetchall()
    assert (run["api_token_id"],) in token_ids
    assert (run["source"], run["is_stored"], run["lines"], run["written"], run["wrong"]) == ("import", True, 2, 1, 1)


def test_an_import_that_is_refused_is_shown_and_stored_nothing(
    client: FlaskClient, organization: Organization, headers: dict[str, str]
) -> None:
    assert_problem(send(client, organization, USER, WRONG), 400, "invalid_lines")
    (run,) = client.get(path(organization), headers=headers).get_json()["results"]
    assert (run["is_stored"], run["lines"], run["written"], run["wrong"]) == (False, 2, 0, 1)


def test_an_import_without_lines_is_heard(
    client: FlaskClient, organization: Organization, headers: dict[str, str]
) -> None:
    assert send(client, organization).status_code == 200
    (run,) = client.get(path(organization), headers=headers).get_json()["results"]
    assert (run["is_stored"], run["lines"]) == (True, 0)


def test_lines_of_imports_are_counted_by_what_became_of_them(client: FlaskClient, organization: Organization) -> None:
    def counted() -> list[float]:
        found = samples(client.get("/metrics").text)
        return [value(found, "cases_import_lines_total", outcome=name) for name in ("stored", "stale", "wrong")]

    before = counted()
    send(client, organization, USER, WRONG, mode="each")
    send(client, organization, USER, WRONG)
    assert [after - earlier for earlier, after in zip(before, counted(), strict=True)] == [1, 0, 2]
