"""The bodies of writes to a conversation: a message, a read mark, or closing and reopening the case."""

from typing import Final

from marshmallow import Schema

from cases_service.cases.bodies import Identifier, flag, one_of, text
from cases_service.cases.schemas import ACTIVITY_CHANNELS, MAXIMUM_TEXT, says


class NewMessageSchema(Schema):
    """What a visitor says."""

    id = Identifier(metadata=says("An id of your own: the same message sent again is found, and not said twice."))
    text = text(1, MAXIMUM_TEXT, required=True, metadata=says("What is said.", minLength=1, maxLength=MAXIMUM_TEXT))


class NewOrganizationMessageSchema(NewMessageSchema):
    """What a user says, to the visitor or to other users."""

    channel = one_of(
        ACTIVITY_CHANNELS,
        metadata=says(
            "The channel. Without it, that of the case's newest activity that has not ended, else its"
            " `latest_messaging_channel`, else `webchat`.",
            enum=ACTIVITY_CHANNELS,
        ),
    )
    is_private = flag(
        required=True, metadata=says("True for a note among users, false for what the visitor is to see.")
    )
    sender_user_id = Identifier(metadata=says("The user who says it. Without it, the user of the API token."))


class ReadMarkSchema(Schema):
    """Up to where a side has read."""

    until = Identifier(metadata=says("The last message that was read. Without it, all have been."))


class CaseStateSchema(Schema):
    """What a visitor may change of a case."""

    is_closed = flag(required=True, metadata=says("True closes the case, false opens it again."))


NEW_MESSAGE: Final = NewMessageSchema()
NEW_ORGANIZATION_MESSAGE: Final = NewOrganizationMessageSchema()
READ_MARK: Final = ReadMarkSchema()
CASE_STATE: Final = CaseStateSchema()
