"""Knows how points in time are written: by PostgreSQL, in the API and inside a cursor."""

import re
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DATE_TIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ](?:[01][0-9]|2[0-3]):[0-5][0-9])"
    r"(?::([0-5][0-9]|60)(?:\.([0-9]{1,6})([0-9]*))?)?"
    r"([Zz]|[+-][0-9]{2}(?::?[0-5][0-9])?)"
)
EXPECTED = "a time in ISO 8601 with a zone, such as 2024-05-31T16:32:17.879Z, in years 1 to 9999"
_USUAL = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-2][0-9]:[0-9]{2}:[0-5][0-9](?:\.[0-9]{1,6})?Z")
_SPACE_FOR_PLUS = re.compile(r" (?=[0-9]{2}(?::?[0-9]{2})?\Z)")
_LEAP = (23, 59)
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


def to_postgres(text: str) -> str:
    """Return an ISO 8601 date-time with a zone as a text that PostgreSQL reads as that instant.

    What is finer than microseconds is cut. PostgreSQL's own text of a timestamptz (`2024-05-31 16:32:17+00`) is such
    a date-time, and so is one without seconds. A leap second (23:59:60 in UTC) is the second that follows it, as in
    PostgreSQL.

    Raises:
        ValueError: The text has another form, no zone, or lies outside of the years 1 to 9999 in UTC.

    """
    if _USUAL.fullmatch(text) and text[11:13] != "24":
        datetime.fromisoformat(text)
        return text
    try:
        return _parse(text)[0].astimezone(UTC).isoformat()
    except OverflowError:
        raise ValueError("expected a time in the years 1 to 9999") from None


def to_microseconds(text: str) -> int:
    """Return an ISO 8601 date-time with a zone in microseconds since 1970. A + that arrived as a space is taken as +.

    The forms are those of `to_postgres`. What lies between two microseconds is rounded up: the first of all instants
    that a database keeps from there on.

    Raises:
        ValueError: The text has another form, or no zone.

    """
    moment, is_cut = _parse(_SPACE_FOR_PLUS.sub("+", text))
    return (moment - _EPOCH) // timedelta(microseconds=1) + is_cut


def _parse(text: str) -> tuple[datetime, bool]:
    """Return the instant that a text names, and whether decimals were cut off."""
    match = _DATE_TIME.fullmatch(text)
    if match is None:
        raise ValueError("expected an ISO 8601 date-time with a zone")
    minute, second, decimals, beyond, zone = match.groups()
    seconds = "59" if second == "60" else second or "00"
    moment = datetime.fromisoformat(f"{minute}:{seconds}.{decimals or '0'}{zone.upper()}")
    return (_after_leap_second(moment) if second == "60" else moment), bool(beyond and beyond.strip("0"))


def _after_leap_second(moment: datetime) -> datetime:
    try:
        utc = moment.astimezone(UTC)
        if (utc.hour, utc.minute) == _LEAP:
            return utc + timedelta(seconds=1)
    except OverflowError:
        pass
    raise ValueError("expected seconds up to 59, or a leap second: 23:59:60 in UTC")
