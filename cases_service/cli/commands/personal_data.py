"""Commands about the data of a person: all of it exported, or erased."""

# ruff: noqa: D301  click wants a real backspace above the lines that it must not fold

import sys
from uuid import UUID

import click

from cases_service.cli.connection import connected
from cases_service.cli.group import cli
from cases_service.cli.options import external_id_option, organization_option, wait_option
from cases_service.cli.output import counted
from cases_service.terminal import printable


@cli.command("export-visitor")
@organization_option
@external_id_option
def export_visitor(organization_id: UUID, external_id: str) -> None:
    """Print everything about a visitor as lines.

    They are lines that load takes: visitor, contacts, cases, activities, messages and events, but no notes
    among users. The same data are the same bytes. The status is 1 if there is no such visitor.

    \b
    Example:
      cases-service export-visitor --organization ID --external-id customer-4711 > customer.ndjson
    """
    from cases_service.personal_data import export

    with connected() as (connection, _):
        # As bytes: whatever the locale is, the lines are UTF-8.
        for line in export.export_visitor(connection, organization_id=organization_id, external_id=external_id):
            sys.stdout.buffer.write(line)


@cli.command("erase-visitor")
@organization_option
@external_id_option
@click.option("--yes", "is_sure", is_flag=True, help="Do not ask first.")
@wait_option
def erase_visitor(organization_id: UUID, external_id: str, *, is_sure: bool, wait: float) -> None:
    """Erase everything about a visitor, for good.

    What export-visitor prints, and the notes among users: all of it, or nothing. Prints a receipt as JSON:
    when, how many rows of each type, and the SHA-256 of the lines that export-visitor would have printed.
    Later lines of a load or an import that name the visitor are refused, until allow-visitor lets them in.

    \b
    Example:
      cases-service erase-visitor --organization ID --external-id customer-4711 --yes > receipt.json
    """
    import msgspec

    from cases_service.personal_data import erasure

    if not is_sure and not sys.stdin.isatty():
        raise click.UsageError("give --yes: without a terminal, nobody can be asked.")
    with connected() as (connection, _):
        if not is_sure:
            extent = erasure.measure(connection, organization_id=organization_id, external_id=external_id)
            _ask(external_id, f"{counted(extent.contacts, 'contact')} and {counted(extent.cases, 'case')}")
        receipt = erasure.erase_visitor(connection, organization_id=organization_id, external_id=external_id, wait=wait)
        click.echo(msgspec.json.encode(receipt).decode())
        if not erasure.renew_statistics(connection):
            click.echo("the planner may still know values of what was erased: have the", nl=False, err=True)
            click.echo(" owner of the tables run analyze", err=True)


def _ask(external_id: str, extent: str) -> None:
    """End the command unless the person at the terminal agrees."""
    question = f"Erase the visitor {printable(external_id)} with {extent}, and all that was said in them, for good?"
    if not click.confirm(question, err=True):
        raise click.ClickException("nothing was erased")


@cli.command("allow-visitor")
@organization_option
@external_id_option
def allow_visitor(organization_id: UUID, external_id: str) -> None:
    """Let a visitor back in who was erased.

    What was erased does not come back by that; the next load or import may bring it. The status is 1 if no
    such visitor was erased.

    \b
    Example:
      cases-service allow-visitor --organization ID --external-id customer-4711
    """
    from cases_service.personal_data import erasure

    with connected() as (connection, _):
        erasure.allow_visitor(connection, organization_id=organization_id, external_id=external_id)
    click.echo("the next load or import may bring this visitor back", err=True)
