"""The floor: the least that a Python process can do to answer the same pages from the same statements.

A bare WSGI callable under the service's gunicorn, worker class and configuration, with the same connections, the same
round trips, PyJWT and orjson. No framework, no log, no headers, and none of the checks that the queries and PyJWT do
not make by themselves. A PATCH changes texts, by the service's statements in the service's pipeline.
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
from cases_service.database.pipeline import Exchange, Query, Result
from cases_service.database.session_settings import connection_parameters
from cases_service.database.statements import Statement, numbered, statements
from cases_service.settings import read_settings
from cases_service.store import organization_pages
from cases_service.store.organization_cases import REFERENCES
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
_MESSAGES: Final = numbered("conversations")["list_messages_of_visitor"]
_WRITING: Final = numbered("writing")
_WRITTEN: Final = (
    "case_number",
    "contact_id",
    "owner_id",
    "subject",
    "description",
    "status",
    "priority",
    "latest_messaging_channel",
    "channel_priority",
    "updated_by_user_id",
    "case_funnel_stage_id",
)
_LABELS: Final = (None, "None", "Low", "Normal", "High", "Critical")
_FIRST: Final = ("-infinity", "00000000-0000-0000-0000-000000000000")


def _configure(connection: Any) -> None:
    connection.adapters.register_loader("uuid", TextLoader)
    connection.adapters.register_loader("timestamptz", TextLoader)


class _Connection(psycopg.Connection[Any]):
    """A connection with the pipeline in which the service writes."""

    exchange: Exchange


def _configure_writer(connection: _Connection) -> None:
    _configure(connection)
    connection.exchange = Exchange(connection, answer_timeout=30.0, prepares=True)


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
        self.writers = ConnectionPool(
            connection_parameters(settings.write_database_url or "", settings),
            connection_class=_Connection,
            kwargs={"autocommit": True},
            configure=_configure_writer,
            min_size=settings.connections,
            open=True,
        )

    def close(self) -> None:
        """End the connections, when the worker ends."""
        self.pool.close()
        self.writers.close()

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Answer a page, a case or the messages of one, or change one."""
        body = orjson.dumps(self._document(environ, environ["PATH_INFO"].split("/")))
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]

    def _document(self, environ: dict[str, Any], parts: list[str]) -> dict[str, Any]:
        if parts[5] == "cases":  # /api/v5/orgs/…/cases/…
            organization_id, user_id, _ = self._access(environ, parts)
            return self._change(organization_id, user_id, parts[6], orjson.loads(environ["wsgi.input"].read()))
        organization_id, external_id = self._authenticate(environ, parts)
        if len(parts) == 8:  # noqa: PLR2004  /api/v5/orgs/…/external-visitors/…/cases
            return self._page(environ, organization_id, external_id)
        if len(parts) == 9:  # noqa: PLR2004
            return self._case(organization_id, external_id, parts[8])
        return self._messages(environ, organization_id, external_id, parts[8])

    def _access(self, environ: dict[str, Any], parts: list[str]) -> tuple[UUID, str, tuple[str, str, str]]:
        """Return the organization and the user of a request's API token, and the signing key."""
        token = api_token(environ["HTTP_AUTHORIZATION"])
        if token is None or str(token.organization_id) != parts[4]:
            raise PermissionError
        with self.pool.connection() as connection:
            parameters = {"organization_id": token.organization_id, "token_hash": token.hash}
            row = connection.execute(_ACCESS, parameters).fetchall()[0]
        return token.organization_id, row[6], row[1:4]

    def _authenticate(self, environ: dict[str, Any], parts: list[str]) -> tuple[UUID, str]:
        organization_id, _, (key_id, algorithm, sealed) = self._access(environ, parts)
        secret = signing_secret(organization_id, UUID(key_id), algorithm, sealed)
        return organization_id, jwt.decode(parts[6], secret, algorithms=[algorithm])["sub"]

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

    def _messages(
        self, environ: dict[str, Any], organization_id: UUID, external_id: str, case_id: str
    ) -> dict[str, Any]:
        page_size = int(dict(parse_qsl(environ["QUERY_STRING"])).get("page_size", "25"))
        after, after_id = _FIRST
        rows = self._rows(
            _MESSAGES,
            organization_id=organization_id,
            external_id=external_id,
            case_id=case_id,
            after=after,
            after_id=after_id,
            look_behind=False,
            row_limit=page_size + 1,
        )
        url = f"http://{environ['HTTP_HOST']}{environ['PATH_INFO']}?page_size={page_size}&cursor="
        ahead = f"{url}after_{rows[page_size - 1][3]}_{rows[page_size - 1][4]}" if len(rows) > page_size else None
        return {"next": ahead, "previous": None, "results": [_message(row) for row in rows[:page_size]]}

    def _change(self, organization_id: UUID, user_id: str, case_id: str, given: dict[str, Any]) -> dict[str, Any]:
        about = {"organization_id": organization_id, "case_id": case_id}
        statement = organization_pages.case_statement()
        case = organization_pages.compiled(statement.columns)
        read = Query(statement, about, lambda result: case.dump(result.rows)[0])
        with self.writers.connection() as connection:
            exchange: Exchange = connection.exchange
            look = Query(_WRITING["check_case"], about | dict.fromkeys(REFERENCES) | {"case_number": None}, _first)
            lock = Query(_WRITING["lock_case"], about, _first)
            _, before, situation = exchange.begin(organization_id, [lock, read, look])
            values = {name: before[name] for name in _WRITTEN} | given | {"updated_by_user_id": user_id}
            change = Query(_WRITING["change_case"], about | values | {"now": situation[0]}, _nothing)
            changed: dict[str, Any] = exchange.step([change, read], end=[b"commit"])[1]
            return changed

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
        "id": row[50],
        "organization_id": organization_id,
        "case_number": row[1],
        "contact_id": row[2],
        "contact": {
            "id": row[2],
            "organization_id": organization_id,
            "first_name": row[20],
            "last_name": row[21],
            "full_name": row[22],
            "email": row[23],
            "phone": row[24],
            "created_at": instant(row[25]),
            "updated_at": instant(row[26]),
        },
        "owner_id": row[3],
        "owner": _user(row, 3, 27),
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
        "created_by_user": _user(row, 15, 34),
        "updated_by_user_id": row[16],
        "updated_by_user": _user(row, 16, 41),
        "case_funnel_stage": None
        if row[17] is None
        else {"id": row[17], "organization_id": organization_id, "name": row[48], "position": row[49]},
        "case_funnel_stage_id": row[17],
        "channel_priority": row[18],
        "visitor_unread_message_count": row[19],
    }


def _user(row: Row, id_: int, first: int) -> dict[str, Any] | None:
    return _user_of(row[0], row[id_], row[first : first + 7])


def _user_of(organization_id: str, id_: str | None, columns: Row) -> dict[str, Any] | None:
    if id_ is None:
        return None
    email, first_name, last_name, full_name, alias, title, avatar_url = columns
    return {
        "id": id_,
        "organization_id": organization_id,
        "email": email,
        "first_name": first_name,
        "last_name": last_name,
        "full_name": full_name,
        "alias": alias,
        "title": title,
        "avatar_url": avatar_url,
    }


def _message(row: Row) -> dict[str, Any]:
    """Return a message from the columns of the page of queries/conversations.sql, in their order."""
    return {
        "id": row[4],
        "organization_id": row[5],
        "case_id": row[6],
        "activity_id": row[7],
        "sender_type": row[8],
        "sender": _user_of(row[5], row[9], row[11:18]),
        "text": row[18],
        "created_at": instants.from_postgres(row[19]),
        "read_at": None if row[20] is None else instants.from_postgres(row[20]),
    }


def _first(result: Result) -> Row:
    return result.rows[0]


def _nothing(_: Result) -> None:
    """Read nothing."""


app = Floor()
