"""Tokens and keys: made, limited, ended and encrypted anew."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from cases_service.credentials import administration
from cases_service.credentials.administration import AdministrationError
from cases_service.credentials.secret_encryption import NoSecretKeyError, SecretBox
from cases_service.credentials.signing_keys import KeyMaterialError
from tests.credentials.test_secrets import MAKERS, NEW, pem
from tests.factories import SECRET_KEY, Organization


def stored(organization: Organization, kid: Any) -> tuple[Any, ...]:
    row = organization.connection.execute(
        "select algorithm, encrypted_secret, public_key, retired_at from signing_keys"
        " where organization_id = %s and id = %s",
        [organization.id, kid],
    ).fetchone()
    assert row
    return row


def create_key(organization: Organization, algorithm: str = "HS256", public_key: str | None = None) -> Any:
    return administration.create_key(
        organization.connection,
        organization_id=organization.id,
        algorithm=algorithm,
        public_key=public_key,
        box=organization.box,
    )


def test_a_new_secret_is_stored_encrypted(organization: Organization) -> None:
    key = create_key(organization)
    assert key.secret
    algorithm, sealed, public_key, retired_at = stored(organization, key.kid)
    assert (algorithm, public_key, retired_at) == ("HS256", None, None)
    assert key.secret not in sealed
    (_, found) = administration.live_keys(organization.connection, organization_id=organization.id)
    assert administration.open_secret(found, organization_id=organization.id, box=organization.box) == key.secret


def test_a_public_key_has_no_secret(organization: Organization) -> None:
    text = pem(MAKERS["ES256"]())
    key = create_key(organization, "ES256", text)
    assert key.secret is None
    assert stored(organization, key.kid) == ("ES256", None, text, None)


def test_a_public_key_that_does_not_fit_is_refused(organization: Organization) -> None:
    with pytest.raises(KeyMaterialError):
        create_key(organization, "ES384", pem(MAKERS["ES256"]()))


def test_an_organization_has_ten_live_keys_at_most(organization: Organization) -> None:
    for _ in range(9):
        create_key(organization)
    with pytest.raises(AdministrationError, match="retire one"):
        create_key(organization)
    administration.retire_key(organization.connection, organization_id=organization.id, key_id=organization.kid)
    create_key(organization)


def test_the_limit_holds_for_several_at_once(organization: Organization, database_url: str) -> None:
    def attempt(_: int) -> bool:
        with psycopg.connect(database_url, autocommit=True) as connection:
            try:
                administration.create_key(
                    connection,
                    organization_id=organization.id,
                    algorithm="HS256",
                    public_key=None,
                    box=organization.box,
                )
            except AdministrationError:
                return False
            return True

    with ThreadPoolExecutor(6) as threads:
        assert sum(threads.map(attempt, range(14))) == 9


def test_a_retirement_is_never_undone(organization: Organization) -> None:
    administration.retire_key(organization.connection, organization_id=organization.id, key_id=organization.kid)
    first = stored(organization, organization.kid)[3]
    administration.retire_key(organization.connection, organization_id=organization.id, key_id=organization.kid)
    assert stored(organization, organization.kid)[3] == first


def test_what_does_not_exist_cannot_be_ended(organization: Organization) -> None:
    other = Organization(organization.connection, organization.box)
    for key_id in (uuid4(), other.kid):
        with pytest.raises(AdministrationError, match="no signing key"):
            administration.retire_key(organization.connection, organization_id=organization.id, key_id=key_id)
    for token_id in (uuid4(), other.token_id):
        with pytest.raises(AdministrationError, match="no API token"):
            administration.revoke_token(organization.connection, organization_id=organization.id, token_id=token_id)


def test_what_belongs_to_nobody_cannot_be_made(organization: Organization) -> None:
    other = Organization(organization.connection, organization.box)
    with pytest.raises(AdministrationError, match="no user"):
        administration.create_token(organization.connection, organization_id=organization.id, user_id=other.user_id)
    with pytest.raises(AdministrationError, match="no organization"):
        administration.create_key(
            organization.connection, organization_id=uuid4(), algorithm="HS256", public_key=None, box=organization.box
        )
    with pytest.raises(NoSecretKeyError):
        administration.create_key(
            organization.connection,
            organization_id=organization.id,
            algorithm="HS256",
            public_key=None,
            box=SecretBox([]),
        )


def test_a_token_is_stored_as_its_hash_only(organization: Organization) -> None:
    row = organization.connection.execute(
        "select t::text from api_tokens t where organization_id = %s", [organization.id]
    ).fetchone()
    assert row
    assert organization.token not in row[0]


def test_rotation_moves_every_secret_to_the_new_key(organization: Organization) -> None:
    # In a transaction that is undone: the other tests of this database go on with the old key, and some with secrets
    # that no key opens.
    connection = organization.connection
    with connection.transaction(force_rollback=True):
        connection.execute("delete from signing_keys where organization_id <> %s", [organization.id])
        rotated = administration.rotate_secrets(connection, box=SecretBox([NEW, SECRET_KEY]))
        assert rotated == 1
        (key,) = administration.live_keys(connection, organization_id=organization.id)
        for keys, opens in (([NEW], True), ([SECRET_KEY], False)):
            try:
                secret = administration.open_secret(key, organization_id=organization.id, box=SecretBox(keys))
                assert (secret, opens) == (organization.secret, True)
            except AdministrationError:
                assert not opens


def test_a_rotation_that_cannot_open_a_secret_changes_nothing(organization: Organization) -> None:
    before = stored(organization, organization.kid)
    with pytest.raises(AdministrationError, match="opens with none"):
        administration.rotate_secrets(organization.connection, box=SecretBox([NEW]))
    assert stored(organization, organization.kid) == before
