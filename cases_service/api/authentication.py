"""Authenticates and authorizes requests: API token, organization, subscription, then the visitor's JWT."""

import re
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias
from uuid import UUID

from flask import Request

from cases_service.api.response import Response
from cases_service.credentials import visitor_jwt as visitor_tokens
from cases_service.credentials.api_tokens import ApiToken
from cases_service.credentials.last_use import LastUse
from cases_service.credentials.secret_encryption import SecretBox, SecretNotOpenedError
from cases_service.credentials.visitor_jwt import Rules, Signed, VerificationKey
from cases_service.database.connection_pool import Database
from cases_service.database.pipeline import Query
from cases_service.database.replicas import Replicas
from cases_service.problems import (
    ApiTokenInvalidError,
    AuthenticationRequiredError,
    OrganizationForbiddenError,
    ProblemError,
    SubscriptionInactiveError,
    TokenAmbiguousError,
    TokenMalformedError,
    TokenMissingError,
    TokenTooLongError,
    UnavailableError,
)
from cases_service.store import cases as store
from cases_service.store.cases import Access, StoredKey

if TYPE_CHECKING:
    from cases_service.api.rate_limits import RateLimits

IDENTITY_HEADER: Final = "X-External-Identity"
IN_HEADER: Final = "-"
REPEATED_IDENTITY: Final = "cases.repeated_identity"
"""The WSGI environment's key that is true if the worker found the header more than once."""

MAXIMUM_IN_PATH: Final = 4000
MAXIMUM_IN_HEADER: Final = 8000
_REMEMBERED: Final = 1024
# One for outdated access, one for a page after its versions, and as many changes of the organization's keys.
_TRIES: Final = 4
_CREDENTIALS: Final = re.compile(r"(?:token|bearer) +(.+)", re.IGNORECASE)


class Identity(NamedTuple):
    """The external id that a visitor's JWT proves, and the key that signed it."""

    external_id: str
    key_id: UUID


class VisitorQuery(NamedTuple):
    """A view's query, and the visitor it is about."""

    query: Query[Any]
    identity: Identity


Steps: TypeAlias = Generator[VisitorQuery, Any, Response]
"""A running view: it yields queries, is sent their results, and returns the response."""

View: TypeAlias = Callable[[Access], Steps]


class Gate:
    """Checks a request's access and runs its view's query, in as few round trips as possible.

    A view's query runs in one round trip, and so on one state of the database, with the query for the token's access.
    Its result counts only if the JWT was verified with exactly that access. Otherwise the JWT is verified again with
    the present access, and both queries are repeated. So nobody sees data from a state that would not let them in, and
    revoking a token, retiring a key or ending a subscription holds from the next request on.

    The gate remembers each token's last access, so that most requests take one round trip. With rate limits, every
    request looks up its token first: only proven tokens are counted, before the request is served.
    """

    def __init__(self, database: Database, cases: Replicas, limits: "RateLimits | None", last_use: LastUse) -> None:
        self._database = database
        self._cases = cases
        self._limits = limits
        self._last_use = last_use
        self._remembered: dict[bytes, Access] = {}

    def open(self, request: Request, organization_id: UUID) -> Access:
        """Return the access of the request's API token, from the primary.

        Raises:
            ProblemError: The API token gives no access to the organization.

        """
        if self._limits is None:
            return self._prove(api_token(request), organization_id)
        with self._limits.failed_authentications():
            return self._prove(api_token(request), organization_id)

    def answer(self, request: Request, organization_id: UUID, view: View, *, by_primary: bool = False) -> Response:
        """Return a view's response, given the access of the request's API token; `by_primary`, from no replica.

        Raises:
            ProblemError: The API token gives no access to the organization; or an error of the view.

        """
        if self._limits is None:
            return self._answer(api_token(request), organization_id, view, by_primary=by_primary)
        with self._limits.failed_authentications(), self._limits.known_visitors():
            return self._answer(api_token(request), organization_id, view, by_primary=by_primary)

    def _answer(self, token: ApiToken, organization_id: UUID, view: View, *, by_primary: bool) -> Response:
        begun = self._guess(token, organization_id, view) or self._open(token, organization_id, view)
        if self._limits is not None:
            self._limits.count_visitor(organization_id, begun.pending.identity.external_id)
        for _ in range(_TRIES):
            found, answer = self._ask(token, organization_id, begun.pending, by_primary=by_primary)
            if found != begun.access:
                begun.steps.close()
                begun = _begin(self._admit(token, organization_id, found), view)
                continue
            self._last_use.note(organization_id, token.hash)
            self._last_use.note(organization_id, begun.pending.identity.key_id)
            try:
                begun = begun._replace(pending=begun.steps.send(answer))
            except StopIteration as end:
                response: Response = end.value
                return response
        raise UnavailableError

    def _ask(
        self, token: ApiToken, organization_id: UUID, pending: VisitorQuery, *, by_primary: bool
    ) -> tuple[Access | None, Any]:
        visitor = pending.identity.external_id
        if by_primary:
            return self._database.ask_both(organization_id, _access_query(token), pending.query, visitor=visitor)
        links = store.get_visitor(organization_id=organization_id, external_id=visitor)
        access = _access_query(token)
        return self._cases.ask_judged(organization_id, access, pending.query, links=links, visitor=visitor)

    def _guess(self, token: ApiToken, organization_id: UUID, view: View) -> "_Begun | None":
        """Begin a view with the token's remembered access; None if that does not suffice."""
        access = self._remembered.get(token.hash) if self._limits is None else None
        if access is not None and access.organization_id == organization_id:
            # Remembered access must not refuse a request that the present access allows.
            with suppress(ProblemError, SecretNotOpenedError):
                return _begin(access, view)
        return None

    def _open(self, token: ApiToken, organization_id: UUID, view: View) -> "_Begun":
        """Begin a view with the token's present access."""
        return _begin(self._prove(token, organization_id), view)

    def _prove(self, token: ApiToken, organization_id: UUID) -> Access:
        found = self._database.ask(token.organization_id, _access_query(token))
        if found is not None and self._limits is not None:
            self._limits.count_token(token.hash)
        return self._admit(token, organization_id, found)

    def _admit(self, token: ApiToken, organization_id: UUID, access: Access | None) -> Access:
        """Return and remember a token's access, or raise the error that denies it the organization."""
        self._remembered.pop(token.hash, None)
        if access is None:
            raise ApiTokenInvalidError
        self._last_use.note(token.organization_id, token.hash)
        if access.organization_id != organization_id:
            raise OrganizationForbiddenError
        if not access.subscription_active:
            raise SubscriptionInactiveError
        if len(self._remembered) >= _REMEMBERED:
            self._remembered.clear()
        self._remembered[token.hash] = access
        return access


class _Begun(NamedTuple):
    """A view that waits for a result: the access that it was checked with, and its pending query."""

    access: Access
    steps: Steps
    pending: VisitorQuery


def _begin(access: Access, view: View) -> _Begun:
    steps = view(access)
    return _Begun(access, steps, next(steps))


def api_token(request: Request) -> ApiToken:
    """Return the API token of a request. Only its form and checksum are verified."""
    credentials = _CREDENTIALS.fullmatch(request.environ.get("HTTP_AUTHORIZATION", "").strip())
    if credentials is None:
        raise AuthenticationRequiredError
    token = _parsed(credentials[1])
    if token is None:
        raise ApiTokenInvalidError
    return token


# A backend sends the same token with every request. Its form never changes; its access is checked each time.
_parsed: Final = lru_cache(maxsize=256)(ApiToken.parse)


def _access_query(token: ApiToken) -> Query[Access | None]:
    return store.get_access(organization_id=token.organization_id, token_hash=token.hash)


def identify(request: Request, token_in_path: str, access: Access, box: SecretBox, rules: Rules) -> Identity:
    """Return the identity that the request's JWT proves to this organization, by the keys of `access`."""
    if REPEATED_IDENTITY in request.environ:
        raise TokenAmbiguousError
    token = visitor_token(token_in_path, request.environ.get("HTTP_X_EXTERNAL_IDENTITY"))
    signed = _signed_claims(token, access.organization_id, access.keys, box)
    return Identity(visitor_tokens.subject(signed.claims, rules), signed.key_id)


@lru_cache(maxsize=256)
def _signed_claims(token: str, organization_id: UUID, keys: tuple[StoredKey, ...], box: SecretBox) -> Signed:
    # A signature stays valid for these keys; the time, and whether they are live, are checked for each request.
    return visitor_tokens.signed_claims(token, verification_keys(organization_id, keys, box))


def verification_keys(organization_id: UUID, keys: Sequence[StoredKey], box: SecretBox) -> list[VerificationKey]:
    """Return stored keys as verification keys. A secret is decrypted only when needed."""
    return [VerificationKey(key.id, key.algorithm, partial(_material, organization_id, key, box)) for key in keys]


def visitor_token(in_path: str, in_header: str | None) -> str:
    """Return the JWT of a request: from the path, or from the header if the path has - in its place.

    Raises:
        VisitorTokenError: It is missing, given twice, empty or too long.

    """
    if in_header is None:
        if in_path == IN_HEADER:
            raise TokenMissingError
        if len(in_path) > MAXIMUM_IN_PATH:
            raise TokenTooLongError
        return in_path
    # A proxy may join a header that is sent twice by a comma, which no JWT holds. A comma with nothing on one side does
    # not prove that there were two.
    values = [value for value in in_header.split(",") if value.strip()]
    if in_path != IN_HEADER or len(values) > 1:
        raise TokenAmbiguousError
    if not values or values[0] != in_header:
        raise TokenMalformedError
    if len(in_header) > MAXIMUM_IN_HEADER:
        raise TokenTooLongError
    return in_header


def _material(organization_id: UUID, key: StoredKey, box: SecretBox) -> str:
    if key.public_key is not None:
        return key.public_key
    return box.open(key.encrypted_secret or "", organization_id=organization_id, key_id=key.id, algorithm=key.algorithm)
