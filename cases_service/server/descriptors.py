"""Knows how many connections a worker can have: each takes a file, and the limit of open files is often low.

gunicorn's master imports this, so it must not import `metrics`, which decides as it is imported how it counts.
"""

import resource
from typing import Final

from cases_service.database.connection_strings import single_hosts
from cases_service.settings import Settings

CONNECTIONS: Final = 1000
"""What a worker is meant to have room for; it is gunicorn's default as well."""

_FEWEST_CONNECTIONS: Final = 16
# Listeners, the log, heartbeat, metrics, traces, Redis, the portal; and what a library opens for a moment.
_OTHER_FILES: Final = 64


def reserved_files(settings: Settings) -> int:
    """Return how many files a worker may need for anything but its clients."""
    replicas = settings.read_database_url
    pools = 1 + (settings.write_database_url is not None)
    pools += 0 if replicas is None else sum(1 for _ in single_hosts(replicas))
    # A connection to the database takes a second file while it is looked at or made anew.
    return _OTHER_FILES + 2 * pools * settings.connections


def raise_limit(settings: Settings, connections: int = CONNECTIONS) -> int:
    """Raise this process's limit of open files as far as is wanted and allowed, and return it."""
    wanted = connections + reserved_files(settings)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted if soft == resource.RLIM_INFINITY else soft
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return allowed


def connection_limit(settings: Settings, connections: int = CONNECTIONS) -> int:
    """Return how many connections of clients a worker can have, where it may use all the files that it can get."""
    free = raise_limit(settings, connections) - reserved_files(settings)
    return max(_FEWEST_CONNECTIONS, min(connections, free))
