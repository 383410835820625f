"""The first lines that somebody pastes, run as they are printed, and the answers that the documents show for them."""

import gzip
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from cases_service.demo.demo import DEMO_DATA
from tests.conftest import new_database
from tests.documents import block, run
from tests.factories import SECRET_KEY, Organization, cases_path
from tests.process.running import COMMAND, LOOPBACK, PATIENCE, SCRIPTS, Service, environment, wait_for

API = "docs/api.md"
NYC_311 = "53b97666-d364-5ae6-931e-d7745d57c1ac"
NYPD = "65f33228-72e5-5b5b-a48f-152fe9c2e8d8"


@pytest.fixture
def empty_database(server_url: str) -> Iterator[str]:
    with new_database(server_url, f"cases_first_{uuid4().hex[:12]}") as url:
        yield url


def test_the_first_requests_are_answered_as_the_documents_show(start: Callable[..., Service], place: Path) -> None:
    data_dir = str(place / "data")
    demo = start(COMMAND, "demo", "--bind", f"{LOOPBACK}:0", CASES_DATA_DIR=data_dir)
    wait_for(lambda: "Ctrl-C" in demo.out, lambda: demo.process.poll() is not None, demo)
    port = demo.port
    pasted = block("README.md", "sh", "create-token --organization $ORG").replace(".venv/bin/cases-service", COMMAND)

    def paste(old: str = "", new: str = "") -> dict[str, object]:
        script = pasted.replace(old, new).replace("127.0.0.1:8000", f"{LOOPBACK}:{port}")
        given = environment(CASES_DATA_DIR=data_dir)
        ran = subprocess.run(["sh", "-ec", script], env=given, check=True, capture_output=True, text=True)
        answer: dict[str, object] = json.loads(ran.stdout)
        return answer

    def page(answer: dict[str, object]) -> tuple[object, ...]:
        link = str(answer["next"]).replace(f":{port}/", ":8000/")
        return link.partition("cursor=")[0], answer["previous"], answer["results"]

    assert page(paste()) == page(json.loads(block("README.md", "json", "results")))
    query = "page_size=1&fields=case_number,subject,status,priority_label"
    assert page(paste(query, "page_size=2&fields=case_number,status")) == page(
        json.loads(block(API, "json", '"next": "http'))
    )
    pasted = pasted.replace("zip-11233", "zip-11368")
    summary, shown = paste(f"cases?{query}", "cases/summary"), json.loads(block(API, "json", '"by_status"'))
    assert summary | {"latest_updated_at": shown["latest_updated_at"]} == shown  # a demo's times move with the days
    assert demo.end() == 0


def test_an_error_and_its_line_of_the_log_are_as_the_documents_show(
    service: Service, organization: Organization
) -> None:
    path = cases_path(organization.id, "-")
    expired = organization.jwt("me", exp=1)
    headers = (f"Authorization: Token {organization.token}", f"X-External-Identity: {expired}")
    answer = service.curl(path, "--header", headers[0], "--header", headers[1]).json
    shown = json.loads(block(API, "json", "Sign a new one"))
    assert answer | {"request_id": shown["request_id"]} == shown
    assert list(answer) == list(shown)
    (line,) = [event for event in service.events if event.get("request_id") == answer["request_id"]]
    shown = json.loads(block("docs/observability.md", "json", '"event": "request"'))
    others = ("request_id", "organization", "duration_ms", "queries", "timestamp")
    assert line | {name: shown[name] for name in others} == shown


def test_the_paths_of_the_api_document_are_answered(service: Service, organization: Organization) -> None:
    visitor = organization.visitor()
    case_id = visitor.cases(1)[0]
    given = {
        "<organization_id>": str(organization.id),
        "<external_id_jwt_token>": organization.jwt(visitor.external_id),
        "<case_id>": str(case_id),
    }
    lines = block(API, "text", "/cases/summary").splitlines()
    assert len(lines) == 3
    for line in lines:
        path = line.removeprefix("GET ")
        for name, value in given.items():
            path = path.replace(name, value)
        assert service.curl(path, "--header", f"Authorization: Token {organization.token}").status == 200


def test_ones_own_data_are_loaded_and_served(start: Callable[..., Service], empty_database: str, place: Path) -> None:
    (place / "cases.ndjson").write_bytes(DEMO_DATA.read_bytes())
    script = block("README.md", "sh", "cases-service load cases.ndjson")
    for old, new in {
        "postgresql://cases@db.internal/cases": f"'{empty_database}'",
        "--organization ID": f"--organization {NYC_311}",
        "--user ID": f"--user {NYPD}",
        "cases-service serve --bind 0.0.0.0:8000": f"exec cases-service serve --bind {LOOPBACK}:0",
    }.items():
        assert old in script
        script = script.replace(old, new)
    path = f"{SCRIPTS}:/usr/bin:/bin"
    service = start("bash", "-ec", script, PATH=path)
    # Four commands come first.
    wait_for(lambda: "Listening at" in service.log, lambda: service.process.poll() is not None, service, 5 * PATIENCE)
    service.wait_until_ready()
    token = next(line for line in service.out.splitlines() if line.startswith("cst_"))
    answer = service.curl(cases_path(NYC_311, "-"), "--header", f"Authorization: Token {token}")
    assert (answer.status, answer.json["code"]) == (400, "token_missing")
    assert service.end() == 0


def test_load_takes_files_and_standard_input(empty_database: str, place: Path) -> None:
    organization, *others = DEMO_DATA.read_text().splitlines(keepends=True)
    (place / "organizations.ndjson").write_text(organization)
    (place / "cases.ndjson").write_text("".join(others))
    (place / "export.ndjson.gz").write_bytes(gzip.compress("".join(others[-200:]).encode()))
    given = {"DATABASE_URL": empty_database, "CASES_SECRET_KEY": SECRET_KEY}
    run("cases-service init-db", place, **given)
    run(block("docs/load.md", "sh", "cases-service load"), place, **given)
    with psycopg.connect(empty_database) as connection:
        assert connection.execute("select count(*) from cases").fetchone() == (1000,)
