"""What the plain contestants have in common: a bare WSGI callable over psycopg's own cursors, with PyJWT.

No framework, no log, no headers, no row security, no ETags, no look behind a page, and none of the checks that the
queries and PyJWT do not make by themselves. Two round trips, whose statements psycopg prepares by itself. PostgreSQL's
settings are its own but for two: no statement here is worth compiling, and none gets better by a plan of its own.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Final
from urllib.parse import parse_qsl
from uuid import UUID

import jwt
from psycopg.conninfo import make_conninfo
from psycopg.types.string import TextLoader
from psycopg_pool import ConnectionPool

from benchmarks.contestants.credentials import api_token, signing_secret
from benchmarks.dataset import load_statements
from cases_service.cases import timestamps as instants

StartResponse = Callable[[str, list[tuple[str, str]]], object]

STATEMENTS: Final = load_statements("plain")
_SETTINGS: Final = "-c timezone=UTC -c jit=off -c plan_cache_mode=force_generic_plan"
_FIRST: Final = ("-infinity", UUID(int=0))
_DESCENDING: Final = {
    "(k.created_at, k.id) > (": "(k.created_at, k.id) < (",
    "order by k.created_at, k.id": "order by k.created_at desc, k.id desc",
    "order by key.created_at, key.id": "order by key.created_at desc, key.id desc",
    "order by page.created_at, page.id": "order by page.created_at desc, page.id desc",
    "order by found.created_at, found.id": "order by found.created_at desc, found.id desc",
}


def page_statements(name: str) -> dict[bool, str]:
    """Return a statement for the keys of a page, by whether they descend."""
    ascending = STATEMENTS[name].replace("(keys)", f"({STATEMENTS['list_keys'].rstrip(';')})")
    descending = ascending
    for literal, opposite in _DESCENDING.items():
        descending = descending.replace(literal, opposite)
    return {False: ascending, True: descending}


def case_statement(name: str) -> str:
    """Return a statement for the key of one case."""
    return STATEMENTS[name].replace("(keys)", f"({STATEMENTS['find_key'].rstrip(';')})")


class Plain(ABC):
    """The WSGI callable."""

    def __init__(self) -> None:
        connections = int(os.environ["CASES_THREADS"])
        self.pool = ConnectionPool(
            make_conninfo(os.environ["DATABASE_URL"], options=_SETTINGS),
            kwargs={"autocommit": True, "prepare_threshold": 0},
            configure=_configure,
            min_size=connections,
            open=True,
        )

    def close(self) -> None:
        """End the connections, when the worker ends."""
        self.pool.close()

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Answer a page or a case."""
        parts = environ["PATH_INFO"].split("/")
        organization_id, external_id = self._authenticate(environ, parts)
        if len(parts) == 8:  # noqa: PLR2004  /api/v5/orgs/…/external-visitors/…/cases
            body = self._answer_page(environ, organization_id, external_id)
        else:
            body = self.case(
                {"organization_id": organization_id, "external_id": external_id, "case_id": parts[8], "row_limit": 2}
            )
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]

    @abstractmethod
    def page(self, parameters: dict[str, Any], url: str, *, backward: bool, has_cursor: bool) -> bytes:
        """Return the answer with a page: `url` is what the cursor of a link comes behind."""

    @abstractmethod
    def case(self, parameters: dict[str, Any]) -> bytes:
        """Return the answer with a case."""

    def rows(self, statement: str, parameters: dict[str, Any]) -> list[tuple[Any, ...]]:
        """Return the rows of a statement."""
        with self.pool.connection() as connection:
            return connection.execute(statement, parameters).fetchall()

    def _authenticate(self, environ: dict[str, Any], parts: list[str]) -> tuple[UUID, str]:
        token = api_token(environ["HTTP_AUTHORIZATION"])
        if token is None or str(token.organization_id) != parts[4]:
            raise PermissionError
        parameters = {"organization_id": token.organization_id, "token_hash": token.hash}
        key_id, algorithm, sealed = self.rows(STATEMENTS["get_keys"], parameters)[0]
        secret = signing_secret(token.organization_id, UUID(key_id), algorithm, sealed)
        return token.organization_id, jwt.decode(parts[6], secret, algorithms=[algorithm])["sub"]

    def _answer_page(self, environ: dict[str, Any], organization_id: UUID, external_id: str) -> bytes:
        query = dict(parse_qsl(environ["QUERY_STRING"]))
        page_size = int(query.get("page_size", "25"))
        direction, _, position = query.get("cursor", "").partition("_")
        after, after_id = _FIRST
        if position:
            microseconds, _, text = position.partition("_")
            after, after_id = instants.from_microseconds(int(microseconds)), UUID(text)
        parameters = {
            "organization_id": organization_id,
            "external_id": external_id,
            "after": after,
            "after_id": after_id,
            "row_limit": page_size + 1,
        }
        url = f"http://{environ['HTTP_HOST']}{environ['PATH_INFO']}?page_size={page_size}&cursor="
        return self.page(parameters, url, backward=direction == "before", has_cursor=bool(position))


def links(
    url: str, first: str | None, last: str | None, *, backward: bool, has_cursor: bool, has_more: bool
) -> tuple[str | None, str | None]:
    """Return the links to the next and the previous page, of which the one to where the caller came from is a guess."""
    has_next, has_previous = (has_cursor, has_more) if backward else (has_more, has_cursor)
    following = f"{url}after_{last}" if last is not None and has_next else None
    return following, f"{url}before_{first}" if first is not None and has_previous else None


def _configure(connection: Any) -> None:
    connection.adapters.register_loader("uuid", TextLoader)
