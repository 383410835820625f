"""Knows what the options of the commands accept, and says so without repeating what was given: it may be a secret."""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Final, TypeVar
from uuid import UUID

import click

from cases_service.terminal import has_controls

T = TypeVar("T")


def accepting(parse: Callable[[str], T]) -> Callable[[click.Context, click.Parameter, str | None], T | None]:
    """Return the callback of an option whose text is what `parse` accepts; its ValueError's message is the user's."""

    def callback(_context: click.Context, _parameter: click.Parameter, text: str | None) -> T | None:
        try:
            return None if text is None else parse(text)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return callback


def parse_id(text: str) -> UUID:
    """Return a UUID."""
    try:
        return UUID(text)
    except ValueError:
        raise ValueError("expected a UUID") from None


def parse_future_time(text: str) -> datetime:
    """Return a time that has yet to come, from ISO 8601 with a zone."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise ValueError("expected ISO 8601 with a zone, such as 2030-01-31T12:00:00Z")
    if time <= datetime.now(UTC):
        raise ValueError("expected a time in the future")
    try:
        # In UTC the last hours of 9999 west of Greenwich are in 10000, which PostgreSQL keeps and Python cannot read.
        return time.astimezone(UTC)
    except OverflowError:
        raise ValueError("expected a time before the year 10000") from None


def parse_address(text: str) -> str:
    """Return an address to listen on."""
    from cases_service import settings

    text = settings.clean(text, "--bind")
    settings.check_bind(text, "--bind")
    return text


def parse_url(text: str) -> str:
    """Return an address of HTTP."""
    from cases_service import settings

    text = settings.clean(text, "--url")
    settings.check_url(text, "--url")
    return text


def _parse_text(text: str, *, lengths: range) -> str:
    if len(text) not in lengths:
        raise ValueError(f"expected {lengths[0]} to {lengths[-1]} characters")
    # What the shell gives is not UTF-8 where it decodes to lone surrogates.
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("expected UTF-8 without a zero byte")
    return text


parse_external_id: Final = partial(_parse_text, lengths=range(1, 257))


def parse_description(text: str) -> str:
    """Return a text that is shown in lists."""
    if has_controls(_parse_text(text, lengths=range(1, 257))):
        raise ValueError("expected a text without control characters")
    return text
