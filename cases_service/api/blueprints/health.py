"""The routes for whoever operates the service: whether it lives, whether it can answer, and what it has counted."""

from typing import Final

import msgspec
from flask import Blueprint, Response

from cases_service.observability import metrics
from cases_service.service import OPERATOR_PATHS, current_service

blueprint = Blueprint("health", __name__)

PATHS: Final = ("/healthz", *OPERATOR_PATHS)
"""Where any host is answered."""

_OK: Final = msgspec.json.encode({"status": "ok"})


@blueprint.get("/healthz")
def healthz() -> Response:
    """Answer 200 for as long as the process answers at all."""
    return Response(_OK, content_type="application/json")


@blueprint.get("/readyz")
def readyz() -> Response:
    """Answer 200 where the database answers and its schema is not older than this release, else 503."""
    current_service().readiness.check()
    return Response(_OK, content_type="application/json")


@blueprint.get("/metrics")
def show_metrics() -> Response:
    """Answer the metrics of all workers as Prometheus reads them."""
    return Response(metrics.exposition(), content_type=metrics.CONTENT_TYPE)
