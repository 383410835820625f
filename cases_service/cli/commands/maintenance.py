"""Commands for operators of the service."""

# ruff: noqa: D301  click wants a real backspace above the lines that it must not fold

from datetime import UTC, datetime, timedelta
from typing import Final

import click

from cases_service.cli.connection import connected
from cases_service.cli.group import cli
from cases_service.cli.options import accepting, json_option, parse_url
from cases_service.cli.output import counted, show
from cases_service.terminal import printable

_STATUS_WIDTH: Final = 9


@cli.command("prune-events")
@click.option(
    "--older-than",
    "days",
    required=True,
    type=click.IntRange(min=1, max=36_500),
    metavar="DAYS",
    help="The age in days from which events are removed.",
)
def prune_events(days: int) -> None:
    """Remove old events of every organization.

    A request for removed events is answered 410, with the position to continue from. Cases and messages
    stay. Records of what feeds removed before that time are deleted, too: a later delivery of such a row
    would bring it back.

    \b
    Example:
      cases-service prune-events --older-than 90
    """
    from cases_service.store import events

    before = datetime.now(UTC) - timedelta(days=days)
    with connected() as (connection, _):
        count = events.prune_events(connection, before=before.isoformat())
    click.echo(f"{counted(count, 'event')} removed")


@cli.command("doctor")
@click.option(
    "--url",
    metavar="URL",
    callback=accepting(parse_url),
    help="The URL of the service. Default: CASES_BIND, if something listens there.",
)
@json_option
def examine_installation(url: str | None, as_json: bool) -> None:  # noqa: FBT001  click's way to pass a flag
    """Look for problems, present or coming.

    Checks settings, the database and its schema, rights, clocks, keys and tokens about to expire,
    replicas, and the service itself, and prints a line for each with what to do. It changes nothing and
    shows no secret. The status is 1 if a check failed; warnings do not count.

    \b
    Example, with the variables of the service:
      cases-service doctor --url http://10.0.0.7:8000
    """
    from cases_service.cli.doctor.examination import examine

    findings = []
    for finding in examine(url):
        findings.append(finding)
        if not as_json:
            click.echo(printable(f"{finding.status:{_STATUS_WIDTH}}{finding.check}: {finding.message}"))
    if as_json:
        show(findings, as_json=True)
    if failed := [finding.check for finding in findings if finding.status == "failure"]:
        raise click.ClickException(f"{counted(len(failed), 'check')} failed: {', '.join(failed)}")
