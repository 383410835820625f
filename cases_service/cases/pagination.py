"""Cursors for keyset pagination: a place between two cases of a collection, and the direction of the page from there.

A cursor is opaque to clients: URL-safe base64 of a version, a direction, the sort value in microseconds and the id of
the case that the page starts after, a tag of the visitor, and a digest of all of these with the organization, the
ordering and the filters. It holds no personal data and never decides which cases are visible.
"""

import base64
import hashlib
import re
import struct
from dataclasses import dataclass
from typing import Final, Self
from uuid import UUID

from cases_service.cases import timestamps
from cases_service.problems import InvalidCursorError

_VERSION: Final = 1
_LAYOUT: Final = struct.Struct(">BBq16s8s")
_DIGEST_SIZE: Final = 8
_FORM: Final = re.compile(rf"[A-Za-z0-9_-]{{{(_LAYOUT.size + _DIGEST_SIZE) * 4 // 3}}}")


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A case's place in a collection: its sort value in microseconds since 1970, then its id.

    Positions extend one instant beyond the first and the last that a case can have, so that every case has a place
    before and after it. No case can stand there, so one place at each end is enough.
    """

    microseconds: int
    id: UUID

    def following(self) -> Self:
        """Return the next position in ascending order, or this one at the end. No case can lie between the two."""
        if self.microseconds > timestamps.LAST:
            return self
        if self.id.int == 2**128 - 1:
            return type(self)(self.microseconds + 1, UUID(int=0))
        return type(self)(self.microseconds, UUID(int=self.id.int + 1))

    def preceding(self) -> Self:
        """Return the previous position in ascending order, or this one at the start."""
        if self.microseconds < timestamps.FIRST:
            return self
        if self.id.int == 0:
            return type(self)(self.microseconds - 1, UUID(int=2**128 - 1))
        return type(self)(self.microseconds, UUID(int=self.id.int - 1))


@dataclass(frozen=True, slots=True)
class Collection:
    """The collection that a cursor is bound to, apart from the visitor."""

    organization_id: UUID
    ordering: str
    filters: str = ""


@dataclass(frozen=True, slots=True)
class Cursor:
    """The start of a page: the cases after `position` in the collection's order, or before it if `backward`."""

    position: Position
    backward: bool
    visitor_tag: bytes

    def encode(self, collection: Collection) -> str:
        """Return the text for a link."""
        position = self.position
        body = _LAYOUT.pack(_VERSION, self.backward, position.microseconds, position.id.bytes, self.visitor_tag)
        return base64.urlsafe_b64encode(body + _digest(body, collection)).decode("ascii")

    @classmethod
    def decode(cls, text: str, collection: Collection) -> Self:
        """Return the cursor of a link's text.

        Raises:
            InvalidCursorError: The text was not made by `encode` for this collection.

        """
        if not _FORM.fullmatch(text):
            raise InvalidCursorError
        raw = base64.urlsafe_b64decode(text)
        body, digest = raw[: _LAYOUT.size], raw[_LAYOUT.size :]
        if digest != _digest(body, collection):
            raise InvalidCursorError
        version, backward, microseconds, case_id, visitor_tag = _LAYOUT.unpack(body)
        if version != _VERSION or backward > 1 or not timestamps.FIRST - 1 <= microseconds <= timestamps.LAST + 1:
            raise InvalidCursorError
        return cls(Position(microseconds, UUID(bytes=case_id)), bool(backward), visitor_tag)

    def check_visitor(self, visitor_id: UUID) -> None:
        """Raise InvalidCursorError if the cursor is another visitor's."""
        if self.visitor_tag != visitor_tag(visitor_id):
            raise InvalidCursorError


def adjacent_cursors(
    *,
    cursor: Cursor | None,
    ends: tuple[Position, Position] | None,
    has_before: bool,
    has_after: bool,
    ascending: bool,
    tag: bytes,
) -> tuple[Cursor | None, Cursor | None]:
    """Return the cursors of the next and the previous page, in the collection's order.

    Args:
        cursor: Where the page starts.
        ends: The places of its first and its last row, in the order of the scan; None if it is empty.
        has_before: Whether rows lie behind the cursor, on its other side.
        has_after: Whether rows lie beyond the last one.
        ascending: The direction of the scan.
        tag: The visitor's, for the new cursors.

    """
    backward = cursor is not None and cursor.backward
    ahead = behind = None
    if has_after and ends is not None:
        ahead = Cursor(ends[1], backward, tag)
    if has_before and ends is not None:
        behind = Cursor(ends[0], not backward, tag)
    elif has_before and cursor is not None:
        # The rows of this page have vanished. Nothing lies between the cursor and its neighbour, so that what is
        # behind the neighbour in the other direction is all that is not behind the cursor.
        edge = cursor.position.following() if ascending else cursor.position.preceding()
        behind = Cursor(edge, not backward, tag)
    return (behind, ahead) if backward else (ahead, behind)


def visitor_tag(visitor_id: UUID) -> bytes:
    """Return eight bytes that bind a cursor to a visitor, derived from the visitor's random id."""
    return hashlib.blake2b(visitor_id.bytes, digest_size=8, person=b"visitor").digest()


def _digest(body: bytes, collection: Collection) -> bytes:
    scope = "\0".join((str(collection.organization_id), collection.ordering, collection.filters))
    return hashlib.blake2b(body + scope.encode(), digest_size=_DIGEST_SIZE, person=b"cursor").digest()
