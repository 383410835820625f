"""Writers at the same time: what the conditions of a request promise, and what a lost connection leaves."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from flask.testing import FlaskClient
from psycopg.conninfo import make_conninfo
from werkzeug.test import TestResponse

from cases_service.application import Application
from tests import citus
from tests.factories import Organization, assert_problem
from tests.writing import Writer, contents

WRITERS = 50
PATIENCE = 30.0


@pytest.fixture
def writer(client: FlaskClient, organization: Organization) -> Writer:
    return Writer(client, organization)


@pytest.fixture
def patient(make_client: Callable[..., FlaskClient], organization: Organization) -> Writer:
    """A writer whose service lets nobody go who waits for a connection."""
    return Writer(make_client(pool_timeout=PATIENCE, graceful_timeout=600), organization)


def at_once(writer: Writer, number: int, send: Callable[[Writer, int], TestResponse]) -> list[TestResponse]:
    """Return the answers to as many requests as are given, each from a client of its own."""
    app = writer.client.application
    assert isinstance(app, Application)

    def one(index: int) -> TestResponse:
        own = Writer.__new__(Writer)
        own.client, own.organization, own.token = app.test_client(), writer.organization, writer.token
        return send(own, index)

    with ThreadPoolExecutor(number) as threads:
        return list(threads.map(one, range(number)))


class TestConditions:
    @pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
    def test_a_tag_lets_pass_until_the_case_changes(self, writer: Writer, method: str) -> None:
        case = writer.create()
        old = writer.get(case["id"]).headers["ETag"]
        new = writer.send("PATCH", case["id"], {"subject": "x"}).headers["ETag"]
        assert old != new
        body = None if method == "DELETE" else {"case_number": case["case_number"], "priority": 1}
        for tag in (old, f"W/{new}", '"x"', "", '"', '""', 'W/""', ",", '"x", ""', f'{old}, W/{new}, "y"'):
            assert_problem(writer.send(method, case["id"], body, If_Match=tag), 412, "precondition_failed")
        assert writer.send(method, case["id"], body, If_Match=f"{old}, {new}").status_code < 300

    def test_any_case_will_do_for_a_star(self, writer: Writer) -> None:
        case = writer.create()
        assert writer.send("PATCH", case["id"], {"priority": 1}, If_Match="*").status_code == 200
        body = {"case_number": "x", "priority": 1}
        assert_problem(writer.send("PUT", uuid4(), body, If_Match="*"), 412, "precondition_failed")
        assert_problem(writer.send("PATCH", uuid4(), {}, If_Match="*"), 404, "case_not_found")
        assert writer.send("DELETE", case["id"], If_Match="*").status_code == 204

    def test_put_only_creates_where_it_is_asked_to(self, writer: Writer) -> None:
        case_id, body = uuid4(), {"case_number": "x", "priority": 1}
        assert writer.send("PUT", case_id, body, If_None_Match="*").status_code == 201
        assert_problem(writer.send("PUT", case_id, body, If_None_Match="*"), 412, "precondition_failed")

    def test_the_tag_is_strong_and_gives_304(self, writer: Writer) -> None:
        case = writer.create()
        tag = writer.get(case["id"]).headers["ETag"]
        assert tag.startswith('"')
        for given in (tag, f"W/{tag}", "*", f'"x", {tag}'):
            answer = writer.get(case["id"], If_None_Match=given)
            assert (answer.status_code, answer.data, answer.headers["ETag"]) == (304, b"", tag)
        for given in ('"x"', '""', 'W/""', ","):
            assert writer.get(case["id"], If_None_Match=given).status_code == 200

    def test_what_is_nested_counts(self, writer: Writer) -> None:
        user = writer.organization.user(first_name="Old")
        case = writer.create(owner_id=str(user))
        tag = writer.get(case["id"]).headers["ETag"]
        writer.organization.update("users", "id", user, first_name="New")
        assert_problem(writer.send("PATCH", case["id"], {}, If_Match=tag), 412, "precondition_failed")

    def test_a_tag_of_some_attributes_is_another_one_and_stands_for_the_case(self, writer: Writer) -> None:
        case = writer.create()
        tags = [writer.get(f"{case['id']}{query}").headers["ETag"] for query in ("", "?fields=id", "?fields=subject")]
        assert len(set(tags)) == 3
        for tag in tags:
            assert writer.send("PATCH", case["id"], {}, If_Match=tag).status_code == 200
        assert writer.get(f"{case['id']}?fields=id", If_None_Match=tags[1]).status_code == 304
        assert writer.get(f"{case['id']}?fields=id", If_None_Match=tags[0]).status_code == 200

    @pytest.mark.parametrize("suffix", ["-gzip", "-br", "-zstd", ";gzip", "--gzip"])
    def test_a_tag_that_a_compressing_proxy_has_marked_is_understood(self, writer: Writer, suffix: str) -> None:
        case = writer.create()
        marked = writer.get(case["id"]).headers["ETag"][:-1] + suffix + '"'
        assert writer.get(case["id"], If_None_Match=marked).status_code == 304
        assert writer.send("PATCH", case["id"], {"priority": 1}, If_Match=marked).status_code == 200
        assert_problem(writer.send("PATCH", case["id"], {"priority": 2}, If_Match=marked), 412, "precondition_failed")

    def test_two_changes_within_a_millisecond_have_two_tags(self, writer: Writer) -> None:
        """Their answers may be the same byte for byte: the times in them have three decimals."""
        case = writer.create(subject="a")
        tags = {writer.send("PATCH", case["id"], {"subject": text}).headers["ETag"] for text in "bababababa"}
        assert len(tags) == 10


class TestAtOnce:
    def test_of_fifty_patches_with_one_tag_one_succeeds(self, patient: Writer) -> None:
        case = patient.create()
        tag = patient.get(case["id"]).headers["ETag"]
        answers = at_once(
            patient, WRITERS, lambda own, index: own.send("PATCH", case["id"], {"subject": str(index)}, If_Match=tag)
        )
        assert sorted(answer.status_code for answer in answers) == [200] + [412] * (WRITERS - 1)
        (winner,) = (answer for answer in answers if answer.status_code == 200)
        assert patient.get(case["id"]).data == winner.data

    def test_of_fifty_puts_that_only_create_one_does(self, patient: Writer) -> None:
        case_id = uuid4()
        answers = at_once(
            patient,
            WRITERS,
            lambda own, index: own.send("PUT", case_id, {"case_number": "x", "priority": 1}, If_None_Match="*"),
        )
        assert sorted(answer.status_code for answer in answers) == [201] + [412] * (WRITERS - 1)

    def test_of_fifty_posts_with_one_number_one_makes_a_case_and_all_others_name_it(self, patient: Writer) -> None:
        answers = at_once(
            patient, WRITERS, lambda own, index: own.send("POST", body={"case_number": "x", "priority": 1})
        )
        assert sorted(answer.status_code for answer in answers) == [201] + [409] * (WRITERS - 1)
        (made,) = (answer.get_json() for answer in answers if answer.status_code == 201)
        assert {answer.get_json().get("case_id", made["id"]) for answer in answers} == {made["id"]}

    def test_changes_of_other_attributes_are_all_kept(self, patient: Writer) -> None:
        case = patient.create()
        bodies: list[dict[str, Any]] = [
            {"subject": "s"}, {"description": "d"}, {"priority": 5}, {"channel_priority": 2}, {"is_closed": True},
            {"latest_messaging_channel": "email"}, {"owner_id": str(patient.organization.user_id)},
        ]  # fmt: skip
        answers = at_once(patient, len(bodies), lambda own, index: own.send("PATCH", case["id"], bodies[index]))
        assert {answer.status_code for answer in answers} == {200}
        after = patient.get(case["id"]).get_json()
        assert all(after[name] == value for body in bodies for name, value in body.items())

    def test_no_row_of_another_organization_is_touched(self, patient: Writer) -> None:
        """Two organizations with the same ids and numbers, of which one is written to."""
        own, other = patient.organization, Organization(patient.organization.connection, patient.organization.box)
        case_ids = [other.case(None, case_number=str(number)) for number in range(20)]
        for number, case_id in enumerate(case_ids):
            own.case(None, id=case_id, case_number=str(number))
        before = contents(other.connection, other)

        def change(writer: Writer, index: int) -> TestResponse:
            case_id = case_ids[index]
            writer.send("PATCH", case_id, {"subject": "x", "is_closed": True})
            writer.send("PUT", case_id, {"case_number": f"new {index}", "priority": 1})
            writer.send("POST", body={"case_number": f"posted {index}", "priority": 1})
            return writer.send("DELETE", case_id)

        assert {answer.status_code for answer in at_once(patient, len(case_ids), change)} == {204}
        assert contents(other.connection, other) == before


@pytest.fixture
def never_answered(
    server_url: str, writer_url: str, make_client: Callable[..., FlaskClient], organization: Organization
) -> Iterator[Writer]:
    """A writer whose commits are made and never answered: they wait for a replica that there is not.

    Nobody else in these tests waits for replicas, as synchronous_commit is off.
    """
    with psycopg.connect(server_url, autocommit=True) as server:
        server.execute("alter system set synchronous_standby_names = 'nobody'")
        server.execute("select pg_reload_conf()")
        try:
            url = make_conninfo(writer_url, options="-c synchronous_commit=on", application_name=organization.id.hex)
            yield Writer(make_client(write_database_url=url), organization)
        finally:
            server.execute("alter system reset synchronous_standby_names")
            server.execute("select pg_reload_conf()")


def cut_after_commit(writer: Writer, method: str, case_id: object, body: Any) -> TestResponse:
    """Send a request, and end its connection to the database once its commit waits to be answered."""
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(writer.send, method, case_id, body)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and not answer.done():
            cut = writer.organization.connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where application_name = %s and wait_event = 'SyncRep'",
                [writer.organization.id.hex],
            ).fetchall()
            if cut:
                break
            time.sleep(0.01)
        return answer.result(PATIENCE)


@pytest.mark.skipif(citus.IS_USED, reason="on Citus the nodes commit, and wait for replicas of their own")
class TestLostAnswers:
    def test_a_post_is_made_once_however_often_it_is_repeated(
        self, never_answered: Writer, client: FlaskClient
    ) -> None:
        body = {"case_number": "once", "priority": 1}
        problem = assert_problem(cut_after_commit(never_answered, "POST", None, body), 503, "unavailable")
        assert "may have been made" in problem["detail"]
        again = Writer(client, never_answered.organization).send("POST", body=body)
        made = assert_problem(again, 409, "case_number_taken")["case_id"]
        rows = never_answered.organization.connection.execute(
            "select id::text from cases where organization_id = %s", [never_answered.organization.id]
        ).fetchall()
        assert rows == [(made,)]

    def test_a_put_is_repeated_without_harm(self, never_answered: Writer, client: FlaskClient) -> None:
        case_id, body = uuid4(), {"case_number": "once", "priority": 1}
        answer = cut_after_commit(never_answered, "PUT", case_id, body)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        again = Writer(client, never_answered.organization)
        before = again.get(case_id).headers["ETag"]
        assert again.send("PUT", case_id, body).headers["ETag"] == before

    def test_a_removal_is_made(self, never_answered: Writer, client: FlaskClient) -> None:
        case_id = never_answered.organization.case(None)
        assert_problem(cut_after_commit(never_answered, "DELETE", case_id, None), 503, "unavailable")
        again = Writer(client, never_answered.organization)
        assert_problem(again.send("DELETE", case_id), 404, "case_not_found")


class TestWaiting:
    def test_who_waits_too_long_for_another_writer_has_changed_nothing(
        self, make_client: Callable[..., FlaskClient], organization: Organization, database_url: str
    ) -> None:
        writer = Writer(make_client(lock_timeout=0.1), organization)
        case = writer.create()
        with psycopg.connect(database_url) as holder:
            about = [organization.id, case["id"]]
            holder.execute("select from cases where organization_id = %s and id = %s for update", about)
            problem = assert_problem(writer.send("PATCH", case["id"], {"priority": 1}), 504, "timeout")
        assert "Nothing was changed" in problem["detail"]
        assert writer.get(case["id"]).get_json() == case

    def test_a_reference_that_goes_meanwhile_is_named(
        self, make_client: Callable[..., FlaskClient], organization: Organization, database_url: str
    ) -> None:
        writer = Writer(make_client(), organization)
        case, stage = writer.create(), organization.stage()
        with psycopg.connect(database_url) as remover, ThreadPoolExecutor(1) as thread:
            about = [organization.id, stage]
            remover.execute("delete from case_funnel_stages where organization_id = %s and id = %s", about)
            answer = thread.submit(writer.send, "PATCH", case["id"], {"case_funnel_stage": {"id": str(stage)}})
            wait_for_lock(organization)
            remover.commit()
            problem = assert_problem(answer.result(PATIENCE), 400, "invalid_body")
        assert [error["pointer"] for error in problem["errors"]] == ["/case_funnel_stage/id"]


def wait_for_lock(organization: Organization) -> None:
    deadline = time.monotonic() + PATIENCE
    waiting = "select 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    statement = citus.WAITING if citus.IS_USED else waiting
    while time.monotonic() < deadline:
        if organization.connection.execute(statement.encode()).fetchone():
            return
        time.sleep(0.01)
    raise AssertionError("nobody waits")
