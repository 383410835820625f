"""Decides whether requests are traced. What traces them is an extra, and is imported only where it is wanted."""

from importlib import import_module
from typing import Final

from flask import Flask

from cases_service.settings import SettingsError, wants_traces

_EXTRA: Final = ("opentelemetry.instrumentation.flask", "opentelemetry.exporter.otlp.proto.http.trace_exporter")


def check() -> None:
    """Raise SettingsError where traces are wanted and the extra for them is not installed."""
    if wants_traces():
        # Not `spans` itself: that imports the metrics, and where they are counted is settled by then. gunicorn's master
        # comes here before it has made the files that the workers share.
        try:
            for name in _EXTRA:
                import_module(name)
        except ImportError:
            raise SettingsError(
                "OTEL_*: traces need an extra: pip install '.[tracing]' in the project's folder,"
                " or set OTEL_SDK_DISABLED=true"
            ) from None


def trace(app: Flask) -> None:
    """Trace the requests of an application and their statements, where that is wanted, in this process.

    Comes before the application's own hooks, and before the database is connected to.
    """
    check()
    if wants_traces():
        import_module("cases_service.observability.spans").trace(app)
