"""Every error that a request can end with: a class is its status, its code and, as its docstring, its title.

The codes are part of the interface. Within API version 5 codes are added, never removed or renamed.
"""

from collections.abc import Iterator
from typing import Any, ClassVar


class ProblemError(Exception):
    """Ends a request with a problem document. `detail` helps a person and carries nothing secret."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    default_detail: ClassVar[str] = ""

    def __init__(self, detail: str = "", *, errors: list[dict[str, Any]] | None = None) -> None:
        super().__init__(self.code)
        self.detail = detail or self.default_detail
        self.errors = errors
        self.headers: dict[str, str] = {}

    @property
    def title(self) -> str:
        """The same words for each occurrence of the code."""
        return (self.__doc__ or "").strip().rstrip(".")

    def as_dict(self) -> dict[str, Any]:
        """Return what `ProblemSchema` describes, apart from the request id."""
        document = {"code": self.code, "title": self.title, "status": self.status, "detail": self.detail}
        return document if self.errors is None else document | {"errors": self.errors}


class HostNotAllowedError(ProblemError):
    """The host is not one of this service's."""

    status = 400
    code = "host_not_allowed"
    default_detail = "Set CASES_PUBLIC_URL, or add the host that clients use to CASES_ALLOWED_HOSTS."


class NotFoundError(ProblemError):
    """There is nothing at this path."""

    status = 404
    code = "not_found"
    default_detail = "The paths are described in the API documentation; an organization id is a UUID."


class MethodNotAllowedError(ProblemError):
    """The path does not take this method."""

    status = 405
    code = "method_not_allowed"
    default_detail = "The header Allow lists the methods that the path takes."

    def __init__(self, allowed: list[str]) -> None:
        super().__init__()
        self.headers = {"Allow": ", ".join(sorted(allowed))}


class UnauthorizedError(ProblemError):
    """A 401. Never raised itself."""

    status = 401

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail)
        self.headers = {"WWW-Authenticate": 'Token realm="cases", Bearer realm="cases"'}


class AuthenticationRequiredError(UnauthorizedError):
    """An API token is required."""

    code = "authentication_required"
    default_detail = "Send the header Authorization: Token <api token>, or Bearer instead of Token."


class ApiTokenInvalidError(UnauthorizedError):
    """The API token is not valid."""

    code = "api_token_invalid"
    default_detail = "It is unknown, mistyped, expired or revoked. Ask the organization's administrator for a new one."


class OrganizationForbiddenError(ProblemError):
    """The API token gives no access to this organization."""

    status = 403
    code = "organization_forbidden"
    default_detail = "Use the id of the organization that the API token was made for."


class SubscriptionInactiveError(ProblemError):
    """The organization has no active subscription."""

    status = 403
    code = "subscription_inactive"
    default_detail = "Renew the organization's subscription."


class ScopeMissingError(ProblemError):
    """The API token lacks a scope."""

    status = 403
    code = "scope_missing"
    default_detail = "Use a token that was made with the scope that this route needs: create-token --scope."

    def __init__(self, scope: str = "") -> None:
        super().__init__(f"This needs a token with the scope {scope}: create-token --scope {scope}." if scope else "")


class ReadOnlyDeploymentError(ProblemError):
    """The service only reads."""

    status = 403
    code = "read_only_deployment"
    default_detail = "Nothing can be written through it: its operator has set no CASES_WRITE_DATABASE_URL."


class RateLimitedError(ProblemError):
    """There were too many requests."""

    status = 429
    code = "rate_limited"
    default_detail = "Try again after the seconds that Retry-After says."

    def __init__(self, *, retry_after: int) -> None:
        super().__init__()
        self.headers = {"Retry-After": str(retry_after)}


class InvalidParameterError(ProblemError):
    """A query parameter is wrong."""

    status = 400
    code = "invalid_parameter"
    default_detail = "The list of errors names each parameter and what it accepts."


class InvalidCursorError(ProblemError):
    """The cursor does not fit this collection."""

    status = 400
    code = "invalid_cursor"
    default_detail = (
        "Follow the links next and previous as they are. A cursor holds for the organization, visitor,"
        " ordering and filters that it was made for; start again without one."
    )


class UnsupportedMediaTypeError(ProblemError):
    """The body is of a type that this route does not take."""

    status = 415
    code = "unsupported_media_type"
    default_detail = (
        "Send JSON as it is, with Content-Type: application/json; for PATCH application/merge-patch+json, too."
    )


class BodyTooLargeError(ProblemError):
    """The body is too large."""

    status = 413
    code = "body_too_large"
    default_detail = "It has 1 MiB at the most."


class InvalidBodyError(ProblemError):
    """The body is wrong."""

    status = 400
    code = "invalid_body"
    default_detail = "The list of errors names each wrong member and what it accepts."


class InvalidLinesError(ProblemError):
    """Lines of the import are wrong."""

    status = 400
    code = "invalid_lines"
    default_detail = (
        "Nothing was stored. The list of errors names the first wrong lines, and error_count says how many."
    )

    def __init__(self, errors: list[dict[str, Any]] | None = None, *, error_count: int = 0) -> None:
        super().__init__(errors=errors)
        self._error_count = error_count

    def as_dict(self) -> dict[str, Any]:
        """Return the document with the number of wrong lines."""
        return super().as_dict() | {"error_count": self._error_count}


class VisitorTokenError(ProblemError):
    """The visitor's JWT is refused. Never raised itself."""

    status = 400


class TokenAmbiguousError(VisitorTokenError):
    """The visitor's JWT is given twice."""

    code = "token_ambiguous"
    default_detail = "Give it in the path, or once in the header X-External-Identity with - in the path."


class TokenMissingError(VisitorTokenError):
    """The visitor's JWT is missing."""

    code = "token_missing"
    default_detail = "With - in the path the JWT is expected in the header X-External-Identity."


class TokenTooLongError(VisitorTokenError):
    """The visitor's JWT is too long."""

    code = "token_too_long"
    default_detail = "It has at most 4,000 characters in the path and 8,000 in the header X-External-Identity."


class TokenMalformedError(VisitorTokenError):
    """The visitor's JWT is malformed."""

    code = "token_malformed"
    default_detail = (
        "Expected a JWS in compact form: three parts in unpadded base64url, joined by dots; header and claims"
        " are JSON objects without repeated names; no crit, no b64; typ is JWT or left out."
    )


class TokenAlgorithmNotAllowedError(VisitorTokenError):
    """The algorithm of the visitor's JWT is not allowed."""

    code = "token_algorithm_not_allowed"
    default_detail = "Its alg must be the algorithm of the organization's signing key."


class TokenKeyUnknownError(VisitorTokenError):
    """The signing key of the visitor's JWT is unknown."""

    code = "token_key_unknown"
    default_detail = "Its kid must name one of the organization's signing keys that is not retired."


class TokenSignatureInvalidError(VisitorTokenError):
    """The signature of the visitor's JWT is not valid."""

    code = "token_signature_invalid"
    default_detail = "Sign with one of the organization's signing keys that is not retired."


class TokenClaimMissingError(VisitorTokenError):
    """A claim of the visitor's JWT is missing."""

    code = "token_claim_missing"


class TokenClaimInvalidError(VisitorTokenError):
    """A claim of the visitor's JWT is not valid."""

    code = "token_claim_invalid"


class TokenExpiredError(VisitorTokenError):
    """The visitor's JWT has expired."""

    code = "token_expired"
    default_detail = "Sign a new one; the cursors of the old one go on working."


class TokenNotYetValidError(VisitorTokenError):
    """The visitor's JWT is not valid yet."""

    code = "token_not_yet_valid"
    default_detail = "Its nbf or iat lies in the future; check the clock of the machine that signs."


class TokenLifetimeTooLongError(VisitorTokenError):
    """The visitor's JWT is valid for too long."""

    code = "token_lifetime_too_long"
    default_detail = "Its exp lies further ahead than this service accepts."


class VisitorNotFoundError(ProblemError):
    """The visitor does not exist."""

    status = 404
    code = "visitor_not_found"
    default_detail = "The organization has no visitor with the external id that the JWT's sub names."


class CaseNotFoundError(ProblemError):
    """The case does not exist."""

    status = 404
    code = "case_not_found"
    default_detail = "No case with this id belongs to a contact of this visitor."


class PreconditionFailedError(ProblemError):
    """The case is not as the request expects it."""

    status = 412
    code = "precondition_failed"
    default_detail = "It has changed, is there, or is gone: read it again, and decide anew."


class CaseNumberTakenError(ProblemError):
    """Another case has this number."""

    status = 409
    code = "case_number_taken"
    default_detail = "A case_number is unique within the organization; case_id names the case that has it."

    def __init__(self, case_id: str | None = None) -> None:
        super().__init__()
        self._case_id = case_id

    def as_dict(self) -> dict[str, Any]:
        """Return the document with the case that has the number."""
        return super().as_dict() | ({} if self._case_id is None else {"case_id": self._case_id})


class IdTakenError(ProblemError):
    """Another message has this id."""

    status = 409
    code = "id_taken"
    default_detail = "A message with this id is there, and it is another one: send this one under a new id."


class CaseClosedError(ProblemError):
    """The case is closed for good."""

    status = 409
    code = "case_closed"
    default_detail = "A closed case is not opened again here: begin a new one."


class EventsGoneError(ProblemError):
    """The events have been pruned."""

    status = 410
    code = "events_gone"
    default_detail = "Events behind this position are no longer kept: go on from the position given here."

    def __init__(self, position: int | None = None) -> None:
        super().__init__()
        self._position = position

    def as_dict(self) -> dict[str, Any]:
        """Return the document with the position that what is still there begins behind."""
        return super().as_dict() | ({} if self._position is None else {"position": self._position})


class InternalError(ProblemError):
    """The service failed."""

    status = 500
    code = "internal_error"
    default_detail = "The failure is logged under the request id."


class UnavailableError(ProblemError):
    """The database is away."""

    status = 503
    code = "unavailable"
    default_detail = "Try again shortly."

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail)
        self.headers = {"Retry-After": "1"}


class OutcomeUnknownError(UnavailableError):
    """The database went away before it said whether a change was made. Its code is that of its parent."""

    default_detail = (
        "The database went away before it answered: the change may have been made, or not."
        " Repeat the request; every change can be repeated safely."
    )

    @property
    def title(self) -> str:
        """The same words for each occurrence of the code."""
        return (UnavailableError.__doc__ or "").strip().rstrip(".")


class OverloadedError(UnavailableError):
    """The service has more requests than it can answer."""

    code = "overloaded"
    default_detail = "Try again shortly, and less often."


class TimeoutProblemError(ProblemError):
    """The database took too long."""

    status = 504
    code = "timeout"
    default_detail = "Try again, with fewer or other filters if it happens again."


def kinds(parent: type[ProblemError] = ProblemError) -> Iterator[type[ProblemError]]:
    """Return every class that a request can end with: those that have a code of their own."""
    for kind in parent.__subclasses__():
        if "code" in vars(kind):
            yield kind
        yield from kinds(kind)
