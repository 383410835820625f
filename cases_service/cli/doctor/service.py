"""Asks the running service what a probe asks."""

import socket
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from cases_service.cli.doctor.findings import Finding, Verdict, one_line
from cases_service.settings import UNIX, Settings

_ANSWER_SECONDS: Final = 10.0
_LONGEST_ANSWER: Final = 65536
_ALL_ADDRESSES: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  where serve may listen


def check_service(settings: Settings, url: str | None) -> Iterator[Finding]:
    """Yield what a probe of liveness and one of readiness are told."""
    at_bind = _url_of(settings.bind)
    operation = at_bind if settings.admin_bind is None else _url_of(settings.admin_bind)
    for base, path in ((url or at_bind, "/healthz"), (url or operation, "/readyz")):
        yield Finding(
            path, *_probe(base if base.startswith(UNIX) else base.rstrip("/"), path, is_expected=url is not None)
        )


def _probe(base: str, path: str, *, is_expected: bool) -> Verdict:
    try:
        status, body = _get(base, path)
    except (ConnectionRefusedError, FileNotFoundError):
        advice = "start cases-service serve" if is_expected else "nothing was asked (--url names another address)"
        return ("failure" if is_expected else "ok"), f"nobody listens at {base}: {advice}"
    except (OSError, HTTPException) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
        return "failure", one_line(f"no answer from {base}: {reason}")
    answer = _decoded(body)
    if status == 200 and answer.get("status") == "ok":  # noqa: PLR2004
        return "ok", f"200 from {base}"
    if status == 404 and path == "/readyz":  # noqa: PLR2004
        return "warning", f"404 from {base}, where it is hidden from clients: name the address that probes ask"
    if answer.get("code"):
        return "failure", ascii(f"{status} {answer['code']} from {base}: {answer.get('detail')}")[1:-1]
    return "failure", f"{status} from {base}, which is no answer of this service: check the address"


def _get(base: str, path: str) -> tuple[int, bytes]:
    connection, path = _connection_to(base, path)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read(_LONGEST_ANSWER)
    finally:
        connection.close()


def _connection_to(base: str, path: str) -> tuple[HTTPConnection, str]:
    if base.startswith(UNIX):
        connection = HTTPConnection("localhost", timeout=_ANSWER_SECONDS)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(_ANSWER_SECONDS)
        connection.sock.connect(base.removeprefix(UNIX))
        return connection, path
    parts = urlsplit(base + path)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    return kind(parts.hostname or "", parts.port, timeout=_ANSWER_SECONDS), parts.path


def _decoded(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.MsgspecError:
        return {}


def _url_of(address: str) -> str:
    """Return the URL, seen from this machine, of a service that listens at an address."""
    if address.startswith(UNIX):
        return address
    host, _, port = address.rpartition(":")
    name = host.strip("[]")
    name = _ALL_ADDRESSES.get(name, name)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"
