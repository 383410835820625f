"""The first checks of a request: host, path, API token, organization and subscription."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from flask import Flask
from flask.testing import FlaskClient

from cases_service.credentials import administration
from cases_service.credentials.api_tokens import new_token
from tests.conftest import LogLines
from tests.factories import Organization, assert_problem, cases_path, get

YESTERDAY = datetime.now(UTC) - timedelta(days=1)


@pytest.mark.parametrize("scheme", ["Token", "Bearer", "token", "BEARER"])
def test_both_schemes_open(client: FlaskClient, organization: Organization, scheme: str) -> None:
    headers = {"Authorization": f"{scheme} {organization.token}"}
    assert client.get(organization.visitor().path, headers=headers).status_code == 200


@pytest.mark.parametrize("header", [None, "", "Token", "Bearer ", "Basic dTpw", "Digest x", "cst_abc", "Tokencst_abc"])
def test_without_a_token_authentication_is_required(
    client: FlaskClient, organization: Organization, header: str | None
) -> None:
    headers = {} if header is None else {"Authorization": header}
    response = client.get(organization.visitor().path, headers=headers)
    assert_problem(response, 401, "authentication_required")
    assert "Token" in response.headers["WWW-Authenticate"]


def mistyped(token: str) -> str:
    return token[:-1] + ("A" if token[-1] != "A" else "B")


@pytest.mark.parametrize("change", [mistyped, str.lower, lambda t: t + "x", lambda t: t[:-1], lambda t: f"{t},{t}"])
def test_a_mistyped_token_is_refused_without_a_query(
    client: FlaskClient, organization: Organization, change: Callable[[str], str], log_lines: LogLines
) -> None:
    response = client.get(organization.visitor().path, headers={"Authorization": f"Token {change(organization.token)}"})
    assert_problem(response, 401, "api_token_invalid")
    assert log_lines()[-1]["queries"] == 0


def test_an_unknown_token_is_invalid(client: FlaskClient, organization: Organization) -> None:
    headers = {"Authorization": f"Token {new_token(organization.id)}"}
    response = client.get(organization.visitor().path, headers=headers)
    assert_problem(response, 401, "api_token_invalid")
    assert response.headers["WWW-Authenticate"]


def test_a_revoked_token_is_invalid_from_the_next_request_on(client: FlaskClient, organization: Organization) -> None:
    path = organization.visitor().path
    assert get(client, organization, path).status_code == 200
    administration.revoke_token(
        organization.connection, organization_id=organization.id, token_id=organization.token_id
    )
    assert_problem(get(client, organization, path), 401, "api_token_invalid")


def test_an_expired_token_is_invalid(client: FlaskClient, organization: Organization) -> None:
    organization.update("api_tokens", "id", organization.token_id, expires_at=YESTERDAY)
    assert_problem(get(client, organization, organization.visitor().path), 401, "api_token_invalid")


def test_a_token_of_another_organization_opens_nothing_here(client: FlaskClient, organization: Organization) -> None:
    other = Organization(organization.connection, organization.box)
    path = organization.visitor().path
    assert_problem(get(client, other, path), 403, "organization_forbidden")


def test_an_organization_that_does_not_exist_looks_like_a_foreign_one(
    client: FlaskClient, organization: Organization
) -> None:
    other = Organization(organization.connection, organization.box)
    answers = [
        assert_problem(get(client, organization, cases_path(organization_id, "x")), 403, "organization_forbidden")
        for organization_id in (other.id, uuid4())
    ]
    for answer in answers:
        answer.pop("request_id")
    assert answers[0] == answers[1]


@pytest.mark.parametrize("change", [{"subscription_status": "inactive"}, {"subscription_ends_at": YESTERDAY}])
def test_an_inactive_subscription_is_forbidden(
    client: FlaskClient, organization: Organization, change: dict[str, object]
) -> None:
    path = organization.visitor().path
    organization.update("organizations", "organization_id", organization.id, **change)
    assert_problem(get(client, organization, path), 403, "subscription_inactive")


def test_a_subscription_that_ends_later_is_active(client: FlaskClient, organization: Organization) -> None:
    organization.update(
        "organizations", "organization_id", organization.id, subscription_ends_at=datetime.now(UTC) + timedelta(days=1)
    )
    assert get(client, organization, organization.visitor().path).status_code == 200


def test_every_api_route_is_guarded(app: Flask, client: FlaskClient) -> None:
    api = [rule for rule in app.url_map.iter_rules() if rule.rule.startswith("/api/")]
    assert api
    for rule in api:
        url = rule.rule.replace("<uuid:organization_id>", str(uuid4()))
        for method in rule.methods or ():
            answer = client.open(url, method=method)
            assert answer.status_code == 401, (method, url)
            if method != "HEAD":
                assert_problem(answer, 401, "authentication_required")
    unguarded = {rule.rule for rule in app.url_map.iter_rules()} - {rule.rule for rule in api}
    assert unguarded == {"/healthz", "/readyz", "/metrics", "/docs", "/docs/<name>", "/openapi.json"}


# The order of the checks: each request has a fault of every later kind, too.


def test_the_host_comes_first(client: FlaskClient) -> None:
    assert_problem(client.post("/nowhere", headers={"Host": "evil.example"}), 400, "host_not_allowed")


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "", "localhost:99999x", "[::1", "a b"])
def test_a_host_that_is_not_allowed_is_refused(client: FlaskClient, organization: Organization, host: str) -> None:
    response = get(client, organization, organization.visitor().path, Host=host)
    assert_problem(response, 400, "host_not_allowed")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "[::1]"])
def test_loopback_hosts_are_allowed(client: FlaskClient, organization: Organization, host: str) -> None:
    assert get(client, organization, organization.visitor().path, Host=host).status_code == 200


def test_the_path_comes_before_the_token(client: FlaskClient) -> None:
    assert_problem(client.get("/api/v5/orgs/1/external-visitors/x/cases"), 404, "not_found")
    assert_problem(client.get(cases_path(uuid4().hex, "x")), 404, "not_found")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"])
def test_the_method_comes_before_the_token(client: FlaskClient, method: str) -> None:
    response = client.open(cases_path(uuid4(), "x"), method=method)
    assert_problem(response, 405, "method_not_allowed")
    assert response.headers["Allow"] == "GET, HEAD"


def test_the_token_comes_before_the_organization(client: FlaskClient, organization: Organization) -> None:
    headers = {"Authorization": f"Token {new_token(organization.id)}"}
    assert_problem(client.get(cases_path(uuid4(), "x"), headers=headers), 401, "api_token_invalid")


def test_the_organization_comes_before_the_subscription(client: FlaskClient, organization: Organization) -> None:
    organization.update("organizations", "organization_id", organization.id, subscription_status="inactive")
    assert_problem(get(client, organization, cases_path(uuid4(), "x")), 403, "organization_forbidden")


def test_the_subscription_comes_before_the_parameters(client: FlaskClient, organization: Organization) -> None:
    organization.update("organizations", "organization_id", organization.id, subscription_status="inactive")
    response = get(client, organization, cases_path(organization.id, "x") + "?page_size=0")
    assert_problem(response, 403, "subscription_inactive")


def test_the_parameters_come_before_the_jwt(client: FlaskClient, organization: Organization) -> None:
    for path in ("x", "-"):
        response = get(client, organization, cases_path(organization.id, path) + "?page_size=0&cursor=x")
        assert_problem(response, 400, "invalid_parameter")
        response = get(client, organization, cases_path(organization.id, path) + "?cursor=x")
        assert_problem(response, 400, "invalid_cursor")


def test_the_jwt_comes_before_the_visitor(client: FlaskClient, organization: Organization) -> None:
    token = organization.jwt("nobody", exp=1)
    assert_problem(get(client, organization, cases_path(organization.id, token)), 400, "token_expired")
