"""Traces requests and their round trips to the database, without private data.

OpenTelemetry's instrumentation of Flask puts URLs and exception messages into spans. So each exported span is rebuilt
from a short list of attributes, none of which a caller can influence.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Final
from uuid import UUID

from flask import Flask
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, Status, Tracer

from cases_service import __version__
from cases_service.database.connection import Connection
from cases_service.database.pipeline import Query

_SYSTEM: Final = "db.system.name"
_SUMMARY: Final = "db.query.summary"
_KEPT: Final = frozenset(
    {
        "http.method",
        "http.request.method",
        "http.route",
        "http.status_code",
        "http.response.status_code",
        "error.type",
        _SYSTEM,
        _SUMMARY,
    }
)
# Anchored, so that no token in a URL can match it.
_NOT_TRACED: Final = r"^https?://[^/]*/(healthz|readyz|metrics)/?([?].*)?$"


class PrivateExporter(SpanExporter):
    """Exports only the public part of spans."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export the rebuilt spans."""
        return self._exporter.export([_private(span) for span in spans])

    def shutdown(self) -> None:
        """Shut the exporter down."""
        self._exporter.shutdown()


def trace(app: Flask) -> None:
    """Trace an application's requests and this process's round trips. OTEL_* sets the destination and the sampling."""
    provider = TracerProvider(resource=_resource())
    provider.add_span_processor(BatchSpanProcessor(PrivateExporter(OTLPSpanExporter())))
    FlaskInstrumentor.instrument_app(app, tracer_provider=provider, excluded_urls=_NOT_TRACED, enable_commenter=False)
    _trace_exchanges(provider.get_tracer("cases_service", __version__))


def _resource() -> Resource:
    """Return the resource that sends the spans. OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES take precedence."""
    given = Resource.create()
    own = {SERVICE_NAME: "visitor-cases-service", SERVICE_VERSION: __version__}
    is_named = not str(given.attributes[SERVICE_NAME]).startswith("unknown_service")
    return Resource(own).merge(given) if is_named else given.merge(Resource(own))


def _trace_exchanges(tracer: Tracer) -> None:
    """Trace each round trip. The instrumentation of psycopg wraps cursors, which requests do not use."""

    def traced(exchange: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
        @wraps(exchange)
        def call(connection: Connection, about: UUID | bytes, *queries: Query[Any], **how: bool) -> list[Any]:
            name = " ".join(query.statement.name.decode() for query in queries) or exchange.__name__
            known = {_SYSTEM: "postgresql", _SUMMARY: name}
            with tracer.start_as_current_span(name, kind=SpanKind.CLIENT, attributes=known):
                return exchange(connection, about, *queries, **how)

        return call

    Connection.ask = traced(Connection.ask)  # type: ignore[method-assign]
    Connection.begin = traced(Connection.begin)  # type: ignore[method-assign]
    Connection.write = traced(Connection.write)  # type: ignore[method-assign]
    Connection.end = traced(Connection.end)  # type: ignore[method-assign]


def _private(span: ReadableSpan) -> ReadableSpan:
    given = span.attributes or {}
    name = span.name
    if span.kind is SpanKind.SERVER:
        # If no route matches, the instrumentation's own name has the path.
        method = given.get("http.request.method", given.get("http.method"))
        name = " ".join(str(part) for part in (method, given.get("http.route")) if part)
    return ReadableSpan(
        name,
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes={name: value for name, value in given.items() if name in _KEPT},
        kind=span.kind,
        status=Status(span.status.status_code),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )
