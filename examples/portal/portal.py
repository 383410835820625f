"""A page of a signed-in customer's own cases, as a blueprint to mount in a Flask application behind its login.

The browser talks to this module alone. The API token, the signing secret and the JWT stay in it: they are in no URL, no
cookie and no answer. Of an agent the browser learns the name, and of a case what concerns its customer: priority,
funnel stage and what agents have not read yet are the company's own.

The page of portal.html is for browsers with JavaScript; the pages below /plain show the same without it.
"""

import http.client
import json
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlencode, urlsplit
from uuid import UUID, uuid4

import jwt
from flask import Blueprint, Response, jsonify, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

# What the page knows the number of messages by that its customer has not read.
_UNREAD = "visitor_unread_message_count"
LISTED = (
    "id",
    "case_number",
    "contact",
    "owner",
    "subject",
    "status",
    "is_waiting",
    "created_at",
    "updated_at",
    _UNREAD,
)
DETAILED = (*LISTED, "description", "latest_messaging_channel", "closed_at")
SUMMARIZED = ("total", "by_status", "waiting_count", _UNREAD)
NO_CASES = {"total": 0, "by_status": {}, "waiting_count": 0, "new_message_count": 0}
# The newest messages come first, as many at a time.
MESSAGES = {"ordering": "-created_at", "page_size": "20"}
MAXIMUM_TEXT = 10_000
NO_PAGE: dict[str, Any] = {"cases": [], "next": None}
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
_PASSED_ON = ("invalid_cursor", "case_not_found", "case_closed", "id_taken", "invalid_body")
_MAXIMUM_BODY = 256 * 1024

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
        headers = {} if known is None else {"If-None-Match": known}
        return self._answer(customer, "GET", f"{path}?{urlencode(query)}", headers=headers)

    def send(self, customer: Customer, method: str, path: str, body: dict[str, Any]) -> Any:
        """Change what is below a customer's cases, and return what the service answers. It may be sent again.

        Raises:
            PortalError: 404 for a case that is not the customer's; 400 and 409 for what cannot be done; else 503, after
                which it may have been done, or 502.

        """
        headers = {"Content-Type": "application/json"}
        answer = self._answer(customer, method, path, headers=headers, content=json.dumps(body).encode())
        if answer is None:
            raise PortalError(404, "case_not_found")
        return answer.body

    def _answer(
        self, customer: Customer, method: str, path: str, *, headers: dict[str, str], content: bytes | None = None
    ) -> Answer | None:
        try:
            status, body, etag = self._ask(customer.external_id, method, path, headers, content)
        except (OSError, http.client.HTTPException, ValueError) as error:
            log.warning("the cases service does not answer: %s", type(error).__name__)
            raise PortalError(503, "unavailable") from None
        if status in (http.client.OK, http.client.CREATED, http.client.NOT_MODIFIED):
            return Answer(body, etag)
        code = body.get("code")
        if code == "visitor_not_found":
            return None
        if code in _PASSED_ON:
            raise PortalError(status, code)
        log.warning("the cases service answers %s %s", status, code)
        raise PortalError(503 if status in (429, 503, 504) else 502, "unavailable")

    def _ask(
        self, external_id: str, method: str, path: str, headers: dict[str, str], content: bytes | None
    ) -> tuple[int, Any, str | None]:
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.netloc, timeout=_TIMEOUT_SECONDS)
        # The JWT travels in its header; the path, which proxies write into their logs, has "-" in its place.
        cases = f"{parts.path.rstrip('/')}/api/v5/orgs/{self.organization}/external-visitors/-/cases"
        given = {"Authorization": f"Token {self.api_token}", "X-External-Identity": self._sign(external_id)} | headers
        try:
            connection.request(method, f"{cases}{path}", body=content, headers=given)
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
    service: CasesService,
    customer: Callable[[], Customer | None],
    *,
    sign_in: str,
    template: str = "portal.html",
    may_write: bool = True,
) -> Blueprint:
    """Return the page and its backend.

    Args:
        service: Where the cases come from.
        customer: Says, within a request, who is signed in; None for nobody.
        sign_in: The URL of the login, to which the page sends those who are not signed in.
        template: A template of your own that extends portal.html.
        may_write: Whether customers answer, close and reopen, which the API token needs the scope visitors:write for.

    """
    here = str(Path(__file__).parent)
    portal = Blueprint("portal", __name__, root_path=here, static_folder="static", template_folder="templates")
    views = _Views(service, customer, sign_in, template, may_write)
    plain = _PlainViews(views)
    lists = f"<any({', '.join(LISTS)}):name>"
    portal.before_request(refuse_other_sites)
    portal.add_url_rule("/", view_func=views.page)
    portal.add_url_rule("/api/summary", view_func=views.summary)
    portal.add_url_rule(f"/api/cases/{lists}", view_func=views.cases)
    portal.add_url_rule("/api/cases/<uuid:case_id>", view_func=views.case)
    portal.add_url_rule("/api/cases/<uuid:case_id>/messages", view_func=views.messages)
    portal.add_url_rule("/plain/", "plain_cases", plain.cases)
    portal.add_url_rule(f"/plain/{lists}", "plain_cases", plain.cases)
    portal.add_url_rule("/plain/cases/<uuid:case_id>", "plain_case", plain.case)
    if may_write:
        portal.add_url_rule("/api/cases/<uuid:case_id>/messages", view_func=views.say, methods=["POST"])
        portal.add_url_rule("/api/cases/<uuid:case_id>/read", view_func=views.mark_read, methods=["PUT"])
        portal.add_url_rule("/api/cases/<uuid:case_id>", view_func=views.set_closed, methods=["PATCH"])
        portal.add_url_rule("/plain/cases/<uuid:case_id>", "plain_change", plain.change, methods=["POST"])
    portal.register_error_handler(PortalError, answer_error)
    portal.after_request(secure)
    return portal


@dataclass(frozen=True)
class _Views:
    service: CasesService
    customer: Callable[[], Customer | None]
    sign_in: str
    template: str
    may_write: bool

    def page(self) -> str | AnyResponse:
        customer = self.customer()
        if customer is None:
            return redirect(self.sign_in)
        return render_template(self.template, customer=customer, may_write=self.may_write, maximum_text=MAXIMUM_TEXT)

    def summary(self) -> Any:
        def counts(found: dict[str, Any]) -> dict[str, Any]:
            if found["waiting_count"] and found["by_status"]["Closed"]:
                # A closed case may wait, too, but is not listed as waiting.
                open_ones = self.service.get(self.signed_in(), "/summary", is_closed="false")
                found["waiting_count"] = open_ones.body["waiting_count"] if open_ones else 0
            return with_new_messages({name: found[name] for name in SUMMARIZED})

        return respond(self._get("/summary"), counts, unknown=NO_CASES)

    def cases(self, name: str) -> Any:
        return respond(self._get(**query_of(name)), lambda found: page_of(name, found), unknown=NO_PAGE)

    def case(self, case_id: UUID) -> Any:
        return respond(known_case(self._get(f"/{case_id}", fields=",".join(DETAILED))), for_browser)

    def messages(self, case_id: UUID) -> Any:
        """Answer some of what was said in a case, in the order of time, and the cursor of what was said before."""
        return respond(known_case(self._get(f"/{case_id}/messages", **query_of_messages())), conversation_of)

    def say(self, case_id: UUID) -> Any:
        """Write a message. The browser makes its id, so that it can send it until it is answered."""
        given = given_members("id", "text")
        said = self.service.send(self.signed_in(), "POST", f"/{case_id}/messages", given)
        return message_for_browser(said)

    def mark_read(self, case_id: UUID) -> Any:
        return self._change("PUT", f"/{case_id}/read", given_members("until"))

    def set_closed(self, case_id: UUID) -> Any:
        return self._change("PATCH", f"/{case_id}", given_members("is_closed"))

    def signed_in(self) -> Customer:
        customer = self.customer()
        if customer is None:
            raise PortalError(401, "not_signed_in")
        return customer

    def _get(self, path: str = "", /, **query: str) -> Answer | None:
        return self.service.get(self.signed_in(), path, known=request.headers.get("If-None-Match"), **query)

    def _change(self, method: str, path: str, given: dict[str, Any]) -> Any:
        case = self.service.send(self.signed_in(), method, path, given)
        return for_browser({name: case[name] for name in DETAILED})


@dataclass(frozen=True)
class _PlainViews:
    """The pages for browsers without JavaScript: the same, from the same service, as forms and links."""

    views: _Views

    def cases(self, name: str = "open") -> Any:
        if self.views.customer() is None:
            return redirect(self.views.sign_in)
        found = self._get(**query_of(name))
        return self._show("cases", name=name, page=NO_PAGE if found is None else page_of(name, found.body))

    def case(self, case_id: UUID) -> Any:
        if self.views.customer() is None:
            return redirect(self.views.sign_in)
        return self._case(case_id)

    def change(self, case_id: UUID) -> Any:
        """Do what the form says, and show the case again. Where that fails, answer_error shows what was written."""
        form = request.form
        if "is_closed" in form:
            self._send("PATCH", f"/{case_id}", {"is_closed": form["is_closed"] == "true"})
        else:
            text = form.get("text", "").replace("\r\n", "\n")
            self._send("POST", f"/{case_id}/messages", {"id": form.get("id", ""), "text": text})
        return redirect(url_for("portal.plain_case", case_id=case_id, _anchor="end"), code=303)

    def _case(self, case_id: UUID) -> str:
        case = known_case(self._get(f"/{case_id}", fields=",".join(DETAILED)))
        conversation = conversation_of(known_case(self._get(f"/{case_id}/messages", **query_of_messages())).body)
        unread = [message["id"] for message in conversation["messages"] if message["is_unread"]]
        if unread and self.views.may_write:
            with suppress(PortalError):  # it is shown, whether that can be noted or not
                self._send("PUT", f"/{case_id}/read", {"until": unread[-1]})
        return self._show("case", case=for_browser(case.body), conversation=conversation, message_id=uuid4())

    def _get(self, path: str = "", /, **query: str) -> Answer | None:
        return self.views.service.get(self.views.signed_in(), path, **query)

    def _send(self, method: str, path: str, body: dict[str, Any]) -> None:
        self.views.service.send(self.views.signed_in(), method, path, body)

    def _show(self, part: str, **values: Any) -> str:
        return render_template(
            f"plain_{part}.html",
            customer=self.views.signed_in(),
            may_write=self.views.may_write,
            maximum_text=MAXIMUM_TEXT,
            **values,
        )


def refuse_other_sites() -> None:
    """Let only pages of this site change anything: another one may send its visitor's session along.

    Browsers say where a request comes from. Those that do not send Sec-Fetch-Site, or see no HTTPS, send the Origin.
    """
    if request.method in ("GET", "HEAD", "OPTIONS"):
        return
    site = request.headers.get("Sec-Fetch-Site")
    origin = urlsplit(request.headers.get("Origin", "")).netloc
    if site != "same-origin" if site is not None else origin != request.host:
        raise PortalError(403, "other_site")
    request.max_content_length = _MAXIMUM_BODY


def answer_error(error: PortalError) -> Any:
    """Answer an error as the page reads it; without JavaScript as a person does, who gets back what they wrote."""
    if "portal.plain" not in (request.endpoint or ""):
        return {"code": error.code}, error.status
    return render_template("plain_error.html", error=error, form=request.form, maximum_text=MAXIMUM_TEXT), error.status


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


def known_case(found: Answer | None) -> Answer:
    """Return what the service says of a case. Nothing is the case of a customer whom it does not know."""
    if found is None:
        raise PortalError(404, "case_not_found")
    return found


def given_members(*names: str) -> dict[str, Any]:
    """Return these members of the JSON that the browser sent, as far as they are there; the service checks them."""
    given = request.get_json(silent=True)
    if not isinstance(given, dict):
        raise PortalError(400, "invalid_body")
    return {name: given[name] for name in names if name in given}


def query_of(name: str) -> dict[str, str]:
    """Return what a list asks the service for."""
    return LISTS[name] | {"ordering": "-created_at", "fields": ",".join(LISTED)} | cursor_given()


def query_of_messages() -> dict[str, str]:
    """Return what a conversation asks the service for."""
    return MESSAGES | cursor_given()


def cursor_given() -> dict[str, str]:
    """Return the cursor of the request, where it has one."""
    return {"cursor": request.args["cursor"]} if "cursor" in request.args else {}


def page_of(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """Return a page of a list with the cursor of the one that follows."""
    cases = [case for case in found["results"] if name != "waiting" or case["is_waiting"]]
    return {"cases": [for_browser(case) for case in cases], "next": cursor_of(found["next"])}


def conversation_of(found: dict[str, Any]) -> dict[str, Any]:
    """Return messages in the order of time, with the cursor of those before them."""
    messages = [message_for_browser(message) for message in reversed(found["results"])]
    return {"messages": messages, "older": cursor_of(found["next"])}


def for_browser(case: dict[str, Any]) -> dict[str, Any]:
    """Return a case with the names of those it refers to, and nothing else of them."""
    owner, contact = (case[name] or {} for name in ("owner", "contact"))
    names = {"owner": name_of(owner), "contact": contact.get("full_name")}
    return with_new_messages(case | names | {"is_waiting": case["is_waiting"] and case["status"] != "Closed"})


def with_new_messages(found: dict[str, Any]) -> dict[str, Any]:
    """Call the number of messages that the customer has not read by the page's name for it."""
    return {name: value for name, value in found.items() if name != _UNREAD} | {"new_message_count": found[_UNREAD]}


def message_for_browser(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message with the name of who wrote it. When the company read its customer's is its own affair."""
    return {name: message[name] for name in ("id", "text", "created_at", "sender_type")} | {
        "sender": name_of(message["sender"] or {}),
        "is_unread": message["sender_type"] == "user" and message["read_at"] is None,
    }


def name_of(user: dict[str, Any]) -> str | None:
    """Return what customers call somebody of the company."""
    return user.get("alias") or user.get("full_name")


def cursor_of(link: str | None) -> str | None:
    """Return the cursor of a link, by which the page asks this backend for what follows."""
    return None if link is None else parse_qs(urlsplit(link).query)["cursor"][0]
