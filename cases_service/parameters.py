"""Reads the query parameters of a request, strictly: what is wrong, empty, unknown or repeated is named."""

import re
from typing import Any, Final

from marshmallow import RAISE, Schema, ValidationError, fields, validate
from werkzeug.datastructures import MultiDict

from cases_service.errors import InvalidParameterError
from cases_service.store import ORDERINGS

DEFAULT_PAGE_SIZE: Final = 25
MAXIMUM_PAGE_SIZE: Final = 100
_NAME_LENGTH: Final = 64


class WholeNumber(fields.Integer):
    """A number written in ASCII digits alone, without sign, blanks or leading zeros, within two limits."""

    def __init__(self, minimum: int, maximum: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.limits = range(minimum, maximum + 1)
        self.error_messages["invalid"] = f"Expected a whole number from {minimum} to {maximum}."

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> int:
        if not re.fullmatch(r"0|[1-9][0-9]{0,8}", value) or int(value) not in self.limits:
            raise self.make_error("invalid")
        return int(value)


class DetailParameters(Schema):
    """The parameters of one case."""

    class Meta:
        """Nothing else is taken."""

        unknown = RAISE

    format = fields.String(validate=validate.OneOf(["json"], error="Expected json, the only format."))


class CollectionParameters(DetailParameters):
    """The parameters of a page of cases."""

    ordering = fields.String(
        load_default="created_at", validate=validate.OneOf(ORDERINGS, error="Expected one of {choices}.")
    )
    page_size = WholeNumber(1, MAXIMUM_PAGE_SIZE, load_default=DEFAULT_PAGE_SIZE)
    cursor = fields.String(
        load_default=None, validate=validate.Length(min=1, error="Expected the cursor of a link next or previous.")
    )


def read_parameters(schema: Schema, arguments: MultiDict[str, str]) -> dict[str, Any]:
    """Return the parameters that a schema describes.

    Raises:
        InvalidParameterError: Names each wrong parameter and what it accepts.

    """
    names = ", ".join(schema.load_fields)
    errors = {name: "Expected once." for name, values in arguments.lists() if len(values) > 1}
    try:
        parameters: dict[str, Any] = schema.load(arguments.to_dict())
    except ValidationError as error:
        for name, messages in error.normalized_messages().items():
            known = name in schema.load_fields
            errors.setdefault(name, messages[0] if known else f"Unknown parameter. The parameters are: {names}.")
        parameters = {}
    if errors:
        found = [{"parameter": name[:_NAME_LENGTH], "detail": detail} for name, detail in errors.items()]
        raise InvalidParameterError(errors=found)
    return parameters
