"""POST .../import: what `load` takes, in a request."""

import gzip
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4, uuid5

import psycopg
import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from cases_service.loading.imports import MAXIMUM_LINES
from cases_service.loading.load import Load
from tests.documents import block
from tests.factories import Organization, assert_problem

Fields = dict[str, Any]
TYPE = "application/x-ndjson"


def case(key: object, *, second: int = 0, **fields: Any) -> Fields:
    required = {
        "case_number": f"n{key}",
        "status": "Open",
        "priority": 3,
        "created_at": at(0),
        "updated_at": at(second),
    }
    return {"type": "case", "id": str(key), **required, **fields}


def at(second: int) -> str:
    return f"2024-01-01T{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}Z"


def encode(*lines: Fields | bytes) -> bytes:
    return b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)


class Feed:
    """A client with a token that imports into an organization."""

    def __init__(self, client: FlaskClient, organization: Organization, *scopes: str) -> None:
        self.client = client
        self.organization = organization
        self.path = f"/api/v5/orgs/{organization.id}/import"
        self.token = organization.token_with(*(scopes or ("cases:write",)))

    def post(self, body: bytes, query: str = "", **headers: str) -> TestResponse:
        given = {"Authorization": f"Token {self.token}", "Content-Type": TYPE}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.post(f"{self.path}?{query}", data=body, headers=given)

    def send(self, *lines: Fields | bytes, query: str = "") -> Fields:
        response = self.post(encode(*lines), query)
        assert response.status_code == 200, response.json
        result: Fields = response.get_json()
        return result

    def cases(self) -> dict[str, Fields]:
        rows = self.organization.connection.execute(
            "select id::text, to_jsonb(c) from cases c where organization_id = %s", [self.organization.id]
        )
        return dict(rows.fetchall())


@pytest.fixture
def feed(client: FlaskClient, organization: Organization) -> Feed:
    return Feed(client, organization)


class TestResult:
    def test_it_says_what_became_of_the_lines(self, feed: Feed) -> None:
        feed.send(case(1), case(2))
        lines = case(1), case(3), {"type": "case", "id": "2", "deleted": True}, {"type": "user", "id": "1"}
        types = ("user", "visitor", "contact", "case_funnel_stage", "case", "activity", "message")
        nothing = dict.fromkeys(types, 0)
        assert feed.send(*lines) == {
            "lines": 4,
            "written": nothing | {"case": 1, "user": 1},
            "removed": nothing | {"case": 1},
            "unchanged": 1,
            "stale": 0,
            "error_count": 0,
            "errors": [],
        }

    def test_rows_of_every_type_are_stored_under_own_ids(self, feed: Feed) -> None:
        feed.send(
            {"type": "visitor", "id": "7", "external_id": "ada"},
            {"type": "contact", "id": "7", "visitor_id": "7"},
            {"type": "user", "id": "7", "first_name": "Ada"},
            {"type": "case_funnel_stage", "id": "7", "name": "New", "position": 1},
            case(7, contact_id="7", owner_id="7", case_funnel_stage_id="7"),
        )
        (stored,) = feed.cases().values()
        namespace = UUID(str(feed.organization.id))
        assert stored["id"] == str(uuid5(namespace, "case:7"))
        assert stored["contact_id"] == str(uuid5(namespace, "contact:7"))
        assert stored["owner_id"] == str(uuid5(namespace, "user:7"))
        assert stored["case_funnel_stage_id"] == str(uuid5(namespace, "case_funnel_stage:7"))

    def test_what_was_imported_is_there_in_the_next_request(self, feed: Feed) -> None:
        feed.send(case(1, subject="x"))
        (case_id,) = feed.cases()
        path = f"/api/v5/orgs/{feed.organization.id}/cases/{case_id}"
        answer = feed.client.get(path, headers={"Authorization": f"Token {feed.token}"})
        assert answer.get_json()["subject"] == "x"

    def test_an_empty_body_changes_nothing(self, feed: Feed) -> None:
        assert feed.send()["lines"] == 0

    def test_two_numbers_are_swapped(self, feed: Feed) -> None:
        feed.send(case(1), case(2))
        for query in ("mode=all", "mode=each"):
            assert feed.send(case(1, case_number="n2"), case(2, case_number="n1"), query=query)["written"]["case"] == 2
            assert feed.send(case(1), case(2), query=query)["written"]["case"] == 2

    def test_left_out_fields_stay_where_that_is_asked_for(self, feed: Feed) -> None:
        feed.send(case(1, subject="x", description="y"))
        feed.send(case(1, description="z"), query="left_out=keep")
        (stored,) = feed.cases().values()
        assert (stored["subject"], stored["description"]) == ("x", "z")
        feed.send(case(1))
        (stored,) = feed.cases().values()
        assert stored["subject"] is None

    def test_an_older_line_is_stale(self, feed: Feed) -> None:
        feed.send(case(1, second=5))
        result = feed.send(case(1, second=4, subject="old"), query="if_newer=true")
        assert (result["stale"], result["written"]["case"]) == (1, 0)


class TestWrongLines:
    def wrong(self) -> list[Fields | bytes]:
        """Return 5,000 lines whose 4,000th is wrong."""
        lines: list[Fields | bytes] = [case(number) for number in range(5000)]
        lines[3999] = case(3999, priority=9)
        return lines

    @pytest.mark.parametrize("packs", [False, True])
    def test_all_stores_nothing_and_each_stores_the_rest(self, feed: Feed, packs: bool) -> None:
        body = encode(*self.wrong())
        body, headers = (gzip.compress(body), {"Content_Encoding": "gzip"}) if packs else (body, {})
        error = {"line": 4000, "field": "priority", "detail": "expected an integer from 1 to 5"}
        problem = assert_problem(feed.post(body, **headers), 400, "invalid_lines")
        assert (problem["error_count"], problem["errors"]) == (1, [error])
        assert feed.cases() == {}
        result = feed.post(body, "mode=each", **headers).get_json()
        assert (result["error_count"], result["errors"], result["written"]["case"]) == (1, [error], 4999)
        assert len(feed.cases()) == 4999

    @pytest.mark.parametrize("mode", ["all", "each"])
    @pytest.mark.parametrize(
        ("line", "field"),
        [
            (b"{", None),
            (b"\xff", None),
            (b"[" * 100_000, None),
            ({"type": "organization", "id": str(uuid4()), "name": "x", "subscription_status": "active"}, "type"),
            ({"type": "signing_key", "id": str(uuid4()), "algorithm": "HS256", "secret": "x" * 32}, "type"),
            (case(1, organization_id=str(uuid4())), "organization_id"),
            (case(1, contact_id="nobody"), "contact_id"),
            (case(1, case_number="taken"), "case_number"),
            (case(1, subject="a\0"), "subject"),
            (b" " * 2**20 + b"{}", None),
        ],
    )
    def test_a_wrong_line_is_named(self, feed: Feed, mode: str, line: Fields | bytes, field: str | None) -> None:
        feed.send(case("holder", case_number="taken"))
        response = feed.post(encode(case(2), line), f"mode={mode}")
        found = assert_problem(response, 400, "invalid_lines") if mode == "all" else response.get_json()
        assert [(error["line"], error["field"]) for error in found["errors"]] == [(2, field)]
        assert len(feed.cases()) == (1 if mode == "all" else 2)

    def test_the_first_hundred_are_named_and_all_are_counted(self, feed: Feed) -> None:
        problem = assert_problem(feed.post(encode(*[b"{}"] * 120)), 400, "invalid_lines")
        assert (problem["error_count"], [error["line"] for error in problem["errors"]]) == (120, list(range(1, 101)))

    def test_many_lines_that_claim_one_number_are_answered_in_time(self, feed: Feed) -> None:
        feed.send(*(case(number) for number in range(2000)))
        lines = [case(number, case_number=f"n{number + 1}") for number in range(2000)]
        result = feed.send(*lines, case("last"), case("taken", case_number="n2000"), query="mode=each")
        assert (result["error_count"], result["written"]["case"]) == (1, 2001)


class TestRequest:
    def test_another_scope_may_not(self, client: FlaskClient, organization: Organization) -> None:
        assert_problem(Feed(client, organization, "cases:read").post(b""), 403, "scope_missing")

    def test_a_service_that_only_reads_does_not(
        self, make_client: Callable[..., FlaskClient], organization: Organization
    ) -> None:
        assert_problem(Feed(make_client(write_database_url=None), organization).post(b""), 403, "read_only_deployment")

    def test_another_organization_is_forbidden(self, feed: Feed) -> None:
        other = Feed(feed.client, Organization(feed.organization.connection, feed.organization.box))
        feed.path = other.path
        assert_problem(feed.post(encode(case(1))), 403, "organization_forbidden")

    @pytest.mark.parametrize(
        "query", ["mode=some", "mode=", "if_newer=1", "left_out=keep&left_out=keep", "left_out=x", "dry_run=true"]
    )
    def test_a_wrong_parameter_is_named(self, feed: Feed, query: str) -> None:
        problem = assert_problem(feed.post(b"", query), 400, "invalid_parameter")
        assert problem["errors"][0]["parameter"] == query.partition("=")[0]

    @pytest.mark.parametrize(
        "headers",
        [
            {"Content_Type": "application/json"},
            {"Content_Type": ""},
            {"Content_Encoding": "br"},
            {"Content_Encoding": "gzip, gzip"},
        ],
    )
    def test_another_type_or_packing_is_refused(self, feed: Feed, headers: dict[str, str]) -> None:
        assert_problem(feed.post(encode(case(1)), **headers), 415, "unsupported_media_type")

    @pytest.mark.parametrize(
        "body", [b"", b"x", gzip.compress(encode(case(1)))[:-9], gzip.compress(encode(case(1))) + b"x"][1:]
    )
    def test_what_cannot_be_unpacked_is_refused(self, feed: Feed, body: bytes) -> None:
        problem = assert_problem(feed.post(body, Content_Encoding="gzip"), 400, "invalid_body")
        assert problem["errors"] == [{"pointer": "", "detail": "It is no gzip, or a damaged one."}]

    def test_packed_parts_are_one_body(self, feed: Feed) -> None:
        parts = [gzip.compress(encode(case(number)) + b"\n") for number in range(3)]
        assert feed.post(b"".join(parts), Content_Encoding="gzip").get_json()["written"]["case"] == 3

    @pytest.mark.parametrize("packs", [False, True])
    def test_more_than_16_mib_is_refused(self, feed: Feed, packs: bool) -> None:
        body = b" " * (16 * 2**20 + 1)
        body, headers = (gzip.compress(body), {"Content_Encoding": "gzip"}) if packs else (body, {})
        assert_problem(feed.post(body, **headers), 413, "body_too_large")

    def test_a_bomb_is_unpacked_no_further_than_the_limit(self, feed: Feed) -> None:
        bomb = gzip.compress(b" " * 2**24) * 64
        assert_problem(feed.post(bomb, Content_Encoding="gzip"), 413, "body_too_large")

    def test_more_lines_than_the_limit_are_refused_and_as_many_are_not(self, feed: Feed) -> None:
        lines = b"{}\n" * MAXIMUM_LINES
        assert_problem(feed.post(lines), 400, "invalid_lines")
        assert_problem(feed.post(lines + b"{}"), 413, "body_too_large")

    def test_the_path_takes_no_put(self, feed: Feed) -> None:
        assert feed.client.put(feed.path).status_code == 405


class TestAtOnce:
    def test_another_organizations_import_does_not_wait(self, feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
        """One import is held before its commit while another organization's runs."""
        other = Feed(feed.client, Organization(feed.organization.connection, feed.organization.box))
        is_held, may_go = threading.Event(), threading.Event()
        write = Load.write

        def held(self: Load) -> Any:
            summary = write(self)
            if self._options.organization_id == feed.organization.id:
                is_held.set()
                assert may_go.wait(30)
            return summary

        monkeypatch.setattr(Load, "write", held)
        with ThreadPoolExecutor(1) as threads:
            first = threads.submit(feed.send, case(1))
            try:
                assert is_held.wait(30)
                assert other.send(case(1))["written"]["case"] == 1
            finally:
                may_go.set()
            assert first.result(30)["written"]["case"] == 1

    def test_who_waits_too_long_for_another_import_is_told(
        self, feed: Feed, monkeypatch: pytest.MonkeyPatch, database_url: str
    ) -> None:
        monkeypatch.setattr("cases_service.loading.imports.IMPORT_SECONDS", 0.5)
        key = int.from_bytes(feed.organization.id.bytes[-4:], signed=True)
        with psycopg.connect(database_url) as holder:
            holder.execute("select pg_advisory_xact_lock(x'63617365'::integer, %s)", [key])
            problem = assert_problem(feed.post(encode(case(1))), 504, "timeout")
        assert "Nothing was changed" in problem["detail"]
        assert feed.send(case(1))["written"]["case"] == 1


class TestDocuments:
    def test_the_lines_of_the_document_are_answered_as_it_says(self, feed: Feed) -> None:
        feed.send(case("977"))
        request = block("docs/api.md", "text", "/import?mode=all").split()[1]
        lines = block("docs/api.md", "json", '"id": "977"').encode()
        answer = feed.post(lines, request.partition("?")[2])
        assert answer.get_json() == json.loads(block("docs/api.md", "json", '"lines": 3'))

    def test_the_own_ids_of_the_document_are_taken(self, feed: Feed) -> None:
        lines = block("docs/load.md", "json", '"id": "35436"')
        own = lines.replace("53b97666-d364-5ae6-931e-d7745d57c1ac", str(feed.organization.id))
        assert feed.post(own.encode()).get_json()["written"]["case"] == 1
