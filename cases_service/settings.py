"""All settings: variable, type, limits, default and meaning. Only this module reads the environment."""

import base64
import binascii
import os
import re
import typing
import unicodedata
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
import psycopg
from msgspec import Meta, field
from msgspec.inspect import BoolType, FloatType, IntType, LiteralType, Metadata, UnionType, type_info
from psycopg.conninfo import conninfo_to_dict

from cases_service.database.connection_strings import UnresolvedError, resolve

Seconds = Annotated[float, Meta(gt=0, le=3600)]

# libpq reads these from the environment, and they override what a connection requests.
_SESSION_VARIABLES = ("PGTZ", "PGDATESTYLE")
# Control characters, line and paragraph separators, and the surrogates for bytes that are not UTF-8.
_NO_TEXT = ("Cc", "Zl", "Zp", "Cs")
UNIX = "unix:"
_SOCKET_BYTES = len(UNIX) + 103  # on macOS; 107 on Linux
_URL = re.compile(
    r"(?i:https?)://(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::([0-9]{1,5}))?"
    r"(?:/(?:[A-Za-z0-9._~!$&()*+,;=:@/-]|%[0-9A-Fa-f]{2})*)?"
)
_LOOPBACK = "localhost,127.0.0.1,[::1]"
_YEAR = 366 * 86400
_EMBEDDED_LOCK = "EMBEDDED_SERVER_LOCK"
_DEMO_CREDENTIALS = "DEMO_CREDENTIALS"
_OF_REPLICAS = "CASES_READ_DATABASE_URL"
_ATTRIBUTES_OF_STANDBYS = ("standby", "prefer-standby", "read-only")


class SettingsError(ValueError):
    """A setting is missing or invalid. The message names it and never quotes its value."""


class DemoCredentials(msgspec.Struct, frozen=True):
    """The credentials that a demo fills into its own pages. Only a demo has any."""

    api_token: str
    jwt: str


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The service's configuration. Each attribute is an environment variable; an empty one counts as unset."""

    database_url: Annotated[
        str | None,
        Meta(description="PostgreSQL to use, as a libpq URI or key-value string. Without it an embedded server."),
    ] = field(name="DATABASE_URL", default=None)
    admin_database_url: Annotated[
        str | None,
        Meta(
            description="The same database with the rights to change it, for all commands but `serve`. Default:"
            " `DATABASE_URL`, which then needs them."
        ),
    ] = field(name="CASES_ADMIN_DATABASE_URL", default=None)
    write_database_url: Annotated[
        str | None,
        Meta(
            description="The same database with the rights to write cases, for requests that change them."
            " Without it the service only reads."
        ),
    ] = field(name="CASES_WRITE_DATABASE_URL", default=None)
    read_database_url: Annotated[
        str | None,
        Meta(
            description="Streaming replicas of `DATABASE_URL` to read cases from, as a libpq URI or key-value string"
            " that may name several hosts."
        ),
    ] = field(name="CASES_READ_DATABASE_URL", default=None)
    read_max_lag: Annotated[
        Seconds,
        Meta(description="How far a replica may lag, in seconds; one that lags more is not read from."),
    ] = field(name="CASES_READ_MAX_LAG", default=5.0)
    data_dir: Annotated[
        str, Meta(description="Directory of the embedded server: its data, its socket and its secret key.")
    ] = field(name="CASES_DATA_DIR", default=".cases-data")
    postgres_bin: Annotated[
        str | None,
        Meta(description="Directory of PostgreSQL's programs for the embedded server, instead of the package's."),
    ] = field(name="CASES_POSTGRES_BIN", default=None)
    secret_key: Annotated[
        str | None,
        Meta(
            description="Encrypts stored signing secrets: 32 random bytes in URL-safe base64, or several such keys,"
            " comma-separated: the first one encrypts, all decrypt."
        ),
    ] = field(name="CASES_SECRET_KEY", default=None)
    secret_key_file: Annotated[
        str | None, Meta(description="A file to read `CASES_SECRET_KEY` from, instead of the variable.")
    ] = field(name="CASES_SECRET_KEY_FILE", default=None)
    bind: Annotated[
        str, Meta(description="Address that `serve` listens on, as HOST:PORT, or a socket for a proxy, as unix:/PATH.")
    ] = field(name="CASES_BIND", default="127.0.0.1:8000")
    admin_bind: Annotated[
        str | None,
        Meta(description="Address for `/metrics` and `/readyz` alone, as HOST:PORT. Without it, that of the API."),
    ] = field(name="CASES_ADMIN_BIND", default=None)
    public_url: Annotated[
        str | None,
        Meta(description="The base URL of links, such as `https://cases.example.com`. Without it, the request's host."),
    ] = field(name="CASES_PUBLIC_URL", default=None)
    allowed_hosts: Annotated[
        str,
        Meta(description="Host names accepted in requests if `CASES_PUBLIC_URL` is not set, comma-separated."),
    ] = field(name="CASES_ALLOWED_HOSTS", default=_LOOPBACK)
    trusted_hops: Annotated[
        int, Meta(ge=0, le=10, description="Number of reverse proxies in front whose `X-Forwarded-*` headers count.")
    ] = field(name="CASES_TRUSTED_HOPS", default=0)
    jwt_require_exp: Annotated[bool, Meta(description="Whether a visitor's JWT must carry `exp`.")] = field(
        name="CASES_JWT_REQUIRE_EXP", default=True
    )
    jwt_audience: Annotated[str | None, Meta(description="The `aud` that a visitor's JWT must name.")] = field(
        name="CASES_JWT_AUDIENCE", default=None
    )
    jwt_issuer: Annotated[str | None, Meta(description="The `iss` that a visitor's JWT must carry.")] = field(
        name="CASES_JWT_ISSUER", default=None
    )
    jwt_max_ttl: Annotated[
        int, Meta(gt=0, description="How far ahead `exp` of a visitor's JWT may lie, in seconds.")
    ] = field(name="CASES_JWT_MAX_TTL", default=86400)
    jwt_leeway: Annotated[
        int, Meta(ge=0, le=3600, description="Clock difference tolerated in a visitor's JWT, in seconds.")
    ] = field(name="CASES_JWT_LEEWAY", default=30)
    closed_is_final: Annotated[
        bool, Meta(description="Whether a visitor's message, or the visitor, may not reopen a closed case.")
    ] = field(name="CASES_CLOSED_IS_FINAL", default=False)
    rate_limit_failed_authentications: Annotated[
        str | None,
        Meta(description="How often an address, or an IPv6 /64, may fail to authenticate, such as `20/minute`."),
    ] = field(name="CASES_RATE_LIMIT_FAILED_AUTHENTICATIONS", default=None)
    rate_limit_token: Annotated[
        str | None,
        Meta(description="How many requests an API token may make, such as `50/second;1000/minute`."),
    ] = field(name="CASES_RATE_LIMIT_TOKEN", default=None)
    rate_limit_visitor: Annotated[
        str | None, Meta(description="How many requests may be made for one visitor of an organization.")
    ] = field(name="CASES_RATE_LIMIT_VISITOR", default=None)
    rate_limit_storage: Annotated[
        str,
        Meta(
            description="Where rate limits are counted: `memory://`, each worker for itself, or a Redis for all,"
            " `redis://host:6379/0`."
        ),
    ] = field(name="CASES_RATE_LIMIT_STORAGE", default="memory://")
    workers: Annotated[int, Meta(ge=1, le=256, description="Worker processes; about one for each core.")] = field(
        name="CASES_WORKERS", default=2
    )
    threads: Annotated[int, Meta(ge=1, le=256, description="Requests that one worker handles at a time.")] = field(
        name="CASES_THREADS", default=8
    )
    pool_size: Annotated[
        Annotated[int, Meta(ge=1, le=256)] | None,
        Meta(description="Most database connections of one worker. Default: half of `CASES_THREADS`."),
    ] = field(name="CASES_POOL_SIZE", default=None)
    pool_timeout: Annotated[
        Seconds, Meta(description="How long a request waits for a database connection, in seconds.")
    ] = field(name="CASES_POOL_TIMEOUT", default=1.0)
    prepared_statements: Annotated[
        bool, Meta(description="Whether statements are prepared; `false` behind a PgBouncer older than 1.21.")
    ] = field(name="CASES_PREPARED_STATEMENTS", default=True)
    generic_plans: Annotated[
        bool,
        Meta(
            description="Whether a statement has one plan for all its values."
            " On Citus it counts with `CASES_CITUS_NODES` only."
        ),
    ] = field(name="CASES_GENERIC_PLANS", default=True)
    citus_nodes: Annotated[
        bool,
        Meta(
            description="On Citus, whether requests that read connect to the node that has the organization; `true` or"
            " `false`."
        ),
    ] = field(name="CASES_CITUS_NODES", default=False)
    connect_timeout: Annotated[
        int, Meta(ge=2, le=60, description="How long one attempt to reach the database may take, in seconds.")
    ] = field(name="CASES_CONNECT_TIMEOUT", default=2)
    statement_timeout: Annotated[
        Seconds, Meta(description="How long one statement of a request may run in the database, in seconds.")
    ] = field(name="CASES_STATEMENT_TIMEOUT", default=5.0)
    lock_timeout: Annotated[
        Seconds | None,
        Meta(
            description="How much of that time a statement may wait for a lock, in seconds."
            " Default: half of `CASES_STATEMENT_TIMEOUT`."
        ),
    ] = field(name="CASES_LOCK_TIMEOUT", default=None)
    keepalive: Annotated[
        int, Meta(ge=0, le=3600, description="How long an idle client connection is kept, in seconds.")
    ] = field(name="CASES_KEEPALIVE", default=75)
    graceful_timeout: Annotated[
        int, Meta(ge=1, le=3600, description="How long requests may take to finish after SIGTERM, in seconds.")
    ] = field(name="CASES_GRACEFUL_TIMEOUT", default=30)
    docs: Annotated[
        Literal["on", "off"], Meta(description="Whether `/docs` and `/openapi.json` are served: `on` or `off`.")
    ] = field(name="CASES_DOCS", default="on")
    drain_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=3600,
            description="How long requests are still accepted after SIGTERM while `/readyz` answers 503, in seconds.",
        ),
    ] = field(name="CASES_DRAIN_SECONDS", default=0.0)
    log_format: Annotated[
        Literal["auto", "json", "console"], Meta(description="`json`, `console`, or `auto`: console on a terminal.")
    ] = field(name="CASES_LOG_FORMAT", default="auto")
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="The least severe level that is logged.")
    ] = field(name="CASES_LOG_LEVEL", default="info")

    def __post_init__(self) -> None:
        if self.secret_key and self.secret_key_file:
            raise SettingsError("CASES_SECRET_KEY and CASES_SECRET_KEY_FILE are both set; set one of them")
        _check_database_url(self.database_url, "DATABASE_URL")
        _check_database_url(self.admin_database_url, "CASES_ADMIN_DATABASE_URL")
        _check_database_url(self.write_database_url, "CASES_WRITE_DATABASE_URL")
        _check_database_url(self.read_database_url, _OF_REPLICAS)
        if self.admin_database_url is not None and self.database_url is None:
            raise SettingsError("CASES_ADMIN_DATABASE_URL: expected together with DATABASE_URL, which serves")
        if self.write_database_url is not None and self.database_url is None:
            raise SettingsError("CASES_WRITE_DATABASE_URL: expected together with DATABASE_URL, which serves")
        if self.read_database_url is not None and self.database_url is None:
            raise SettingsError("CASES_READ_DATABASE_URL: expected together with DATABASE_URL, whose replicas it names")
        if self.public_url is not None:
            check_url(self.public_url)
        check_bind(self.bind)
        if self.admin_bind is not None:
            check_bind(self.admin_bind, "CASES_ADMIN_BIND")
            is_same_port = self.admin_port == _port(self.bind) and self.admin_port != 0
            if is_same_port and (self.admin_port or self.admin_bind == self.bind):
                raise SettingsError(
                    "CASES_ADMIN_BIND: expected another address than that of CASES_BIND, or another port"
                )
        if not all(re.fullmatch(r"\[[0-9a-f:.]+\]|[0-9a-z_.-]+", name) for name in self.allowed_host_names):
            raise SettingsError("CASES_ALLOWED_HOSTS: expected names without a port, an IPv6 address in brackets")
        _check_rate_limit(self.rate_limit_failed_authentications, "CASES_RATE_LIMIT_FAILED_AUTHENTICATIONS")
        _check_rate_limit(self.rate_limit_token, "CASES_RATE_LIMIT_TOKEN")
        _check_rate_limit(self.rate_limit_visitor, "CASES_RATE_LIMIT_VISITOR")
        _check_rate_limit_storage(self.rate_limit_storage)
        _ = self.secret_keys
        self._check_timeouts()

    def _check_timeouts(self) -> None:
        """Raise SettingsError unless each time-out is shorter than the one around it."""
        if self.lock_seconds >= self.statement_timeout:
            raise SettingsError("CASES_LOCK_TIMEOUT: expected less than CASES_STATEMENT_TIMEOUT")
        if self.drain_seconds + self.request_seconds >= self.graceful_timeout:
            raise SettingsError(
                f"CASES_GRACEFUL_TIMEOUT: expected more than {self.drain_seconds + self.request_seconds:g}, which is"
                " CASES_DRAIN_SECONDS and what a request can take (docs/operations.md)"
            )

    def require_database_url(self) -> str:
        """Return the PostgreSQL to use, or raise SettingsError if none is named."""
        if self.database_url is None:
            raise SettingsError("DATABASE_URL: expected a PostgreSQL to use; cases-service serve can bring its own")
        return self.database_url

    def __repr__(self) -> str:
        # In a traceback or a log, the attributes would reveal the secrets.
        return "Settings()"

    @property
    def secret_keys(self) -> tuple[str, ...]:
        """The configured secret keys, the encrypting one first; empty if none is configured."""
        if self.secret_key_file is not None:
            return _split_keys(_read_key_file(self.secret_key_file), "CASES_SECRET_KEY_FILE")
        return _split_keys(self.secret_key or "", "CASES_SECRET_KEY")

    @property
    def addresses(self) -> list[str]:
        """The addresses to listen on: the public one, then the operators', if set."""
        return [self.bind] if self.admin_bind is None else [self.bind, self.admin_bind]

    @property
    def admin_port(self) -> int | None:
        """The port of the operators' address, if it has one."""
        return None if self.admin_bind is None else _port(self.admin_bind)

    def is_admin_address(self, name: object) -> bool:
        """Tell whether a listening socket's name, as returned by getsockname(), is the operators' address."""
        match name:
            case str():
                return self.admin_bind == f"{UNIX}{name}"
            case (_, int(port), *_):
                return port == self.admin_port
        return False

    @property
    def allowed_host_names(self) -> frozenset[str]:
        """The allowed hosts, lower case, an IPv6 address in brackets."""
        return frozenset(name.strip().lower() for name in self.allowed_hosts.split(",") if name.strip())

    @property
    def limits_rates(self) -> bool:
        """Whether any rate limit is set."""
        return any((self.rate_limit_failed_authentications, self.rate_limit_token, self.rate_limit_visitor))

    @property
    def connections(self) -> int:
        """The most database connections of one worker."""
        return self.pool_size or max(1, self.threads // 2)

    @property
    def lock_seconds(self) -> float:
        """How long a statement may wait for a lock."""
        return self.lock_timeout or self.statement_timeout / 2

    @property
    def answer_seconds(self) -> float:
        """How long to wait for the answer to a statement; the database itself ends one a second earlier."""
        return self.statement_timeout + 1

    @property
    def request_seconds(self) -> float:
        """The longest request: it waits for a thread, and twice for a turn, a connection and an answer."""
        return self.pool_timeout + 2 * (2 * self.pool_timeout + self.answer_seconds)


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings of an environment.

    Raises:
        SettingsError: A variable has an invalid value. The message is one line and names it.

    """
    for name in _SESSION_VARIABLES:
        if environment.get(name):
            raise SettingsError(f"{name}: unset it; the statements rely on UTC and ISO dates")
    if environment.get("SCRIPT_NAME"):
        raise SettingsError(
            "SCRIPT_NAME: unset it; let the proxy in front take a prefix off the path, and name it in CASES_PUBLIC_URL"
        )
    if environment.get("PGSERVICE"):
        _check_database_url("", "PGSERVICE")
    known = {f.encode_name for f in msgspec.structs.fields(Settings)}
    values = {name: clean(value, name) for name, value in environment.items() if name in known and value.strip()}
    try:
        return msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(_sentence(error)) from None


def clean(text: str, variable: str) -> str:
    """Return the text of a setting without leading and trailing whitespace.

    Raises:
        SettingsError: It has a control character, or is not UTF-8.

    """
    text = text.strip()
    if any(unicodedata.category(character) in _NO_TEXT for character in text):
        raise SettingsError(f"{variable}: expected UTF-8 without line ends and other control characters")
    return text


def unknown_names(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the variables that begin with CASES_ but are no setting, to warn of misspelt ones."""
    known = {f.encode_name for f in msgspec.structs.fields(Settings)}
    return sorted(name for name in environment if name.startswith("CASES_") and name not in known)


def environment_of(settings: Settings) -> dict[str, str]:
    """Return the variables that make another process read the same settings."""
    values = ((f.encode_name, getattr(settings, f.name)) for f in msgspec.structs.fields(Settings))
    return {
        name: str(value).lower() if value in (True, False) else str(value)
        for name, value in values
        if value is not None
    }


def process_environment(
    settings: Settings, *, embedded_lock: int | None = None, demo_credentials: DemoCredentials | None = None
) -> dict[str, str]:
    """Return this process's environment for another program, with exactly these settings."""
    own = {f.encode_name for f in msgspec.structs.fields(Settings)} | {_EMBEDDED_LOCK, _DEMO_CREDENTIALS}
    others = {name: value for name, value in os.environ.items() if name not in own}
    lock = {} if embedded_lock is None else {_EMBEDDED_LOCK: str(embedded_lock)}
    credentials = (
        {} if demo_credentials is None else {_DEMO_CREDENTIALS: msgspec.json.encode(demo_credentials).decode()}
    )
    return {**others, **environment_of(settings), **lock, **credentials}


def is_under_make() -> bool:
    """Tell whether this program runs under make."""
    return "MAKELEVEL" in os.environ


def inherited_lock() -> int | None:
    """Return the inherited descriptor of an embedded server's lock."""
    number = os.environ.get(_EMBEDDED_LOCK, "")
    return int(number) if number.isdecimal() else None


def wants_traces(environment: Mapping[str, str] = os.environ) -> bool:
    """Tell whether OpenTelemetry's own variables ask for traces.

    Raises:
        SettingsError: They ask for an exporter or protocol that the service does not support.

    """
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "")
    if exporter not in ("", "otlp", "none"):
        raise SettingsError("OTEL_TRACES_EXPORTER: expected otlp or none")
    asked = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if exporter == "none" or not (exporter or any(environment.get(name) for name in asked)):
        return False
    for name in ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"):
        if environment.get(name, "") not in ("", "http/protobuf"):
            raise SettingsError(f"{name}: expected http/protobuf")
    return True


def share_metrics_in(directory: Path) -> None:
    """Make prometheus_client count in files in this directory, in the processes that this one forks."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)


def inherited_demo_credentials() -> DemoCredentials | None:
    """Return the credentials of the demo that started this program."""
    given = os.environ.get(_DEMO_CREDENTIALS)
    return None if given is None else msgspec.json.decode(given, type=DemoCredentials)


def _sentence(error: msgspec.ValidationError) -> str:
    """Return a message without the value, which msgspec's own message may quote."""
    reason, _, path = str(error).partition(" - at `$.")
    return f"{path.rstrip('`')}: {_expected(path.rstrip('`'))}" if path else reason


def _expected(variable: str) -> str:
    (attribute,) = (f.name for f in msgspec.structs.fields(Settings) if f.encode_name == variable)
    kind = type_info(typing.get_type_hints(Settings, include_extras=True)[attribute])
    while isinstance(kind, Metadata | UnionType):
        kind = kind.types[0] if isinstance(kind, UnionType) else kind.type
    match kind:
        case BoolType():
            return "expected true or false"
        case LiteralType(values=values):
            return f"expected {', '.join(map(str, values[:-1]))} or {values[-1]}"
        case IntType():
            return f"expected a whole number {_range(kind)}"
        case FloatType():
            return f"expected a number {_range(kind)}"
    return "expected text"


def _range(kind: IntType | FloatType) -> str:
    least = f"above {kind.gt:g}" if kind.gt is not None else f"from {kind.ge:g}"
    return least if kind.le is None else f"{least} to {kind.le:g}"


def _split_keys(text: str, variable: str) -> tuple[str, ...]:
    keys = tuple(key.strip() for key in text.split(",") if key.strip())
    if not all(_is_secret_key(key) for key in keys):
        raise SettingsError(f"{variable}: expected 32 random bytes in URL-safe base64, several separated by commas")
    return keys


def _is_secret_key(key: str) -> bool:
    try:
        return len(base64.b64decode(key.encode(), altchars=b"-_", validate=True)) == 32  # noqa: PLR2004
    except (ValueError, binascii.Error):
        return False


def _read_key_file(name: str) -> str:
    try:
        return Path(name).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not ASCII"
        raise SettingsError(f"CASES_SECRET_KEY_FILE: cannot be read ({reason})") from None


def _check_database_url(url: str | None, variable: str) -> None:
    if url is None:
        return
    try:
        given = conninfo_to_dict(url)
        resolved = resolve(url)
    except psycopg.ProgrammingError:
        raise SettingsError(f"{variable}: expected a libpq URI or key-value string") from None
    except UnresolvedError:
        raise SettingsError(f"{variable}: expected a service that the service file of libpq has") from None
    attributes = resolved.get("target_session_attrs")
    if attributes == "read-write":
        # libpq checks whether the session is read-only, and the service's sessions are so on every server.
        raise SettingsError(f"{variable}: target_session_attrs=read-write finds no server; expected primary")
    if attributes in _ATTRIBUTES_OF_STANDBYS and variable != _OF_REPLICAS:
        raise SettingsError(f"{variable}: target_session_attrs={attributes} finds a standby; expected primary")
    # An unescaped @ or / moves a part of the password into host or port, which libpq quotes in error messages.
    hosts, ports = (str(given.get(name, "")).split(",") for name in ("host", "port"))
    names = (host for host in hosts if not host.startswith(("/", "@")))
    are_ports = len(ports) in (1, len(hosts)) and all(port == "" or _is_port(port) for port in ports)
    if any("@" in name for name in names) or not are_ports:
        raise SettingsError(
            f"{variable}: expected host and port; in a URI, a password's special characters are percent-encoded"
        )


def _check_rate_limit(notation: str | None, variable: str) -> None:
    if notation is None:
        return
    from limits import parse_many  # noqa: PLC0415  takes a tenth of a second, so only if a limit is set

    try:
        items = parse_many(notation)
    except ValueError:
        items = []
    if not items or not all(0 < item.amount <= 10**9 and item.get_expiry() <= _YEAR for item in items):
        raise SettingsError(f"{variable}: expected a number of requests in a time, such as 100/minute")


def _check_rate_limit_storage(url: str) -> None:
    if url == "memory://":
        return
    expected = "CASES_RATE_LIMIT_STORAGE: expected memory:// or redis://host:port/number, or rediss:// for TLS"
    try:
        parts = urlsplit(url)
        is_redis = parts.scheme in ("redis", "rediss") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise SettingsError(expected) from None
    if not is_redis or parts.query or parts.fragment or not re.fullmatch("(/[0-9]{0,4})?", parts.path):
        raise SettingsError(expected)
    if find_spec("redis") is None:
        raise SettingsError(
            "CASES_RATE_LIMIT_STORAGE: Redis needs an extra: pip install '.[redis]' in the project's folder"
        )


def _is_port(text: str) -> bool:
    return re.fullmatch("[0-9]{1,5}", text) is not None and int(text) <= 65535  # noqa: PLR2004


def _port(address: str) -> int | None:
    return None if address.startswith(UNIX) else int(address.rpartition(":")[2])


def check_bind(address: str, variable: str = "CASES_BIND") -> None:
    """Raise SettingsError unless this is an address to listen on, as HOST:PORT or unix:/PATH."""
    if address.startswith(f"{UNIX}/"):
        if not re.fullmatch(r"[^\s,:]+", address.removeprefix(UNIX)) or len(os.fsencode(address)) > _SOCKET_BYTES:
            raise SettingsError(
                f"{variable}: expected unix: and an absolute path of {_SOCKET_BYTES - len(UNIX)} bytes at the most,"
                " without blank, comma and colon"
            )
        return
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s:\[\]/]+):([0-9]{1,5})", address)
    if not match or not _is_port(match[2]):
        raise SettingsError(f"{variable}: expected HOST:PORT, such as 127.0.0.1:8000, or unix:/PATH")


def check_url(url: str, variable: str = "CASES_PUBLIC_URL") -> None:
    """Raise SettingsError unless this is an HTTP URL with at most a port and a path."""
    match = _URL.fullmatch(url)
    if not match or (match[1] and not (_is_port(match[1]) and int(match[1]))):
        raise SettingsError(f"{variable}: expected http(s)://host, with a port and a path at the most, percent-encoded")
