"""Makes what a client of the measurements needs: an API token, a signing key, and the requests with a visitor's JWT."""

import base64
import secrets
from typing import Self
from uuid import UUID

from benchmarks.dataset import ORGANIZATION, STATEMENTS, Connection
from cases_service.credentials import administration
from cases_service.credentials import visitor_jwt as visitor_tokens
from cases_service.credentials.scopes import SCOPES
from cases_service.credentials.secret_encryption import SecretBox

_TTL = 12 * 3600


class Credentials:
    """An API token and a signing key of the run."""

    def __init__(self, database_url: str, secret_key: str, token: str, key: administration.NewKey) -> None:
        self.database_url = database_url
        self.secret_key = secret_key
        self.token = token
        self.key = key

    @classmethod
    def make(cls, connection: Connection, database_url: str) -> Self:
        """Make new ones in place of those of the run before."""
        connection.execute(STATEMENTS["forget_credentials"], {"organization_id": ORGANIZATION})
        secret_key = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
        row = connection.execute("select id from users where organization_id = %s limit 1", [ORGANIZATION]).fetchone()
        user_id: UUID = (row or ())[0]
        _, token = administration.create_token(connection, organization_id=ORGANIZATION, user_id=user_id, scopes=SCOPES)
        key = administration.create_key(
            connection,
            organization_id=ORGANIZATION,
            algorithm="HS256",
            public_key=None,
            box=SecretBox([secret_key]),
        )
        return cls(database_url, secret_key, token, key)

    def path(self, external_id: str) -> str:
        """Return the path of a visitor's cases."""
        jwt = visitor_tokens.sign(
            external_id, secret=self.key.secret or "", algorithm="HS256", key_id=self.key.kid, ttl=_TTL
        )
        return f"/api/v5/orgs/{ORGANIZATION}/external-visitors/{jwt}/cases"

    def request(self, external_id: str, query: str = "", *, etag: str | None = None) -> bytes:
        """Return a request for what follows the path of a visitor's cases: `?…`, `/<id>` or nothing."""
        return self.request_for(self.path(external_id) + query, etag=etag)

    def request_for(self, target: str, *, etag: str | None = None) -> bytes:
        """Return a GET of a target, as a client with a connection that it keeps sends it."""
        condition = "" if etag is None else f"If-None-Match: {etag}\r\n"
        return (
            f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Token {self.token}\r\n"
            f"Accept: application/json\r\nUser-Agent: benchmark\r\n{condition}\r\n"
        ).encode("ascii")

    def write(self, method: str, path: str, body: bytes, *, media_type: str = "application/json") -> bytes:
        """Return a request with a body, for what follows the path of the organization."""
        head = (
            f"{method} /api/v5/orgs/{ORGANIZATION}{path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Authorization: Token {self.token}\r\nAccept: application/json\r\nUser-Agent: benchmark\r\n"
            f"Content-Type: {media_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode("ascii") + body
