"""Commands that export or erase all data of a person."""

# ruff: noqa: D301  click wants a real backspace above the lines that it must not fold

import sys
from uuid import UUID

import click

from cases_service.cli.connection import connected
from cases_service.cli.group import cli
from cases_service.cli.options import external_id_option, organization_option, wait_option
from cases_service.cli.output import counted, show_json
from cases_service.terminal import printable


@cli.command("export-visitor")
@organization_option
@external_id_option
def export_visitor(organization_id: UUID, external_id: str) -> None:
    """Print everything about a visitor as lines.

    The output is lines that load accepts: visitor, contacts, cases, activities, messages and events, but
    no notes among users. The same data gives the same bytes. The status is 1 if there is no such visitor.

    \b
    Example:
      cases-service export-visitor --organization ID --external-id customer-4711 > customer.ndjson
    """
    from cases_service.personal_data import export

    with connected() as (connection, _):
        # As bytes: the lines are UTF-8 in every locale.
        for line in export.export_visitor(connection, organization_id=organization_id, external_id=external_id):
            sys.stdout.buffer.write(line)


@cli.command("erase-visitor")
@organization_option
@external_id_option
@click.option("--yes", "is_sure", is_flag=True, help="Do not ask first.")
@wait_option
def erase_visitor(organization_id: UUID, external_id: str, *, is_sure: bool, wait: float) -> None:
    """Erase everything about a visitor, for good.

    Removes everything that export-visitor prints, and the notes among users, or nothing. Prints a receipt
    as JSON: the time, the number of rows of each type, and the SHA-256 of the lines that export-visitor
    would have printed. Later loads and imports that name the visitor are refused until allow-visitor.

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
        show_json(msgspec.to_builtins(receipt))
        if not erasure.renew_statistics(connection):
            click.echo("the planner's statistics may still hold erased values: have the", nl=False, err=True)
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
    """Allow an erased visitor to be loaded again.

    This restores nothing; the next load or import may. The status is 1 if no such visitor was erased.

    \b
    Example:
      cases-service allow-visitor --organization ID --external-id customer-4711
    """
    from cases_service.personal_data import erasure

    with connected() as (connection, _):
        erasure.allow_visitor(connection, organization_id=organization_id, external_id=external_id)
    click.echo("the next load or import may restore this visitor", err=True)
