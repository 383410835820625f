"""Decides whether a request may pass: API token, organization, subscription, then the visitor's JWT."""

import re
from collections.abc import Sequence
from functools import partial
from typing import Final
from uuid import UUID

import structlog
from flask import Request

from cases_service import store, visitor_tokens
from cases_service.api_tokens import ApiToken
from cases_service.database import Database
from cases_service.errors import (
    ApiTokenInvalidError,
    AuthenticationRequiredError,
    OrganizationForbiddenError,
    SubscriptionInactiveError,
    TokenAmbiguousError,
    TokenMalformedError,
    TokenMissingError,
    TokenTooLongError,
)
from cases_service.secret_box import SecretBox, SecretNotOpenedError
from cases_service.store import Access, StoredKey
from cases_service.visitor_tokens import Rules, VerificationKey

IDENTITY_HEADER: Final = "X-External-Identity"
IN_HEADER: Final = "-"
MAXIMUM_IN_PATH: Final = 4000
MAXIMUM_IN_HEADER: Final = 8000
_CREDENTIALS: Final = re.compile(r"(?:token|bearer) +(.+)", re.IGNORECASE)

log = structlog.get_logger()


def authenticate(request: Request, organization_id: UUID, database: Database) -> Access:
    """Return what the request's API token opens, which has to be this organization with an active subscription."""
    credentials = _CREDENTIALS.fullmatch(request.headers.get("Authorization", "").strip())
    if credentials is None:
        raise AuthenticationRequiredError
    token = ApiToken.parse(credentials[1])
    if token is None:
        raise ApiTokenInvalidError
    access = database.read(partial(store.get_access, organization_id=token.organization_id, token_hash=token.hash))
    if access is None:
        raise ApiTokenInvalidError
    if access.organization_id != organization_id:
        raise OrganizationForbiddenError
    if not access.subscription_active:
        raise SubscriptionInactiveError
    return access


def identify(request: Request, token_in_path: str, access: Access, box: SecretBox, rules: Rules) -> str:
    """Return the external identity that the request's JWT proves to this organization."""
    token = visitor_token(token_in_path, request.headers.get(IDENTITY_HEADER))
    return visitor_tokens.verify(token, verification_keys(access.organization_id, access.keys, box), rules)


def verification_keys(organization_id: UUID, keys: Sequence[StoredKey], box: SecretBox) -> list[VerificationKey]:
    """Return stored keys in the form that verifies. A secret is opened when it is needed, and not before."""
    return [VerificationKey(key.id, key.algorithm, partial(_material, organization_id, key, box)) for key in keys]


def visitor_token(in_path: str, in_header: str | None) -> str:
    """Return the JWT of a request, which stands in the path or, with - in its place there, in the header.

    Raises:
        VisitorTokenError: It is missing, given twice, empty or too long.

    """
    if in_header is None:
        if in_path == IN_HEADER:
            raise TokenMissingError
        if len(in_path) > MAXIMUM_IN_PATH:
            raise TokenTooLongError
        return in_path
    # A header that is sent twice arrives as one, joined by a comma; a JWT holds none.
    if in_path != IN_HEADER or "," in in_header:
        raise TokenAmbiguousError
    if not in_header:
        raise TokenMalformedError
    if len(in_header) > MAXIMUM_IN_HEADER:
        raise TokenTooLongError
    return in_header


def _material(organization_id: UUID, key: StoredKey, box: SecretBox) -> str:
    if key.public_key is not None:
        return key.public_key
    try:
        return box.open(
            key.encrypted_secret or "", organization_id=organization_id, key_id=key.id, algorithm=key.algorithm
        )
    except SecretNotOpenedError:
        log.error("secret_not_opened", key_id=str(key.id), advice="check CASES_SECRET_KEY")
        raise
