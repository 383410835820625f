"""Knows what a cursor is: a place between two cases of one collection, and the side of it that a page lies on.

A cursor is opaque to clients: the URL-safe base64 of a version, a direction, the sort value in microseconds and the
id of the case that the page begins behind, a tag of the visitor, and a digest of all of that with the organization,
the ordering and the filters. It holds no personal data, and it decides nothing about which cases are seen.
"""

import base64
import hashlib
import re
import struct
from dataclasses import dataclass
from typing import Final, Self
from uuid import UUID

from cases_service.cases import timestamps as instants
from cases_service.errors import InvalidCursorError

_VERSION: Final = 1
_LAYOUT: Final = struct.Struct(">BBq16s8s")
_DIGEST_SIZE: Final = 8
_FORM: Final = re.compile(rf"[A-Za-z0-9_-]{{{(_LAYOUT.size + _DIGEST_SIZE) * 4 // 3}}}")


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """Where a case stands in a collection: its sort value in microseconds since 1970, then its id."""

    microseconds: int
    id: UUID

    def following(self) -> Self:
        """Return the very next position in ascending order. Nothing lies between the two."""
        if self.id.int == 2**128 - 1:
            return type(self)(self.microseconds + 1, UUID(int=0))
        return type(self)(self.microseconds, UUID(int=self.id.int + 1))

    def preceding(self) -> Self:
        """Return the last position before this one in ascending order."""
        if self.id.int == 0:
            return type(self)(self.microseconds - 1, UUID(int=2**128 - 1))
        return type(self)(self.microseconds, UUID(int=self.id.int - 1))


@dataclass(frozen=True, slots=True)
class Collection:
    """What a cursor is bound to before the visitor is known."""

    organization_id: UUID
    ordering: str
    filters: str = ""


@dataclass(frozen=True, slots=True)
class Cursor:
    """The cases behind `position`: later in the collection's order, or earlier where `backward`."""

    position: Position
    backward: bool
    visitor_tag: bytes

    def encode(self, collection: Collection) -> str:
        """Return the text that stands in a link."""
        position = self.position
        body = _LAYOUT.pack(_VERSION, self.backward, position.microseconds, position.id.bytes, self.visitor_tag)
        return base64.urlsafe_b64encode(body + _digest(body, collection)).decode("ascii")

    @classmethod
    def decode(cls, text: str, collection: Collection) -> Self:
        """Return the cursor of a link.

        Raises:
            InvalidCursorError: It was not made by `encode` for this collection.

        """
        if not _FORM.fullmatch(text):
            raise InvalidCursorError
        raw = base64.urlsafe_b64decode(text)
        body, digest = raw[: _LAYOUT.size], raw[_LAYOUT.size :]
        if digest != _digest(body, collection):
            raise InvalidCursorError
        version, backward, microseconds, case_id, visitor_tag = _LAYOUT.unpack(body)
        if version != _VERSION or backward > 1 or not instants.in_range(microseconds):
            raise InvalidCursorError
        return cls(Position(microseconds, UUID(bytes=case_id)), bool(backward), visitor_tag)

    def check_visitor(self, visitor_id: UUID) -> None:
        """Raise InvalidCursorError where the cursor is another visitor's."""
        if self.visitor_tag != visitor_tag(visitor_id):
            raise InvalidCursorError


def visitor_tag(visitor_id: UUID) -> bytes:
    """Return the eight bytes that bind a cursor to a visitor, from the visitor's random id."""
    return hashlib.blake2b(visitor_id.bytes, digest_size=8, person=b"visitor").digest()


def _digest(body: bytes, collection: Collection) -> bytes:
    scope = "\0".join((str(collection.organization_id), collection.ordering, collection.filters))
    return hashlib.blake2b(body + scope.encode(), digest_size=_DIGEST_SIZE, person=b"cursor").digest()
