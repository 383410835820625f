"""Turns every error of a request into a problem document (RFC 9457)."""

import orjson
import structlog
from flask import Flask
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from cases_service.api.request import current_request
from cases_service.api.response import Response
from cases_service.cases.schemas import ProblemSchema
from cases_service.credentials.secret_encryption import SecretNotOpenedError
from cases_service.problems import InternalError, MethodNotAllowedError, NotFoundError, ProblemError

log = structlog.get_logger()

_SCHEMA = ProblemSchema()


def register(app: Flask) -> None:
    """Make an application answer each error with its problem document."""
    app.register_error_handler(ProblemError, respond)
    app.register_error_handler(HTTPException, _routing_problem)
    app.register_error_handler(SecretNotOpenedError, _secret_not_opened)
    app.register_error_handler(Exception, _unexpected)


def respond(problem: ProblemError) -> Response:
    """Return a problem as a response, and note its code for the log."""
    request = current_request()
    request.code = problem.code
    document = _SCHEMA.dump(problem.as_dict() | {"request_id": request.id})
    body = orjson.dumps(document)
    return Response(body, problem.status, problem.headers, content_type="application/problem+json")


def _routing_problem(error: HTTPException) -> Response:
    if isinstance(error, MethodNotAllowed):
        return respond(MethodNotAllowedError(list(error.valid_methods or [])))
    # Flask itself raises nothing else here: the service reads no form, no body and no file.
    return respond(NotFoundError())


def _secret_not_opened(error: SecretNotOpenedError) -> Response:
    log.error("secret_not_opened", request_id=current_request().id, key_id=str(error), advice="check CASES_SECRET_KEY")
    return respond(InternalError())


def _unexpected(error: Exception) -> Response:
    # Without the message, which may quote the caller's input.
    request = current_request()
    log.error("unexpected_error", request_id=request.id, exc_info=error, route=str(request.url_rule))
    return respond(InternalError())
