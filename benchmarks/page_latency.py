"""Measures a page of a heavy visitor against one of an ordinary visitor, over HTTP, in one run.

Starts an embedded PostgreSQL and the service, makes visitors with the same number of cases over 2, 20 and 200
contacts and one with a single page, and asks for their pages in turn, round by round, one request at a time over one
connection. Prints medians in milliseconds and their ratio to the ordinary visitor's first page.
"""

import argparse
import base64
import http.client
import os
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import psycopg

from cases_service import administration, visitor_tokens
from cases_service.cursors import Collection, Cursor, Position, visitor_tag
from cases_service.embedded import join
from cases_service.migrations import init_db
from cases_service.secret_box import SecretBox

PAGE_SIZE = 25
CONTACTS = (2, 20, 200)

FILL = """
insert into cases (organization_id, id, case_number, contact_id, owner_id, subject, description, status, closed_at,
    priority, created_at, updated_at, created_by_user_id, updated_by_user_id)
select %(organization_id)s, gen_random_uuid(), %(external_id)s || '-' || n, contacts.ids[1 + n %% %(contacts)s],
    %(user_id)s, 'Street light out', repeat('The lamp at the corner has been dark for days. ', 5),
    case when n %% 1000 = 0 then 'Open' else 'Closed' end, case when n %% 1000 = 0 then null else now() end,
    1 + n %% 5, '2020-01-01'::timestamptz + n * interval '1 minute', '2024-01-01'::timestamptz - n * interval '1 s',
    %(user_id)s, %(user_id)s
from generate_series(1, %(cases)s) n
cross join (
    select array_agg(id) as ids from contacts
    where organization_id = %(organization_id)s and visitor_id = %(visitor_id)s
) contacts
"""


class Company:
    """An organization with a user, a token and a key, in the database of the run."""

    def __init__(self, connection: psycopg.Connection[Any], box: SecretBox) -> None:
        self.connection = connection
        self.id, self.user_id = uuid4(), uuid4()
        connection.execute("insert into organizations values (%s, 'Benchmark', 'active')", [self.id])
        connection.execute(
            "insert into users (organization_id, id, first_name, last_name) values (%s, %s, 'Ada', 'Byron')",
            [self.id, self.user_id],
        )
        _, self.token = administration.create_token(connection, organization_id=self.id, user_id=self.user_id)
        self.key = administration.create_key(
            connection, organization_id=self.id, algorithm="HS256", public_key=None, box=box
        )

    def visitor(self, external_id: str, *, contacts: int, cases: int) -> dict[str, str]:
        """Make a visitor and return the targets of their first, last and first filtered page."""
        visitor_id = uuid4()
        self.connection.execute("insert into visitors values (%s, %s, %s)", [self.id, visitor_id, external_id])
        self.connection.execute(
            "insert into contacts (organization_id, id, visitor_id, first_name, created_at, updated_at)"
            " select %s, gen_random_uuid(), %s, 'Grace', now(), now() from generate_series(1, %s)",
            [self.id, visitor_id, contacts],
        )
        parameters = {"external_id": external_id, "contacts": contacts, "cases": cases, "visitor_id": visitor_id}
        self.connection.execute(FILL, {"organization_id": self.id, "user_id": self.user_id, **parameters})
        jwt = visitor_tokens.sign(
            external_id, secret=self.key.secret or "", algorithm="HS256", key_id=self.key.kid, ttl=3600
        )
        path = f"/api/v5/orgs/{self.id}/external-visitors/{jwt}/cases?page_size={PAGE_SIZE}"
        last = self._last_page(visitor_id).encode(Collection(self.id, "created_at"))
        return {"first": path, "last": f"{path}&cursor={last}", "first, is_closed=true": f"{path}&is_closed=true"}

    def _last_page(self, visitor_id: UUID) -> Cursor:
        row = self.connection.execute(
            "select (extract(epoch from c.created_at) * 1000000)::bigint, c.id"
            " from cases c join contacts x on x.organization_id = c.organization_id and x.id = c.contact_id"
            " where x.organization_id = %s and x.visitor_id = %s"
            " order by c.created_at desc, c.id desc offset %s limit 1",
            [self.id, visitor_id, PAGE_SIZE],
        ).fetchone()
        position = Position(-1, UUID(int=0)) if row is None else Position(*row)
        return Cursor(position, backward=False, visitor_tag=visitor_tag(visitor_id))


@contextmanager
def service(database_url: str, secret_key: str) -> Iterator[str]:
    """Run the service as it is deployed, and give HOST:PORT."""
    address = f"127.0.0.1:{20000 + secrets.randbelow(20000)}"
    environment = {**os.environ, "DATABASE_URL": database_url, "CASES_SECRET_KEY": secret_key}
    command = [str(Path(sys.executable).with_name("cases-service")), "serve", "--bind", address]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)  # noqa: S603  our own command
    try:
        wait_until_ready(address)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def wait_until_ready(address: str) -> None:
    """Wait until /readyz answers 200, a minute at most."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            connection = http.client.HTTPConnection(address, timeout=5)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == http.HTTPStatus.OK:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise TimeoutError("the service did not get ready")


def requester(address: str, token: str) -> Callable[[str], None]:
    """Return a function that asks for a target and reads the whole answer, over one connection."""
    connection = http.client.HTTPConnection(address, timeout=30)
    headers = {"Authorization": f"Token {token}"}

    def ask(target: str) -> None:
        connection.request("GET", target, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != http.HTTPStatus.OK or body.count(b'"case_number"') != PAGE_SIZE:
            raise AssertionError(f"{answer.status} for {urlsplit(target).query}: {body[:200]!r}")

    return ask


def measure(ask: Callable[[str], None], targets: dict[str, str], rounds: int) -> dict[str, float]:
    """Return the median milliseconds of each target, asked for in turn."""
    samples: dict[str, list[float]] = {name: [] for name in targets}
    for number in range(rounds + 20):
        for name, target in targets.items():
            started = time.perf_counter()
            ask(target)
            if number >= 20:  # noqa: PLR2004  the first rounds warm up
                samples[name].append((time.perf_counter() - started) * 1000)
    return {name: statistics.median(values) for name, values in samples.items()}


def main() -> None:
    """Run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=60_000, help="cases of each heavy visitor")
    parser.add_argument("--rounds", type=int, default=300)
    arguments = parser.parse_args()
    secret_key = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
    with tempfile.TemporaryDirectory(prefix="cases-bench-") as directory, join(Path(directory) / "d") as server:
        with psycopg.connect(server.conninfo, autocommit=True) as connection:
            init_db(connection)
            company = Company(connection, SecretBox([secret_key]))
            pages = {"ordinary": company.visitor("ordinary", contacts=2, cases=PAGE_SIZE)}
            pages = {"ordinary": {"first": pages["ordinary"]["first"]}}
            for contacts in CONTACTS:
                name = f"{contacts} contacts x {arguments.cases // contacts:,} cases"
                pages[name] = company.visitor(name, contacts=contacts, cases=arguments.cases)
            connection.execute("vacuum analyze")
        targets = {f"{name} | {page}": target for name, found in pages.items() for page, target in found.items()}
        with service(server.conninfo, secret_key) as address:
            medians = measure(requester(address, company.token), targets, arguments.rounds)
        server.leave()
        server.wait_stopped(30)
    ordinary = medians["ordinary | first"]
    sys.stdout.write("| visitor | page | median ms | ratio |\n|---|---|---|---|\n")
    for name, median in medians.items():
        sys.stdout.write(f"| {name} | {median:.2f} | {median / ordinary:.2f} |\n")


if __name__ == "__main__":
    main()
