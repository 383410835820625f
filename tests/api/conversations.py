"""What tests of conversations share: both sides of one case."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.factories import Organization, Visitor, cases_path


@dataclass
class Sides:
    """A visitor's case, and the two tokens that its visitor's portal and its organization's system have."""

    client: FlaskClient
    organization: Organization
    visitor: Visitor
    case_id: UUID

    def __post_init__(self) -> None:
        self.portal = self.organization.token_with("visitors:read", "visitors:write")
        self.system = self.organization.token_with("cases:write")
        self.jwt = self.organization.jwt(self.visitor.external_id)

    def by_visitor(self, method: str, below: str = "", body: Any = None, **given: Any) -> TestResponse:
        path = f"{cases_path(self.organization.id, '-')}/{given.pop('case_id', self.case_id)}{below}"
        headers = {"Authorization": f"Token {self.portal}", "X-External-Identity": self.jwt}
        return self._send(method, path, body, headers, given)

    def by_organization(self, method: str, below: str = "", body: Any = None, **given: Any) -> TestResponse:
        path = f"{self.organization.cases_path}/{given.pop('case_id', self.case_id)}{below}"
        return self._send(method, path, body, {"Authorization": f"Token {self.system}"}, given)

    def events(self, query: str = "") -> TestResponse:
        path = f"/api/v5/orgs/{self.organization.id}/events{query}"
        return self._send("GET", path, None, {"Authorization": f"Token {self.system}"}, {})

    def say(self, text: str = "Hello", **values: Any) -> dict[str, Any]:
        return self._made(self.by_visitor("POST", "/messages", {"text": text, **values}))

    def answer(self, text: str = "Good day", *, is_private: bool = False, **values: Any) -> dict[str, Any]:
        body = {"text": text, "is_private": is_private, **values}
        return self._made(self.by_organization("POST", "/messages", body))

    def note(self, text: str = "Careful", **values: Any) -> dict[str, Any]:
        return self.answer(text, is_private=True, **values)

    def case(self) -> dict[str, Any]:
        document: dict[str, Any] = self.by_organization("GET").get_json()
        return document

    def texts(self, send: Callable[..., TestResponse], query: str = "") -> list[str]:
        return [message["text"] for message in send("GET", f"/messages{query}").get_json()["results"]]

    def _made(self, response: TestResponse) -> dict[str, Any]:
        assert response.status_code == 201, response.json
        message: dict[str, Any] = response.get_json()
        return message

    def _send(self, method: str, path: str, body: Any, headers: dict[str, str], given: dict[str, Any]) -> TestResponse:
        headers |= {name.replace("_", "-"): value for name, value in given.items()}
        if isinstance(body, bytes):
            return self.client.open(path, method=method, data=body, headers=headers)
        return self.client.open(path, method=method, headers=headers, **({} if body is None else {"json": body}))


def sides_of(client: FlaskClient, organization: Organization, **values: Any) -> Sides:
    """Make a visitor with a case."""
    visitor = organization.visitor()
    return Sides(client, organization, visitor, organization.case(visitor.contact_ids[0], **values))


def message_id() -> str:
    return str(uuid4())
