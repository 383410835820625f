"""The floor: the least that a Python process can do to answer the same pages from the same statements.

A bare WSGI callable under the service's gunicorn, worker class and configuration, with the same connections, the same
two round trips, PyJWT and orjson. No framework, no log, no headers, and none of the checks that the two queries and
PyJWT do not make by themselves.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final
from urllib.parse import parse_qsl
from uuid import UUID

import jwt
import orjson
import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.types.string import TextLoader
from psycopg_pool import ConnectionPool

from benchmarks.contestants.credentials import api_token, signing_secret
from benchmarks.dataset import ORGANIZATION
from cases_service.cases import timestamps as instants
from cases_service.database.connection_pool import connection_parameters
from cases_service.database.statements import Statement, statements
from cases_service.settings import read_settings
from cases_service.store.page_statements import PageShape, case_statement, page_statement

Row = Sequence[Any]
StartResponse = Callable[[str, list[tuple[str, str]]], object]

# What row security wants to know, once a session: there is one organization here.
_ITS_ROWS: Final = f"-c cases.organization_id={ORGANIZATION}"
_ACCESS: Final = statements("access")["get_access"]
_PAGES: Final = {
    (ascending, behind): page_statement(PageShape(column="created_at", ascending=ascending, behind=behind))
    for ascending in (True, False)
    for behind in (True, False)
}
_LABELS: Final = (None, "None", "Low", "Normal", "High", "Critical")
_FIRST: Final = ("-infinity", "00000000-0000-0000-0000-000000000000")


def _configure(connection: Any) -> None:
    connection.adapters.register_loader("uuid", TextLoader)
    connection.adapters.register_loader("timestamptz", TextLoader)


class Floor:
    """The WSGI callable."""

    def __init__(self) -> None:
        settings = read_settings()
        self.pool = ConnectionPool(
            connection_parameters(make_conninfo(settings.require_database_url(), options=_ITS_ROWS), settings),
            kwargs={"autocommit": True, "prepare_threshold": 0},
            configure=_configure,
            min_size=settings.connections,
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
            document = self._page(environ, organization_id, external_id)
        else:
            document = self._case(organization_id, external_id, parts[8])
        body = orjson.dumps(document)
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]

    def _authenticate(self, environ: dict[str, Any], parts: list[str]) -> tuple[UUID, str]:
        token = api_token(environ["HTTP_AUTHORIZATION"])
        if token is None or str(token.organization_id) != parts[4]:
            raise PermissionError
        with self.pool.connection() as connection:
            parameters = {"organization_id": token.organization_id, "token_hash": token.hash}
            _, key_id, algorithm, sealed, _ = connection.execute(_ACCESS, parameters).fetchall()[0]
        secret = signing_secret(token.organization_id, UUID(key_id), algorithm, sealed)
        return token.organization_id, jwt.decode(parts[6], secret, algorithms=[algorithm])["sub"]

    def _page(self, environ: dict[str, Any], organization_id: UUID, external_id: str) -> dict[str, Any]:
        query = dict(parse_qsl(environ["QUERY_STRING"]))
        page_size = int(query.get("page_size", "25"))
        direction, _, position = query.get("cursor", "").partition("_")
        backward = direction == "before"
        after, after_id = _FIRST
        if position:
            microseconds, after_id = position.split("_")
            after = instants.from_microseconds(int(microseconds))
        statement = _PAGES[not backward, bool(position)]
        rows = self._rows(
            statement,
            organization_id=organization_id,
            external_id=external_id,
            after=after,
            after_id=after_id,
            furthest="-infinity" if backward else "infinity",
            rearmost="infinity" if backward else "-infinity",
            row_limit=page_size + 1,
        )
        shown = [row for row in rows if row[-1] is not None]
        url = f"http://{environ['HTTP_HOST']}{environ['PATH_INFO']}?page_size={page_size}&cursor="
        ahead = f"{url}{_cursor(shown[-1], backward=backward)}" if rows[0][2] else None
        behind = f"{url}{_cursor(shown[0], backward=not backward)}" if shown and position and rows[0][3] else None
        if backward:
            shown, ahead, behind = shown[::-1], behind, ahead
        first = statement.columns.index("organization_id")
        return {"next": ahead, "previous": behind, "results": [_case(row[first:]) for row in shown]}

    def _case(self, organization_id: UUID, external_id: str, case_id: str) -> dict[str, Any]:
        rows = self._rows(case_statement(), organization_id=organization_id, external_id=external_id, case_id=case_id)
        return _case(rows[0][1:])

    def _rows(self, statement: Statement, **parameters: Any) -> list[Any]:
        with self.pool.connection() as connection:
            values = [parameters[name] for name in statement.parameters]
            return psycopg.RawCursor(connection).execute(statement.text, values).fetchall()


def _cursor(row: Row, *, backward: bool) -> str:
    return f"{'before' if backward else 'after'}_{instants.to_microseconds(row[1])}_{row[-1]}"


def _case(row: Row) -> dict[str, Any]:
    """Return a case from the columns that queries/cases.sql selects, in their order."""
    organization_id, instant = row[0], instants.from_postgres
    return {
        "id": row[49],
        "organization_id": organization_id,
        "case_number": row[1],
        "contact_id": row[2],
        "contact": {
            "id": row[2],
            "organization_id": organization_id,
            "first_name": row[19],
            "last_name": row[20],
            "full_name": row[21],
            "email": row[22],
            "phone": row[23],
            "created_at": instant(row[24]),
            "updated_at": instant(row[25]),
        },
        "owner_id": row[3],
        "owner": _user(row, 3, 26),
        "subject": row[4],
        "description": row[5],
        "status": row[6],
        "priority": row[7],
        "priority_label": _LABELS[row[7]],
        "latest_messaging_channel": row[8],
        "is_closed": row[9],
        "closed_at": None if row[10] is None else instant(row[10]),
        "is_waiting": row[11],
        "unread_message_count": row[12],
        "created_at": instant(row[13]),
        "updated_at": instant(row[14]),
        "created_by_user_id": row[15],
        "created_by_user": _user(row, 15, 33),
        "updated_by_user_id": row[16],
        "updated_by_user": _user(row, 16, 40),
        "case_funnel_stage": None
        if row[17] is None
        else {"id": row[17], "organization_id": organization_id, "name": row[47], "position": row[48]},
        "case_funnel_stage_id": row[17],
        "channel_priority": row[18],
    }


def _user(row: Row, id_: int, first: int) -> dict[str, Any] | None:
    if row[id_] is None:
        return None
    email, first_name, last_name, full_name, alias, title, avatar_url = row[first : first + 7]
    return {
        "id": row[id_],
        "organization_id": row[0],
        "email": email,
        "first_name": first_name,
        "last_name": last_name,
        "full_name": full_name,
        "alias": alias,
        "title": title,
        "avatar_url": avatar_url,
    }


app = Floor()
