"""Commands that run the service and create its database."""

# ruff: noqa: D301  click wants a real backspace above the lines that it must not fold

from functools import partial

import click

from cases_service.cli.connection import opened_database
from cases_service.cli.group import cli
from cases_service.cli.options import bind_option, wait_option


@cli.command()
@bind_option
def serve(bind: str | None) -> None:
    """Serve the API.

    Starts without a database, too, and answers 503 until it is available. Without DATABASE_URL, it first
    starts the embedded server and creates the schema there.

    \b
    Example:
      DATABASE_URL=postgresql://cases@db/cases cases-service serve --bind 0.0.0.0:8000
    """
    import msgspec

    from cases_service.embedded.command_database import open_database
    from cases_service.server.launch import become_gunicorn, listen_as_set
    from cases_service.settings import read_settings

    settings = read_settings()
    settings, listeners = listen_as_set(msgspec.structs.replace(settings, bind=bind or settings.bind))
    with open_database(settings, may_make=True) as database:
        if database.embedded is not None:
            database.initialize()
        become_gunicorn(database.settings, listeners, embedded=database.embedded)


@cli.command()
@bind_option
def demo(bind: str | None) -> None:
    """Serve real data, with a page and curl lines.

    Needs no database and no configuration: it comes with a PostgreSQL and public data. They are kept in
    CASES_DATA_DIR (.cases-data) and reused the next time. The page is a hundred ports higher, or on any
    free port. Ctrl-C ends everything.

    \b
    Example, a second demo beside the first:
      CASES_DATA_DIR=/tmp/second cases-service demo --bind 127.0.0.1:8001
    """
    import msgspec

    from cases_service.demo.demo import run_demo
    from cases_service.settings import read_settings

    settings = read_settings()
    run_demo(msgspec.structs.replace(settings, bind=bind or settings.bind))


@cli.command("init-db")
@wait_option
def init_db(wait: float) -> None:
    """Create the schema, or upgrade an older one.

    Safe to repeat, and to run while the service does: it locks a table only for a moment, and retries if
    another session holds it. Finished steps are kept, and the next call continues from there. If
    CASES_ADMIN_DATABASE_URL is set, the role of DATABASE_URL gets the rights to serve.

    \b
    Example:
      DATABASE_URL=postgresql://cases@db/cases cases-service init-db
    """
    with opened_database(may_make=True) as database:
        before, after = database.initialize(wait=wait, say=partial(click.echo, err=True))
    click.echo(f"schema version {after}" + ("" if before in (0, after) else f", upgraded from {before}"))
