"""The schemas of the API's answers: the case, its nested objects, pages, and problems."""

from typing import Any, Final

from marshmallow import Schema, fields

from cases_service.cases import timestamps as instants
from cases_service.cases.filters import CHANNELS, STATUSES

ACTIVITY_CHANNELS: Final = ("telephony", "webchat", "whatsapp", "email")
SENDER_TYPES: Final = ("visitor", "user", "system")
EVENT_TYPES: Final = ("message_created", "case_closed", "case_reopened", "case_read")
MAXIMUM_TEXT: Final = 10_000
PRIORITY_LABELS: Final = {1: "None", 2: "Low", 3: "Normal", 4: "High", 5: "Critical"}


def says(description: str, **keywords: Any) -> dict[str, Any]:
    """Return a field's description for the OpenAPI document, and JSON Schema if its type is wider.

    `editable` says that the organization may write an attribute of a case: `required`, `optional` or
    `on creation`. An attribute without it is read-only.
    """
    return {"description": description, **keywords}


class Instant(fields.DateTime):
    """A point in time: ISO 8601 in UTC with exactly three decimals, truncated, and Z.

    Takes an aware datetime, or text already in this form, as connections of `database` return it.
    """

    def _serialize(self, value: Any, attr: str | None, obj: Any, **kwargs: Any) -> str | None:
        if value is None or isinstance(value, str):
            return value
        return instants.from_datetime(value)


class Label(fields.String):
    """The label of a number."""

    def __init__(self, labels: dict[int, str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.labels = labels

    def _serialize(self, value: Any, attr: str | None, obj: Any, **kwargs: Any) -> str | None:
        return self.labels[value]


class UserSchema(Schema):
    """Someone who works for the organization."""

    id = fields.UUID(required=True, metadata=says("The unique identifier."))
    organization_id = fields.UUID(required=True, metadata=says("The organization that the user works for."))
    email = fields.String(allow_none=True, metadata=says("The user's e-mail address."))
    first_name = fields.String(allow_none=True, metadata=says("Given name."))
    last_name = fields.String(allow_none=True, metadata=says("Family name."))
    full_name = fields.String(allow_none=True, metadata=says("The non-empty name parts, joined by a space."))
    alias = fields.String(allow_none=True, metadata=says("Another name of the user."))
    title = fields.String(allow_none=True, metadata=says("Job title."))
    avatar_url = fields.String(allow_none=True, metadata=says("Address of a picture."))


class ContactSchema(Schema):
    """One address or telephone number of a visitor."""

    id = fields.UUID(required=True, metadata=says("The unique identifier."))
    organization_id = fields.UUID(required=True, metadata=says("The organization that the contact belongs to."))
    first_name = fields.String(allow_none=True, metadata=says("Given name."))
    last_name = fields.String(allow_none=True, metadata=says("Family name."))
    full_name = fields.String(allow_none=True, metadata=says("The non-empty name parts, joined by a space."))
    email = fields.String(allow_none=True, metadata=says("E-mail address."))
    phone = fields.String(allow_none=True, metadata=says("Telephone number."))
    created_at = Instant(required=True, metadata=says("When the contact was created."))
    updated_at = Instant(required=True, metadata=says("When the contact was last changed."))


class CaseFunnelStageSchema(Schema):
    """The step of the organization's process that the case has reached."""

    id = fields.UUID(required=True, metadata=says("The unique identifier."))
    organization_id = fields.UUID(required=True, metadata=says("The organization whose process it is."))
    name = fields.String(required=True, metadata=says("What the organization calls the stage."))
    position = fields.Integer(required=True, metadata=says("Its place among the stages."))


class CaseSchema(Schema):
    """A case: a container for activities. Every attribute is in every answer, in this order."""

    id = fields.UUID(required=True, metadata=says("The unique identifier."))
    organization_id = fields.UUID(required=True, metadata=says("The organization that owns the case."))
    case_number = fields.String(
        required=True,
        metadata=says(
            "The case's number, unique within the organization.", editable="required", minLength=1, maxLength=256
        ),
    )
    contact_id = fields.UUID(
        required=True, metadata=says("The contact to which the case is assigned.", editable="optional")
    )
    contact = fields.Nested(ContactSchema, required=True, metadata={"editable": "optional"})
    owner_id = fields.UUID(allow_none=True, metadata=says("The user who handles the case.", editable="optional"))
    owner = fields.Nested(
        UserSchema, allow_none=True, metadata=says("The user who handles the case.", editable="optional")
    )
    subject = fields.String(allow_none=True, metadata=says("A short title.", editable="optional", maxLength=1000))
    description = fields.String(
        allow_none=True, metadata=says("What the case is about.", editable="optional", maxLength=65536)
    )
    status = fields.String(required=True, metadata=says("Where the case stands.", enum=STATUSES))
    priority = fields.Integer(
        required=True, metadata=says("From 1, none, to 5, critical.", editable="required", minimum=1, maximum=5)
    )
    priority_label = Label(
        PRIORITY_LABELS,
        attribute="priority",
        dump_only=True,
        required=True,
        metadata=says("The name of the priority.", enum=[*PRIORITY_LABELS.values()]),
    )
    latest_messaging_channel = fields.String(
        allow_none=True,
        metadata=says("The channel of the latest message.", editable="optional", enum=[*CHANNELS[1:], None]),
    )
    is_closed = fields.Boolean(
        required=True, metadata=says("True exactly when the status is `Closed`.", editable="optional")
    )
    closed_at = Instant(allow_none=True, metadata=says("When the case was closed; null exactly while it is not."))
    is_waiting = fields.Boolean(required=True, metadata=says("Whether the case awaits an action or a response."))
    unread_message_count = fields.Integer(
        required=True, metadata=says("Messages that no agent has read yet.", minimum=0)
    )
    created_at = Instant(required=True, metadata=says("When the case was created."))
    updated_at = Instant(required=True, metadata=says("When the case was last changed."))
    created_by_user_id = fields.UUID(
        allow_none=True, metadata=says("The user who created the case.", editable="on creation")
    )
    created_by_user = fields.Nested(
        UserSchema, allow_none=True, metadata=says("The user who created the case.", editable="on creation")
    )
    updated_by_user_id = fields.UUID(
        allow_none=True, metadata=says("The user who last changed the case.", editable="optional")
    )
    updated_by_user = fields.Nested(UserSchema, allow_none=True, metadata=says("The user who last changed the case."))
    case_funnel_stage = fields.Nested(
        CaseFunnelStageSchema, allow_none=True, metadata=says("The stage that the case is in.", editable="optional")
    )
    case_funnel_stage_id = fields.UUID(
        allow_none=True, metadata=says("The stage that the case is in.", editable="optional")
    )
    channel_priority = fields.Integer(
        allow_none=True,
        metadata=says(
            "How urgent the channel is: telephony 4, webchat 3, whatsapp 2, email 1.",
            editable="optional",
            minimum=1,
            maximum=4,
        ),
    )
    visitor_unread_message_count = fields.Integer(
        required=True, metadata=says("Messages from users that the visitor has not read yet.", minimum=0)
    )


class OrganizationCaseSchema(CaseSchema):
    """A case as its organization sees it: it may have no contact."""

    contact_id = fields.UUID(
        allow_none=True, metadata=says("The contact to which the case is assigned.", editable="optional")
    )
    contact = fields.Nested(
        ContactSchema,
        allow_none=True,
        metadata=says("The contact to which the case is assigned.", editable="optional"),
    )


CASE_ATTRIBUTES: Final = tuple(CaseSchema().fields)
NESTED_ATTRIBUTES: Final = tuple(
    name for name, field in CaseSchema().fields.items() if isinstance(field, fields.Nested)
)


class PageSchema(Schema):
    """A page of cases and the links to the pages beside it."""

    next = fields.Url(
        allow_none=True,
        metadata=says("The page after this one; null if no case lies beyond this end.", format="uri"),
    )
    previous = fields.Url(
        allow_none=True,
        metadata=says("The page before this one; null if no case lies beyond this end.", format="uri"),
    )
    results = fields.List(
        fields.Nested(CaseSchema), required=True, metadata=says("The cases, in the order that `ordering` names.")
    )


class OrganizationPageSchema(PageSchema):
    """A page of an organization's cases and the links to the pages beside it."""

    results = fields.List(
        fields.Nested(OrganizationCaseSchema),
        required=True,
        metadata=says("The cases, in the order that `ordering` names."),
    )


class ActivitySchema(Schema):
    """A conversation in a case, on one channel."""

    id = fields.UUID(required=True, metadata=says("The unique identifier."))
    organization_id = fields.UUID(required=True, metadata=says("The organization that owns the case."))
    case_id = fields.UUID(required=True, metadata=says("The case that the activity is in."))
    channel = fields.String(required=True, metadata=says("The channel that it takes place on.", enum=ACTIVITY_CHANNELS))
    created_at = Instant(required=True, metadata=says("When the activity began."))
    updated_at = Instant(required=True, metadata=says("When the activity was last changed."))
    is_ended = fields.Boolean(required=True, metadata=says("True exactly when `ended_at` is set."))
    ended_at = Instant(allow_none=True, metadata=says("When it ended; null while it has not."))
    message_count = fields.Integer(
        required=True, metadata=says("The messages in it that the caller may see.", minimum=0)
    )


class MessageSchema(Schema):
    """A message in a case."""

    id = fields.UUID(required=True, metadata=says("The unique identifier."))
    organization_id = fields.UUID(required=True, metadata=says("The organization that owns the case."))
    case_id = fields.UUID(required=True, metadata=says("The case that the message is in."))
    activity_id = fields.UUID(required=True, metadata=says("The activity that the message is in."))
    sender_type = fields.String(required=True, metadata=says("Who wrote it.", enum=SENDER_TYPES))
    sender = fields.Nested(
        UserSchema, allow_none=True, metadata=says("The user who wrote it; null if it was not a user.")
    )
    text = fields.String(required=True, metadata=says("What was said.", minLength=1, maxLength=MAXIMUM_TEXT))
    created_at = Instant(required=True, metadata=says("When it was written."))
    read_at = Instant(allow_none=True, metadata=says("When the other side read it; null if it has not."))


class OrganizationMessageSchema(MessageSchema):
    """A message as its organization sees it, notes among users included."""

    is_private = fields.Boolean(
        required=True, metadata=says("Whether it is a note among users, which no visitor sees.")
    )


class Links:
    """The links of a page to the pages beside it."""

    next = fields.Url(
        allow_none=True,
        metadata=says("The page after this one; null if nothing lies beyond this end.", format="uri"),
    )
    previous = fields.Url(
        allow_none=True,
        metadata=says("The page before this one; null if nothing lies beyond this end.", format="uri"),
    )


class ActivityPageSchema(Links, Schema):
    """A page of activities and the links to the pages beside it."""

    results = fields.List(
        fields.Nested(ActivitySchema), required=True, metadata=says("The activities, in the order of `ordering`.")
    )


class MessagePageSchema(Links, Schema):
    """A page of messages and the links to the pages beside it."""

    results = fields.List(
        fields.Nested(MessageSchema), required=True, metadata=says("The messages, in the order of `ordering`.")
    )


class OrganizationMessagePageSchema(Links, Schema):
    """A page of messages as the organization sees them."""

    results = fields.List(
        fields.Nested(OrganizationMessageSchema),
        required=True,
        metadata=says("The messages, in the order of `ordering`."),
    )


class EventSchema(Schema):
    """An event: an action of a visitor."""

    position = fields.Integer(required=True, metadata=says("Its position among the organization's events.", minimum=1))
    type = fields.String(required=True, metadata=says("What was done.", enum=EVENT_TYPES))
    created_at = Instant(required=True, metadata=says("When it was done."))
    external_id = fields.String(required=True, metadata=says("The visitor's external id."))
    case_id = fields.UUID(required=True, metadata=says("The case that it concerns, which may have been removed since."))
    case_number = fields.String(required=True, metadata=says("The case's number at the time."))
    message = fields.Nested(
        OrganizationMessageSchema,
        allow_none=True,
        metadata=says("The message of `message_created` as it is now; null if it has been removed since."),
    )


class EventPageSchema(Schema):
    """Events in the order in which they were committed."""

    results = fields.List(fields.Nested(EventSchema), required=True, metadata=says("The events behind `after`."))
    last = fields.Integer(
        required=True,
        metadata=says("The position of the last of them, to continue from; `after` if there are none.", minimum=0),
    )
    has_more = fields.Boolean(required=True, metadata=says("Whether there are more behind it now."))


class StatusCountsSchema(Schema):
    """How many cases have each status."""

    open = fields.Integer(required=True, data_key="Open", metadata=says("Cases that are open.", minimum=0))
    in_progress = fields.Integer(required=True, data_key="In Progress", metadata=says("Cases in progress.", minimum=0))
    pending = fields.Integer(
        required=True, data_key="Pending", metadata=says("Cases that wait for something.", minimum=0)
    )
    closed = fields.Integer(required=True, data_key="Closed", metadata=says("Cases that are closed.", minimum=0))


class SummarySchema(Schema):
    """A summary of a visitor's cases in a few numbers, for a badge."""

    total = fields.Integer(required=True, metadata=says("All cases that the filters let pass.", minimum=0))
    by_status = fields.Nested(StatusCountsSchema, required=True)
    unread_message_count = fields.Integer(
        required=True, metadata=says("Messages in them that no agent has read yet.", minimum=0)
    )
    waiting_count = fields.Integer(required=True, metadata=says("Cases that await an action or a response.", minimum=0))
    latest_updated_at = Instant(
        allow_none=True, metadata=says("When one of them was last changed; null if there are none.")
    )
    visitor_unread_message_count = fields.Integer(
        required=True, metadata=says("Messages in them that the visitor has not read yet.", minimum=0)
    )


class ImportRunSchema(Schema):
    """The result of a load or an import for the organization."""

    id = fields.UUID(required=True, metadata=says("The unique identifier."))
    finished_at = Instant(required=True, metadata=says("When it ended."))
    source = fields.String(
        required=True,
        metadata=says("The source: the command `load`, or a request to `import`.", enum=["load", "import"]),
    )
    api_token_id = fields.UUID(allow_none=True, metadata=says("The API token of the request; null for a load."))
    is_stored = fields.Boolean(
        required=True, metadata=says("Whether the right lines were stored. False: it was refused as a whole.")
    )
    lines = fields.Integer(required=True, metadata=says("Lines that it read.", minimum=0))
    written = fields.Integer(
        allow_none=True, metadata=says("Rows that it added or changed; null in records of older versions.", minimum=0)
    )
    removed = fields.Integer(
        allow_none=True, metadata=says("Rows that it removed; null in records of older versions.", minimum=0)
    )
    stale = fields.Integer(
        allow_none=True,
        metadata=says("Lines no newer than what is stored; null in records of older versions.", minimum=0),
    )
    wrong = fields.Integer(
        allow_none=True, metadata=says("Lines that were wrong; null in records of older versions.", minimum=0)
    )
    duration_ms = fields.Integer(required=True, metadata=says("How long it took, in milliseconds.", minimum=0))


class ImportRunsSchema(Schema):
    """The latest loads and imports of an organization."""

    results = fields.List(
        fields.Nested(ImportRunSchema), required=True, metadata=says("The loads and imports, the newest first.")
    )


class ParameterErrorSchema(Schema):
    """An error in one parameter, in one member of the body, or in one line."""

    parameter = fields.String(metadata=says("The parameter's name, if a parameter is wrong."))
    pointer = fields.String(metadata=says("The member's JSON pointer (RFC 6901), if the body is wrong."))
    line = fields.Integer(metadata=says("The number of the line, from 1 on, if lines were sent."))
    field = fields.String(allow_none=True, metadata=says("The field of the line, if the error is in one."))
    detail = fields.String(required=True, metadata=says("What it accepts."))


class ProblemSchema(Schema):
    """A problem document (RFC 9457)."""

    type = fields.Function(
        lambda problem: f"urn:problem-type:visitor-cases:{problem['code']}",
        required=True,
        metadata=says("One stable URI for each code.", type="string", format="uri"),
    )
    title = fields.String(required=True, metadata=says("The same text for each occurrence of the code."))
    status = fields.Integer(required=True, metadata=says("The HTTP status."))
    detail = fields.String(required=True, metadata=says("What happened and what to do, for a person."))
    code = fields.String(required=True, metadata=says("What went wrong, for a program. It is part of the interface."))
    request_id = fields.String(
        required=True, metadata=says("The id of the request, as in `X-Request-ID` and in the service's log.")
    )
    errors = fields.List(
        fields.Nested(ParameterErrorSchema),
        metadata=says("The errors of parameters, of members of the body, or of lines, if there are any."),
    )
    error_count = fields.Integer(metadata=says("How many lines are wrong, if lines were sent."))
    case_id = fields.UUID(metadata=says("The case that has the number, if it is taken."))
    position = fields.Integer(
        metadata=says("The position where the remaining events begin: continue with it as `after`.", minimum=0)
    )
