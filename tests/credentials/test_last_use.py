"""When a token or key was last used: written down a minute at a time, and past the request."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import msgspec
import psycopg
import pytest
from flask.testing import FlaskClient

from cases_service.credentials import administration, last_use
from cases_service.credentials.last_use import LastUse
from cases_service.database.connection_pool import Database
from cases_service.settings import Settings
from tests.conftest import LogLines
from tests.factories import LONG_AGO, Organization, cases_path, get, hs256
from tests.process.running import wait_for

Times = tuple[datetime | None, datetime | None]


def times(organization: Organization) -> Times:
    """Return when the organization's token and key were last used."""
    (token,) = administration.list_tokens(organization.connection, organization_id=organization.id)
    (key,) = administration.list_keys(organization.connection, organization_id=organization.id)
    return token.last_used_at, key.last_used_at


def set_times(organization: Organization, value: datetime) -> None:
    organization.update("api_tokens", "id", organization.token_id, last_used_at=value)
    organization.update("signing_keys", "id", organization.kid, last_used_at=value)


def token_hash(organization: Organization) -> bytes:
    row = organization.connection.execute(
        "select token_hash from api_tokens where organization_id = %s", [organization.id]
    ).fetchone()
    assert row
    value: bytes = row[0]
    return value


@pytest.fixture
def recorder(settings: Settings) -> Iterator[LastUse]:
    """What writes at once what it is told."""
    recorder = LastUse(Database(settings.require_database_url(), settings), gather_seconds=0)
    recorder.open()
    yield recorder
    recorder.close()


def test_a_request_is_a_use_of_its_token_and_its_key(client: FlaskClient, organization: Organization) -> None:
    began = datetime.now(UTC)
    assert get(client, organization, organization.visitor().path).status_code == 200
    wait_for(lambda: None not in times(organization))
    assert all(time is not None and time >= began for time in times(organization))


def test_a_refused_token_and_a_refused_jwt_are_no_use(
    client: FlaskClient, recorder: LastUse, organization: Organization
) -> None:
    other = Organization(organization.connection, organization.box)
    visitor = organization.visitor()
    forged = organization.signed(organization.claims(visitor.external_id), secret="f" * 32)
    path = visitor.path.replace(visitor.path.split("/")[6], forged)
    assert get(client, organization, path).status_code == 400
    wait_for(lambda: times(organization)[0] is not None)
    assert client.get(path, headers={"Authorization": f"Token {organization.token[:-1]}"}).status_code == 401
    # Whatever was noted before this is written by the time that this is.
    assert get(client, other, other.visitor().path).status_code == 200
    wait_for(lambda: None not in times(other))
    assert times(organization)[1] is None


def test_a_key_that_was_retired_meanwhile_is_not_used(
    client: FlaskClient, recorder: LastUse, organization: Organization
) -> None:
    visitor = organization.visitor()
    kid, secret = organization.key("HS512")
    claims = organization.claims(visitor.external_id)
    signed = hs256(claims, {"alg": "HS512", "kid": str(kid)}, secret, "sha512")
    assert get(client, organization, visitor.path).status_code == 200
    # What the token opened before says that the key is live, and is only a guess.
    administration.retire_key(organization.connection, organization_id=organization.id, key_id=kid)
    assert get(client, organization, cases_path(organization.id, signed)).status_code == 400
    other = Organization(organization.connection, organization.box)
    assert get(client, other, other.visitor().path).status_code == 200
    wait_for(lambda: None not in times(other))
    keys = administration.list_keys(organization.connection, organization_id=organization.id)
    assert [key.last_used_at for key in keys if key.kid == kid] == [None]


def test_a_minute_passes_between_two_records_whoever_makes_them(recorder: LastUse, organization: Organization) -> None:
    recent = datetime.now(UTC) - timedelta(seconds=30)
    other = Organization(organization.connection, organization.box)
    set_times(organization, recent)
    set_times(other, LONG_AGO)
    for one in (organization, other):
        recorder.note(one.id, token_hash(one))
        recorder.note(one.id, one.kid)
    wait_for(lambda: LONG_AGO not in times(other))
    assert times(organization) == (recent, recent)


def test_a_second_use_within_a_minute_asks_the_database_nothing(recorder: LastUse, organization: Organization) -> None:
    recorder.note(organization.id, organization.kid)
    wait_for(lambda: times(organization)[1] is not None)
    set_times(organization, LONG_AGO)
    recorder.note(organization.id, organization.kid)
    assert not recorder._pending
    recorder.note(organization.id, token_hash(organization))
    wait_for(lambda: times(organization)[0] != LONG_AGO)
    assert times(organization)[1] == LONG_AGO


def test_the_memory_of_uses_is_a_minute_long(
    recorder: LastUse, organization: Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(last_use, "_INTERVAL_SECONDS", 0.0)
    recorder.note(organization.id, organization.kid)
    wait_for(lambda: times(organization)[1] is not None and not recorder._noted)


def test_a_row_that_somebody_holds_delays_no_other(
    recorder: LastUse, organization: Organization, database_url: str
) -> None:
    other = Organization(organization.connection, organization.box)
    with psycopg.connect(database_url) as holder:
        holder.execute("select from signing_keys where id = %s for update", [organization.kid])
        recorder.note(organization.id, organization.kid)
        recorder.note(other.id, other.kid)
        wait_for(lambda: times(other)[1] is not None)
        assert times(organization)[1] is None


def test_what_may_not_be_written_fails_no_request(
    make_client: Callable[..., FlaskClient],
    organization: Organization,
    service_role: str,
    log_lines: LogLines,
) -> None:
    right = "update (last_used_at) on api_tokens, signing_keys"
    organization.connection.execute(f"revoke {right} from {service_role}".encode())
    try:
        client = make_client()
        visitor = organization.visitor()
        assert get(client, organization, visitor.path).status_code == 200
        wait_for(lambda: [line for line in log_lines() if line["event"] == "last_use_not_recorded"])
        assert get(client, organization, visitor.path).status_code == 200
    finally:
        organization.connection.execute(f"grant {right} to {service_role}".encode())
    assert times(organization) == (None, None)


def test_without_a_database_it_neither_raises_nor_waits_to_end(settings: Settings, organization: Organization) -> None:
    away = LastUse(
        Database("host=127.0.0.1 port=1 dbname=none", msgspec.structs.replace(settings, connect_timeout=2)),
        gather_seconds=0,
    )
    away.open()
    away.note(organization.id, organization.kid)
    wait_for(lambda: away._fails)
    away.close()
    away._writer.join(10)
    assert not away._writer.is_alive()
