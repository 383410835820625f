"""`POST …/import` to a real gunicorn: wrong lines, a worker killed in the middle, late and doubled deliveries."""

import gzip
import json
import os
import random
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from uuid import uuid4, uuid5

import psycopg
import pytest
import requests
from psycopg.conninfo import make_conninfo

from tests.factories import SECRET_KEY, Organization
from tests.process.conftest import killed_at_end, serve_arguments, short_path
from tests.process.running import PATIENCE, Service, environment, wait_for
from tests.torture import times
from tests.writing import TABLES, contents

Fields = dict[str, Any]
SEEDS = range(times(1, torture=10))
CASES = 900
CHANGES = 5000
CLIENTS = 4
# Where an import waits for who holds this: before it writes, in the middle, and with all of it written.
MOMENTS = {
    "staged": "select pg_advisory_xact_lock(x'63617365'::integer, {turn})",
    "between two types": "lock table cases in share mode",
    "at the last row": "lock table messages in share mode",
    "written": "lock table import_runs in share mode",
}


@dataclass
class Feed:
    """What imports into an organization over HTTP, and looks at what is there."""

    service: Service
    organization: Organization

    def __post_init__(self) -> None:
        self.url = self.service.url(f"/api/v5/orgs/{self.organization.id}/import")
        self.token = self.organization.token_with("cases:write")

    def post(self, body: bytes, query: str = "", **headers: str) -> requests.Response:
        given = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/x-ndjson", **headers}
        return requests.post(f"{self.url}?{query}", data=body, headers=given, timeout=PATIENCE)

    def send(self, lines: list[Fields], query: str = "") -> Fields:
        answer = self.post(encode(lines), query)
        assert answer.status_code == 200, answer.text
        result: Fields = answer.json()
        return result

    def cases(self, columns: str) -> dict[str, str]:
        """Return what some columns of each case hold, or where the case lies: a row written again lies elsewhere."""
        statement = f"select id::text, ({columns})::text from cases where organization_id = %s"
        return dict(self.organization.connection.execute(statement.encode(), [self.organization.id]).fetchall())


def encode(lines: list[Fields]) -> bytes:
    return b"\n".join(json.dumps(line).encode() for line in lines)


def at(second: int) -> str:
    return f"2024-01-01T{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}Z"


def case(key: object, second: int = 0, **fields: Any) -> Fields:
    required = {"case_number": f"n{key}", "status": "Open", "priority": 3, "created_at": at(0)}
    return {"type": "case", "id": str(key), **required, "updated_at": at(second), **fields}


@pytest.fixture
def feed(service: Service, organization: Organization) -> Feed:
    return Feed(service, organization)


@pytest.mark.parametrize("packs", [False, True], ids=["plain", "gzip"])
def test_a_wrong_line_among_thousands_is_named_and_all_or_only_it_is_left_out(feed: Feed, packs: bool) -> None:
    lines = [case(number) for number in range(5000)]
    lines[3999]["priority"] = 9
    body = gzip.compress(encode(lines)) if packs else encode(lines)
    headers = {"Content-Encoding": "gzip"} if packs else {}
    error = {"line": 4000, "field": "priority", "detail": "expected an integer from 1 to 5"}
    refused = feed.post(body, "mode=all", **headers)
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid_lines")
    assert (refused.json()["error_count"], refused.json()["errors"]) == (1, [error])
    assert feed.cases("id") == {}
    taken = feed.post(body, "mode=each", **headers).json()
    assert (taken["error_count"], taken["errors"], taken["written"]["case"]) == (1, [error], 4999)
    assert feed.cases("id").keys() == {
        str(uuid5(feed.organization.id, f"case:{number}")) for number in range(5000) if number != 3999
    }


class Fragile:
    """A service of one worker, whose connections that write can be told from all others."""

    def __init__(self, service: Service, name: str, connection: psycopg.Connection) -> None:
        self.service = service
        self._name = name
        self._connection = connection

    def waiting(self) -> list[int]:
        """Return who of its writing connections waits for a lock."""
        return self._backends("wait_event_type = 'Lock'")

    def kill(self) -> None:
        """End its worker as the kernel would, and wait for the next one."""
        worker = self.service.workers()[-1]
        os.kill(worker, signal.SIGKILL)
        wait_for(lambda: self.service.workers()[-1] != worker, story=self.service)

    def wait_until_gone(self, backends: list[int]) -> None:
        """Wait until the database has noticed how its clients ended."""
        wait_for(lambda: not set(self._backends("true")) & set(backends))

    def _backends(self, condition: str) -> list[int]:
        statement = f"select pid from pg_stat_activity where application_name = %s and {condition}"
        return [pid for (pid,) in self._connection.execute(statement.encode(), [self._name]).fetchall()]


@pytest.fixture(scope="module")
def fragile(service_url: str, writer_url: str, session_connection: psycopg.Connection) -> Iterator[Fragile]:
    name = uuid4().hex
    variables = {"DATABASE_URL": service_url, "CASES_SECRET_KEY": SECRET_KEY, "CASES_WORKERS": "1"}
    variables["CASES_WRITE_DATABASE_URL"] = make_conninfo(writer_url, application_name=name)
    with short_path() as path:
        service = Service(serve_arguments(), environment(**variables), path, cwd=path)
        with killed_at_end([service]):
            service.wait_until_ready()
            yield Fragile(service, name, session_connection)


def lines_of_every_type() -> list[Fields]:
    """Return lines of which later ones rest on earlier ones."""
    message = {"sender_type": "visitor", "text": "Hello", "created_at": at(0), "is_private": False}
    return [
        {"type": "visitor", "id": "1", "external_id": "ada"},
        {"type": "contact", "id": "1", "visitor_id": "1", "created_at": at(0), "updated_at": at(0)},
        *(case(number, contact_id="1") for number in range(300)),
        *(
            {"type": "activity", "id": str(n), "case_id": str(n), "channel": "email", "created_at": at(0)}
            for n in range(300)
        ),
        *({"type": "message", "id": str(n), "activity_id": str(n % 300), **message} for n in range(900)),
    ]


def rows(organization: Organization) -> dict[str, int]:
    found = contents(organization.connection, organization)
    return {table: len(found[table]) for table in TABLES if table not in ("organizations", "users", "api_tokens")}


EVERYTHING = {"visitors": 1, "contacts": 1, "cases": 300, "activities": 300, "messages": 900}


@pytest.mark.parametrize("mode", ["all", "each"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_worker_that_is_killed_in_the_middle_leaves_nothing_and_a_repetition_succeeds(
    fragile: Fragile, organization: Organization, database_url: str, moment: str, mode: str
) -> None:
    before = rows(organization)
    feed, body = Feed(fragile.service, organization), encode(lines_of_every_type())
    turn = int.from_bytes(organization.id.bytes[-4:], signed=True)
    with psycopg.connect(database_url) as holder, ThreadPoolExecutor(1) as threads:
        holder.execute(MOMENTS[moment].format(turn=turn).encode())
        sent = threads.submit(feed.post, body, f"mode={mode}")
        backends = wait_for(fragile.waiting, sent.done, fragile.service)
        fragile.kill()
        with pytest.raises(requests.ConnectionError):
            sent.result()
    fragile.wait_until_gone(backends)
    assert rows(organization) == before
    fragile.service.wait_until_ready()
    assert feed.post(body, f"mode={mode}").status_code == 200
    assert rows(organization) == before | EVERYTHING


@pytest.mark.parametrize("mode", ["all", "each"])
def test_a_worker_that_is_killed_as_it_commits_leaves_nothing_or_all_of_it(
    fragile: Fragile, organization: Organization, database_url: str, mode: str
) -> None:
    before = rows(organization)
    feed, body = Feed(fragile.service, organization), encode(lines_of_every_type())
    with psycopg.connect(database_url) as holder, ThreadPoolExecutor(1) as threads:
        holder.execute(MOMENTS["written"].encode())
        sent = threads.submit(feed.post, body, f"mode={mode}")
        backends = wait_for(fragile.waiting, sent.done, fragile.service)
        holder.rollback()
        fragile.kill()
        sent.exception()
    fragile.wait_until_gone(backends)
    assert rows(organization) in (before, before | EVERYTHING)
    fragile.service.wait_until_ready()
    again = feed.post(body, f"mode={mode}").json()
    assert sum(again["written"].values()) + again["unchanged"] == again["lines"]
    assert rows(organization) == before | EVERYTHING


def change(chance: random.Random, second: int) -> Fields:
    """Return what an update to one of the cases says: one in ten removes it."""
    key = chance.randrange(CASES)
    if chance.random() < 0.1:
        return {"type": "case", "id": str(key), "deleted": True, "updated_at": at(second)}
    return case(key, second, subject=str(second), priority=chance.randint(1, 5))


@pytest.mark.parametrize("seed", SEEDS)
def test_four_clients_with_shuffled_and_doubled_lines_end_as_in_order(
    feed: Feed, organization: Organization, seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311
    other = Organization(organization.connection, organization.box)
    other.case(None)
    before = contents(other.connection, other)
    log = [change(chance, second) for second in range(CHANGES)]
    newest = {line["id"]: line for line in log}
    expected = {
        str(uuid5(organization.id, f"case:{key}")): f"({line['subject']},{line['priority']})"
        for key, line in newest.items()
        if "deleted" not in line
    }
    lines = log * 3
    chance.shuffle(lines)
    batches = [lines[start : start + 1000] for start in range(0, len(lines), 1000)]
    with ThreadPoolExecutor(CLIENTS) as threads:
        results = list(threads.map(lambda batch: feed.send(batch, "if_newer=true"), batches))
    assert [result["error_count"] for result in results] == [0] * len(batches)
    assert sum(result["removed"]["case"] for result in results) > 0
    assert feed.cases("subject, priority") == expected
    written = feed.cases("ctid")
    for batch in (lines[:CHANGES], log):
        again = feed.send(batch, "if_newer=true")
        assert (sum(again["written"].values()), sum(again["removed"].values())) == (0, 0)
        assert again["stale"] == CHANGES
    assert feed.cases("ctid") == written
    assert contents(other.connection, other) == before
