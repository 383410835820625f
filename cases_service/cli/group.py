"""The program `cases-service`, which its commands join."""

# ruff: noqa: D301  click wants a real backspace above the lines that it must not fold

from typing import Final

import click

from cases_service import __version__

NAME: Final = "cases-service"


@click.group(no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message=f"{NAME} %(version)s")
def cli() -> None:
    """Serve a company's signed-in customers their own support cases.

    DATABASE_URL names the PostgreSQL to use. Without it, an embedded server keeps its data in
    CASES_DATA_DIR (.cases-data); commands that run at the same time share it.

    \b
    To look at it, with real data:
      cases-service demo
    To start with cases of your own:
      cases-service init-db
      cases-service load cases.ndjson
      cases-service list-organizations
      cases-service create-token --organization ID --user ID
      cases-service create-key --organization ID
      cases-service serve
    When something is wrong:
      cases-service doctor
    """
