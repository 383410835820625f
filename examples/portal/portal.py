"""A page of a signed-in customer's own cases, as a blueprint to mount in a Flask application behind its login.

The browser talks to this module alone. The API token, the signing secret and the JWT stay in it: they are in no URL, no
cookie and no answer, and of an agent the browser learns the name, nothing else.
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
from flask import Blueprint, Response, redirect, render_template, request
from werkzeug.wrappers import Response as AnyResponse

PAGE_SIZE = 10
LISTED = (
    "id", "case_number", "contact", "owner", "subject", "status", "priority", "priority_label", "is_waiting",
    "unread_message_count", "created_at", "updated_at", "case_funnel_stage",
)  # fmt: skip
DETAILED = (*LISTED, "description", "latest_messaging_channel", "closed_at")
NO_CASES = {"total": 0, "by_status": {}, "unread_message_count": 0, "waiting_count": 0, "latest_updated_at": None}
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

    def get(self, customer: Customer, path: str = "", /, **query: str) -> Any:
        """Return what the service answers below a customer's cases; None where it knows no such visitor.

        Raises:
            PortalError: 404 for a case that is not the customer's, 400 for a cursor, else 503 or 502.

        """
        try:
            status, body = self._ask(customer.external_id, path, query)
        except (OSError, http.client.HTTPException, ValueError) as error:
            log.warning("the cases service does not answer: %s", type(error).__name__)
            raise PortalError(503, "unavailable") from None
        if status == http.client.OK:
            return body
        code = body.get("code")
        if code == "visitor_not_found":
            return None
        if code in _PASSED_ON:
            raise PortalError(status, code)
        log.warning("the cases service answers %s %s", status, code)
        raise PortalError(503 if status in (429, 503, 504) else 502, "unavailable")

    def _ask(self, external_id: str, path: str, query: dict[str, str]) -> tuple[int, Any]:
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.netloc, timeout=_TIMEOUT_SECONDS)
        # The JWT travels in its header; the path, which proxies write into their logs, has "-" in its place.
        cases = f"{parts.path.rstrip('/')}/api/v5/orgs/{self.organization}/external-visitors/-/cases"
        headers = {"Authorization": f"Token {self.api_token}", "X-External-Identity": self._sign(external_id)}
        try:
            connection.request("GET", f"{cases}{path}?{urlencode(query)}", headers=headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
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
    portal.add_url_rule("/api/cases/<any(open, closed):state>", view_func=views.cases)
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
        return self.service.get(self._signed_in(), "/summary") or NO_CASES

    def cases(self, state: str) -> Any:
        query = {
            "is_closed": "true" if state == "closed" else "false",
            "ordering": "-created_at",
            "page_size": str(PAGE_SIZE),
            "fields": ",".join(LISTED),
        }
        if "cursor" in request.args:
            query["cursor"] = request.args["cursor"]
        found = self.service.get(self._signed_in(), **query)
        if found is None:
            return {"cases": [], "next": None}
        return {"cases": [for_browser(case) for case in found["results"]], "next": cursor_of(found["next"])}

    def case(self, case_id: UUID) -> Any:
        found = self.service.get(self._signed_in(), f"/{case_id}", fields=",".join(DETAILED))
        if found is None:
            raise PortalError(404, "case_not_found")
        return for_browser(found)

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


def for_browser(case: dict[str, Any]) -> dict[str, Any]:
    """Return a case with the names of those it refers to, and nothing else of them."""
    owner, contact, stage = (case[name] or {} for name in ("owner", "contact", "case_funnel_stage"))
    return case | {
        "owner": owner.get("alias") or owner.get("full_name"),
        "contact": contact.get("full_name"),
        "case_funnel_stage": stage.get("name"),
    }


def cursor_of(link: str | None) -> str | None:
    """Return the cursor of a link, by which the page asks this backend for what follows."""
    return None if link is None else parse_qs(urlsplit(link).query)["cursor"][0]
