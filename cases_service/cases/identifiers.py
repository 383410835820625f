"""The form of an id in a path."""

from uuid import UUID


def uuid_or_none(text: str) -> UUID | None:
    """Parse a UUID with dashes, in either case; return None for any other text."""
    try:
        value = UUID(text)
    except ValueError:
        return None
    return value if str(value) == text.lower() else None
