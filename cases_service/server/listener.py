"""The name under which the worker tells the application by which socket a request came."""

from typing import Final

LISTENER: Final = "cases.listener"
"""In the WSGI environment: the listening socket's own name, as getsockname() gives it."""
