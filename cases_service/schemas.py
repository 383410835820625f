"""The one description of what the API answers: the case, what it nests, a page of cases, and a problem."""

from typing import Any, Final

from marshmallow import Schema, fields

from cases_service import instants

PRIORITY_LABELS: Final = {1: "None", 2: "Low", 3: "Normal", 4: "High", 5: "Critical"}


class Instant(fields.DateTime):
    """A point in time: ISO 8601 in UTC with exactly three decimals, truncated, and Z.

    Takes an aware datetime, or text that is in this form already, as connections of `database` give it.
    """

    def _serialize(self, value: Any, attr: str | None, obj: Any, **kwargs: Any) -> str | None:
        if value is None or isinstance(value, str):
            return value
        return instants.from_datetime(value)


class Label(fields.String):
    """The text that stands for a number."""

    def __init__(self, labels: dict[int, str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.labels = labels

    def _serialize(self, value: Any, attr: str | None, obj: Any, **kwargs: Any) -> str | None:
        return self.labels[value]


class UserSchema(Schema):
    """Someone who works for the organization."""

    id = fields.UUID(required=True)
    organization_id = fields.UUID(required=True)
    email = fields.String(allow_none=True)
    first_name = fields.String(allow_none=True)
    last_name = fields.String(allow_none=True)
    full_name = fields.String(allow_none=True)
    alias = fields.String(allow_none=True)
    title = fields.String(allow_none=True)
    avatar_url = fields.String(allow_none=True)


class ContactSchema(Schema):
    """One way the visitor was met."""

    id = fields.UUID(required=True)
    organization_id = fields.UUID(required=True)
    first_name = fields.String(allow_none=True)
    last_name = fields.String(allow_none=True)
    full_name = fields.String(allow_none=True)
    email = fields.String(allow_none=True)
    phone = fields.String(allow_none=True)
    created_at = Instant(required=True)
    updated_at = Instant(required=True)


class CaseFunnelStageSchema(Schema):
    """The step of the organization's process that a case is in."""

    id = fields.UUID(required=True)
    organization_id = fields.UUID(required=True)
    name = fields.String(required=True)
    position = fields.Integer(required=True)


class CaseSchema(Schema):
    """A case: a container for activities. Every attribute is in every answer, in this order."""

    id = fields.UUID(required=True)
    organization_id = fields.UUID(required=True)
    case_number = fields.String(required=True)
    contact_id = fields.UUID(required=True)
    contact = fields.Nested(ContactSchema, required=True)
    owner_id = fields.UUID(allow_none=True)
    owner = fields.Nested(UserSchema, allow_none=True)
    subject = fields.String(allow_none=True)
    description = fields.String(allow_none=True)
    status = fields.String(required=True)
    priority = fields.Integer(required=True)
    priority_label = Label(PRIORITY_LABELS, attribute="priority", dump_only=True, required=True)
    latest_messaging_channel = fields.String(allow_none=True)
    is_closed = fields.Boolean(required=True)
    closed_at = Instant(allow_none=True)
    is_waiting = fields.Boolean(required=True)
    unread_message_count = fields.Integer(required=True)
    created_at = Instant(required=True)
    updated_at = Instant(required=True)
    created_by_user_id = fields.UUID(allow_none=True)
    created_by_user = fields.Nested(UserSchema, allow_none=True)
    updated_by_user_id = fields.UUID(allow_none=True)
    updated_by_user = fields.Nested(UserSchema, allow_none=True)
    case_funnel_stage = fields.Nested(CaseFunnelStageSchema, allow_none=True)
    case_funnel_stage_id = fields.UUID(allow_none=True)
    channel_priority = fields.Integer(allow_none=True)


CASE_ATTRIBUTES: Final = tuple(CaseSchema().fields)
NESTED_ATTRIBUTES: Final = tuple(
    name for name, field in CaseSchema().fields.items() if isinstance(field, fields.Nested)
)


class PageSchema(Schema):
    """A page of cases and the links to the pages beside it."""

    next = fields.Url(allow_none=True)
    previous = fields.Url(allow_none=True)
    results = fields.List(fields.Nested(CaseSchema), required=True)


class StatusCountsSchema(Schema):
    """How many cases have each status."""

    open = fields.Integer(required=True, data_key="Open")
    in_progress = fields.Integer(required=True, data_key="In Progress")
    pending = fields.Integer(required=True, data_key="Pending")
    closed = fields.Integer(required=True, data_key="Closed")


class SummarySchema(Schema):
    """The cases of a visitor in a few numbers, for a badge."""

    total = fields.Integer(required=True)
    by_status = fields.Nested(StatusCountsSchema, required=True)
    unread_message_count = fields.Integer(required=True)
    waiting_count = fields.Integer(required=True)
    latest_updated_at = Instant(allow_none=True)


class ParameterErrorSchema(Schema):
    """What is wrong with one parameter."""

    parameter = fields.String(required=True)
    detail = fields.String(required=True)


class ProblemSchema(Schema):
    """A problem document (RFC 9457)."""

    type = fields.Function(lambda problem: f"urn:problem-type:visitor-cases:{problem['code']}", required=True)
    title = fields.String(required=True)
    status = fields.Integer(required=True)
    detail = fields.String(required=True)
    code = fields.String(required=True)
    request_id = fields.String(required=True)
    errors = fields.List(fields.Nested(ParameterErrorSchema))
