"""Knows how a request is refused that the application never sees: by a status alone, which repeats nothing."""

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
    """Return the answer to what could not be parsed, or did not come in time."""
    status = _STATUSES.get(type(error), HTTPStatus.BAD_REQUEST)
    log.warning("request_refused", status=status.value, reason=type(error).__name__)
    return _bare(status)


def failure(error: BaseException) -> Answer:
    """Return the answer where something went wrong outside the application."""
    log.error("unexpected_error", exc_info=error)
    return _bare(HTTPStatus.INTERNAL_SERVER_ERROR)


def _bare(status: HTTPStatus) -> Answer:
    head = f"HTTP/1.1 {status.value} {status.phrase}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    return Answer([head.encode("ascii")], keep=False)
