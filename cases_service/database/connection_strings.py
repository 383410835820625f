"""Resolves connection strings like libpq: with service files, the PG… variables and the defaults."""

from collections.abc import Iterator
from typing import Any, Final

from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import PGconn

_PLACE: Final = ("host", "hostaddr", "port")
_BLANK: Final = "\\ "
# libpq resolves the connection string, then rejects this value, and so never connects.
_NO_SSL_MODE: Final = "none, as nothing is connected to"


class UnresolvedError(ValueError):
    """libpq cannot resolve a connection string: it names a service that no service file has."""


def resolve(url: str) -> dict[str, str]:
    """Return the parameters that libpq would connect with, such as the user, without connecting.

    Raises:
        UnresolvedError: There is no such service.

    """
    attempt = PGconn.connect_start(make_conninfo(url, sslmode=_NO_SSL_MODE).encode())
    found = {option.keyword.decode(): option.val.decode() for option in attempt.info if option.val}
    attempt.finish()
    if "user" not in found:
        raise UnresolvedError
    return found


def with_options(url: str, settings: dict[str, str]) -> dict[str, Any]:
    """Return the parameters of a connection string, with these settings appended to its resolved `options`.

    Blanks in values are escaped. The encoding is also set by its own parameter, which outranks `options`.
    """
    escaped = (f"-c {name}={value.replace(' ', _BLANK)}" for name, value in settings.items())
    options = " ".join([resolve(url).get("options", ""), *escaped]).strip()
    return {**conninfo_to_dict(url), "options": options, "client_encoding": settings["client_encoding"]}


def place_of(url: str) -> dict[str, str]:
    """Return host, address and port, as far as the connection string or its service names them."""
    given = conninfo_to_dict(url)
    named: dict[str, Any] = {**given, **resolve(url)} if given.get("service") else given
    return {name: str(named[name]) for name in _PLACE if named.get(name)}


def single_hosts(url: str) -> Iterator[str]:
    """Yield a connection string for each host that a libpq URI or key-value string names."""
    places = {name: value.split(",") for name, value in place_of(url).items()}
    for i in range(max(map(len, places.values()), default=1)):
        yield make_conninfo(url, **{name: values[i % len(values)] for name, values in places.items()})
