"""The portal's process: `python -m cases_service.demo.portal SOCKET`, with the plan as the first line of input."""

import importlib.util
import os
import secrets
import socket
import sys
import threading
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import msgspec
from flask import Flask, abort, redirect, request, session, url_for
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Response

from cases_service.database.statements import source
from cases_service.demo.portal.launch import DemoVisitor, Plan


class _SilentHandler(WSGIRequestHandler):
    """Leaves the terminal to the lines of the service."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


def main() -> None:
    """Serve the portal until standard input ends, which happens when the demo ends."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    plan = msgspec.json.decode(sys.stdin.buffer.readline(), type=Plan)
    host = listener.getsockname()[0]
    server = make_server(host, 0, create_app(plan), threaded=True, request_handler=_SilentHandler, fd=listener.fileno())
    threading.Thread(target=_end_with_demo, daemon=True).start()
    server.serve_forever()


def _end_with_demo() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def create_app(plan: Plan) -> Flask:
    """Return the portal as a company would mount it, with a choice of visitors instead of a login."""
    example = _example()
    visitors = {visitor.external_id: visitor for visitor in plan.visitors}
    app = Flask("cases_service.demo.portal", static_url_path="/demo")
    # The browser also sends the cookies of another demo on this host; its key differs, so they are rejected.
    app.config.update(SECRET_KEY=secrets.token_bytes(32), SESSION_COOKIE_SAMESITE="Lax")
    service = example.CasesService(**plan.service)

    def chosen() -> DemoVisitor:
        return visitors.get(session.get("visitor", ""), plan.visitors[0])

    def customer() -> Any:
        return example.Customer(chosen().external_id, name_of(chosen()))

    @app.before_request
    def refuse_other_hosts() -> None:
        """Reject requests for other host names, which guards against DNS rebinding."""
        if urlsplit(f"//{request.host}").hostname not in {host.strip("[]") for host in plan.hosts}:
            abort(400)

    @app.post("/demo/sign-in")
    def sign_in() -> Response:
        session["visitor"] = request.form.get("visitor", "")
        return redirect(url_for("portal.page"), code=303)

    @app.context_processor
    def choice() -> dict[str, Any]:
        return {"visitors": plan.visitors, "chosen": chosen(), "name_of": name_of}

    app.register_blueprint(example.create_portal(service, customer, sign_in="/", template="demo_portal.html"))
    return app


def name_of(visitor: DemoVisitor) -> str:
    """Return a readable name for a visitor of the demo data."""
    return visitor.external_id.replace("zip-", "ZIP ")


def _example() -> ModuleType:
    """Import examples/portal, which is not a package, since a company copies it as it is."""
    spec = importlib.util.spec_from_file_location("portal", source("examples/portal") / "portal.py")
    if spec is None or spec.loader is None:
        raise ImportError("examples/portal")
    module = sys.modules["portal"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
