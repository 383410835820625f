"""The service as it is, but for its sessions' isolation: each statement of an exchange takes a snapshot of its own.

What `repeatable read` costs is seen beside it. It is not what is deployed: it lets a request fall between two states.
"""

from cases_service.application import create_app
from cases_service.database import session_settings

session_settings._SERVICE["default_transaction_isolation"] = "read committed"  # noqa: SLF001  what is compared

app = create_app()
