"""Knows the form of an id in a path."""

from uuid import UUID


def uuid_or_none(text: str) -> UUID | None:
    """Return the UUID that a text is, with dashes and in either case; None for any other text."""
    try:
        value = UUID(text)
    except ValueError:
        return None
    return value if str(value) == text.lower() else None
