"""Commands for a visitor's JWTs."""

# ruff: noqa: D301  click wants a real backspace above the lines that it must not fold

import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import click

from cases_service.cli.connection import connected
from cases_service.cli.files import standard_input
from cases_service.cli.group import cli
from cases_service.cli.options import accepting, external_id_option, json_option, organization_option, parse_id
from cases_service.cli.output import show_json
from cases_service.credentials.algorithms import HMAC_ALGORITHMS

if TYPE_CHECKING:
    import psycopg

    from cases_service.store.cases import StoredKey

_LABEL_WIDTH: Final = 14


@cli.command("sign")
@organization_option
@external_id_option
@click.option(
    "--ttl",
    type=click.IntRange(min=1),
    default=600,
    show_default=True,
    metavar="SECONDS",
    help="How long the JWT is valid.",
)
@click.option("--kid", metavar="KID", callback=accepting(parse_id), help="The key; by default the newest HMAC key.")
def sign(organization_id: UUID, external_id: str, ttl: int, kid: UUID | None) -> None:
    """Print a visitor's JWT, signed with an HMAC key.

    \b
    Example:
      cases-service sign --organization ID --external-id customer-4711
    """
    from cases_service.credentials import administration
    from cases_service.credentials import visitor_jwt as visitor_tokens
    from cases_service.settings import read_settings

    settings = read_settings()
    if ttl > settings.jwt_max_ttl:
        raise click.BadParameter(
            f"the service accepts {settings.jwt_max_ttl} seconds at the most (CASES_JWT_MAX_TTL).",
            param_hint="'--ttl'",
        )
    with connected() as (connection, box):
        keys = administration.live_keys(connection, organization_id=organization_id)
        key = _signing_key(keys, organization_id, kid)
        secret = administration.open_secret(key, organization_id=organization_id, box=box)
    token = visitor_tokens.sign(
        external_id,
        secret=secret,
        algorithm=key.algorithm,
        key_id=key.id,
        ttl=ttl,
        audience=settings.jwt_audience,
        issuer=settings.jwt_issuer,
    )
    click.echo(token)


def _signing_key(keys: "Sequence[StoredKey]", organization_id: UUID, kid: UUID | None) -> "StoredKey":
    from cases_service.credentials.administration import AdministrationError

    if kid is None:
        fitting = [key for key in keys if key.algorithm in HMAC_ALGORITHMS]
        if not fitting:
            raise AdministrationError(
                f"organization {organization_id} has no live HMAC signing key:"
                f" create one with cases-service create-key --organization {organization_id}"
            )
        return fitting[-1]
    key = next((key for key in keys if key.id == kid), None)
    if key is None:
        raise AdministrationError(f"organization {organization_id} has no live signing key {kid}")
    if key.algorithm not in HMAC_ALGORITHMS:
        raise AdministrationError(
            f"signing key {kid} is for {key.algorithm}, and its private key is not here: sign where it is"
        )
    return key


@cli.command("check-token")
@organization_option
@click.argument("token", metavar="[JWT]", required=False)
@json_option
def check_token(organization_id: UUID, token: str | None, as_json: bool) -> None:  # noqa: FBT001  as above
    """Check whether the service accepts a visitor's JWT.

    Give the JWT as the argument, or on standard input, where other users of the machine cannot see it.
    The status is 1 if the service would refuse it.

    \b
    Example:
      cases-service sign --organization ID --external-id customer-4711 |
        cases-service check-token --organization ID
    """
    from cases_service.api.authentication import verification_keys
    from cases_service.cli.check_token import examine
    from cases_service.credentials import administration
    from cases_service.settings import read_settings

    text = standard_input().read().decode("latin-1") if token is None else token
    settings = read_settings()
    with connected() as (connection, box):
        live = administration.live_keys(connection, organization_id=organization_id)
        keys = verification_keys(organization_id, live, box)
        count = partial(_count_contacts, connection, organization_id)
        is_active = administration.has_active_subscription(connection, organization_id=organization_id)
        report = examine(
            text.strip(), keys, settings, now=time.time(), has_subscription=is_active, count_contacts=count
        )
    problem = report.problem
    status, code = (200, None) if problem is None else (problem.status, problem.code)
    if as_json:
        show_json({"status": status, "code": code, "findings": dict(report.findings)})
    else:
        for label, finding in [*report.findings, ("answer", f"{status} {code or ''}".rstrip())]:
            click.echo(f"{label:{_LABEL_WIDTH}}{finding}")
    if problem is not None:
        raise click.ClickException(f"{problem.code}: {problem.detail}")


def _count_contacts(connection: "psycopg.Connection[Any]", organization_id: UUID, external_id: str) -> int | None:
    from cases_service.credentials import administration

    return administration.count_contacts(connection, organization_id=organization_id, external_id=external_id)
