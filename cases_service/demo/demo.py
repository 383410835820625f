"""The demo: real data on an embedded PostgreSQL, a customer's page to open, and curl lines to paste."""

import io
import json
import os
import signal
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn
from uuid import UUID

import msgspec
import psycopg

from cases_service.credentials import administration
from cases_service.credentials import visitor_jwt as visitor_tokens
from cases_service.credentials.administration import AdministrationError
from cases_service.credentials.algorithms import HMAC_ALGORITHMS
from cases_service.credentials.secret_encryption import SecretBox
from cases_service.database.statements import statements
from cases_service.demo.conversations import conversations_of
from cases_service.demo.portal.launch import DemoVisitor, Plan, hand_over, listen_beside, start_portal
from cases_service.embedded import data_directory, supervisor
from cases_service.embedded.command_database import open_database
from cases_service.embedded.server import require_programs
from cases_service.loading.files import LoadFile
from cases_service.loading.load import load
from cases_service.server.launch import become_gunicorn, listen
from cases_service.settings import UNIX, DemoCredentials, Settings, is_under_make

DEMO_DATA: Final = Path(__file__).parent / "data" / "nyc311.ndjson"
_ORGANIZATION: Final = UUID("53b97666-d364-5ae6-931e-d7745d57c1ac")
_USER: Final = UUID("65f33228-72e5-5b5b-a48f-152fe9c2e8d8")
_VISITOR: Final = "zip-11233"
_PAGE_SIZE: Final = 3
_FIELDS: Final = "case_number,subject,status,updated_at"
_TIMES: Final = ("created_at", "updated_at", "closed_at")
_DESCRIPTION: Final = "cases-service demo"
_TOKEN_LIFETIME: Final = timedelta(hours=24)
_JWT_SECONDS: Final = 12 * 3600
_PORTAL_JWT_SECONDS: Final = 60
_START_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.1
_WILDCARDS: Final = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104  nothing is bound here

# Never use a proxy from the environment to reach this machine.
_http: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class DemoError(RuntimeError):
    """The demo does not start. The message says why and what to do, in one line."""


class AnsweredCase(NamedTuple):
    """The case that the printed lines have an agent answer in."""

    id: UUID
    number: str
    subject: str


@dataclass(frozen=True)
class Visit:
    """Where the service is, an API token and a visitor's JWT for a client of the API, and the portal's own token."""

    base_url: str
    api_token: str
    portal_token: str
    jwt: str
    answered: AnsweredCase

    def cases_url(self, organization: str = str(_ORGANIZATION)) -> str:
        """Return the address of the visitor's cases. The JWT travels in a header."""
        return f"{self.base_url}/api/v5/orgs/{organization}/external-visitors/-/cases"

    def get(self, query: str) -> Any:
        """Return the visitor's cases for a query string."""
        headers = {"Authorization": f"Token {self.api_token}", "X-External-Identity": self.jwt}
        request = urllib.request.Request(f"{self.cases_url()}?{query}", headers=headers)  # noqa: S310  http
        with _http.open(request, timeout=_START_SECONDS) as answer:
            return json.load(answer)

    def variables(self) -> str:
        """Return the shell variables of the `curl` commands, for any POSIX shell."""
        return (
            f"ORGANIZATION={_ORGANIZATION}\nTOKEN={self.api_token}\nJWT={self.jwt}\n"
            f'CASES="{self.cases_url("$ORGANIZATION")}"\n'
            f'ALL_CASES="{self.base_url}/api/v5/orgs/$ORGANIZATION/cases"'
        )


def _curl(rest: str) -> str:
    """Return a `curl` command for an address below the visitor's cases."""
    return (
        'curl -s -H "Authorization: Token $TOKEN" -H "X-External-Identity: $JWT" \\\n'
        f'    "$CASES{rest}" | python3 -m json.tool'
    )


def _curl_change(case_id: str) -> str:
    """Return a command that changes a case as the organization's own system would."""
    return (
        'curl -s -X PATCH -H "Authorization: Token $TOKEN" -H "Content-Type: application/json" \\\n'
        f'    -d \'{{"subject": "Changed from a shell"}}\' "$ALL_CASES/{case_id}" | python3 -m json.tool'
    )


def _curl_answer(case_id: UUID) -> str:
    """Return a command that answers in a case, as a user of the organization does."""
    return (
        'curl -s -H "Authorization: Token $TOKEN" -H "Content-Type: application/json" \\\n'
        '    -d \'{"text": "We are on our way.", "is_private": false}\' \\\n'
        f'    "$ALL_CASES/{case_id}/messages" | python3 -m json.tool'
    )


def run_demo(settings: Settings) -> NoReturn:
    """Prepare everything, and become the service; a child prints the lines once it answers."""
    if settings.database_url is not None:
        raise DemoError("demo brings its own PostgreSQL: unset DATABASE_URL, or use cases-service serve")
    if settings.bind.startswith(UNIX):
        raise DemoError("demo is for a browser: expected --bind HOST:PORT")
    _end_with_parent()
    listener = listen(settings.bind)
    portal_listener = listen_beside(settings.bind)
    portal_url = f"http://{_reachable(settings.bind)}:{portal_listener.getsockname()[1]}/"
    settings = _for_demo(settings, port=listener.getsockname()[1])
    data_dir = Path(settings.data_dir).absolute()
    require_programs(None if settings.postgres_bin is None else Path(settings.postgres_bin))
    data_directory.claim_for_demo(data_dir)
    is_new = not (data_dir / supervisor.CLUSTER).exists()
    _say(f"{'making' if is_new else 'starting'} a PostgreSQL in {data_dir}{' (once: half a minute)' if is_new else ''}")
    with open_database(settings, may_make=True) as database:
        database.initialize()
        _say("loading 1,000 real cases, moved in time so that the newest is of today, and made-up conversations")
        with database.connect() as connection:
            visit, plan = _prepare(connection, database.settings)
        _say("starting the service and the page of a customer's cases")
        hand_over(start_portal(plan, portal_listener))
        sys.stdout.flush()
        if os.fork() == 0:
            listener.close()
            _print_lines(visit, portal_url, database.settings)
        credentials = DemoCredentials(visit.api_token, visit.jwt)
        become_gunicorn(database.settings, [listener], embedded=database.embedded, demo_credentials=credentials)


def _say(what: str) -> None:
    """Report progress on standard error."""
    sys.stderr.write(f"cases-service: {what} ...\n")
    sys.stderr.flush()


def _end_with_parent() -> None:
    """End with the parent when that is killed, if it is a terminal's shell or make."""
    # The kernel does this, on Linux only. Other parents may start a demo in the background and end before it.
    ask_for_interrupt = supervisor.end_with_parent(os.getppid())
    if ask_for_interrupt is not None and (sys.stdin.isatty() or is_under_make()):
        ask_for_interrupt()


def _reachable(bind: str) -> str:
    """Return a host name by which this machine reaches a listening address."""
    host, _, _ = bind.rpartition(":")
    return _WILDCARDS.get(host, host)


def _for_demo(settings: Settings, *, port: int) -> Settings:
    """Return settings with which the printed lines work, and a log for people."""
    host, _, _ = settings.bind.rpartition(":")
    return msgspec.structs.replace(
        settings,
        bind=f"{host}:{port}",
        admin_bind=None,
        allowed_hosts=f"{settings.allowed_hosts},{_reachable(settings.bind)}",
        public_url=None,
        log_format="console" if settings.log_format == "auto" and not sys.stderr.isatty() else settings.log_format,
    )


def _prepare(connection: psycopg.Connection[Any], settings: Settings) -> tuple[Visit, Plan]:
    """Load the data, and create an API token and a signing key. An earlier demo's key stays, its token is revoked."""
    box = SecretBox(settings.secret_keys)
    now = datetime.now(UTC)
    lines = moved_to(now, DEMO_DATA.read_bytes())
    said = _encoded(conversations_of([json.loads(line) for line in lines.splitlines()], now=now))
    files = [LoadFile(DEMO_DATA.name, io.BytesIO(lines)), LoadFile("conversations", io.BytesIO(said))]
    load(connection, files, box=box)
    # What was said in an earlier demo besides stays, and counts.
    connection.execute(statements("demo")["count_unread_of_visitors"].encode(), {"organization_id": _ORGANIZATION})
    administration.revoke_tokens_described(connection, organization_id=_ORGANIZATION, description=_DESCRIPTION)
    key, visitors = _key(connection, box), _visitors(connection)
    visit = Visit(
        base_url=f"http://{_reachable(settings.bind)}:{settings.bind.rpartition(':')[2]}",
        api_token=_token(connection, "visitors:read", "visitors:write", "cases:write"),
        portal_token=_token(connection, "visitors:read", "visitors:write"),
        jwt=_sign(key, settings),
        answered=_case_to_answer(connection, visitors[0]),
    )
    return visit, _plan(visit, key, settings, visitors)


def _token(connection: psycopg.Connection[Any], *scopes: str) -> str:
    _, token = administration.create_token(
        connection,
        organization_id=_ORGANIZATION,
        user_id=_USER,
        scopes=scopes,
        description=_DESCRIPTION,
        expires_at=datetime.now(UTC) + _TOKEN_LIFETIME,
    )
    return token


def moved_to(now: datetime, lines: bytes) -> bytes:
    """Return lines of the load format, with all times shifted by whole days so that the newest case is from today.

    Times that would then be in the future become the present.
    """
    rows = [json.loads(line) for line in lines.splitlines()]
    newest = max(datetime.fromisoformat(row["created_at"]) for row in rows if row["type"] == "case")
    days = timedelta(days=(now.date() - newest.date()).days)
    for row in rows:
        for name in _TIMES:
            if row.get(name):
                row[name] = min(datetime.fromisoformat(row[name]) + days, now).isoformat()
    return _encoded(rows)


def _encoded(rows: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(msgspec.json.encode(row) + b"\n" for row in rows)


def _plan(visit: Visit, key: tuple[UUID, str, str], settings: Settings, visitors: list[DemoVisitor]) -> Plan:
    key_id, algorithm, secret = key
    service: dict[str, str | int | None] = {
        "url": visit.base_url,
        "organization": str(_ORGANIZATION),
        "api_token": visit.portal_token,
        "key_id": str(key_id),
        "algorithm": algorithm,
        "secret": secret,
        "audience": settings.jwt_audience,
        "issuer": settings.jwt_issuer,
        "jwt_seconds": min(_PORTAL_JWT_SECONDS, settings.jwt_max_ttl),
    }
    return Plan(service, sorted(settings.allowed_host_names), visitors)


def _visitors(connection: psycopg.Connection[Any]) -> list[DemoVisitor]:
    rows = connection.execute(
        statements("demo")["list_visitors_to_show"].encode(), {"organization_id": _ORGANIZATION}
    ).fetchall()
    return [DemoVisitor(*row) for row in rows]


def _case_to_answer(connection: psycopg.Connection[Any], visitor: DemoVisitor) -> AnsweredCase:
    """Return the newest open case of a visitor."""
    values = {"organization_id": _ORGANIZATION, "external_id": visitor.external_id}
    row = connection.execute(statements("demo")["get_newest_open_case"].encode(), values).fetchone()
    if row is None:
        raise LookupError(visitor.external_id)
    return AnsweredCase(*row)


def _sign(key: tuple[UUID, str, str], settings: Settings) -> str:
    key_id, algorithm, secret = key
    return visitor_tokens.sign(
        _VISITOR,
        secret=secret,
        algorithm=algorithm,
        key_id=key_id,
        ttl=min(_JWT_SECONDS, settings.jwt_max_ttl),
        audience=settings.jwt_audience,
        issuer=settings.jwt_issuer,
    )


def _key(connection: psycopg.Connection[Any], box: SecretBox) -> tuple[UUID, str, str]:
    """Return id, algorithm and secret of a live HMAC key: the newest whose secret can be decrypted, or a new one."""
    for key in reversed(administration.live_keys(connection, organization_id=_ORGANIZATION)):
        if key.algorithm in HMAC_ALGORITHMS:
            try:
                secret = administration.open_secret(key, organization_id=_ORGANIZATION, box=box)
            except AdministrationError:
                continue
            return key.id, key.algorithm, secret
    new = administration.create_key(
        connection, organization_id=_ORGANIZATION, algorithm="HS256", public_key=None, box=box
    )
    return new.kid, new.algorithm, new.secret or ""


def _print_lines(visit: Visit, portal_url: str, settings: Settings) -> NoReturn:
    """Print the lines once the service answers, then exit; exit too if the service ends first."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    try:
        if _wait_until_ready(visit, parent=os.getppid()):
            sys.stdout.write(_lines(visit, portal_url, settings))
            sys.stdout.flush()
    except (OSError, ValueError, LookupError) as error:
        sys.stderr.write(f"cases-service: the demo's first request failed ({type(error).__name__})\n")
    finally:
        # Without returning to the caller's code, which the parent runs.
        os._exit(0)


def _wait_until_ready(visit: Visit, *, parent: int) -> bool:
    deadline = time.monotonic() + _START_SECONDS
    url = f"{visit.base_url}/readyz"
    while os.getppid() == parent and time.monotonic() < deadline:
        try:
            with _http.open(url, timeout=_START_SECONDS):
                return True
        except OSError:
            time.sleep(_POLL_SECONDS)
    return False


def _lines(visit: Visit, portal_url: str, settings: Settings) -> str:
    query = f"page_size={_PAGE_SIZE}&fields={_FIELDS}"
    page, (case,) = visit.get(query), visit.get("page_size=1&fields=id")["results"]
    cursor = urllib.parse.parse_qs(urllib.parse.urlsplit(page["next"]).query)["cursor"][0]
    return f"""
What a signed-in customer sees, to open in a browser:
{portal_url}

The service answers. Its data, 1,000 real service requests from New York, are in {settings.data_dir}.
What is said in their cases is made up.
{_docs_line(visit, settings)}
What a request needs, to paste into a shell first, or into a script of your own:
{visit.variables()}

The first of a visitor's cases:
{_curl(f"?{query}")}

The next ones, by the cursor in the link "next":
{_curl(f"?{query}&cursor={cursor}")}

One case, whole:
{_curl(f"/{case['id']}")}

A change of that case by the organization's own system, which the customer's page above shows:
{_curl_change(case["id"])}

An answer by the organization, which appears by itself on the page above, in the case #{visit.answered.number}:
{_curl_answer(visit.answered.id)}

An error:
{_curl("?page_size=1000")}

The lines work for {_hours(settings)} hours, on this machine. Ctrl-C ends the service and its database.
"""


def _docs_line(visit: Visit, settings: Settings) -> str:
    return f"Try the API in a browser: {visit.base_url}/docs\n" if settings.docs == "on" else ""


def _hours(settings: Settings) -> str:
    return f"{min(_JWT_SECONDS, settings.jwt_max_ttl) / 3600:g}"
