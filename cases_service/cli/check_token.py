"""Explains whether the service accepts a visitor's JWT, step by step, with the functions that the service uses."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cases_service.api.authentication import IN_HEADER, MAXIMUM_IN_PATH, visitor_token
from cases_service.credentials.algorithms import ALGORITHMS
from cases_service.credentials.secret_encryption import SecretNotOpenedError
from cases_service.credentials.visitor_jwt import Rules, VerificationKey, candidates, check_claims, find_key, parse
from cases_service.problems import (
    InternalError,
    ProblemError,
    SubscriptionInactiveError,
    TokenSignatureInvalidError,
    VisitorNotFoundError,
)

Finding = tuple[str, str]

_LONGEST_ECHO: Final = 80
_YEAR_10000: Final = 253_402_300_800


@dataclass(frozen=True, slots=True)
class TokenReport:
    """The findings, and the error that the service would answer; None if it would accept the token."""

    findings: list[Finding]
    problem: ProblemError | None


def examine(
    token: str,
    keys: Sequence[VerificationKey],
    rules: Rules,
    *,
    now: float,
    has_subscription: bool,
    count_contacts: Callable[[str], int | None],
) -> TokenReport:
    """Return a report on a token in the header, at a time in seconds since 1970.

    Args:
        token: The JWT in compact form.
        keys: All live signing keys of the organization.
        rules: The requirements of the claims.
        now: The time of the request.
        has_subscription: Whether the organization's subscription is active. If not, the token is refused anyway.
        count_contacts: Returns the number of contacts of a visitor by external id; None if there is no such visitor.

    """
    findings: list[Finding] = [("subscription", "active" if has_subscription else "not active")]
    refusal = None if has_subscription else SubscriptionInactiveError()
    try:
        for finding in _walk(token, keys, rules, now, count_contacts):
            findings.append(finding)  # noqa: PERF402  keeps the findings before an error
    except ProblemError as problem:
        return TokenReport(findings, refusal or problem)
    return TokenReport(findings, refusal)


def _walk(
    token: str,
    keys: Sequence[VerificationKey],
    rules: Rules,
    now: float,
    count_contacts: Callable[[str], int | None],
) -> Iterator[Finding]:
    parsed = parse(visitor_token(IN_HEADER, token))
    if len(token) > MAXIMUM_IN_PATH:
        yield (
            "place",
            f"in the header only: the path takes {MAXIMUM_IN_PATH:,} characters, it has {len(token):,}",
        )
    algorithm = parsed.header.get("alg")
    yield "algorithm", str(algorithm) if algorithm in ALGORITHMS else _echo(algorithm)
    yield "live keys", str(len(keys))
    fitting = candidates(parsed.header, keys)
    yield "key", f"{fitting[0].id}" if "kid" in parsed.header else f"no kid; {len(fitting)} of this algorithm"
    try:
        key = find_key(parsed, keys)
    except TokenSignatureInvalidError:
        yield "signature", "not valid"
        raise
    except SecretNotOpenedError as error:
        raise InternalError(
            f"the secret of signing key {error} opens with none of the keys in CASES_SECRET_KEY"
        ) from None
    yield "signature", f"valid, by {key.id}"
    yield from _times(parsed.claims, now)
    check_claims(parsed.claims, rules, now)
    yield "visitor", _echo(parsed.claims["sub"])
    contacts = count_contacts(parsed.claims["sub"])
    if contacts is None:
        raise VisitorNotFoundError
    yield "contacts", str(contacts)


def _times(claims: dict[str, Any], now: float) -> Iterator[Finding]:
    for name, label in (("iat", "issued"), ("nbf", "not before"), ("exp", "expires")):
        value = claims.get(name)
        if isinstance(value, int | float) and 0 <= value < _YEAR_10000:
            ahead = round(value - now)
            distance = f"in {ahead} s" if ahead > 0 else f"{-ahead} s ago"
            is_skewed = name == "iat" and ahead > 0
            yield label, f"{distance}: the clock that signed is ahead of this one" if is_skewed else distance


def _echo(value: object) -> str:
    # It is not verified, and control characters would control the terminal.
    return ascii(value)[:_LONGEST_ECHO]
