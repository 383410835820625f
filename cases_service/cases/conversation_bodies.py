"""The bodies of writes to a conversation: a message, a read mark, or closing and reopening the case."""

from typing import Final

from marshmallow import Schema

from cases_service.cases.schemas import ACTIVITY_CHANNELS, MAXIMUM_TEXT, says
from cases_service.cases.write_bodies import Identifier, flag, one_of, text


class NewMessageSchema(Schema):
    """A visitor's message."""

    id = Identifier(metadata=says("An id of your own: if sent again, the message is found and not stored twice."))
    text = text(1, MAXIMUM_TEXT, required=True, metadata=says("What is said.", minLength=1, maxLength=MAXIMUM_TEXT))


class NewOrganizationMessageSchema(NewMessageSchema):
    """A user's message, to the visitor or to other users."""

    channel = one_of(
        ACTIVITY_CHANNELS,
        metadata=says(
            "The channel. Without it, that of the case's newest activity that has not ended, else its"
            " `latest_messaging_channel`, else `webchat`.",
            enum=ACTIVITY_CHANNELS,
        ),
    )
    is_private = flag(
        required=True, metadata=says("True for a note among users, false for a message that the visitor sees.")
    )
    sender_user_id = Identifier(metadata=says("The user who writes it. Without it, the user of the API token."))


class ReadMarkSchema(Schema):
    """A read mark: the last message that a side has read."""

    until = Identifier(metadata=says("The last message that was read. Without it, all were."))


class CaseStateSchema(Schema):
    """The attributes of a case that a visitor may change."""

    is_closed = flag(required=True, metadata=says("True closes the case, false opens it again."))


NEW_MESSAGE: Final = NewMessageSchema()
NEW_ORGANIZATION_MESSAGE: Final = NewOrganizationMessageSchema()
READ_MARK: Final = ReadMarkSchema()
CASE_STATE: Final = CaseStateSchema()
