"""Checks each replica as the service does."""

from collections.abc import Iterator
from functools import partial
from time import monotonic, sleep
from typing import Final

import psycopg

from cases_service.cli.doctor.database import connect_as_service
from cases_service.cli.doctor.findings import Finding, Verdict, found, one_line
from cases_service.database import server_state
from cases_service.database.connection import Connection
from cases_service.database.replicas import name_of, single_hosts
from cases_service.embedded.command_database import explain
from cases_service.settings import Settings

_POLL_SECONDS: Final = 0.1


def check_replicas(primary: Connection, settings: Settings) -> Iterator[Finding]:
    """Yield a finding for each replica."""
    for url in single_hosts(settings.read_database_url):
        yield found(f"replica {name_of(url)}", partial(_check_replica, url, primary, settings))


def _check_replica(url: str, primary: Connection, settings: Settings) -> Verdict:
    """Check that the replica replays in time what the primary has written until now."""
    instead = "the primary answers in its place"
    deadline = monotonic() + settings.read_max_lag
    end = server_state.get_flushed_wal(primary)
    try:
        with connect_as_service(url, settings) as replica:
            replayed = server_state.get_replayed_wal(replica)
            if replayed is None or end is None:
                return "warning", f"no replica of the server in DATABASE_URL, so {instead}"
            while replayed is not None and replayed < end:
                if monotonic() > deadline:
                    return "warning", f"later than CASES_READ_MAX_LAG, {settings.read_max_lag:g} s, so {instead}"
                sleep(_POLL_SECONDS)
                replayed = server_state.get_replayed_wal(replica)
    except psycopg.Error as error:
        return "warning", f"{one_line(explain(error))}; {instead}"
    return "ok", f"not later than {settings.read_max_lag:g} s"
