"""A token does what its scopes name, and nothing else."""

import psycopg
import pytest
from flask.testing import FlaskClient

from cases_service.credentials import administration
from cases_service.credentials.scopes import SCOPES
from tests.factories import Organization, assert_problem


def test_a_token_without_any_choice_reads_the_cases_of_visitors(organization: Organization) -> None:
    (token,) = administration.list_tokens(organization.connection, organization_id=organization.id)
    assert token.scopes == ["visitors:read"]


def test_a_token_that_was_stored_without_scopes_reads_the_cases_of_visitors(organization: Organization) -> None:
    """As every token was that is older than the scopes."""
    (scopes,) = organization.connection.execute(
        "insert into api_tokens (organization_id, id, user_id, token_hash)"
        " values (%s, gen_random_uuid(), %s, sha256('older')) returning scopes",
        [organization.id, organization.user_id],
    ).fetchone() or ([],)
    assert scopes == ["visitors:read"]


@pytest.mark.parametrize("place", ["", "/summary", "/00000000-0000-0000-0000-000000000000", "?page_size=0"])
@pytest.mark.parametrize("scope", [scope for scope in SCOPES if scope != "visitors:read"])
def test_a_visitors_cases_need_their_own_scope(
    client: FlaskClient, organization: Organization, scope: str, place: str
) -> None:
    headers = {"Authorization": f"Token {organization.token_with(scope)}"}
    path = organization.visitor().path
    problem = assert_problem(client.get(f"{path}{place}", headers=headers), 403, "scope_missing")
    assert "visitors:read" in problem["detail"]


def test_a_lapsed_subscription_comes_before_a_missing_scope(client: FlaskClient, organization: Organization) -> None:
    organization.update("organizations", "organization_id", organization.id, subscription_status="inactive")
    headers = {"Authorization": f"Token {organization.token_with('cases:read')}"}
    assert_problem(client.get(organization.visitor().path, headers=headers), 403, "subscription_inactive")


def test_a_scope_that_is_taken_away_is_missing_in_the_next_request(
    client: FlaskClient, organization: Organization
) -> None:
    path = organization.visitor().path
    assert client.get(path, headers=organization.headers()).status_code == 200
    organization.update("api_tokens", "id", organization.token_id, scopes=["cases:read"])
    assert_problem(client.get(path, headers=organization.headers()), 403, "scope_missing")


@pytest.mark.parametrize("scopes", [[], ["cases"], ["visitors:read", "everything"]])
def test_the_database_keeps_known_scopes_only_and_at_least_one(organization: Organization, scopes: list[str]) -> None:
    # Citus names the constraint in the message alone.
    with pytest.raises(psycopg.errors.CheckViolation, match='"api_tokens_scopes_known"'):
        organization.update("api_tokens", "id", organization.token_id, scopes=scopes)
