"""Decides whether requests are traced. What traces them is an extra, and is imported only where it is wanted."""

from importlib import import_module

from flask import Flask

from cases_service.settings import SettingsError, wants_traces


def check() -> None:
    """Raise SettingsError where traces are wanted and the extra for them is not installed."""
    if wants_traces():
        try:
            import_module("cases_service.spans")
        except ImportError:
            raise SettingsError(
                "OTEL_*: traces need an extra: pip install 'visitor-cases-service[tracing]', or OTEL_SDK_DISABLED=true"
            ) from None


def trace(app: Flask) -> None:
    """Trace the requests of an application and their statements, where that is wanted, in this process.

    Comes before the application's own hooks, and before the database is connected to.
    """
    check()
    if wants_traces():
        import_module("cases_service.spans").trace(app)
