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
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.conninfo import make_conninfo
from psycopg.types.string import TextLoader
from psycopg_pool import ConnectionPool

from benchmarks.contestants.credentials import api_token, signing_secret
from benchmarks.dataset import ORGANIZATION
from cases_service.cases import timestamps as instants
from cases_service.database.connection_pool import connection_parameters
from cases_service.database.statements import statements
from cases_service.settings import read_settings

Row = Sequence[Any]
StartResponse = Callable[[str, list[tuple[str, str]]], object]

# What row security wants to know, once a session: there is one organization here.
_ITS_ROWS: Final = f"-c cases.organization_id={ORGANIZATION}"
_ACCESS: Final = statements("access")["get_access"]
_CASES: Final = statements("cases")
_EVERYTHING: Final = {
    f"with_{name}": True for name in ("contact", "owner", "created_by_user", "updated_by_user", "case_funnel_stage")
}
_LABELS: Final = (None, "None", "Low", "Normal", "High", "Critical")
_FIRST: Final = ("-infinity", "00000000-0000-0000-0000-000000000000")


class InstantLoader(Loader):
    """Reads a timestamptz as the text that the API shows."""

    def load(self, data: Buffer) -> str:
        """Return a time in the form of `schemas.Instant`."""
        return instants.from_postgres(bytes(data).decode("ascii"))


def _configure(connection: Any) -> None:
    connection.adapters.register_loader("uuid", TextLoader)
    connection.adapters.register_loader("timestamptz", InstantLoader)


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
        rows = self._rows(
            _CASES["list_by_created_at_descending" if backward else "list_by_created_at_ascending"],
            organization_id=organization_id,
            external_id=external_id,
            after=after,
            after_id=after_id,
            furthest="-infinity" if backward else "infinity",
            rearmost="infinity" if backward else "-infinity",
            look_behind=bool(position),
            row_limit=page_size + 1,
            whole=True,
        )
        shown = [row for row in rows[:page_size] if row[3] is not None]
        url = f"http://{environ['HTTP_HOST']}{environ['PATH_INFO']}?page_size={page_size}&cursor="
        ahead = f"{url}{_cursor(shown[-1], backward=backward)}" if len(rows) > page_size else None
        behind = f"{url}{_cursor(shown[0], backward=not backward)}" if shown and rows[0][1] else None
        if backward:
            shown, ahead, behind = shown[::-1], behind, ahead
        return {"next": ahead, "previous": behind, "results": [_case(row[10:]) for row in shown]}

    def _case(self, organization_id: UUID, external_id: str, case_id: str) -> dict[str, Any]:
        statement = _CASES["get_case"]
        rows = self._rows(statement, organization_id=organization_id, external_id=external_id, case_id=case_id)
        return _case(rows[0][1:])

    def _rows(self, statement: str, **parameters: Any) -> list[Any]:
        with self.pool.connection() as connection:
            return connection.execute(statement, {**parameters, **_EVERYTHING}).fetchall()


def _cursor(row: Row, *, backward: bool) -> str:
    return f"{'before' if backward else 'after'}_{row[2]}_{row[3]}"


def _case(row: Row) -> dict[str, Any]:
    """Return a case from the columns of the table cases and of the views behind it, in their order."""
    return {
        "id": row[1],
        "organization_id": row[0],
        "case_number": row[2],
        "contact_id": row[3],
        "contact": {
            "id": row[24],
            "organization_id": row[23],
            "first_name": row[25],
            "last_name": row[26],
            "full_name": row[27],
            "email": row[28],
            "phone": row[29],
            "created_at": row[30],
            "updated_at": row[31],
        },
        "owner_id": row[4],
        "owner": _user(row, 33),
        "subject": row[5],
        "description": row[6],
        "status": row[7],
        "priority": row[8],
        "priority_label": _LABELS[row[8]],
        "latest_messaging_channel": row[9],
        "is_closed": row[11],
        "closed_at": row[12],
        "is_waiting": row[13],
        "unread_message_count": row[14],
        "created_at": row[15],
        "updated_at": row[16],
        "created_by_user_id": row[17],
        "created_by_user": _user(row, 43),
        "updated_by_user_id": row[18],
        "updated_by_user": _user(row, 53),
        "case_funnel_stage": None
        if row[64] is None
        else {"id": row[64], "organization_id": row[63], "name": row[65], "position": row[66]},
        "case_funnel_stage_id": row[19],
        "channel_priority": row[10],
    }


def _user(row: Row, first: int) -> dict[str, Any] | None:
    organization_id, user_id, email, first_name, last_name, full_name, alias, title, avatar_url = row[first : first + 9]
    if user_id is None:
        return None
    return {
        "id": user_id,
        "organization_id": organization_id,
        "email": email,
        "first_name": first_name,
        "last_name": last_name,
        "full_name": full_name,
        "alias": alias,
        "title": title,
        "avatar_url": avatar_url,
    }


app = Floor()
