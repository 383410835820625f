"""What visitors did, as the system that holds the cases reads it."""

import json
import subprocess
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from click.testing import CliRunner
from flask.testing import FlaskClient

from cases_service.cli.commands import cli
from tests import citus
from tests.api.conversations import Sides, sides_of
from tests.documents import block
from tests.factories import LONG_AGO, Organization, assert_problem
from tests.process.running import COMMAND, environment, wait_for


@pytest.fixture
def sides(client: FlaskClient, organization: Organization) -> Sides:
    return sides_of(client, organization, case_number="C-1")


def test_every_act_of_a_visitor_is_one_event(sides: Sides) -> None:
    said = sides.say("Hello")
    sides.answer()
    sides.by_visitor("PUT", "/read", {})
    sides.by_visitor("PATCH", body={"is_closed": True})
    again = sides.say("One more")
    sides.by_visitor("PATCH", body={"is_closed": True})
    sides.by_visitor("PATCH", body={"is_closed": False})
    answer = sides.events()
    assert answer.headers["Cache-Control"] == "private, no-store"
    document = answer.get_json()
    assert (list(document), document["last"], document["has_more"]) == (["results", "last", "has_more"], 6, False)
    assert [(event["position"], event["type"]) for event in document["results"]] == [
        (1, "message_created"),
        (2, "case_read"),
        (3, "case_closed"),
        (4, "message_created"),
        (5, "case_closed"),
        (6, "case_reopened"),
    ]
    first, _, _, fourth, *_ = document["results"]
    assert list(first) == ["position", "type", "created_at", "external_id", "case_id", "case_number", "message"]
    assert (first["external_id"], first["case_number"]) == (sides.visitor.external_id, "C-1")
    assert (first["case_id"], first["created_at"]) == (str(sides.case_id), said["created_at"])
    # What it is now: the organization has read it.
    assert first["message"] == {**said, "read_at": first["message"]["read_at"], "is_private": False}
    assert first["message"]["read_at"] is not None
    assert fourth["message"] == {**again, "is_private": False}
    assert [event["message"] for event in document["results"][1:3]] == [None, None]


def test_what_users_and_systems_do_is_no_event(sides: Sides) -> None:
    sides.answer()
    sides.note()
    sides.by_organization("PUT", "/read", {})
    sides.by_organization("PATCH", body={"is_closed": True})
    assert sides.events().get_json() == {"results": [], "last": 0, "has_more": False}


def test_pages_go_on_from_the_last_position(sides: Sides) -> None:
    for number in range(5):
        sides.say(str(number))
    found, after = [], 0
    for number, more in ((2, True), (2, True), (1, False), (0, False)):
        document = sides.events(f"?after={after}&page_size=2").get_json()
        assert (len(document["results"]), document["has_more"]) == (number, more)
        found += [event["message"]["text"] for event in document["results"]]
        after = document["last"]
    assert (found, after) == (list("01234"), 5)
    # A full page with nothing behind it.
    assert sides.events("?after=3&page_size=2").get_json()["has_more"] is False


def test_positions_are_each_organizations_own(sides: Sides) -> None:
    other = sides_of(sides.client, Organization(sides.organization.connection, sides.organization.box))
    for each in (sides, other, sides):
        each.say()
    assert [event["position"] for event in sides.events().get_json()["results"]] == [1, 2]
    assert [event["position"] for event in other.events().get_json()["results"]] == [1]


def test_the_document_shows_an_answer(sides: Sides) -> None:
    sides.say()
    shown, answered = json.loads(block("docs/api.md", "json", '"last": 1')), sides.events().get_json()
    assert list(shown) == list(answered)
    assert list(shown["results"][0]) == list(answered["results"][0])
    assert set(shown["results"][0]["message"]) < set(answered["results"][0]["message"])


@pytest.mark.parametrize(
    "query", ["after=-1", "after=", "after=x", "after=01", f"after={2**53}", "page_size=0", "page_size=101", "type=x"]
)
def test_a_wrong_parameter_is_named(sides: Sides, query: str) -> None:
    problem = assert_problem(sides.events(f"?{query}"), 400, "invalid_parameter")
    assert [error["parameter"] for error in problem["errors"]] == [query.partition("=")[0]]


def test_a_position_may_be_any_that_json_holds(sides: Sides) -> None:
    assert sides.events(f"?after={2**53 - 1}").get_json()["last"] == 2**53 - 1


class TestPruning:
    @pytest.fixture
    def aged(self, sides: Sides) -> Sides:
        """Five events of the last five days."""
        for number in range(5):
            sides.say(str(number))
        for position in range(1, 6):
            sides.organization.connection.execute(
                "update events set created_at = %s where organization_id = %s and position = %s",
                [datetime.now(UTC) - timedelta(days=6 - position), sides.organization.id, position],
            )
        return sides

    def prune(self, database_url: str, days: int) -> str:
        ran = CliRunner(env={"DATABASE_URL": database_url}).invoke(cli, ["prune-events", "--older-than", str(days)])
        assert ran.exit_code == 0, ran.output
        return ran.output

    def test_old_events_go_and_who_asks_for_them_is_told(self, aged: Sides, database_url: str) -> None:
        assert "removed" in self.prune(database_url, 3)
        problem = assert_problem(aged.events(), 410, "events_gone")
        assert problem["position"] == 3
        assert_problem(aged.events("?after=2"), 410, "events_gone")
        left = aged.events("?after=3").get_json()
        assert [event["position"] for event in left["results"]] == [4, 5]
        # Cases and messages stay.
        assert aged.texts(aged.by_visitor) == list("01234")

    def test_positions_go_on_where_all_events_went(self, aged: Sides, database_url: str) -> None:
        aged.organization.connection.execute(
            "update events set created_at = %s where organization_id = %s",
            [datetime.now(UTC) - timedelta(days=365), aged.organization.id],
        )
        self.prune(database_url, 200)
        assert assert_problem(aged.events("?after=4"), 410, "events_gone")["position"] == 5
        assert aged.events("?after=5").get_json() == {"results": [], "last": 5, "has_more": False}
        aged.say("later")
        assert [event["position"] for event in aged.events("?after=5").get_json()["results"]] == [6]
        self.prune(database_url, 200)
        assert assert_problem(aged.events("?after=4"), 410, "events_gone")["position"] == 5

    def test_nothing_behind_a_younger_event_goes(self, aged: Sides, database_url: str) -> None:
        """A clock that was set back leaves an old time behind a young one."""
        aged.organization.connection.execute(
            "update events set created_at = %s where organization_id = %s and position = 5",
            [LONG_AGO - timedelta(days=1), aged.organization.id],
        )
        self.prune(database_url, 3)
        assert [event["position"] for event in aged.events("?after=3").get_json()["results"]] == [4, 5]

    def test_an_event_that_is_committed_meanwhile_stays(self, aged: Sides, database_url: str) -> None:
        """It holds the positions: what is to go is decided once it has let go of them."""
        aged.organization.connection.execute(
            "update events set created_at = %s where organization_id = %s", [LONG_AGO, aged.organization.id]
        )
        with psycopg.connect(database_url) as visitor, psycopg.connect(database_url, autocommit=True) as watch:
            visitor.execute(
                "update event_positions set last_position = 6 where organization_id = %s", [aged.organization.id]
            )
            visitor.execute(
                "insert into events select organization_id, 6, type, now(), external_id, case_id, case_number,"
                " message_id from events where organization_id = %s and position = 5",
                [aged.organization.id],
            )
            command = [COMMAND, "prune-events", "--older-than", "3"]
            with subprocess.Popen(command, env=environment(DATABASE_URL=database_url)) as pruning:
                waiting = "select 1 from pg_stat_activity where wait_event_type = 'Lock' and query like '%for update%'"
                statement = citus.WAITING if citus.IS_USED else waiting
                wait_for(lambda: watch.execute(statement.encode()).fetchone())
                visitor.commit()
            assert pruning.returncode == 0
        assert [event["position"] for event in aged.events("?after=5").get_json()["results"]] == [6]
