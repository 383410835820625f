"""Lets the loads of one organization take turns, so that two never wait for each other's rows."""

from collections.abc import Iterable
from typing import Any
from uuid import UUID

import psycopg

from cases_service.loading.session import SQL


def take_turns(connection: psycopg.Connection[Any], organizations: Iterable[str]) -> None:
    """Wait until no load of these organizations runs, and block others until the transaction ends."""
    connection.execute(SQL["take_turns"], {"keys": turn_keys(organizations)}, prepare=False)


def turn_keys(organizations: Iterable[str]) -> list[int]:
    """Return the keys of organizations' advisory locks, in the order to take them. Two organizations may share one."""
    return sorted({int.from_bytes(UUID(one).bytes[-4:], signed=True) for one in organizations})
