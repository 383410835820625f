"""The filters of an organization's own collection, beyond those of a visitor."""

from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from cases_service.cases.filters import Filters

NONE: Final = "null"

Source = Literal["all", "contacts", "visitor", "number"]
"""The source of a page's keys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganizationFilters:
    """Conditions that a case must all meet; None means any value.

    Ids are texts in lower case; `null` among them means cases without one.
    """

    common: Filters
    contact_ids: frozenset[str] | None = None
    owner_ids: frozenset[str] | None = None
    case_number: str | None = None
    external_id: str | None = None

    @property
    def source(self) -> Source:
        """The source that needs to check the fewest cases."""
        if self.case_number is not None:
            return "number"
        if self.external_id is not None:
            return "visitor"
        return "contacts" if self.contact_ids is not None and NONE not in self.contact_ids else "all"

    def canonical(self) -> str:
        """Return the same text for filters with the same conditions."""
        own = (_sorted(self.contact_ids), _sorted(self.owner_ids), self.case_number, self.external_id)
        return msgspec.json.encode([self.common.canonical(), *own]).decode()

    def parameters(self) -> dict[str, Any]:
        """Return the parameters of the statement."""
        return {
            **self.common.parameters(),
            "any_contact": self.contact_ids is None,
            "contact_ids": _ids(self.contact_ids),
            "no_contact": NONE in (self.contact_ids or ()),
            "any_owner": self.owner_ids is None,
            "owner_ids": _ids(self.owner_ids),
            "no_owner": NONE in (self.owner_ids or ()),
            "case_number": self.case_number,
            "external_id": self.external_id,
        }


def _sorted(ids: frozenset[str] | None) -> list[str] | None:
    return None if ids is None else sorted(ids)


def _ids(ids: frozenset[str] | None) -> list[str]:
    return sorted((ids or frozenset()) - {NONE})
