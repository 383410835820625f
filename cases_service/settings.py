"""Knows every setting: its variable, type, limits, default and meaning. Nothing else reads the environment."""

import base64
import binascii
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
import psycopg
from msgspec import Meta, field
from psycopg.conninfo import conninfo_to_dict

Seconds = Annotated[float, Meta(gt=0, le=3600)]

# What libpq reads from the environment, past everything that a connection asks for.
_SESSION_VARIABLES = ("PGTZ", "PGDATESTYLE")
_LOOPBACK = "localhost,127.0.0.1,[::1]"
_EMBEDDED_LOCK = "EMBEDDED_SERVER_LOCK"


class SettingsError(ValueError):
    """A setting is missing or wrong. The message names it and never quotes its value."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The service's configuration. Each attribute is one environment variable; an empty one counts as not set."""

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
    read_database_url: Annotated[
        str | None,
        Meta(
            description="Streaming replicas of `DATABASE_URL` to read cases from, as a libpq URI or key-value string"
            " that may name several hosts."
        ),
    ] = field(name="CASES_READ_DATABASE_URL", default=None)
    read_max_lag: Annotated[
        Seconds,
        Meta(description="How far a replica may be behind, in seconds; the primary takes the place of a later one."),
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
            " comma-separated, of which the first encrypts and all decrypt."
        ),
    ] = field(name="CASES_SECRET_KEY", default=None)
    secret_key_file: Annotated[
        str | None, Meta(description="A file to read `CASES_SECRET_KEY` from, instead of the variable.")
    ] = field(name="CASES_SECRET_KEY_FILE", default=None)
    bind: Annotated[str, Meta(description="Address that `serve` listens on, as HOST:PORT.")] = field(
        name="CASES_BIND", default="127.0.0.1:8000"
    )
    public_url: Annotated[
        str | None,
        Meta(description="What links begin with, such as `https://cases.example.com`. Without it, the request's host."),
    ] = field(name="CASES_PUBLIC_URL", default=None)
    allowed_hosts: Annotated[
        str,
        Meta(description="Host names that a request may name while `CASES_PUBLIC_URL` is not set, comma-separated."),
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
        int, Meta(ge=0, le=3600, description="Clock difference forgiven in a visitor's JWT, in seconds.")
    ] = field(name="CASES_JWT_LEEWAY", default=30)
    workers: Annotated[int, Meta(ge=1, le=256, description="Worker processes; about one for each core.")] = field(
        name="CASES_WORKERS", default=2
    )
    threads: Annotated[int, Meta(ge=1, le=256, description="Requests that one worker handles at a time.")] = field(
        name="CASES_THREADS", default=8
    )
    pool_size: Annotated[
        Annotated[int, Meta(ge=1, le=256)] | None,
        Meta(description="Database connections of one worker at the most. Default: half of `CASES_THREADS`."),
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
            description="Whether a statement has one plan for all its values; `false` on Citus, which routes by them."
        ),
    ] = field(name="CASES_GENERIC_PLANS", default=True)
    connect_timeout: Annotated[
        int, Meta(ge=2, le=60, description="How long one attempt to reach the database may take, in seconds.")
    ] = field(name="CASES_CONNECT_TIMEOUT", default=2)
    statement_timeout: Annotated[
        Seconds, Meta(description="How long one statement of a request may run in the database, in seconds.")
    ] = field(name="CASES_STATEMENT_TIMEOUT", default=5.0)
    keepalive: Annotated[
        int, Meta(ge=0, le=3600, description="How long an idle client connection is kept, in seconds.")
    ] = field(name="CASES_KEEPALIVE", default=75)
    graceful_timeout: Annotated[
        int, Meta(ge=1, le=3600, description="How long requests may take to end after SIGTERM, in seconds.")
    ] = field(name="CASES_GRACEFUL_TIMEOUT", default=30)
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
        _check_database_url(self.read_database_url, "CASES_READ_DATABASE_URL")
        if self.admin_database_url is not None and self.database_url is None:
            raise SettingsError("CASES_ADMIN_DATABASE_URL: expected together with DATABASE_URL, which serves")
        if self.read_database_url is not None and self.database_url is None:
            raise SettingsError("CASES_READ_DATABASE_URL: expected together with DATABASE_URL, whose replicas it names")
        if self.public_url is not None:
            _check_public_url(self.public_url)
        check_bind(self.bind)
        if not all(re.fullmatch(r"\[[0-9a-f:.]+\]|[0-9a-z_.-]+", name) for name in self.allowed_host_names):
            raise SettingsError("CASES_ALLOWED_HOSTS: expected names without a port, an IPv6 address in brackets")
        _ = self.secret_keys

    def require_database_url(self) -> str:
        """Return the PostgreSQL to use, or raise SettingsError where none is named."""
        if self.database_url is None:
            raise SettingsError("DATABASE_URL: expected a PostgreSQL to use; cases-service serve can bring its own")
        return self.database_url

    def __repr__(self) -> str:
        # Shown in a traceback or a log, the attributes would give the secrets away.
        return "Settings()"

    @property
    def secret_keys(self) -> tuple[str, ...]:
        """The configured secret keys, the encrypting one first; empty where none is configured."""
        if self.secret_key_file is not None:
            return _split_keys(_read_key_file(self.secret_key_file), "CASES_SECRET_KEY_FILE")
        return _split_keys(self.secret_key or "", "CASES_SECRET_KEY")

    @property
    def allowed_host_names(self) -> frozenset[str]:
        """The allowed hosts, lower case, an IPv6 address in brackets."""
        return frozenset(name.strip().lower() for name in self.allowed_hosts.split(",") if name.strip())

    @property
    def connections(self) -> int:
        """Database connections of one worker at the most."""
        return self.pool_size or max(1, self.threads // 2)


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings of an environment.

    Raises:
        SettingsError: A variable has a wrong value. The message is one line and names it.

    """
    for name in _SESSION_VARIABLES:
        if environment.get(name):
            raise SettingsError(f"{name}: unset it; the statements rely on UTC and ISO dates")
    known = {f.encode_name for f in msgspec.structs.fields(Settings)}
    values = {name: value for name, value in environment.items() if name in known and value != ""}
    try:
        return msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(_sentence(error)) from None


def unknown_names(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the variables that begin with CASES_ and are no setting, to warn of a misspelt one."""
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


def process_environment(settings: Settings, *, embedded_lock: int | None = None) -> dict[str, str]:
    """Return this process's environment with these settings alone, and an embedded server's lock, for a program."""
    known = {f.encode_name for f in msgspec.structs.fields(Settings)}
    others = {name: value for name, value in os.environ.items() if name not in known}
    lock = {} if embedded_lock is None else {_EMBEDDED_LOCK: str(embedded_lock)}
    return {**others, **environment_of(settings), **lock}


def is_under_make() -> bool:
    """Tell whether make started this program, or one that started it."""
    return "MAKELEVEL" in os.environ


def inherited_lock() -> int | None:
    """Return the descriptor of an embedded server's lock that this program was started with."""
    number = os.environ.get(_EMBEDDED_LOCK, "")
    return int(number) if number.isdecimal() else None


def _sentence(error: msgspec.ValidationError) -> str:
    reason, _, name = str(error).partition(" - at `$.")
    return f"{name.rstrip('`')}: {reason[0].lower()}{reason[1:]}" if name else reason


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


def _check_public_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise SettingsError("CASES_PUBLIC_URL: expected http(s)://host, with a port and a path at the most")


def _check_database_url(url: str | None, variable: str) -> None:
    if url is None:
        return
    try:
        given = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        raise SettingsError(f"{variable}: expected a libpq URI or key-value string") from None
    # An unescaped @ or / moves a part of the password into host or port, which error messages of libpq quote.
    hosts, ports = (str(given.get(name, "")).split(",") for name in ("host", "port"))
    names = (host for host in hosts if not host.startswith(("/", "@")))
    are_ports = len(ports) in (1, len(hosts)) and all(port == "" or _is_port(port) for port in ports)
    if any("@" in name for name in names) or not are_ports:
        raise SettingsError(
            f"{variable}: expected host and port; in a URI, a password's special characters are percent-encoded"
        )


def _is_port(text: str) -> bool:
    return re.fullmatch("[0-9]{1,5}", text) is not None and int(text) <= 65535  # noqa: PLR2004


def check_bind(address: str) -> None:
    """Raise SettingsError unless this is an address to listen on, as HOST:PORT."""
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s:\[\]/]+):([0-9]{1,5})", address)
    if not match or not _is_port(match[2]):
        raise SettingsError("CASES_BIND: expected HOST:PORT, such as 127.0.0.1:8000")
