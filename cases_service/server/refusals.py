"""Refuses requests that never reach the application, with a bare status that echoes nothing."""

from http import HTTPStatus
from typing import Final

import structlog
from gunicorn.http import errors

from cases_service.server.answers import Answer

_STATUSES: Final = {
    errors.LimitRequestLine: HTTPStatus.REQUEST_URI_TOO_LONG,
    errors.LimitRequestHeaders: HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    errors.ExpectationFailed: HTTPStatus.EXPECTATION_FAILED,
    errors.UnsupportedTransferCoding: HTTPStatus.NOT_IMPLEMENTED,
    TimeoutError: HTTPStatus.REQUEST_TIMEOUT,
}

log = structlog.get_logger("cases_service.gunicorn")


def refusal(error: Exception) -> Answer:
    """Return the response to a request that was malformed or timed out."""
    status = _STATUSES.get(type(error), HTTPStatus.BAD_REQUEST)
    log.warning("request_refused", status=status.value, reason=type(error).__name__)
    return _bare(status)


def failure(error: BaseException) -> Answer:
    """Return the response to an error outside the application."""
    log.error("unexpected_error", exc_info=error)
    return _bare(HTTPStatus.INTERNAL_SERVER_ERROR)


def _bare(status: HTTPStatus) -> Answer:
    head = f"HTTP/1.1 {status.value} {status.phrase}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    return Answer([head.encode("ascii")], keep=False)
