"""The WSGI environment's key for the socket that received a request."""

from typing import Final

LISTENER: Final = "cases.listener"
"""Its value is the listening socket's name, as returned by getsockname()."""
