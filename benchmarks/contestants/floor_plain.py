"""The plain floor: the pages that somebody writes by hand with psycopg and orjson and a plain merge of the contacts.

Times go through Python's datetime, as psycopg reads and orjson writes them.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import orjson

from benchmarks.contestants.plain import Plain, case_statement, links, page_statements

Row = Sequence[Any]

_PAGES: Final = page_statements("read_cases")
_CASE: Final = case_statement("read_cases")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LABELS: Final = (None, "None", "Low", "Normal", "High", "Critical")


class FloorPlain(Plain):
    """The WSGI callable."""

    def page(self, parameters: dict[str, Any], url: str, *, backward: bool, has_cursor: bool) -> bytes:
        """Return the answer with a page."""
        rows = self.rows(_PAGES[backward], parameters)
        page_size = parameters["row_limit"] - 1
        shown = rows[:page_size]
        if backward:
            shown.reverse()
        first, last = (_key(shown[0]), _key(shown[-1])) if shown else (None, None)
        has_more = len(rows) > page_size
        following, preceding = links(url, first, last, backward=backward, has_cursor=has_cursor, has_more=has_more)
        return orjson.dumps(
            {"next": following, "previous": preceding, "results": [_case(row) for row in shown]},
            option=orjson.OPT_UTC_Z,
        )

    def case(self, parameters: dict[str, Any]) -> bytes:
        """Return the answer with a case."""
        return orjson.dumps(_case(self.rows(_CASE, parameters)[0]), option=orjson.OPT_UTC_Z)


def _key(row: Row) -> str:
    return f"{(row[28] - _EPOCH) // timedelta(microseconds=1)}_{row[0]}"


def _case(row: Row) -> dict[str, Any]:
    """Return a case from the columns of read_cases in queries/plain.sql, in their order."""
    organization_id = row[1]
    return {
        "id": row[0],
        "organization_id": organization_id,
        "case_number": row[2],
        "contact_id": row[3],
        "contact": {
            "id": row[3],
            "organization_id": organization_id,
            "first_name": row[4],
            "last_name": row[5],
            "full_name": row[6],
            "email": row[7],
            "phone": row[8],
            "created_at": row[9],
            "updated_at": row[10],
        },
        "owner_id": row[11],
        "owner": _user(organization_id, row[11], row[12:19]),
        "subject": row[19],
        "description": row[20],
        "status": row[21],
        "priority": row[22],
        "priority_label": _LABELS[row[22]],
        "latest_messaging_channel": row[23],
        "is_closed": row[24],
        "closed_at": row[25],
        "is_waiting": row[26],
        "unread_message_count": row[27],
        "created_at": row[28],
        "updated_at": row[29],
        "created_by_user_id": row[30],
        "created_by_user": _user(organization_id, row[30], row[31:38]),
        "updated_by_user_id": row[38],
        "updated_by_user": _user(organization_id, row[38], row[39:46]),
        "case_funnel_stage": None
        if row[46] is None
        else {"id": row[46], "organization_id": organization_id, "name": row[47], "position": row[48]},
        "case_funnel_stage_id": row[46],
        "channel_priority": row[49],
        "visitor_unread_message_count": row[50],
    }


def _user(organization_id: str, user_id: str | None, columns: Row) -> dict[str, Any] | None:
    if user_id is None:
        return None
    email, first_name, last_name, full_name, alias, title, avatar_url = columns
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


app = FloorPlain()
