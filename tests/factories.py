"""Makes what tests need in the database, each organization with fresh ids and explicit times."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
from flask.testing import FlaskClient
from psycopg import sql
from werkzeug.test import TestResponse

from cases_service.credentials import administration, signing_keys
from cases_service.credentials.secret_encryption import SecretBox

SECRET_KEY = base64.urlsafe_b64encode(b"k" * 32).decode()
LONG_AGO = datetime(2015, 8, 31, 16, 32, 17, 879123, tzinfo=UTC)

TABLES = (
    "organizations",
    "users",
    "api_tokens",
    "signing_keys",
    "visitors",
    "contacts",
    "case_funnel_stages",
    "cases",
    "activities",
    "messages",
    "event_positions",
    "events",
    "import_runs",
    "removed_rows",
    "erasure_keys",
    "erased_visitors",
)
"""Every table that holds rows of an organization, in the order of schema.sql."""


class Organization:
    """A company with an active subscription, one user, one API token and one HS256 key."""

    def __init__(self, connection: psycopg.Connection, box: SecretBox) -> None:
        self.connection = connection
        self.box = box
        self.id = uuid4()
        self.insert("organizations", organization_id=self.id, name="Acme", subscription_status="active")
        self.user_id = self.user(first_name="Ada", last_name="Byron")
        self.token_id, self.token = administration.create_token(
            connection, organization_id=self.id, user_id=self.user_id
        )
        self.kid, self.secret = self.key()

    def token_with(self, *scopes: str) -> str:
        _, token = administration.create_token(
            self.connection, organization_id=self.id, user_id=self.user_id, scopes=scopes
        )
        return token

    def insert(self, table: str, **values: Any) -> None:
        names = list(values)
        statement = sql.SQL("insert into {} ({}) values ({})").format(
            sql.Identifier(table),
            sql.SQL(", ").join(map(sql.Identifier, names)),
            sql.SQL(", ").join(map(sql.Placeholder, names)),
        )
        self.connection.execute(statement, values)

    def update(self, table: str, key: str, value: UUID, **values: Any) -> None:
        assignments = [sql.SQL("{} = {}").format(sql.Identifier(n), sql.Placeholder(n)) for n in values]
        statement = sql.SQL("update {} set {} where organization_id = {} and {} = {}").format(
            sql.Identifier(table),
            sql.SQL(", ").join(assignments),
            sql.Literal(self.id),
            sql.Identifier(key),
            sql.Literal(value),
        )
        self.connection.execute(statement, values)

    def user(self, **values: Any) -> UUID:
        user_id = uuid4()
        self.insert("users", organization_id=self.id, id=user_id, **values)
        return user_id

    def key(self, algorithm: str = "HS256", secret: str | None = None) -> tuple[UUID, str]:
        kid, text = uuid4(), secret or signing_keys.new_secret()
        sealed = self.box.seal(text, organization_id=self.id, key_id=kid, algorithm=algorithm)
        self.insert("signing_keys", organization_id=self.id, id=kid, algorithm=algorithm, encrypted_secret=sealed)
        return kid, text

    def public_key(self, algorithm: str, pem: str) -> UUID:
        kid = uuid4()
        self.insert("signing_keys", organization_id=self.id, id=kid, algorithm=algorithm, public_key=pem)
        return kid

    def visitor(self, external_id: str | None = None, contacts: int = 1) -> "Visitor":
        return Visitor(self, external_id or f"visitor-{uuid4()}", contacts)

    def case(self, contact_id: UUID | None, created_at: datetime = LONG_AGO, **values: Any) -> UUID:
        given = {
            "id": uuid4(),
            "case_number": uuid4().hex,
            "status": "Open",
            "priority": 3,
            "updated_at": created_at,
            **values,
        }
        if given["status"] == "Closed":
            given.setdefault("closed_at", created_at)
        self.insert("cases", organization_id=self.id, contact_id=contact_id, created_at=created_at, **given)
        case_id: UUID = given["id"]
        return case_id

    def headers(self, **extra: str) -> dict[str, str]:
        return {"Authorization": f"Token {self.token}", **extra}

    def stage(self, name: str = "New", position: int = 1) -> UUID:
        stage_id = uuid4()
        self.insert("case_funnel_stages", organization_id=self.id, id=stage_id, name=name, position=position)
        return stage_id

    def import_run(self, finished_at: datetime | None = None, **values: Any) -> None:
        """Leave what a load leaves, by default of a moment ago."""
        given = {"source": "load", "is_stored": True, "lines": 1, "written": 1, "removed": 0, "stale": 0, "wrong": 0}
        when = datetime.now(UTC) if finished_at is None else finished_at
        self.insert("import_runs", organization_id=self.id, finished_at=when, duration_ms=5, **(given | values))

    @property
    def cases_path(self) -> str:
        """The organization's own collection."""
        return f"/api/v5/orgs/{self.id}/cases"

    def claims(self, external_id: str, **claims: Any) -> dict[str, Any]:
        # Longer than any run of tests, `make torture` and `make soak` too, and within CASES_JWT_MAX_TTL.
        return {"sub": external_id, "exp": int(time.time()) + 12 * 3600, **claims}

    def jwt(self, external_id: str, **claims: Any) -> str:
        return self.signed(self.claims(external_id, **claims))

    def signed(self, claims: Any, header: Mapping[str, Any] | None = None, secret: str | None = None) -> str:
        return hs256(claims, header or {"alg": "HS256", "typ": "JWT"}, secret or self.secret)


class Visitor:
    """A signed-in customer of an organization with some contacts."""

    def __init__(self, organization: Organization, external_id: str, contacts: int) -> None:
        self.organization = organization
        self.external_id = external_id
        self.id = uuid4()
        organization.insert("visitors", organization_id=organization.id, id=self.id, external_id=external_id)
        self.contact_ids = [self.contact() for _ in range(contacts)]

    def contact(self, **values: Any) -> UUID:
        contact_id = uuid4()
        given = {"visitor_id": self.id, "created_at": LONG_AGO, "updated_at": LONG_AGO, **values}
        self.organization.insert("contacts", organization_id=self.organization.id, id=contact_id, **given)
        return contact_id

    def cases(self, number: int, step: timedelta = timedelta(seconds=1)) -> list[UUID]:
        """Make cases a step apart, in turn of each contact, and return their ids in order."""
        contacts = self.contact_ids
        return [self.organization.case(contacts[i % len(contacts)], LONG_AGO + i * step) for i in range(number)]

    @property
    def path(self) -> str:
        """The visitor's collection, with the JWT in the path."""
        return cases_path(self.organization.id, self.organization.jwt(self.external_id))


def cases_path(organization_id: UUID | str, token: str) -> str:
    return f"/api/v5/orgs/{organization_id}/external-visitors/{token}/cases"


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def hs256(claims: Any, header: Mapping[str, Any], secret: str, digest: str = "sha256") -> str:
    """Sign by hand, with nothing between the test and the bytes; text counts as JSON already."""
    parts = [part if isinstance(part, str) else json.dumps(part) for part in (header, claims)]
    signing_input = ".".join(b64(part.encode("utf-8", "surrogatepass")) for part in parts)
    signature = hmac.new(secret.encode(), signing_input.encode(), getattr(hashlib, digest)).digest()
    return f"{signing_input}.{b64(signature)}"


def get(client: FlaskClient, organization: Organization, path: str, **headers: str) -> TestResponse:
    return client.get(path, headers=organization.headers(**headers))


def assert_problem(response: TestResponse, status: int, code: str) -> dict[str, Any]:
    """Check everything that each problem document promises, and return it."""
    assert (response.status_code, response.json and response.json.get("code")) == (status, code)
    document: dict[str, Any] = response.get_json()
    assert response.content_type == "application/problem+json"
    assert document["type"] == f"urn:problem-type:visitor-cases:{code}"
    assert document["status"] == status
    assert document["title"]
    assert document["detail"]
    assert document["request_id"] == response.headers["X-Request-ID"]
    members = {
        "type",
        "title",
        "status",
        "detail",
        "code",
        "request_id",
        "errors",
        "error_count",
        "case_id",
        "position",
    }
    assert set(document) <= members
    return document
