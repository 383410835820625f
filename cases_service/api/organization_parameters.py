"""Reads the query parameters of an organization's own collection."""

import re
from typing import Any, Final

from marshmallow import ValidationError, fields, post_load

from cases_service.api.parameters import CollectionParameters, CommaSeparated
from cases_service.cases.organization_filters import NONE, OrganizationFilters
from cases_service.cases.schemas import says

MOST_IDENTIFIERS: Final = 100
_UUID: Final = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
_LONGEST: Final = 256


class Identifiers(CommaSeparated):
    """Some UUIDs, or `null` for none, separated by commas or each in a parameter of its own."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__((), **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> frozenset[str]:
        items = value.split(",")
        if len(items) > MOST_IDENTIFIERS or not all(item == NONE or _UUID.fullmatch(item) for item in items):
            raise ValidationError(f"Expected {MOST_IDENTIFIERS} UUIDs at the most, or {NONE}, by commas or repeated.")
        return frozenset(item.lower() for item in items)


class Name(fields.String):
    """A text of 1 to 256 characters that the database can hold."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        if not 1 <= len(value) <= _LONGEST or "\0" in value:
            raise ValidationError(f"Expected 1 to {_LONGEST} characters, without U+0000.")
        return str(value)


class OrganizationCollectionParameters(CollectionParameters):
    """The parameters of a page of an organization's cases."""

    contact_id = Identifiers(
        load_default=None, metadata=says("Only cases of one of these contacts; `null` for those without one.")
    )
    owner_id = Identifiers(
        load_default=None, metadata=says("Only cases of one of these owners; `null` for those without one.")
    )
    case_number = Name(
        load_default=None, metadata=says("Only the case with exactly this number.", minLength=1, maxLength=256)
    )
    external_id = Name(
        load_default=None, metadata=says("Only cases of the visitor with this external id.", minLength=1, maxLength=256)
    )

    @post_load
    def _gather_own(self, parameters: dict[str, Any], **_: Any) -> dict[str, Any]:
        own = OrganizationFilters(
            common=parameters.pop("filters"),
            contact_ids=parameters.pop("contact_id"),
            owner_ids=parameters.pop("owner_id"),
            case_number=parameters.pop("case_number"),
            external_id=parameters.pop("external_id"),
        )
        return {**parameters, "filters": own}
