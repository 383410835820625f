"""The operators' routes: liveness, readiness, and metrics."""

from typing import Final

import orjson
from flask import Blueprint

from cases_service.api.response import Response
from cases_service.observability import metrics
from cases_service.service import OPERATOR_PATHS, current_service

blueprint = Blueprint("health", __name__)

PATHS: Final = ("/healthz", *OPERATOR_PATHS)
"""The paths that are served for any host name."""

_OK: Final = orjson.dumps({"status": "ok"})


@blueprint.get("/healthz")
def healthz() -> Response:
    """Answer 200 while the process is alive."""
    return Response(_OK, content_type="application/json")


@blueprint.get("/readyz")
def readyz() -> Response:
    """Answer 200 if the database answers and its schema is not older than this release, else 503."""
    current_service().readiness.check()
    return Response(_OK, content_type="application/json")


@blueprint.get("/metrics")
def show_metrics() -> Response:
    """Answer the metrics of all workers in Prometheus' format."""
    return Response(metrics.exposition(), content_type=metrics.CONTENT_TYPE)
