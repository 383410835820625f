"""Commands for API tokens and signing keys, and for listing the ids that they take."""

# ruff: noqa: D301  click wants a real backspace above the lines that it must not fold

from datetime import datetime
from pathlib import Path
from uuid import UUID

import click

from cases_service.cli.connection import connected
from cases_service.cli.group import cli
from cases_service.cli.options import (
    accepting,
    json_option,
    organization_option,
    parse_description,
    parse_future_time,
    parse_id,
)
from cases_service.cli.output import counted, show, show_json
from cases_service.credentials.algorithms import ALGORITHMS, HMAC_ALGORITHMS
from cases_service.credentials.scopes import DEFAULT_SCOPES, SCOPES


@cli.command("list-organizations")
@json_option
def list_organizations(as_json: bool) -> None:  # noqa: FBT001  click's way to pass a flag
    """Show all organizations with their ids.

    \b
    Example:
      cases-service list-organizations
    """
    from cases_service.credentials import administration

    with connected() as (connection, _):
        show(administration.list_organizations(connection), as_json=as_json)


@cli.command("list-users")
@organization_option
@json_option
def list_users(organization_id: UUID, as_json: bool) -> None:  # noqa: FBT001  click's way to pass a flag
    """Show an organization's users with their ids.

    \b
    Example:
      cases-service list-users --organization ID
    """
    from cases_service.credentials import administration

    with connected() as (connection, _):
        show(administration.list_users(connection, organization_id=organization_id), as_json=as_json)


@cli.command("create-token")
@organization_option
@click.option(
    "--user", "user_id", required=True, metavar="ID", callback=accepting(parse_id), help="The user who owns the token."
)
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(SCOPES),
    default=DEFAULT_SCOPES,
    show_default=True,
    help="What the token may do; may be repeated.",
)
@click.option(
    "--description",
    metavar="TEXT",
    callback=accepting(parse_description),
    help="What the token is for, 1 to 256 characters.",
)
@click.option(
    "--expires-at",
    metavar="TIME",
    callback=accepting(parse_future_time),
    help="When the token expires, in ISO 8601 with a zone. Default: never, until revoked.",
)
def create_token(
    organization_id: UUID,
    user_id: UUID,
    scopes: tuple[str, ...],
    description: str | None,
    expires_at: datetime | None,
) -> None:
    """Create an API token, and print it.

    The token is printed only once, alone on standard output, and is not stored. Its id, which
    revoke-token takes, goes to standard error.

    A token can do only what its scopes allow: visitors:read shows visitors their cases; cases:read and
    cases:write are for the system that holds the organization's cases (writing includes reading).

    \b
    Examples:
      cases-service create-token --organization ID --user ID --scope cases:write
      cases-service create-token --organization ID --user ID --expires-at 2030-01-31T12:00:00Z
    """
    from cases_service.credentials import administration

    # Print before the commit: a token that cannot be printed is not created.
    with connected() as (connection, _), connection.transaction():
        token_id, token = administration.create_token(
            connection,
            organization_id=organization_id,
            user_id=user_id,
            scopes=scopes,
            description=description,
            expires_at=expires_at,
        )
        click.echo(f"token id: {token_id}", err=True)
        click.echo(token)


@cli.command("revoke-token")
@organization_option
@click.argument("token_id", metavar="TOKEN_ID", callback=accepting(parse_id))
def revoke_token(organization_id: UUID, token_id: UUID) -> None:
    """Revoke an API token, from the next request on.

    TOKEN_ID is the id that create-token printed on standard error, not the token.

    \b
    Example:
      cases-service revoke-token --organization ID TOKEN_ID
    """
    from cases_service.credentials import administration

    with connected() as (connection, _):
        administration.revoke_token(connection, organization_id=organization_id, token_id=token_id)


@cli.command("list-tokens")
@organization_option
@json_option
def list_tokens(organization_id: UUID, as_json: bool) -> None:  # noqa: FBT001  click's way to pass a flag
    """Show an organization's API tokens.

    Includes when each was last used, which is recorded at most once a minute. Neither a token nor its
    hash is shown.

    \b
    Example:
      cases-service list-tokens --organization ID
    """
    from cases_service.credentials import administration

    with connected() as (connection, _):
        show(administration.list_tokens(connection, organization_id=organization_id), as_json=as_json)


@cli.command("create-key")
@organization_option
@click.option(
    "--algorithm",
    type=click.Choice(ALGORITHMS),
    default="HS256",
    show_default=True,
    help="The algorithm that signs JWTs.",
)
@click.option(
    "--public-key",
    "public_key_file",
    type=click.Path(exists=True, dir_okay=False, readable=True, path_type=Path),
    help="The public key in PEM, for RS, ES and EdDSA; the private key stays with you.",
)
def create_key(organization_id: UUID, algorithm: str, public_key_file: Path | None) -> None:
    """Create a signing key for visitors' JWTs, and print it.

    The key is printed as JSON, only once. For HMAC (HS256, HS384, HS512) this command generates the
    secret. For the other algorithms, register the public key. Up to 10 keys may be live, so a new one can
    replace an old one without a gap.

    \b
    Examples:
      cases-service create-key --organization ID
      cases-service create-key --organization ID --algorithm ES256 --public-key es256.pem
    """
    from cases_service.credentials import administration

    if (algorithm in HMAC_ALGORITHMS) != (public_key_file is None):
        needs = "takes no --public-key" if public_key_file else "needs a --public-key"
        raise click.UsageError(f"--algorithm {algorithm} {needs}.")
    public_key = None if public_key_file is None else public_key_file.read_bytes().decode("ascii", "replace")
    # Print before the commit: a key whose secret cannot be printed is not created.
    with connected() as (connection, box), connection.transaction():
        key = administration.create_key(
            connection, organization_id=organization_id, algorithm=algorithm, public_key=public_key, box=box
        )
        shown = {"kid": str(key.kid), "algorithm": key.algorithm, "secret": key.secret}
        show_json({name: value for name, value in shown.items() if value is not None})


@cli.command("retire-key")
@organization_option
@click.argument("kid", metavar="KID", callback=accepting(parse_id))
def retire_key(organization_id: UUID, kid: UUID) -> None:
    """Retire a signing key, from the next request on.

    \b
    Example:
      cases-service retire-key --organization ID KID
    """
    from cases_service.credentials import administration

    with connected() as (connection, _):
        administration.retire_key(connection, organization_id=organization_id, key_id=kid)


@cli.command("list-keys")
@organization_option
@json_option
def list_keys(organization_id: UUID, as_json: bool) -> None:  # noqa: FBT001  click's way to pass a flag
    """Show an organization's signing keys.

    Includes when each was last used, which is recorded at most once a minute: a key that nobody has used
    for some time is safe to retire. No secret is shown.

    \b
    Example:
      cases-service list-keys --organization ID
    """
    from cases_service.credentials import administration

    with connected() as (connection, _):
        show(administration.list_keys(connection, organization_id=organization_id), as_json=as_json)


@cli.command("rotate-secrets")
def rotate_secrets() -> None:
    """Encrypt the stored secrets with a new secret key.

    Re-encrypts all signing secrets with the first of the keys in CASES_SECRET_KEY.

    \b
    To replace a secret key:
      1. run serve with CASES_SECRET_KEY=NEW,OLD
      2. CASES_SECRET_KEY=NEW,OLD cases-service rotate-secrets
      3. run serve with CASES_SECRET_KEY=NEW
    """
    from cases_service.credentials import administration

    with connected() as (connection, box):
        count = administration.rotate_secrets(connection, box=box)
    click.echo(f"{counted(count, 'secret')} encrypted with the first secret key")
