"""The example portal as its README has a company mount it: behind a login, against the running service."""

import sys
from typing import Any
from uuid import UUID, uuid4

import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.api.conversations import Sides
from tests.documents import block
from tests.factories import Organization, Visitor
from tests.process.conftest import service
from tests.process.running import PROJECT, Service

__all__ = ["service"]
EXAMPLE = PROJECT / "examples/portal"
# What a browser says of a request that a page of the same site makes.
OWN = {"Sec-Fetch-Site": "same-origin"}
FOREIGN: list[dict[str, str]] = [
    {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"},
    {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost"},
    {"Sec-Fetch-Site": "none"},
    {"Origin": "https://evil.example"},
    {"Origin": "http://localhost:8001"},
    {"Origin": "null"},
    {},
]


@pytest.fixture
def visitor(organization: Organization) -> Visitor:
    return organization.visitor("customer-7", contacts=2)


@pytest.fixture
def portal_token(organization: Organization) -> str:
    return organization.token_with("visitors:read", "visitors:write")


@pytest.fixture
def company(
    service: Service,
    organization: Organization,
    visitor: Visitor,
    portal_token: str,
    monkeypatch: pytest.MonkeyPatch,
) -> FlaskClient:
    """The application of the README's code block."""
    variables = {
        "SESSION_SECRET": "of the company",
        "PORTAL_SERVICE_URL": service.url(""),
        "PORTAL_ORGANIZATION": str(organization.id),
        "PORTAL_API_TOKEN": portal_token,
        "PORTAL_KEY_ID": str(organization.kid),
        "PORTAL_SECRET": organization.secret,
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(EXAMPLE)
    names: dict[str, Any] = {"__name__": "company"}
    exec(block("examples/portal/README.md", "python", "create_portal"), names)  # noqa: S102  the README's own
    app: Flask = names["app"]
    return app.test_client()


def sign_in(client: FlaskClient, external_id: str = "customer-7") -> None:
    with client.session_transaction() as session:
        session.update(customer_number=external_id, customer_name="Ada Byron")


def test_who_is_not_signed_in_is_led_to_the_login_and_gets_no_cases(company: FlaskClient) -> None:
    answer = company.get("/support/")
    assert (answer.status_code, answer.location) == (302, "/login")
    case = "cases/53b97666-d364-5ae6-931e-d7745d57c1ac"
    for path in ("summary", "cases/open", case, f"{case}/messages"):
        answer = company.get(f"/support/api/{path}")
        assert (answer.status_code, answer.json) == (401, {"code": "not_signed_in"})
    answer = company.post(f"/support/api/{case}/messages", json={"text": "Hello"}, headers=OWN)
    assert (answer.status_code, answer.json) == (401, {"code": "not_signed_in"})
    for path in ("", "closed", case):
        answer = company.get(f"/support/plain/{path}")
        assert (answer.status_code, answer.location) == (302, "/login")


def test_a_signed_in_customer_gets_the_cases_of_all_their_contacts(company: FlaskClient, visitor: Visitor) -> None:
    ids = visitor.cases(12)
    sign_in(company)
    assert "Ada Byron" in company.get("/support/").text
    first = company.get("/support/api/cases/open").get_json()
    second = company.get("/support/api/cases/open", query_string={"cursor": first["next"]}).get_json()
    assert [case["id"] for case in first["cases"] + second["cases"]] == [str(id_) for id_ in reversed(ids)]
    assert second["next"] is None
    assert company.get("/support/api/cases/closed").get_json() == {"cases": [], "next": None}
    assert company.get("/support/api/summary").get_json()["total"] == 12


def test_what_the_browser_has_already_is_not_sent_again(company: FlaskClient, visitor: Visitor) -> None:
    case_id = visitor.cases(1)[0]
    sign_in(company)
    for path in ("summary", "cases/open", "cases/waiting", f"cases/{case_id}", f"cases/{case_id}/messages"):
        etag = company.get(f"/support/api/{path}").headers["ETag"]
        again = company.get(f"/support/api/{path}", headers={"If-None-Match": etag})
        assert (again.status_code, again.data, again.headers["ETag"]) == (304, b"", etag)
        assert again.headers["Cache-Control"] == "private, no-store"
    company.post(f"/support/api/cases/{case_id}/messages", json={"text": "Hello"}, headers=OWN)
    for path in ("cases/open", f"cases/{case_id}/messages"):
        assert company.get(f"/support/api/{path}", headers={"If-None-Match": etag}).status_code == 200


def test_only_what_concerns_the_customer_goes_out(company: FlaskClient, visitor: Visitor) -> None:
    visitor.cases(1)
    sign_in(company)
    (case,) = company.get("/support/api/cases/open").get_json()["cases"]
    assert not {"priority", "priority_label", "unread_message_count", "case_funnel_stage"} & set(case)
    assert set(company.get("/support/api/summary").get_json()) == {
        "total",
        "by_status",
        "waiting_count",
        "new_message_count",
    }


def test_of_those_who_handle_a_case_only_the_name_goes_out(
    company: FlaskClient, organization: Organization, visitor: Visitor
) -> None:
    owner = organization.user(first_name="Grace", last_name="Hopper", email="grace@example.com", title="Admiral")
    case_id = organization.case(visitor.contact_ids[0], owner_id=owner)
    sign_in(company)
    answer = company.get(f"/support/api/cases/{case_id}")
    assert answer.get_json()["owner"] == "Grace Hopper"
    assert "grace@" not in answer.text
    assert "organization_id" not in answer.text


def test_a_customer_whom_the_service_does_not_know_has_no_cases(company: FlaskClient) -> None:
    sign_in(company, "nobody")
    assert company.get("/support/api/summary").get_json()["total"] == 0
    assert company.get("/support/api/cases/open").get_json() == {"cases": [], "next": None}
    assert company.get("/support/api/cases/53b97666-d364-5ae6-931e-d7745d57c1ac").status_code == 404


def test_a_cursor_of_another_customer_is_refused(
    company: FlaskClient, organization: Organization, visitor: Visitor
) -> None:
    visitor.cases(11)
    organization.visitor("customer-8").cases(11)
    sign_in(company)
    cursor = company.get("/support/api/cases/open").get_json()["next"]
    sign_in(company, "customer-8")
    answer = company.get("/support/api/cases/open", query_string={"cursor": cursor})
    assert (answer.status_code, answer.json) == (400, {"code": "invalid_cursor"})


def test_a_refused_token_is_the_companys_to_mend_and_says_nothing_to_the_customer(
    company: FlaskClient, organization: Organization, portal_token: str, caplog: pytest.LogCaptureFixture
) -> None:
    organization.update("api_tokens", "organization_id", organization.id, revoked_at="2020-01-01")
    sign_in(company)
    answer = company.get("/support/api/cases/open")
    assert (answer.status_code, answer.json) == (502, {"code": "unavailable"})
    assert "401 api_token_invalid" in caplog.text
    assert portal_token not in caplog.text


def test_its_representation_shows_no_secret(
    company: FlaskClient, organization: Organization, portal_token: str
) -> None:
    shown = repr(sys.modules["portal"].CasesService.from_environment())
    assert str(organization.id) in shown
    assert organization.secret not in shown
    assert portal_token not in shown


@pytest.fixture
def case_id(company: FlaskClient, visitor: Visitor) -> UUID:
    """A case of the customer who is signed in."""
    sign_in(company)
    return visitor.cases(1)[0]


def messages_of(company: FlaskClient, case_id: UUID) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = company.get(f"/support/api/cases/{case_id}/messages").get_json()["messages"]
    return messages


@pytest.mark.parametrize("headers", [OWN, {"Origin": "http://localhost"}])
def test_a_message_that_is_sent_again_is_said_once(
    company: FlaskClient, case_id: UUID, headers: dict[str, str]
) -> None:
    sent = {"id": str(uuid4()), "text": "Hello"}
    answers = [company.post(f"/support/api/cases/{case_id}/messages", json=sent, headers=headers) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert answers[0].json == answers[2].json
    assert set(answers[0].get_json()) == {"id", "text", "created_at", "sender_type", "sender", "is_unread"}
    assert [message["text"] for message in messages_of(company, case_id)] == ["Hello"]
    other = company.post(f"/support/api/cases/{case_id}/messages", json=sent | {"text": "Other"}, headers=headers)
    assert (other.status_code, other.json) == (409, {"code": "id_taken"})


@pytest.mark.parametrize("headers", FOREIGN)
def test_no_other_site_changes_anything_in_a_customers_name(
    company: FlaskClient, case_id: UUID, headers: dict[str, str]
) -> None:
    api, plain = f"/support/api/cases/{case_id}", f"/support/plain/cases/{case_id}"
    for answer in (
        company.post(f"{api}/messages", json={"id": str(uuid4()), "text": "Forged"}, headers=headers),
        company.put(f"{api}/read", json={}, headers=headers),
        company.patch(api, json={"is_closed": True}, headers=headers),
        company.post(plain, data={"id": str(uuid4()), "text": "Forged"}, headers=headers),
        company.post(plain, data={"is_closed": "true"}, headers=headers),
    ):
        assert answer.status_code == 403
        assert "Forged" not in answer.text
    assert messages_of(company, case_id) == []
    assert company.get(api).get_json()["status"] == "Open"


def test_a_case_is_closed_read_and_reopened(company: FlaskClient, case_id: UUID) -> None:
    api = f"/support/api/cases/{case_id}"
    for method, path, body, status in (
        ("PATCH", api, {"is_closed": True}, "Closed"),
        ("PATCH", api, {"is_closed": True}, "Closed"),
        ("PUT", f"{api}/read", {}, "Closed"),
        ("PATCH", api, {"is_closed": False}, "Open"),
    ):
        answer = company.open(path, method=method, json=body, headers=OWN)
        assert (answer.status_code, answer.get_json()["status"]) == (200, status)
        assert answer.get_json() == company.get(api).get_json()


def test_another_customers_case_is_neither_read_nor_written(company: FlaskClient, case_id: UUID) -> None:
    sign_in(company, "nobody")
    api, plain = f"/support/api/cases/{case_id}", f"/support/plain/cases/{case_id}"
    for answer in (
        company.get(f"{api}/messages"),
        company.post(f"{api}/messages", json={"id": str(uuid4()), "text": "Hello"}, headers=OWN),
        company.put(f"{api}/read", json={}, headers=OWN),
        company.patch(api, json={"is_closed": True}, headers=OWN),
        company.get(plain),
        company.post(plain, data={"id": str(uuid4()), "text": "Hello"}, headers=OWN),
    ):
        assert answer.status_code == 404


@pytest.mark.parametrize("body", [{"text": ""}, {"text": 1}, {"text": "x" * 10_001}, {"id": "x", "text": "x"}, [], "x"])
def test_what_cannot_be_said_is_refused(company: FlaskClient, case_id: UUID, body: Any) -> None:
    answer = company.post(f"/support/api/cases/{case_id}/messages", json=body, headers=OWN)
    assert (answer.status_code, answer.json) == (400, {"code": "invalid_body"})


def test_what_agents_have_read_and_their_notes_do_not_go_out(
    company: FlaskClient, organization: Organization, visitor: Visitor, case_id: UUID, client: FlaskClient
) -> None:
    sides = Sides(client, organization, visitor, case_id)
    sides.say("Hello")
    sides.note("Careful with this one")
    sides.answer("Good day")
    answers = [
        company.get(f"/support/{path}{case_id}{below}").text
        for path, below in (("api/cases/", ""), ("api/cases/", "/messages"), ("plain/cases/", ""))
    ]
    assert "Good day" in "".join(answers)
    assert "Careful" not in "".join(answers)
    assert not {"read_at", "is_private", "activity_id"} & set(messages_of(company, case_id)[0])


def test_who_may_only_read_gets_no_forms(
    service: Service, organization: Organization, visitor: Visitor, company: FlaskClient
) -> None:
    portal = sys.modules["portal"]
    app = Flask("reading")
    app.register_blueprint(
        portal.create_portal(
            portal.CasesService.from_environment(),
            lambda: portal.Customer("customer-7", "Ada"),
            sign_in="/login",
            may_write=False,
        )
    )
    client, case_id = app.test_client(), visitor.cases(1)[0]
    for path in ("/", f"/plain/cases/{case_id}"):
        assert "<textarea" in company_page(company, path)
        assert "<textarea" not in client.get(path).text
    answer = client.post(f"/api/cases/{case_id}/messages", json={"text": "Hello"}, headers=OWN)
    assert answer.status_code == 405


def company_page(company: FlaskClient, path: str) -> str:
    sign_in(company)
    return company.get(f"/support{path}").text


def test_without_javascript_what_was_written_comes_back_with_an_error(
    company: FlaskClient, organization: Organization, case_id: UUID
) -> None:
    organization.update("api_tokens", "organization_id", organization.id, revoked_at="2020-01-01")
    sent = {"id": str(uuid4()), "text": "\nDo not lose <this>"}
    answer = company.post(f"/support/plain/cases/{case_id}", data=sent, headers=OWN)
    assert answer.status_code == 502
    assert "\n\nDo not lose &lt;this&gt;</textarea>" in answer.text
    assert sent["id"] in answer.text
