"""Verifies a visitor's JWT: first its form, strictly, then key and signature, and only then its claims.

The form is the compact serialization of RFC 7515, to the letter; the claims are those of RFC 7519. The order of the
checks is fixed, so that each refusal has one code. PyJWT verifies the signatures.
"""

import base64
import binascii
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, NamedTuple, NoReturn, Protocol
from uuid import UUID

import jwt
from jwt.algorithms import Algorithm

from cases_service.credentials.algorithms import ALGORITHMS, HMAC_ALGORITHMS
from cases_service.credentials.secret_encryption import SecretNotOpenedError
from cases_service.problems import (
    TokenAlgorithmNotAllowedError,
    TokenClaimInvalidError,
    TokenClaimMissingError,
    TokenExpiredError,
    TokenKeyUnknownError,
    TokenLifetimeTooLongError,
    TokenMalformedError,
    TokenNotYetValidError,
    TokenSignatureInvalidError,
)

_YEAR_10000: Final = 253_402_300_800
_MAXIMUM_SUBJECT: Final = 256
_SIGNIFICANT_DIGITS: Final = 30


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """A live signing key of an organization. `material` returns the secret or the public key's PEM."""

    id: UUID
    algorithm: str
    material: Callable[[], str]


class Rules(Protocol):
    """A deployment's requirements of the claims; `Settings` implements it."""

    @property
    def jwt_require_exp(self) -> bool: ...  # noqa: D102
    @property
    def jwt_audience(self) -> str | None: ...  # noqa: D102
    @property
    def jwt_issuer(self) -> str | None: ...  # noqa: D102
    @property
    def jwt_max_ttl(self) -> int: ...  # noqa: D102
    @property
    def jwt_leeway(self) -> int: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class ParsedToken:
    """A well-formed token, not verified yet."""

    header: dict[str, Any]
    claims: dict[str, Any]
    signing_input: bytes
    signature: bytes


class Signed(NamedTuple):
    """A token's claims, and the id of the key that signed them."""

    claims: Mapping[str, Any]
    key_id: UUID


def signed_claims(token: str, keys: Sequence[VerificationKey]) -> Signed:
    """Return the claims of a token signed by one of an organization's live keys, and the key's id.

    Args:
        token: The JWT in compact form; its length was checked before.
        keys: All live signing keys of the organization.

    Raises:
        VisitorTokenError: The token is refused; the class says why.
        SecretNotOpenedError: The secret of a key that may have signed it cannot be decrypted.

    """
    parsed = parse(token)
    key = find_key(parsed, keys)
    return Signed(MappingProxyType(parsed.claims), key.id)


def subject(claims: Mapping[str, Any], rules: Rules, *, now: float | None = None) -> str:
    """Return the external identity that signed claims prove.

    Args:
        claims: Those that `signed_claims` returned.
        rules: The requirements of the claims.
        now: Seconds since 1970; by default the present time.

    Raises:
        VisitorTokenError: The claims are refused; the class says why.

    """
    check_claims(claims, rules, time.time() if now is None else now)
    identity: str = claims["sub"]
    return identity


def parse(token: str) -> ParsedToken:
    """Return the parts of a token, or raise TokenMalformedError."""
    parts = token.split(".")
    if len(parts) != 3:  # noqa: PLR2004
        raise TokenMalformedError
    header, claims = _json_object(_decode(parts[0])), _json_object(_decode(parts[1]))
    if "crit" in header or "b64" in header or header.get("typ", "JWT") != "JWT":
        raise TokenMalformedError
    return ParsedToken(header, claims, f"{parts[0]}.{parts[1]}".encode("ascii"), _decode(parts[2]))


def find_key(parsed: ParsedToken, keys: Sequence[VerificationKey]) -> VerificationKey:
    """Return the key that signed a token.

    Raises:
        VisitorTokenError: Its algorithm, key id or signature is refused; the class says why.
        SecretNotOpenedError: No key verifies it, but the secret of one candidate cannot be decrypted.

    """
    unopened = None
    for key in candidates(parsed.header, keys):
        try:
            if _verifies(key, parsed):
                return key
        except SecretNotOpenedError as error:
            unopened = unopened or error
    raise unopened or TokenSignatureInvalidError


def candidates(header: dict[str, Any], keys: Sequence[VerificationKey]) -> list[VerificationKey]:
    """Return the keys that may have signed a token: the one that `kid` names, else all with its algorithm."""
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise TokenAlgorithmNotAllowedError
    fitting = [key for key in keys if key.algorithm == algorithm]
    if not fitting:
        raise TokenAlgorithmNotAllowedError
    if "kid" not in header:
        return fitting
    named = _named(header["kid"], keys)
    if named.algorithm != algorithm:
        raise TokenAlgorithmNotAllowedError
    return [named]


def check_claims(claims: Mapping[str, Any], rules: Rules, now: float) -> None:
    """Raise a VisitorTokenError unless the verified token's claims are valid at `now`, in seconds since 1970."""
    for name in ("sub", "exp") if rules.jwt_require_exp else ("sub",):
        if name not in claims:
            raise TokenClaimMissingError(f"The claim {name} is required.")
    _check_subject(claims["sub"])
    for name in ("exp", "nbf", "iat"):
        _check_time(claims, name)
    _check_audience(claims, rules.jwt_audience)
    if rules.jwt_issuer is not None and claims.get("iss") != rules.jwt_issuer:
        raise TokenClaimInvalidError("The claim iss is not the issuer that this service expects.")
    _check_validity(claims, rules, now)


def _check_validity(claims: Mapping[str, Any], rules: Rules, now: float) -> None:
    leeway = rules.jwt_leeway
    expires_at = claims.get("exp", math.inf)
    if expires_at <= now - leeway:
        raise TokenExpiredError
    if any(claims.get(name, 0) > now + leeway for name in ("nbf", "iat")):
        raise TokenNotYetValidError
    if "exp" in claims and expires_at > now + leeway + rules.jwt_max_ttl:
        raise TokenLifetimeTooLongError(f"Its exp may lie at most {rules.jwt_max_ttl} seconds ahead.")


def _check_subject(subject: object) -> None:
    if not isinstance(subject, str) or not 1 <= len(subject) <= _MAXIMUM_SUBJECT or "\0" in subject:
        raise TokenClaimInvalidError("The claim sub is the visitor's external id, a string of 1 to 256 characters.")
    try:
        subject.encode()
    except UnicodeEncodeError:
        raise TokenClaimInvalidError("The claim sub holds half of a surrogate pair.") from None


def _check_time(claims: Mapping[str, Any], name: str) -> None:
    value = claims.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _YEAR_10000:
        raise TokenClaimInvalidError(f"The claim {name} is a number of seconds since 1970, before the year 10000.")


def _check_audience(claims: Mapping[str, Any], audience: str | None) -> None:
    if "aud" not in claims and audience is None:
        return
    named = claims.get("aud")
    names = named if isinstance(named, list) else [named]
    if audience is None or audience not in names or not all(isinstance(name, str) for name in names):
        raise TokenClaimInvalidError("The claim aud does not name the audience that this service expects.")


def _named(kid: object, keys: Sequence[VerificationKey]) -> VerificationKey:
    for key in keys:
        if isinstance(kid, str) and kid.lower() == str(key.id):
            return key
    raise TokenKeyUnknownError


def _verifies(key: VerificationKey, parsed: ParsedToken) -> bool:
    algorithm, prepared = _prepare(key.algorithm, key.material())
    return algorithm.verify(parsed.signing_input, prepared, parsed.signature)


@lru_cache(maxsize=1024)
def _prepare(name: str, material: str) -> tuple[Algorithm, Any]:
    # A key is parsed once. The keys of the request, never this cache, decide which may verify.
    algorithm = jwt.PyJWS().get_algorithm_by_name(name)
    # PyJWT rejects a secret that looks like a public key, to prevent key confusion. Here each key has one algorithm.
    return algorithm, material.encode() if name in HMAC_ALGORITHMS else algorithm.prepare_key(material)


def _decode(part: str) -> bytes:
    try:
        raw = base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        raise TokenMalformedError from None
    if base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii") != part:
        raise TokenMalformedError
    return raw


def _json_object(raw: bytes) -> dict[str, Any]:
    try:
        value = _DECODER.decode(raw.decode("utf-8"))
    except (ValueError, RecursionError):
        raise TokenMalformedError from None
    if not isinstance(value, dict):
        raise TokenMalformedError
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise TokenMalformedError
    return value


def _number(digits: str) -> float:
    # An integer with thousands of digits is valid JSON, but too long for int().
    return int(digits) if len(digits) <= _SIGNIFICANT_DIGITS else float(digits)


def _no_constant(_name: str) -> NoReturn:
    # NaN and Infinity are not JSON, although Python's parser accepts them.
    raise TokenMalformedError


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_object, parse_int=_number, parse_constant=_no_constant)


def sign(
    external_id: str,
    *,
    secret: str,
    algorithm: str,
    key_id: UUID,
    ttl: int,
    audience: str | None = None,
    issuer: str | None = None,
    now: float | None = None,
) -> str:
    """Return a visitor's JWT, signed with an HMAC secret and valid for `ttl` seconds."""
    issued_at = int(time.time() if now is None else now)
    claims = {"sub": external_id, "iat": issued_at, "exp": issued_at + ttl, "aud": audience, "iss": issuer}
    given = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(given, secret, algorithm=algorithm, headers={"kid": str(key_id)})
