"""Writes the log's line of each request. It has no path, token or external identity: the route's template is enough."""

from typing import Final
from uuid import UUID

import structlog

log: Final = structlog.get_logger("cases_service.request")


def write(
    *,
    request_id: str,
    method: str,
    route: str | None,
    status: int,
    code: str | None,
    organization_id: UUID | None,
    seconds: float,
    queries: int,
) -> None:
    """Write the line of a request that is answered.

    Args:
        request_id: What X-Request-ID says.
        method: The method, or a word for all that no route has.
        route: The template of the route's path; None if there is none.
        status: The answer's status.
        code: The code of the error that was answered.
        organization_id: The organization in the path.
        seconds: How long the request took; the line has it in milliseconds.
        queries: How many statements it sent to the database.

    """
    log.info(
        "request",
        request_id=request_id,
        method=method,
        route=route,
        status=status,
        code=code,
        organization=None if organization_id is None else str(organization_id),
        duration_ms=round(seconds * 1000, 2),
        queries=queries,
    )
