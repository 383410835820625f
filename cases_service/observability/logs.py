"""The log: one structured line for each event on standard error, as JSON or readable on a terminal.

No line has a path, a token or an external identity. So a traceback names files, lines and functions, but not the
exception's message, which may quote a caller's input.
"""

import io
import logging
import os
import re
import sys
import threading
import traceback
import warnings
from contextlib import suppress
from types import TracebackType
from typing import Any, Final

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from cases_service.settings import Settings

_SYSTEM_ERROR: Final = re.compile(r"\[Errno \d+\] [A-Za-z ]+")
_ENCODER: Final = msgspec.json.Encoder(enc_hook=str)
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})


def configure(settings: Settings) -> None:
    """Make structlog write directly to standard error: the standard logging is too slow for a line each request."""
    structlog.configure(
        processors=[*_shared(), *_renderers_to_bytes(settings)],
        wrapper_class=structlog.make_filtering_bound_logger(settings.log_level),
        logger_factory=structlog.BytesLoggerFactory(_StandardError()),  # type: ignore[arg-type]
        cache_logger_on_first_use=True,
    )


class _StandardError:
    """The output of the lines. If writing fails, the line is lost, but not the request."""

    def write(self, line: bytes) -> None:
        with suppress(OSError):
            os.write(2, line)

    def flush(self) -> None:
        """Do nothing: nothing is buffered."""


class _Unstructured(io.TextIOBase):
    """Replaces `sys.stderr`: turns printed text into log lines.

    Such text may quote private data, so only the part that an operator needs is logged: a system error, in a fixed
    form.
    """

    def write(self, text: str) -> int:
        for line in filter(None, map(str.strip, text.splitlines())):
            known = _SYSTEM_ERROR.search(line)
            structlog.get_logger().warning("printed", error=known[0] if known else None, characters=len(line))
        return len(text)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2

    def isatty(self) -> bool:
        return sys.__stderr__ is not None and sys.__stderr__.isatty()


def structure_everything() -> None:
    """Turn what Python and libraries write to standard error into log lines."""
    sys.stderr = _Unstructured()
    sys.excepthook = lambda _kind, error, _trace: _log_error("unexpected_error", error)
    sys.unraisablehook = lambda found: _log_error("unraisable_error", found.exc_value)
    threading.excepthook = lambda found: _log_error("thread_ended", found.exc_value)
    warnings.showwarning = _log_warning  # type: ignore[assignment]


def _log_error(event: str, error: BaseException | None) -> None:
    structlog.get_logger().error(event, exc_info=error)


def _log_warning(_message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object) -> None:
    structlog.get_logger().warning("python_warning", kind=category.__name__, place=f"{filename}:{lineno}")


def logging_config(settings: Settings) -> dict[str, Any]:
    """Return the configuration of the standard logging, which gunicorn and the libraries use, for `dictConfig`."""
    level = settings.log_level.upper()
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "structured": {
                "()": structlog.stdlib.ProcessorFormatter,
                "foreign_pre_chain": _shared(),
                "processors": [
                    structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                    _renderer(settings),
                ],
                "use_get_message": True,
            }
        },
        "filters": {"without_messages": {"()": ExceptionsWithoutMessages}},
        "handlers": {
            "stderr": {"class": "logging.StreamHandler", "formatter": "structured", "stream": "ext://sys.__stderr__"}
        },
        "root": {"level": level, "handlers": ["stderr"]},
        "loggers": {
            "gunicorn.error": {
                "level": level,
                "handlers": ["stderr"],
                "filters": ["without_messages"],
                "propagate": False,
            },
            "gunicorn.access": {"level": "CRITICAL", "handlers": [], "propagate": False},
            # At the level info, it logs three lines for each request.
            "psycopg.pool": {"level": "ERROR" if level == "ERROR" else "WARNING"},
        },
    }


class ExceptionsWithoutMessages(logging.Filter):
    """Replaces an exception among a line's arguments by its class: gunicorn's exceptions quote the request."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record, and keep it."""
        if isinstance(record.args, tuple):
            record.args = tuple(type(a).__name__ if isinstance(a, BaseException) else a for a in record.args)
        return True


def method_label(method: str) -> str:
    """Return a method as it may be logged: OTHER for any that callers invent."""
    return method if method in _METHODS else "OTHER"


def _shared() -> list[Processor]:
    return [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _frames_of_exception,
    ]


def _renderer(settings: Settings) -> Processor:
    on_terminal = settings.log_format == "auto" and sys.stderr.isatty()
    if settings.log_format == "console" or on_terminal:
        return structlog.dev.ConsoleRenderer(colors=on_terminal)
    return structlog.processors.JSONRenderer(serializer=_encode)


def _renderers_to_bytes(settings: Settings) -> list[Processor]:
    renderer = _renderer(settings)
    if isinstance(renderer, structlog.processors.JSONRenderer):
        return [structlog.processors.JSONRenderer(serializer=_encode_to_bytes)]
    return [renderer, _as_bytes]


def _as_bytes(_logger: WrappedLogger, _name: str, line: Any) -> bytes:
    return str(line).encode("utf-8", "backslashreplace")


def _encode(event: EventDict, **_options: Any) -> str:
    return _encode_to_bytes(event).decode()


def _encode_to_bytes(event: EventDict, **_options: Any) -> bytes:
    return _ENCODER.encode(event)


def _frames_of_exception(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    found = event.pop("exc_info", None)
    error = sys.exc_info()[1] if found is True else found[1] if isinstance(found, tuple) else found
    if isinstance(error, BaseException):
        event["error"] = type(error).__qualname__
        event["frames"] = _frames(error.__traceback__)
    return event


def _frames(trace: TracebackType | None) -> list[str]:
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(trace)]
