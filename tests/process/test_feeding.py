"""The lines of docs/feeding.md, run as they are printed."""

import gzip
import json
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cases_service.credentials.secret_encryption import SecretBox
from tests.documents import block, run
from tests.test_loading import Company, Fields, content_of

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
    assert printed == "20 lines: removed 2 cases\n"
    assert len(company.rows("cases")) == 18


def test_a_relay_is_followed(company: Company, export: list[Fields], database_url: str, tmp_path: Path) -> None:
    company.load(company.organization())
    (tmp_path / "lines").write_bytes(b"".join(map(content_of, export)))
    relay = "relay() { cat lines; }\n"
    printed = run(relay + block(FEEDING, "bash", "--follow"), tmp_path, DATABASE_URL=database_url)
    told: list[dict[str, Any]] = [json.loads(line) for line in printed.splitlines()]
    assert [(one["committed"], one["written"]) for one in told] == [(22, 22)]
