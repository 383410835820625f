"""What a token opened the last time is only a guess: the answer follows what it opens now."""

from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from flask.testing import FlaskClient

from cases_service.credentials import administration
from tests.conftest import LogLines
from tests.factories import Organization, Visitor, assert_problem, cases_path, get


@pytest.fixture
def known(client: FlaskClient, organization: Organization) -> Visitor:
    """A visitor whose organization's token has opened it before."""
    visitor = organization.visitor()
    visitor.cases(1)
    for _ in range(2):
        assert get(client, organization, visitor.path).status_code == 200
    return visitor


def test_a_token_that_is_revoked_meanwhile_opens_nothing(client: FlaskClient, known: Visitor) -> None:
    organization = known.organization
    administration.revoke_token(
        organization.connection, organization_id=organization.id, token_id=organization.token_id
    )
    for path in (known.path, f"{known.path}?cursor=x", cases_path(organization.id, "no.such.token")):
        assert_problem(get(client, organization, path), 401, "api_token_invalid")


def test_a_key_that_is_retired_meanwhile_proves_nothing(client: FlaskClient, known: Visitor) -> None:
    organization = known.organization
    path = known.path
    assert get(client, organization, path).status_code == 200
    administration.retire_key(organization.connection, organization_id=organization.id, key_id=organization.kid)
    assert_problem(get(client, organization, path), 400, "token_algorithm_not_allowed")


@pytest.mark.parametrize(
    "change",
    [{"subscription_status": "inactive"}, {"subscription_ends_at": datetime.now(UTC) - timedelta(seconds=1)}],
)
def test_a_subscription_that_ends_meanwhile_ends_the_answers(
    client: FlaskClient, known: Visitor, change: dict[str, object]
) -> None:
    organization = known.organization
    organization.update("organizations", "organization_id", organization.id, **change)
    assert_problem(get(client, organization, known.path), 403, "subscription_inactive")
    organization.update(
        "organizations", "organization_id", organization.id, subscription_status="active", subscription_ends_at=None
    )
    assert get(client, organization, known.path).status_code == 200


def test_a_key_that_is_new_meanwhile_is_known(client: FlaskClient, known: Visitor) -> None:
    organization = known.organization
    kid, secret = organization.key("HS256")
    jwt = organization.signed(organization.claims(known.external_id), {"alg": "HS256", "kid": str(kid)}, secret)
    assert get(client, organization, cases_path(organization.id, jwt)).status_code == 200


def test_a_known_token_opens_no_other_organization(
    client: FlaskClient, known: Visitor, session_connection: psycopg.Connection
) -> None:
    other = Organization(session_connection, known.organization.box)
    path = cases_path(other.id, other.jwt(known.external_id))
    assert_problem(get(client, known.organization, path), 403, "organization_forbidden")


def test_a_jwt_expires_although_its_signature_was_verified_before(client: FlaskClient, known: Visitor) -> None:
    organization = known.organization
    path = cases_path(organization.id, organization.jwt(known.external_id))
    assert get(client, organization, path).status_code == 200
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cases_service.credentials.visitor_jwt.time.time", lambda: 9_999_999_999.0)
        assert_problem(get(client, organization, path), 400, "token_expired")


def test_only_a_guess_that_fails_costs_a_third_statement(
    client: FlaskClient, known: Visitor, log_lines: LogLines
) -> None:
    organization = known.organization
    get(client, organization, known.path)
    organization.key("HS256")
    get(client, organization, known.path)
    get(client, organization, known.path)
    get(client, organization, cases_path(organization.id, "not.a.token"))
    assert [line["queries"] for line in log_lines()] == [2, 4, 2, 1]
