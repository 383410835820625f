"""Knows how points in time are written: by PostgreSQL, in the API and inside a cursor."""

import re
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DATE_TIME = re.compile(
    r"(?P<time>[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,6}(?P<rest>[0-9]{1,3})?)?)?)"
    r"(?P<zone>[Zz]|[+ -][0-9]{2}(?::?[0-5][0-9])?)"
)
_WITHOUT_MILLISECONDS = len("2015-08-31 16:32:17.87+00")
_FIRST = (datetime(1, 1, 1, tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
_LAST = (datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)


def from_datetime(value: datetime) -> str:
    """Return an aware datetime as the API writes it: ISO 8601 in UTC, milliseconds, truncated."""
    utc = value.astimezone(UTC)
    return f"{utc.year:04}-{utc:%m-%dT%H:%M:%S}.{utc.microsecond // 1000:03}Z"


def from_postgres(text: str) -> str:
    """Return PostgreSQL's text of a timestamptz as the API writes it.

    Shape: `2015-08-31 16:32:17.8791+00`, as a session in UTC with DateStyle ISO prints it for the years 1 to 9999;
    no decimals where they are zero.
    """
    if len(text) > _WITHOUT_MILLISECONDS:
        return f"{text[:10]}T{text[11:23]}Z"
    return f"{text[:10]}T{text[11:19]}.{text[20:-3]:0<3.3}Z"


def in_range(microseconds: int) -> bool:
    """Return whether a time in microseconds since 1970 lies in the years 1 to 9999."""
    return _FIRST <= microseconds <= _LAST


def from_microseconds(microseconds: int) -> str:
    """Return microseconds since 1970 as a text that PostgreSQL reads back exactly; an infinity where out of range."""
    if in_range(microseconds):
        return (_EPOCH + timedelta(microseconds=microseconds)).isoformat()
    return "infinity" if microseconds > 0 else "-infinity"


def to_microseconds(text: str) -> int:
    """Return an ISO 8601 date-time with a zone in microseconds since 1970. A + that arrived as a space is taken as +.

    What lies between two microseconds is rounded up: the first of all instants that a database keeps from there on.

    Raises:
        ValueError: The text has another form, or no zone.

    """
    match = _DATE_TIME.fullmatch(text)
    if match is None:
        raise ValueError("expected an ISO 8601 date-time with a zone")
    moment = datetime.fromisoformat(f"{match['time']}{match['zone'].replace(' ', '+').upper()}")
    beyond = (match["rest"] or "").strip("0") != ""
    return (moment - _EPOCH) // timedelta(microseconds=1) + beyond
