"""Decides whether requests are traced. The libraries for it are an extra and are imported only if they are."""

from importlib import import_module
from typing import Final

from flask import Flask

from cases_service.settings import SettingsError, wants_traces

_EXTRA: Final = ("opentelemetry.instrumentation.flask", "opentelemetry.exporter.otlp.proto.http.trace_exporter")


def check() -> None:
    """Raise SettingsError if traces are wanted but the extra for them is not installed."""
    if wants_traces():
        # Not `spans` itself, which imports `metrics`, which chooses at import where it counts: gunicorn's master runs
        # this before it has made the shared files.
        try:
            for name in _EXTRA:
                import_module(name)
        except ImportError:
            raise SettingsError(
                "OTEL_*: traces need an extra: pip install '.[tracing]' in the project's folder,"
                " or set OTEL_SDK_DISABLED=true"
            ) from None


def trace(app: Flask) -> None:
    """If traces are wanted, trace the application's requests and their statements in this process.

    Call it before the application registers its own hooks and before it connects to the database.
    """
    check()
    if wants_traces():
        import_module("cases_service.observability.spans").trace(app)
