"""Knows what can be wrong with an installation, looks for it, and says in a line each what was found and what to do."""

import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from importlib import import_module
from time import monotonic, sleep, time
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import urlsplit
from uuid import UUID

import msgspec
import psycopg

from cases_service.cases import timestamps as instants
from cases_service.credentials.secret_encryption import SecretBox, SecretNotOpenedError
from cases_service.database import server_state, session_settings
from cases_service.database.command_connection import is_citus
from cases_service.database.connection import Connection
from cases_service.database.migrations import SCHEMA_VERSION, version_of
from cases_service.database.primary import STANDBY, is_standby
from cases_service.database.replicas import name_of, single_hosts
from cases_service.database.session_settings import connection_parameters, dropped_settings, of_service
from cases_service.database.statements import statements
from cases_service.embedded.command_database import CommandDatabase, NoDatabaseError, explain, open_database
from cases_service.embedded.data_directory import ForeignDirectoryError
from cases_service.embedded.server import EmbeddedServerError
from cases_service.server import descriptors
from cases_service.settings import UNIX, Settings, SettingsError, read_settings, unknown_names

Status: TypeAlias = Literal["ok", "warning", "failure"]
Verdict: TypeAlias = tuple[Status, str]
AnyConnection: TypeAlias = psycopg.Connection[tuple[Any, ...]]

_SQL: Final = statements("doctor")
_SESSION: Final = statements("session")
_OLDEST_SERVER: Final = 150000
_SOON: Final = timedelta(days=14)
_CLOCK_SECONDS: Final = 5.0
_MINUTES_FROM: Final = 120
_ANSWER_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.1
_LONGEST_ANSWER: Final = 65536
_NAMED: Final = 3
_ALL_ADDRESSES: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  where serve may listen


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. `message` is one line, says what to do where something is wrong, and holds no secret."""

    check: str
    status: Status
    message: str


def examine(url: str | None = None) -> Iterator[Finding]:
    """Yield what is found, check by check. What could only repeat an earlier failure is left out.

    Args:
        url: Where a service answers; by default where CASES_BIND says, if anybody listens there.

    """
    try:
        settings = read_settings()
    except SettingsError as error:
        yield Finding("settings", "failure", str(error))
        return
    yield Finding("settings", *_check_names(unknown_names()))
    yield Finding("open files", *_check_open_files(settings))
    try:
        with open_database(settings) as database:
            yield from _examine_database(database)
    except (NoDatabaseError, EmbeddedServerError, ForeignDirectoryError) as error:
        yield Finding("database", "failure", _line(str(error)))
    yield Finding("rate limits", *_check_rate_limits(settings))
    yield from _examine_service(settings, url)


def _check_rate_limits(settings: Settings) -> Verdict:
    if not settings.limits_rates:
        return "ok", "none is set"
    if settings.rate_limit_storage == "memory://":
        return "ok", "each worker counts for itself (CASES_RATE_LIMIT_STORAGE names a Redis for all of them)"
    rate_limits = import_module("cases_service.api.rate_limits")  # it takes a tenth of a second
    try:
        rate_limits.try_storage(settings)
    except rate_limits.StorageAwayError as error:
        return "failure", f"requests pass uncounted, as Redis does not count: {error}; check CASES_RATE_LIMIT_STORAGE"
    return "ok", "Redis counts for all workers"


def _check_open_files(settings: Settings) -> Verdict:
    limit = descriptors.connection_limit(settings)
    if limit < descriptors.CONNECTIONS:
        return "warning", (
            f"the limit of open files leaves each worker {limit} connections of clients: beyond, those that have been"
            " silent for longest are closed; raise the hard limit (LimitNOFILE, ulimit -Hn)"
        )
    return "ok", f"{limit:,} connections of clients for each worker"


def _check_names(unknown: Sequence[str]) -> Verdict:
    if unknown:
        return "warning", f"{', '.join(unknown)}: no such setting; the README lists them"
    return "ok", "valid"


def _examine_database(database: CommandDatabase) -> Iterator[Finding]:
    settings = database.settings
    with ExitStack() as stack:
        try:
            service = stack.enter_context(_connect(settings.require_database_url(), settings))
        except psycopg.Error as error:
            yield Finding("database", "failure", f"{_line(explain(error))}; check DATABASE_URL")
            return
        yield _found("database", partial(_check_server, service))
        yield _found("session", partial(_check_session, service, of_service(settings)))
        yield _found("clock", partial(_check_clock, service))
        if is_citus(service):
            yield _found("Citus", partial(_check_calls, service))
        try:
            admin = stack.enter_context(database.connect(with_schema=False))
        except NoDatabaseError as error:
            yield Finding("administration", "failure", str(error))
            return
        except psycopg.Error as error:
            name = "DATABASE_URL" if settings.admin_database_url is None else "CASES_ADMIN_DATABASE_URL"
            yield Finding("administration", "failure", f"{_line(explain(error))}; check {name}")
            return
        yield _found("session of commands", partial(_check_session, admin, session_settings.COMMANDS))
        schema = _found("schema", partial(_check_schema, admin))
        yield schema
        if schema.status != "failure":
            yield _found("rights", partial(_check_rights, service))
            yield _found("row security", partial(_check_row_security, service))
            yield _found("statistics", partial(_check_statistics, admin))
            if settings.write_database_url is not None:
                yield _found("writer", partial(_check_writer, settings.write_database_url, settings))
            yield from _examine_organizations(admin, settings)
            yield from _examine_replicas(service, settings)


def _connect(url: str, settings: Settings) -> Connection:
    """Connect as the service does."""
    connection = Connection.connect(connection_parameters(url, settings), autocommit=True)
    connection.answer_timeout = settings.answer_seconds
    session_settings.complete(connection)
    return connection


def _found(check: str, look: Callable[[], Verdict]) -> Finding:
    """Return a finding, which is a failure where the database does not answer the question."""
    try:
        return Finding(check, *look())
    except psycopg.Error as error:
        return Finding(check, "failure", _line(explain(error)))


def _check_server(connection: AnyConnection) -> Verdict:
    if is_standby(connection):
        return "failure", f"the server in DATABASE_URL {STANDBY}"
    version = connection.info.parameter_status("server_version") or ""
    if connection.info.server_version < _OLDEST_SERVER:
        return "failure", f"PostgreSQL {version} is too old: use {_OLDEST_SERVER // 10000} or newer"
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        return "failure", f"stores text as {encoding}: make a database with encoding UTF8, and load into that"
    return "ok", f"PostgreSQL {version}, {encoding}"


def _check_session(connection: AnyConnection, asked: dict[str, str]) -> Verdict:
    names = [*asked, *session_settings.PINNED_WHERE_KNOWN]
    found: dict[str, str] = dict(connection.execute(_SESSION["get_session"], {"names": names}).fetchall())
    if dropped := dropped_settings(found, asked):
        return "failure", f"not what was asked for: {', '.join(dropped)}; see PgBouncer in docs/scaling.md"
    return "ok", f"{len(found)} settings are as the statements need them"


def _check_calls(connection: AnyConnection) -> Verdict:
    """Look whether requests are asked by calls that the nodes answer."""
    *_, calls = connection.execute(_SESSION["get_server"]).fetchone() or (False,)
    if not calls:
        return "warning", (
            "requests take several times as long as they need to, for want of a function: run deploy/citus.sql again,"
            " and restart the service (docs/scaling.md)"
        )
    return "ok", "each request is one call, which the node of its organization answers"


def _check_clock(connection: AnyConnection) -> Verdict:
    before = time()
    there = _one(connection, _SESSION["get_clock"])
    ahead = there - (before + time()) / 2
    if abs(ahead) > _CLOCK_SECONDS:
        direction = "ahead of" if ahead > 0 else "behind"
        return "warning", f"the database's is {abs(ahead):.1f} s {direction} this machine's: set both by NTP"
    return "ok", f"within {_CLOCK_SECONDS:g} s of the database's"


def _check_schema(connection: AnyConnection) -> Verdict:
    version = version_of(connection)
    if version == 0:
        return "failure", "there is none: run cases-service init-db"
    if version < SCHEMA_VERSION:
        return "failure", f"version {version}, and this release needs {SCHEMA_VERSION}: run cases-service init-db"
    return "ok", f"version {version}"


def _check_rights(connection: AnyConnection) -> Verdict:
    rows = connection.execute(_SESSION["list_missing_rights"]).fetchall()
    if not rows:
        return "ok", "the role of DATABASE_URL may read what it serves"
    status: Status = "warning" if all(is_dispensable for _, is_dispensable in rows) else "failure"
    missing = _some([name for name, _ in rows])
    advice = "run cases-service init-db with CASES_ADMIN_DATABASE_URL"
    return status, f"the role of DATABASE_URL lacks {missing}: {advice} (docs/security.md)"


def _check_writer(url: str, settings: Settings) -> Verdict:
    """Look whether requests that write can."""
    with _connect(url, settings) as writer:
        missing = [name for (name,) in writer.execute(_SESSION["list_missing_writer_rights"]).fetchall()]
        is_bound = _one(writer, _SESSION["is_bound_by_row_security"])
    if missing:
        advice = "run cases-service init-db with CASES_WRITE_DATABASE_URL, too"
        return "failure", f"the role of CASES_WRITE_DATABASE_URL lacks {_some(missing)}: {advice} (docs/security.md)"
    if not is_bound:
        return "warning", "row security does not hold for the role of CASES_WRITE_DATABASE_URL (docs/security.md)"
    return "ok", "the role of CASES_WRITE_DATABASE_URL may write cases, of one organization at a time"


def _check_row_security(connection: AnyConnection) -> Verdict:
    name, is_superuser, bypasses = connection.execute(_SESSION["get_role"]).fetchone() or ("", False, False)
    if _one(connection, _SESSION["is_bound_by_row_security"]):
        return "ok", f"holds for {name}"
    why = "is a superuser" if is_superuser else "has BYPASSRLS" if bypasses else "owns tables that do not force it"
    return "warning", f"does not hold for {name}, which {why}: serve with another role (docs/security.md)"


def _check_statistics(connection: AnyConnection) -> Verdict:
    if tables := [name for (name,) in connection.execute(_SESSION["list_unknown_to_the_planner"]).fetchall()]:
        return "warning", f"the planner has never looked at {_some(tables)}: run analyze as their owner"
    return "ok", "the planner has looked at every large table"


def _examine_organizations(connection: AnyConnection, settings: Settings) -> Iterator[Finding]:
    """Look at what opens the service, whoever's it is."""
    sight = _found("administration", partial(_check_sight, connection))
    yield sight
    if sight.status == "ok":
        yield _found("signing keys", partial(_check_keys, connection))
        yield _found("stored secrets", partial(_check_secrets, connection, settings))
        yield _found("API tokens", partial(_check_tokens, connection))
        yield _found("feeds", partial(_check_feeds, connection))


def _check_sight(connection: AnyConnection) -> Verdict:
    if _one(connection, _SESSION["sees_every_organization"]):
        return "ok", "the role of the commands sees every organization"
    return "warning", "no keys and tokens were looked at, as row security hides them: set CASES_ADMIN_DATABASE_URL, too"


def _check_keys(connection: AnyConnection) -> Verdict:
    if not _one(connection, _SQL["has_live_key_anywhere"]):
        return "warning", "there is none, so no visitor's JWT is accepted: cases-service create-key"
    rows = connection.execute(_SQL["list_retiring_keys_everywhere"], {"within": _SOON}).fetchall()
    if not rows:
        return "ok", f"none retires within {_SOON.days} days"
    retiring = _some([_named(key_id, organization_id, at) for organization_id, key_id, at, _ in rows])
    if left := _unique(organization_id for organization_id, _, _, has_successor in rows if not has_successor):
        return "warning", f"about to retire: {retiring}; cases-service create-key for {_some(left)}, with no other key"
    return "warning", f"about to retire: {retiring}; see by cases-service list-keys that nobody uses it any more"


def _check_secrets(connection: AnyConnection, settings: Settings) -> Verdict:
    rows = connection.execute(_SQL["list_live_secrets_everywhere"]).fetchall()
    box = SecretBox(settings.secret_keys)
    closed = [
        f"{key_id} of organization {owner}" for owner, key_id, *rest in rows if not _opens(box, owner, key_id, *rest)
    ]
    if not closed:
        return "ok", f"{len(rows)} can be opened"
    problem = "opens with none of the keys in CASES_SECRET_KEY" if settings.secret_keys else "needs CASES_SECRET_KEY"
    return "failure", f"the secret of signing key {_some(closed)} {problem}: set the key it was stored with, too"


def _opens(box: SecretBox, organization_id: UUID, key_id: UUID, algorithm: str, sealed: str) -> bool:
    try:
        box.open(sealed, organization_id=organization_id, key_id=key_id, algorithm=algorithm)
    except SecretNotOpenedError:
        return False
    return True


def _check_tokens(connection: AnyConnection) -> Verdict:
    if not _one(connection, _SQL["has_live_token_anywhere"]):
        return "warning", "there is none, so every request is refused: cases-service create-token"
    rows = connection.execute(_SQL["list_ending_tokens_everywhere"], {"within": _SOON}).fetchall()
    if not rows:
        return "ok", f"none expires within {_SOON.days} days"
    ending = _some([_named(token_id, organization_id, at) for organization_id, token_id, at in rows])
    return "warning", f"about to expire: {ending}; make new ones with cases-service create-token"


def _check_feeds(connection: AnyConnection) -> Verdict:
    rows = connection.execute(_SQL["list_late_feeds_everywhere"]).fetchall()
    if not rows:
        return "ok", "none that came regularly is late"
    late = _some(
        [
            f"organization {organization_id}, last at {instants.from_datetime(last_at)}, every {_spell(pause)} before"
            for organization_id, last_at, pause in rows
        ]
    )
    return "warning", f"no load or import came lately for {late}: see who sends them, and what they are answered"


def _spell(pause: timedelta) -> str:
    seconds = pause.total_seconds()
    return f"{seconds:.0f} s" if seconds < _MINUTES_FROM else f"{seconds / 60:.0f} min"


def _examine_replicas(primary: Connection, settings: Settings) -> Iterator[Finding]:
    for url in single_hosts(settings.read_database_url):
        yield _found(f"replica {name_of(url)}", partial(_check_replica, url, primary, settings))


def _check_replica(url: str, primary: Connection, settings: Settings) -> Verdict:
    """Look as the service does: what the primary has come to now, the replica has to replay in time."""
    instead = "the primary answers in its place"
    deadline = monotonic() + settings.read_max_lag
    end = server_state.get_flushed_wal(primary)
    try:
        with _connect(url, settings) as replica:
            replayed = server_state.get_replayed_wal(replica)
            if replayed is None or end is None:
                return "warning", f"no replica of the server in DATABASE_URL, so {instead}"
            while replayed is not None and replayed < end:
                if monotonic() > deadline:
                    return "warning", f"later than CASES_READ_MAX_LAG, {settings.read_max_lag:g} s, so {instead}"
                sleep(_POLL_SECONDS)
                replayed = server_state.get_replayed_wal(replica)
    except psycopg.Error as error:
        return "warning", f"{_line(explain(error))}; {instead}"
    return "ok", f"not later than {settings.read_max_lag:g} s"


def _examine_service(settings: Settings, url: str | None) -> Iterator[Finding]:
    """Ask what listens what a probe would ask."""
    at_bind = _url_of(settings.bind)
    operation = at_bind if settings.admin_bind is None else _url_of(settings.admin_bind)
    for base, path in ((url or at_bind, "/healthz"), (url or operation, "/readyz")):
        yield Finding(
            path, *_ask(base if base.startswith(UNIX) else base.rstrip("/"), path, is_expected=url is not None)
        )


def _ask(base: str, path: str, *, is_expected: bool) -> Verdict:
    try:
        status, body = _get(base, path)
    except (ConnectionRefusedError, FileNotFoundError):
        advice = "start cases-service serve" if is_expected else "nothing was asked (--url names another address)"
        return ("failure" if is_expected else "ok"), f"nobody listens at {base}: {advice}"
    except (OSError, HTTPException) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
        return "failure", _line(f"no answer from {base}: {reason}")
    answer = _decoded(body)
    if status == 200 and answer.get("status") == "ok":  # noqa: PLR2004
        return "ok", f"200 from {base}"
    if status == 404 and path == "/readyz":  # noqa: PLR2004
        return "warning", f"404 from {base}, where it is hidden from clients: name the address that probes ask"
    if answer.get("code"):
        return "failure", ascii(f"{status} {answer['code']} from {base}: {answer.get('detail')}")[1:-1]
    return "failure", f"{status} from {base}, which is no answer of this service: check the address"


def _get(base: str, path: str) -> tuple[int, bytes]:
    connection, path = _connection_to(base, path)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read(_LONGEST_ANSWER)
    finally:
        connection.close()


def _connection_to(base: str, path: str) -> tuple[HTTPConnection, str]:
    if base.startswith(UNIX):
        connection = HTTPConnection("localhost", timeout=_ANSWER_SECONDS)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(_ANSWER_SECONDS)
        connection.sock.connect(base.removeprefix(UNIX))
        return connection, path
    parts = urlsplit(base + path)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    return kind(parts.hostname or "", parts.port, timeout=_ANSWER_SECONDS), parts.path


def _decoded(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.MsgspecError:
        return {}


def _url_of(address: str) -> str:
    """Return where to find, from here, who listens at an address."""
    if address.startswith(UNIX):
        return address
    host, _, port = address.rpartition(":")
    name = host.strip("[]")
    name = _ALL_ADDRESSES.get(name, name)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def _named(thing_id: UUID, organization_id: UUID, at: datetime) -> str:
    return f"{thing_id} of organization {organization_id} at {instants.from_datetime(at)}"


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _unique(ids: Iterable[UUID]) -> list[str]:
    return [f"organization {one}" for one in dict.fromkeys(ids)]


def _line(text: str) -> str:
    return " ".join(text.split())


def _one(connection: AnyConnection, statement: str) -> Any:
    row = connection.execute(statement).fetchone()
    return None if row is None else row[0]
