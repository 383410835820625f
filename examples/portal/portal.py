"""A page of a signed-in customer's own cases, as a blueprint to mount in a Flask application behind its login.

The browser talks to this module alone. The API token, the signing secret and the JWT stay in it: they are in no URL, no
cookie and no answer. Of an agent the browser learns the name, and of a case what concerns its customer: priority,
funnel stage and what agents have not read yet are the company's own.
"""

import http.client
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlencode, urlsplit
from uuid import UUID

import jwt
from flask import Blueprint, Response, jsonify, redirect, render_template, request
from werkzeug.wrappers import Response as AnyResponse

LISTED = ("id", "case_number", "contact", "owner", "subject", "status", "is_waiting", "created_at", "updated_at")
DETAILED = (*LISTED, "description", "latest_messaging_channel", "closed_at")
SUMMARIZED = ("total", "by_status", "waiting_count")
NO_CASES = {"total": 0, "by_status": {}, "waiting_count": 0}
# What each list of the page asks the service for.
LISTS = {
    "open": {"is_closed": "false", "page_size": "10"},
    "progress": {"status": "In Progress", "page_size": "10"},
    "waiting": {"is_closed": "false", "page_size": "100"},  # the service has no such filter: see _Views.cases
    "closed": {"is_closed": "true", "page_size": "10"},
}
# For frame-ancestors, name your own site where it shows the page in a frame.
SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
    " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none';"
    " require-trusted-types-for 'script'; trusted-types 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_TIMEOUT_SECONDS = 15
_PASSED_ON = ("invalid_cursor", "case_not_found")

log = logging.getLogger(__name__)


class Customer(NamedTuple):
    """Who is signed in: the `external_id` of the visitor that they are, and the name they read on the page."""

    external_id: str
    name: str


class Answer(NamedTuple):
    """What the service says: a JSON body, None where the caller knows it already, and the `ETag` to know it by."""

    body: Any
    etag: str | None


class PortalError(Exception):
    """What the page is told instead of cases."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status, self.code = status, code


@dataclass(frozen=True)
class CasesService:
    """Where the service is, and what opens it: an API token, and a signing key of HMAC that signs who asks."""

    url: str
    organization: str
    key_id: str
    api_token: str = field(repr=False)
    secret: str = field(repr=False)
    algorithm: str = "HS256"
    audience: str | None = None
    issuer: str | None = None
    jwt_seconds: int = 60

    @classmethod
    def from_environment(cls) -> "CasesService":
        """Return the service that the variables PORTAL_... name."""
        return cls(
            url=os.environ["PORTAL_SERVICE_URL"],
            organization=os.environ["PORTAL_ORGANIZATION"],
            key_id=os.environ["PORTAL_KEY_ID"],
            api_token=os.environ["PORTAL_API_TOKEN"],
            secret=os.environ["PORTAL_SECRET"],
        )

    def get(self, customer: Customer, path: str = "", /, *, known: str | None = None, **query: str) -> Answer | None:
        """Return what the service answers below a customer's cases; None where it knows no such visitor.

        `known` is the `ETag` of what the caller has already.

        Raises:
            PortalError: 404 for a case that is not the customer's, 400 for a cursor, else 503 or 502.

        """
        try:
            status, body, etag = self._ask(customer.external_id, path, query, known)
        except (OSError, http.client.HTTPException, ValueError) as error:
            log.warning("the cases service does not answer: %s", type(error).__name__)
            raise PortalError(503, "unavailable") from None
        if status in (http.client.OK, http.client.NOT_MODIFIED):
            return Answer(body, etag)
        code = body.get("code")
        if code == "visitor_not_found":
            return None
        if code in _PASSED_ON:
            raise PortalError(status, code)
        log.warning("the cases service answers %s %s", status, code)
        raise PortalError(503 if status in (429, 503, 504) else 502, "unavailable")

    def _ask(
        self, external_id: str, path: str, query: dict[str, str], known: str | None
    ) -> tuple[int, Any, str | None]:
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.netloc, timeout=_TIMEOUT_SECONDS)
        # The JWT travels in its header; the path, which proxies write into their logs, has "-" in its place.
        cases = f"{parts.path.rstrip('/')}/api/v5/orgs/{self.organization}/external-visitors/-/cases"
        headers = {"Authorization": f"Token {self.api_token}", "X-External-Identity": self._sign(external_id)}
        if known is not None:
            headers["If-None-Match"] = known
        try:
            connection.request("GET", f"{cases}{path}?{urlencode(query)}", headers=headers)
            answer = connection.getresponse()
            body = None if answer.status == http.client.NOT_MODIFIED else json.loads(answer.read())
            return answer.status, body, answer.headers["ETag"]
        finally:
            connection.close()

    def _sign(self, external_id: str) -> str:
        """Return a JWT for one request; it is valid for a minute."""
        claims = {
            "sub": external_id,
            "exp": int(time.time()) + self.jwt_seconds,
            "aud": self.audience,
            "iss": self.issuer,
        }
        present = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(present, self.secret, algorithm=self.algorithm, headers={"kid": self.key_id})


def create_portal(
    service: CasesService, customer: Callable[[], Customer | None], *, sign_in: str, template: str = "portal.html"
) -> Blueprint:
    """Return the page and its backend.

    Args:
        service: Where the cases come from.
        customer: Says, within a request, who is signed in; None for nobody.
        sign_in: The URL of the login, to which the page sends those who are not signed in.
        template: A template of your own that extends portal.html.

    """
    here = str(Path(__file__).parent)
    portal = Blueprint("portal", __name__, root_path=here, static_folder="static", template_folder="templates")
    views = _Views(service, customer, sign_in, template)
    portal.add_url_rule("/", view_func=views.page)
    portal.add_url_rule("/api/summary", view_func=views.summary)
    portal.add_url_rule(f"/api/cases/<any({', '.join(LISTS)}):name>", view_func=views.cases)
    portal.add_url_rule("/api/cases/<uuid:case_id>", view_func=views.case)
    portal.register_error_handler(PortalError, lambda error: ({"code": error.code}, error.status))
    portal.after_request(secure)
    return portal


@dataclass(frozen=True)
class _Views:
    service: CasesService
    customer: Callable[[], Customer | None]
    sign_in: str
    template: str

    def page(self) -> str | AnyResponse:
        customer = self.customer()
        return redirect(self.sign_in) if customer is None else render_template(self.template, customer=customer)

    def summary(self) -> Any:
        def counts(found: dict[str, Any]) -> dict[str, Any]:
            if found["waiting_count"] and found["by_status"]["Closed"]:
                # A closed case may wait, too, but is not listed as waiting.
                open_ones = self.service.get(self._signed_in(), "/summary", is_closed="false")
                found["waiting_count"] = open_ones.body["waiting_count"] if open_ones else 0
            return {name: found[name] for name in SUMMARIZED}

        return respond(self._get("/summary"), counts, unknown=NO_CASES)

    def cases(self, name: str) -> Any:
        query = LISTS[name] | {"ordering": "-created_at", "fields": ",".join(LISTED)}
        if "cursor" in request.args:
            query["cursor"] = request.args["cursor"]

        def page(found: dict[str, Any]) -> dict[str, Any]:
            cases = [case for case in found["results"] if name != "waiting" or case["is_waiting"]]
            return {"cases": [for_browser(case) for case in cases], "next": cursor_of(found["next"])}

        return respond(self._get(**query), page, unknown={"cases": [], "next": None})

    def case(self, case_id: UUID) -> Any:
        found = self._get(f"/{case_id}", fields=",".join(DETAILED))
        if found is None:
            raise PortalError(404, "case_not_found")
        return respond(found, for_browser)

    def _get(self, path: str = "", /, **query: str) -> Answer | None:
        return self.service.get(self._signed_in(), path, known=request.headers.get("If-None-Match"), **query)

    def _signed_in(self) -> Customer:
        customer = self.customer()
        if customer is None:
            raise PortalError(401, "not_signed_in")
        return customer


def secure(response: Response) -> Response:
    """Say what the page may load, from where, and that answers with cases are kept nowhere."""
    response.headers.update(SECURITY)
    if request.endpoint != "portal.static":
        response.headers["Cache-Control"] = "private, no-store"
    return response


def respond(found: Answer | None, make: Callable[[Any], Any], *, unknown: Any = None) -> Response:
    """Return the response that shows what was found, or 304 where the browser has it already."""
    if found is None:
        return jsonify(unknown)
    response = Response(status=304) if found.body is None else jsonify(make(found.body))
    if found.etag is not None:
        response.headers["ETag"] = found.etag
    return response


def for_browser(case: dict[str, Any]) -> dict[str, Any]:
    """Return a case with the names of those it refers to, and nothing else of them."""
    owner, contact = (case[name] or {} for name in ("owner", "contact"))
    names = {"owner": owner.get("alias") or owner.get("full_name"), "contact": contact.get("full_name")}
    return case | names | {"is_waiting": case["is_waiting"] and case["status"] != "Closed"}


def cursor_of(link: str | None) -> str | None:
    """Return the cursor of a link, by which the page asks this backend for what follows."""
    return None if link is None else parse_qs(urlsplit(link).query)["cursor"][0]
