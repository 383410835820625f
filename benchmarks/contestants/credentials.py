"""What the peers know of the service's credentials: the form of an API token, and how a signing secret is opened."""

import os
from typing import Any, Final
from uuid import UUID

from psycopg.conninfo import conninfo_to_dict

from cases_service.credentials.api_tokens import ApiToken
from cases_service.credentials.secret_encryption import SecretBox

_BOX: Final = SecretBox(os.environ.get("CASES_SECRET_KEY", "").split(","))


def api_token(authorization: str) -> ApiToken | None:
    """Return what an Authorization header holds, or None where it is no token."""
    scheme, _, text = authorization.partition(" ")
    return ApiToken.parse(text) if scheme == "Token" else None


def signing_secret(organization_id: UUID, key_id: UUID, algorithm: str, sealed: str) -> str:
    """Return the secret of a key; it is decrypted once and kept."""
    return _BOX.open(sealed, organization_id=organization_id, key_id=key_id, algorithm=algorithm)


def database() -> dict[str, Any]:
    """Return the parts of DATABASE_URL."""
    return conninfo_to_dict(os.environ["DATABASE_URL"])
