"""Checks what gives access: signing keys, their stored secrets, and API tokens."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Final
from uuid import UUID

from cases_service.cli.doctor.findings import AnyConnection, Verdict, describe, list_some, value_of
from cases_service.credentials.secret_encryption import SecretBox, SecretNotOpenedError
from cases_service.database.statements import statements
from cases_service.settings import Settings

_SQL: Final = statements("doctor")
_SOON: Final = timedelta(days=14)


def check_signing_keys(connection: AnyConnection) -> Verdict:
    """Check that there is a live signing key, and that none is about to retire."""
    if not value_of(connection, _SQL["has_live_key_anywhere"]):
        return "warning", "there is none, so no visitor's JWT is accepted: cases-service create-key"
    rows = connection.execute(_SQL["list_retiring_keys_everywhere"], {"within": _SOON}).fetchall()
    if not rows:
        return "ok", f"none retires within {_SOON.days} days"
    retiring = list_some([describe(key_id, organization_id, at) for organization_id, key_id, at, _ in rows])
    if left := _unique(organization_id for organization_id, _, _, has_successor in rows if not has_successor):
        return (
            "warning",
            f"about to retire: {retiring}; cases-service create-key for {list_some(left)}, with no other key",
        )
    return "warning", f"about to retire: {retiring}; see by cases-service list-keys that nobody uses it any more"


def check_stored_secrets(connection: AnyConnection, settings: Settings) -> Verdict:
    """Check that the configured secret keys decrypt every live secret."""
    rows = connection.execute(_SQL["list_live_secrets_everywhere"]).fetchall()
    box = SecretBox(settings.secret_keys)
    closed = [
        f"{key_id} of organization {owner}" for owner, key_id, *rest in rows if not _opens(box, owner, key_id, *rest)
    ]
    if not closed:
        return "ok", f"{len(rows)} can be opened"
    problem = "opens with none of the keys in CASES_SECRET_KEY" if settings.secret_keys else "needs CASES_SECRET_KEY"
    return "failure", f"the secret of signing key {list_some(closed)} {problem}: set the key it was stored with, too"


def _opens(box: SecretBox, organization_id: UUID, key_id: UUID, algorithm: str, sealed: str) -> bool:
    try:
        box.open(sealed, organization_id=organization_id, key_id=key_id, algorithm=algorithm)
    except SecretNotOpenedError:
        return False
    return True


def check_api_tokens(connection: AnyConnection) -> Verdict:
    """Check that there is a live API token, and that none is about to expire."""
    if not value_of(connection, _SQL["has_live_token_anywhere"]):
        return "warning", "there is none, so every request is refused: cases-service create-token"
    rows = connection.execute(_SQL["list_ending_tokens_everywhere"], {"within": _SOON}).fetchall()
    if not rows:
        return "ok", f"none expires within {_SOON.days} days"
    ending = list_some([describe(token_id, organization_id, at) for organization_id, token_id, at in rows])
    return "warning", f"about to expire: {ending}; make new ones with cases-service create-token"


def _unique(ids: Iterable[UUID]) -> list[str]:
    return [f"organization {one}" for one in dict.fromkeys(ids)]
