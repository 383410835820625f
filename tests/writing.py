"""What tests of the organization's own cases share: who writes, and what a whole organization holds."""

from typing import Any
from uuid import uuid4

import psycopg
from flask.testing import FlaskClient
from psycopg import sql
from werkzeug.test import TestResponse

from tests import factories
from tests.factories import Organization

# Rows about feeds and erasures.
LEFT_BY_FEEDS = ("import_runs", "removed_rows", "erasure_keys", "erased_visitors")
TABLES = tuple(table for table in factories.TABLES if table not in LEFT_BY_FEEDS)


class Writer:
    """A client with a token that writes the cases of an organization."""

    def __init__(self, client: FlaskClient, organization: Organization, *scopes: str) -> None:
        self.client = client
        self.organization = organization
        self.token = organization.token_with(*(scopes or ("cases:write",)))

    def send(self, method: str, case_id: object = None, body: Any = None, **headers: str) -> TestResponse:
        """Send a body, as JSON where it is not bytes already."""
        path = self.organization.cases_path + ("" if case_id is None else f"/{case_id}")
        given = {"Authorization": f"Token {self.token}", **{name.replace("_", "-"): headers[name] for name in headers}}
        if isinstance(body, bytes):
            return self.client.open(
                path, method=method, data=body, headers={"Content-Type": "application/json", **given}
            )
        return self.client.open(path, method=method, headers=given, **({} if body is None else {"json": body}))

    def get(self, case_id: object, **headers: str) -> TestResponse:
        return self.send("GET", case_id, **headers)

    def create(self, **values: Any) -> dict[str, Any]:
        """Make a case and return it."""
        response = self.send("POST", body={"case_number": uuid4().hex, "priority": 3, **values})
        assert response.status_code == 201, response.json
        case: dict[str, Any] = response.get_json()
        return case

    def patch(self, case: dict[str, Any], **values: Any) -> dict[str, Any]:
        """Change a case and return it."""
        response = self.send("PATCH", case["id"], values)
        assert response.status_code == 200, response.json
        changed: dict[str, Any] = response.get_json()
        return changed


def contents(connection: psycopg.Connection, organization: Organization) -> dict[str, list[Any]]:
    """Return every row of an organization, in every table, apart from when its tokens and keys were used."""
    return {
        table: connection.execute(
            sql.SQL(
                "select (to_jsonb(t) - 'last_used_at')::text from {} t where organization_id = {} order by 1"
            ).format(sql.Identifier(table), sql.Literal(organization.id))
        ).fetchall()
        for table in TABLES
    }
