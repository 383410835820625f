"""The options that commands share, and how options are parsed. No error quotes the input, which may be a secret."""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Final, TypeVar
from uuid import UUID

import click

from cases_service.terminal import has_controls

T = TypeVar("T")


def accepting(parse: Callable[[str], T]) -> Callable[[click.Context, click.Parameter, str | None], T | None]:
    """Return an option's callback that parses its text; the user sees the message of the parser's ValueError."""

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
    """Return a future time, from ISO 8601 with a zone."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise ValueError("expected ISO 8601 with a zone, such as 2030-01-31T12:00:00Z")
    if time <= datetime.now(UTC):
        raise ValueError("expected a time in the future")
    try:
        # The last hours of 9999 west of Greenwich are in 10000 in UTC, which PostgreSQL stores but Python cannot read.
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
    """Return an HTTP URL."""
    from cases_service import settings

    text = settings.clean(text, "--url")
    settings.check_url(text, "--url")
    return text


def _parse_text(text: str, *, lengths: range) -> str:
    if len(text) not in lengths:
        raise ValueError(f"expected {lengths[0]} to {lengths[-1]} characters")
    # Lone surrogates stand for bytes from the shell that are not UTF-8.
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("expected UTF-8 without a zero byte")
    return text


parse_external_id: Final = partial(_parse_text, lengths=range(1, 257))


def parse_description(text: str) -> str:
    """Return a text to show in lists."""
    if has_controls(_parse_text(text, lengths=range(1, 257))):
        raise ValueError("expected a text without control characters")
    return text


organization_option = click.option(
    "--organization",
    "organization_id",
    required=True,
    metavar="ID",
    callback=accepting(parse_id),
    help="The organization's id.",
)
external_id_option = click.option(
    "--external-id",
    required=True,
    metavar="TEXT",
    callback=accepting(parse_external_id),
    help="The visitor's external id, 1 to 256 characters.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for a program to read.")
bind_option = click.option(
    "--bind",
    metavar="HOST:PORT",
    callback=accepting(parse_address),
    help="The address to listen on, instead of CASES_BIND; or unix:/PATH.",
)
wait_option = click.option(
    "--wait",
    type=click.FloatRange(min=0, max=86400),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for a session that holds a table or row.",
)
