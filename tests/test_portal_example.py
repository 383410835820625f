"""The example portal as its README has a company mount it: behind a login, against the running service."""

import sys
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.documents import block
from tests.factories import Organization, Visitor
from tests.process.conftest import service
from tests.process.running import PROJECT, Service

__all__ = ["service"]
EXAMPLE = PROJECT / "examples/portal"


@pytest.fixture
def visitor(organization: Organization) -> Visitor:
    return organization.visitor("customer-7", contacts=2)


@pytest.fixture
def company(
    service: Service, organization: Organization, visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> FlaskClient:
    """The application of the README's code block."""
    variables = {
        "SESSION_SECRET": "of the company",
        "PORTAL_SERVICE_URL": service.url(""),
        "PORTAL_ORGANIZATION": str(organization.id),
        "PORTAL_API_TOKEN": organization.token,
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
    for path in ("summary", "cases/open", "cases/53b97666-d364-5ae6-931e-d7745d57c1ac"):
        answer = company.get(f"/support/api/{path}")
        assert (answer.status_code, answer.json) == (401, {"code": "not_signed_in"})


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
    for path in ("summary", "cases/open", "cases/waiting", f"cases/{case_id}"):
        etag = company.get(f"/support/api/{path}").headers["ETag"]
        again = company.get(f"/support/api/{path}", headers={"If-None-Match": etag})
        assert (again.status_code, again.data, again.headers["ETag"]) == (304, b"", etag)
        assert again.headers["Cache-Control"] == "private, no-store"
    visitor.cases(1)
    assert company.get("/support/api/cases/open", headers={"If-None-Match": etag}).status_code == 200


def test_only_what_concerns_the_customer_goes_out(company: FlaskClient, visitor: Visitor) -> None:
    visitor.cases(1)
    sign_in(company)
    (case,) = company.get("/support/api/cases/open").get_json()["cases"]
    assert not {"priority", "priority_label", "unread_message_count", "case_funnel_stage"} & set(case)
    assert set(company.get("/support/api/summary").get_json()) == {"total", "by_status", "waiting_count"}


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
    company: FlaskClient, organization: Organization, visitor: Visitor, caplog: pytest.LogCaptureFixture
) -> None:
    organization.update("api_tokens", "id", organization.token_id, revoked_at="2020-01-01")
    sign_in(company)
    answer = company.get("/support/api/cases/open")
    assert (answer.status_code, answer.json) == (502, {"code": "unavailable"})
    assert "401 api_token_invalid" in caplog.text
    assert organization.token not in caplog.text


def test_its_representation_shows_no_secret(company: FlaskClient, organization: Organization) -> None:
    shown = repr(sys.modules["portal"].CasesService.from_environment())
    assert str(organization.id) in shown
    assert organization.secret not in shown
    assert organization.token not in shown
