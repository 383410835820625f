"""Backups, a lost secret key and a newer PostgreSQL, each by the lines of docs/day-two.md."""

import base64
import hashlib
import json
import signal
from collections.abc import Callable
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql

from cases_service.credentials.secret_encryption import SecretBox
from cases_service.embedded.server import _find_programs
from cases_service.personal_data.erasure import erase_visitor
from tests.conftest import new_database
from tests.documents import block, run
from tests.factories import SECRET_KEY, Organization, cases_path
from tests.process.embedded_data import make_template
from tests.process.running import SCRIPTS, Service

DAY_TWO = "docs/day-two.md"
# PostgreSQL of Debian's packages, older than that of the embedded package.
OLDER = [path for path in Path("/usr/lib/postgresql").glob("1[567]/bin") if (path / "postgres").exists()]


def page(service: Service, organization: Organization, jwt: str) -> tuple[int, list[str]]:
    """Return the status, and the numbers of the cases or the code of the error."""
    headers = ("--header", f"Authorization: Token {organization.token}", "--header", f"X-External-Identity: {jwt}")
    answer = service.curl(cases_path(organization.id, "-"), *headers)
    cases = answer.json.get("results")
    return answer.status, [answer.json["code"]] if cases is None else [case["case_number"] for case in cases]


def test_a_backup_with_its_secret_key_is_the_service_again(
    serve: Callable[..., Service], organization: Organization, server_url: str, database_url: str, place: Path
) -> None:
    visitor = organization.visitor()
    visitor.cases(3)
    jwt = organization.jwt(visitor.external_id)
    before = page(serve(), organization, jwt)
    assert (before[0], len(before[1])) == (200, 3)
    run(
        block(DAY_TWO, "bash", 'pg_dump --format custom --file cases.dump "$SUPERUSER_URL'),
        place,
        SUPERUSER_URL=database_url,
    )
    with new_database(server_url, f"cases_restored_{uuid4().hex[:12]}") as restored:
        run(block(DAY_TWO, "bash", '--dbname "$SUPERUSER_URL'), place, SUPERUSER_URL=restored)
        run("cases-service init-db", place, DATABASE_URL=restored)
        service = serve(DATABASE_URL=restored)
        service.wait_until_ready()
        assert page(service, organization, jwt) == before
        assert service.end(signal.SIGTERM) == 0


def rows(connection: psycopg.Connection, organization: Organization) -> dict[str, int]:
    """Return how many rows each table has of an organization."""
    tables = connection.execute(
        "select relname from pg_class where relrowsecurity and relnamespace = 'public'::regnamespace"
    ).fetchall()
    assert len(tables) == 16
    counted = {}
    for (name,) in tables:
        statement = sql.SQL("select count(*) from {} where organization_id = %s").format(sql.Identifier(name))
        (counted[name],) = connection.execute(statement, [organization.id]).fetchone() or (0,)
    return counted


def test_a_customer_is_exported_and_erased_and_nobody_else_is(
    organization: Organization, database_url: str, connection: psycopg.Connection, place: Path
) -> None:
    kept = organization.visitor(contacts=2)
    kept.cases(3)
    before = rows(connection, organization)
    # What a quotation mark could break out of.
    gone = organization.visitor('it\'s "a" customer', contacts=2)
    gone.cases(5)
    whom = {"ORGANIZATION": str(organization.id), "EXTERNAL_ID": gone.external_id}
    run(block(DAY_TWO, "bash", "export-visitor"), place, DATABASE_URL=database_url, **whom)
    run(block(DAY_TWO, "bash", "erase-visitor"), place, DATABASE_URL=database_url, **whom)
    assert rows(connection, organization) == before | {"erasure_keys": 1, "erased_visitors": 1}
    receipt = json.loads((place / "receipt.json").read_text())
    documented = json.loads(block(DAY_TWO, "json", "erased_at"))
    assert list(receipt) == list(documented)
    assert list(receipt["removed"]) == list(documented["removed"])
    exported = (place / "customer.ndjson").read_bytes()
    assert receipt["sha256"] == hashlib.sha256(exported).hexdigest()
    run(block(DAY_TWO, "bash", "allow-visitor"), place, DATABASE_URL=database_url, **whom)
    run("cases-service load customer.ndjson", place, DATABASE_URL=database_url)
    after = rows(connection, organization)
    assert (after["visitors"], after["contacts"], after["cases"]) == (2, 4, 8)


def test_an_organization_is_erased_whole_and_no_other_is(
    organization: Organization, box: SecretBox, database_url: str, connection: psycopg.Connection, place: Path
) -> None:
    gone, kept = Organization(connection, box), organization
    for each in (gone, kept):
        each.visitor(contacts=2).cases(3)
        erase_visitor(connection, organization_id=each.id, external_id=each.visitor("erased").external_id)
    before = rows(connection, kept)
    run(
        block(DAY_TWO, "bash", "delete from organizations"),
        place,
        SUPERUSER_URL=database_url,
        ORGANIZATION=str(gone.id),
    )
    assert set(rows(connection, gone).values()) == {0}
    assert rows(connection, kept) == before


def test_a_lost_secret_key_costs_the_hmac_keys_and_nothing_else(
    serve: Callable[..., Service], organization: Organization, database_url: str, place: Path
) -> None:
    visitor = organization.visitor()
    visitor.cases(3)
    new_key = base64.urlsafe_b64encode(b"n" * 32).decode()
    service = serve(CASES_SECRET_KEY=new_key)
    assert page(service, organization, organization.jwt(visitor.external_id)) == (500, ["internal_error"])
    (line,) = [event for event in service.events if event["event"] == "secret_not_opened"]
    assert line["key_id"] == str(organization.kid)
    run(
        block(DAY_TWO, "bash", "retire-key"),
        place,
        DATABASE_URL=database_url,
        CASES_SECRET_KEY=new_key,
        ORGANIZATION=str(organization.id),
        OLD_KID=str(organization.kid),
    )
    new = json.loads((place / "new.json").read_text())
    header = {"alg": "HS256", "kid": new["kid"]}
    signed = organization.signed(organization.claims(visitor.external_id), header, new["secret"])
    status, cases = page(service, organization, signed)
    assert (status, len(cases)) == (200, 3)


@pytest.mark.skipif(not OLDER, reason="no older PostgreSQL in /usr/lib/postgresql")
def test_embedded_data_move_to_a_newer_postgresql(start: Callable[..., Service], place: Path) -> None:
    older = OLDER[0]
    template = make_template(place / ".cases-data", bin_dir=older)
    key_file = place / ".cases-data/secret.key"
    key_file.write_text(f"{SECRET_KEY}\n")

    def cases(service: Service) -> list[UUID]:
        answer = service.curl(template.path, "--header", template.header)
        return [UUID(case["id"]) for case in answer.json["results"]]

    arguments = [str(SCRIPTS / "cases-service"), "serve", "--bind", "127.0.0.1:0"]
    old = start(*arguments, CASES_POSTGRES_BIN=str(older))
    old.wait_until_ready()
    before = cases(old)
    run(block(DAY_TWO, "bash", '--file cases.dump "host='), place, older)
    assert old.end(signal.SIGTERM) == 0
    refused = start(*arguments)
    assert refused.process.wait(60) == 1
    assert "was made by PostgreSQL" in refused.log
    run(block(DAY_TWO, "bash", "mv .cases-data"), place)
    new = start(*arguments)
    new.wait_until_ready()
    run(block(DAY_TWO, "bash", "drop database cases"), place)
    new.wait_until_ready()
    assert cases(new) == before
    assert len(before) == 3
    assert new.end(signal.SIGTERM) == 0


def test_the_programs_of_the_package_are_found(place: Path) -> None:
    found = run(f"{block(DAY_TWO, 'bash', 'export PATH')}command -v pg_dump", place)
    assert found.strip() == str(_find_programs(None) / "pg_dump")
