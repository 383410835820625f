"""The scopes of API tokens."""

from collections.abc import Collection
from typing import Final, Literal

from cases_service.problems import ScopeMissingError

Scope = Literal["visitors:read", "visitors:write", "cases:read", "cases:write"]

SCOPES: Final[tuple[Scope, ...]] = ("visitors:read", "visitors:write", "cases:read", "cases:write")
DEFAULT_SCOPES: Final[tuple[Scope, ...]] = ("visitors:read",)
_INCLUDED_IN: Final[dict[Scope, Scope]] = {"cases:read": "cases:write"}


def check_scope(granted: Collection[str], needed: Scope) -> None:
    """Raise ScopeMissingError unless a token's scopes include the one that a route needs."""
    if needed not in granted and _INCLUDED_IN.get(needed) not in granted:
        raise ScopeMissingError(needed)
