"""Parses and formats points in time: PostgreSQL's, the API's and those in cursors."""

import re
from datetime import UTC, datetime, timedelta
from typing import Final

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DATE_TIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ](?:[01][0-9]|2[0-3]):[0-5][0-9])"
    r"(?::([0-5][0-9]|60)(?:\.([0-9]{1,6})([0-9]*))?)?"
    r"([Zz]|[+-][0-9]{2}(?::?[0-5][0-9])?)"
)
EXPECTED = "a time in ISO 8601 with a zone, such as 2024-05-31T16:32:17.879Z, in years 1 to 9999"
_is_usual = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T(?:[01][0-9]|2[0-3]):[0-9]{2}:[0-5][0-9](?:\.[0-9]{1,6})?Z"
).fullmatch
_SPACE_FOR_PLUS = re.compile(r" (?=[0-9]{2}(?::?[0-9]{2})?\Z)")
_LEAP = (23, 59)
_WITHOUT_MILLISECONDS = len("2015-08-31 16:32:17.87+00")
FIRST: Final = (datetime(1, 1, 1, tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
LAST: Final = (datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
"""The first and the last instant that the service stores, in microseconds since 1970."""


def from_datetime(value: datetime) -> str:
    """Return an aware datetime as the API writes it: ISO 8601 in UTC, milliseconds, truncated."""
    utc = value.astimezone(UTC)
    return f"{utc.year:04}-{utc:%m-%dT%H:%M:%S}.{utc.microsecond // 1000:03}Z"


def from_postgres(text: str) -> str:
    """Return PostgreSQL's text of a timestamptz in the API's form.

    The text is `2015-08-31 16:32:17.8791+00`, as a session in UTC with DateStyle ISO prints the years 1 to 9999,
    without decimals if they are zero.
    """
    if len(text) > _WITHOUT_MILLISECONDS:
        return f"{text[:10]}T{text[11:23]}Z"
    return f"{text[:10]}T{text[11:19]}.{text[20:-3]:0<3.3}Z"


def microseconds_of_postgres(text: str) -> int:
    """Return a text in the form that `from_postgres` reads in microseconds since 1970."""
    return (datetime.fromisoformat(text) - _EPOCH) // timedelta(microseconds=1)


def in_range(microseconds: int) -> bool:
    """Tell whether a time in microseconds since 1970 lies in the years 1 to 9999."""
    return FIRST <= microseconds <= LAST


def from_microseconds(microseconds: int) -> str:
    """Return microseconds since 1970 as a text that PostgreSQL reads exactly; an infinity if out of range."""
    if in_range(microseconds):
        return (_EPOCH + timedelta(microseconds=microseconds)).isoformat()
    return "infinity" if microseconds > 0 else "-infinity"


def to_postgres(text: str) -> str:
    """Return an ISO 8601 date-time with a zone as a text that PostgreSQL reads as that instant.

    Decimals beyond microseconds are cut off. PostgreSQL's own text of a timestamptz (`2024-05-31 16:32:17+00`) is
    accepted, and so is a time without seconds. A leap second (23:59:60 in UTC) is the second after it, as in
    PostgreSQL.

    Raises:
        ValueError: The text has another form, no zone, or lies outside of the years 1 to 9999 in UTC.

    """
    if _is_usual(text):
        datetime.fromisoformat(text)
        return text
    try:
        return _parse(text)[0].astimezone(UTC).isoformat()
    except OverflowError:
        raise ValueError("expected a time in the years 1 to 9999") from None


def to_microseconds(text: str) -> int:
    """Return an ISO 8601 date-time with a zone in microseconds since 1970. A + that arrived as a space is read as +.

    It accepts the forms of `to_postgres`. A time between two microseconds is rounded up, to the first that a database
    can store from then on.

    Raises:
        ValueError: The text has another form, or no zone.

    """
    moment, is_cut = _parse(_SPACE_FOR_PLUS.sub("+", text))
    return (moment - _EPOCH) // timedelta(microseconds=1) + is_cut


def _parse(text: str) -> tuple[datetime, bool]:
    """Return the instant of a text, and whether decimals were cut off."""
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
