"""The lines of docs/feeding.md, run as they are printed."""

import gzip
import json
import subprocess
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cases_service.credentials.secret_encryption import SecretBox
from tests.documents import ROOT, block, run
from tests.factories import Organization
from tests.loading.test_loading import Company, Fields, content_of
from tests.process.running import Service, environment

FEEDING = "docs/feeding.md"


@pytest.fixture
def company(connection: psycopg.Connection, box: SecretBox) -> Company:
    return Company(connection, box)


@pytest.fixture
def export(company: Company) -> list[Fields]:
    """What a helpdesk with numbers for ids exports, parents first."""
    visitor = company.visitor(id="4711", external_id="customer-4711")
    contact = company.contact(id="20978392", visitor_id="4711")
    return [visitor, contact, *(company.case(id=str(number), contact_id="20978392") for number in range(35436, 35456))]


def write(path: Path, *lines: Fields) -> None:
    path.write_bytes(gzip.compress(b"".join(map(content_of, lines))))


def test_everything_there_is_and_every_night_what_is_gone(
    company: Company, export: list[Fields], database_url: str, tmp_path: Path
) -> None:
    (tmp_path / "organization.ndjson").write_bytes(content_of(company.organization()))
    write(tmp_path / "export.ndjson.gz", *export)
    run(block(FEEDING, "bash", "--batch 50000"), tmp_path, DATABASE_URL=database_url)
    assert len(company.rows("cases")) == 20
    write(tmp_path / "export.ndjson.gz", *export[:-2])
    printed = run(block(FEEDING, "bash", "--snapshot"), tmp_path, DATABASE_URL=database_url)
    assert printed == "20 lines: removed 2 cases; 18 stale\n"
    assert len(company.rows("cases")) == 18


def test_a_relay_is_followed(company: Company, export: list[Fields], database_url: str, tmp_path: Path) -> None:
    company.load(company.organization())
    (tmp_path / "lines").write_bytes(b"".join(map(content_of, export)))
    relay = "relay() { cat lines; }\n"
    printed = run(relay + block(FEEDING, "bash", "--follow"), tmp_path, DATABASE_URL=database_url)
    told: list[dict[str, Any]] = [json.loads(line) for line in printed.splitlines()]
    assert [(one["committed"], one["written"]) for one in told] == [(22, 22)]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "feed"
    directory.mkdir()
    return directory


def send_feed(service: Service, organization: Organization, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run deploy/send-feed as the timer does."""
    headers = directory.parent / "headers"
    headers.write_text(f"Authorization: Bearer {organization.token_with('cases:write')}\n")
    variables = {
        "CASES_FEED_URL": service.url(f"/api/v5/orgs/{organization.id}"),
        "CASES_FEED_HEADERS": str(headers),
        "CASES_FEED_DIRECTORY": str(directory),
    }
    return subprocess.run(
        [ROOT / "deploy/send-feed"], env=environment(**variables), check=False, capture_output=True, text=True
    )


def test_the_files_of_a_feed_are_sent_in_order_and_removed(
    service: Service, organization: Organization, directory: Path
) -> None:
    for name, alias in (("1.ndjson", "before"), ("2.ndjson", "after")):
        (directory / name).write_text(json.dumps({"type": "user", "id": "7", "alias": alias}) + "\n")
    (directory / "3.ndjson.part").write_text("not whole")
    ran = send_feed(service, organization, directory)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert [json.loads(line)["written"]["user"] for line in ran.stdout.splitlines()] == [1, 1]
    assert [file.name for file in directory.iterdir()] == ["3.ndjson.part"]
    found = organization.connection.execute(
        "select alias from users where organization_id = %s and alias is not null", [organization.id]
    )
    assert found.fetchall() == [("after",)]


def test_a_file_that_is_refused_stays_and_holds_the_later_ones(
    service: Service, organization: Organization, directory: Path
) -> None:
    other = Organization(organization.connection, organization.box)
    (directory / "1.ndjson").write_text("{}\n")
    (directory / "2.ndjson").write_text("{}\n")
    organization.connection.execute(
        "update organizations set subscription_status = 'inactive' where organization_id = %s", [other.id]
    )
    ran = send_feed(service, other, directory)
    assert ran.returncode == 22
    assert json.loads(ran.stdout)["code"] == "subscription_inactive"
    assert sorted(file.name for file in directory.iterdir()) == ["1.ndjson", "2.ndjson"]


def test_a_feed_without_a_file_is_well(service: Service, organization: Organization, directory: Path) -> None:
    ran = send_feed(service, organization, directory)
    assert (ran.returncode, ran.stdout) == (0, "")
