"""The demo data, loaded and walked whole: each visitor's cases, in each ordering, as the file has them."""

import json
import time
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from flask.testing import FlaskClient

from cases_service.cases.schemas import PRIORITY_LABELS
from cases_service.credentials import administration
from cases_service.credentials.secret_encryption import SecretBox
from cases_service.demo.demo import DEMO_DATA, moved_to
from cases_service.loading.files import LoadFile
from cases_service.loading.load import load
from tests.factories import cases_path, hs256

PACKAGE = DEMO_DATA.parents[2]
ORDERINGS = ("created_at", "-created_at", "updated_at", "-updated_at")


class DemoFile:
    """The lines of the file, by type and id."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
        for line in DEMO_DATA.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            self.rows[row.pop("type")][row["id"]] = row
        self.organization_id = UUID(next(iter(self.rows["organization"])))
        visitor_of = {contact["id"]: contact["visitor_id"] for contact in self.rows["contact"].values()}
        self.cases: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for case in self.rows["case"].values():
            self.cases[visitor_of[case["contact_id"]]].append(case)

    def ordered(self, visitor_id: str, ordering: str) -> list[str]:
        column = ordering.removeprefix("-")
        cases = sorted(
            self.cases[visitor_id],
            key=lambda case: (datetime.fromisoformat(case[column]), case["id"]),
            reverse=ordering.startswith("-"),
        )
        return [case["id"] for case in cases]


@pytest.fixture(scope="module")
def demo_file() -> DemoFile:
    return DemoFile()


@pytest.fixture(scope="module")
def demo(session_connection: psycopg.Connection, box: SecretBox, demo_file: DemoFile) -> dict[str, str]:
    """Return the token and secret of the loaded organization."""
    with DEMO_DATA.open("rb") as stream:
        load(session_connection, [LoadFile("nyc311.ndjson", stream)], box=box)
    organization_id = demo_file.organization_id
    _, token = administration.create_token(
        session_connection,
        organization_id=organization_id,
        user_id=UUID(next(iter(demo_file.rows["user"]))),
    )
    key = administration.create_key(
        session_connection, organization_id=organization_id, algorithm="HS256", public_key=None, box=box
    )
    return {"token": token, "secret": key.secret or ""}


def walk(client: FlaskClient, demo: dict[str, str], path: str) -> list[dict[str, Any]]:
    headers = {"Authorization": f"Token {demo['token']}"}
    url: str | None = path
    cases = []
    while url:
        response = client.get(url, headers=headers)
        assert response.status_code == 200, response.text
        cases += response.get_json()["results"]
        url = response.get_json()["next"]
    return cases


@pytest.mark.parametrize("ordering", ORDERINGS)
def test_each_visitors_walk_gives_exactly_the_files_cases_in_order(
    client: FlaskClient, demo: dict[str, str], demo_file: DemoFile, ordering: str
) -> None:
    assert len(demo_file.rows["visitor"]) == 167
    for visitor in demo_file.rows["visitor"].values():
        jwt = hs256({"sub": visitor["external_id"], "exp": exp()}, {"alg": "HS256"}, demo["secret"])
        path = cases_path(demo_file.organization_id, jwt)
        found = walk(client, demo, f"{path}?ordering={ordering}&page_size=7")
        assert [case["id"] for case in found] == demo_file.ordered(visitor["id"], ordering)


def test_each_case_is_the_files(client: FlaskClient, demo: dict[str, str], demo_file: DemoFile) -> None:
    for visitor in demo_file.rows["visitor"].values():
        jwt = hs256({"sub": visitor["external_id"], "exp": exp()}, {"alg": "HS256"}, demo["secret"])
        for case in walk(client, demo, cases_path(demo_file.organization_id, jwt)):
            row = demo_file.rows["case"][case["id"]]
            assert {name: case[name] for name in row} == row
            assert case["priority_label"] == PRIORITY_LABELS[row["priority"]]
            assert case["is_closed"] == (row["status"] == "Closed")
            assert case["owner"] == nested(demo_file, "user", row["owner_id"], case["owner"])
            assert case["contact"] == nested(demo_file, "contact", row["contact_id"], case["contact"])
            assert case["case_funnel_stage"] == nested(
                demo_file, "case_funnel_stage", row["case_funnel_stage_id"], case["case_funnel_stage"]
            )


def test_the_examples_of_the_openapi_document_are_answers(
    client: FlaskClient, demo: dict[str, str], demo_file: DemoFile
) -> None:
    examples = json.loads((PACKAGE / "api" / "openapi" / "examples.json").read_text(encoding="utf-8"))
    jwt = hs256({"sub": "zip-11233", "exp": exp()}, {"alg": "HS256"}, demo["secret"])
    headers = {"Authorization": f"Token {demo['token']}", "X-External-Identity": jwt}
    path = cases_path(demo_file.organization_id, "-")
    page = client.get(
        f"{path}?page_size=1&ordering=-created_at", headers=headers, base_url="http://127.0.0.1:8000"
    ).get_json()
    summary = client.get(f"{path}/summary", headers=headers).get_json()
    example, (case,) = examples["case"], page["results"]
    # The file does not say when a contact was made: that is the time of loading.
    loaded = {name: case["contact"][name] for name in ("created_at", "updated_at")}
    assert {**example, "contact": example["contact"] | loaded} == case
    assert (examples["next"], examples["summary"]) == (page["next"], summary)


def test_the_demos_times_move_by_whole_days_and_none_lies_ahead(demo_file: DemoFile) -> None:
    now = datetime(2031, 5, 6, 12, 30, tzinfo=UTC)
    rows = [json.loads(line) for line in moved_to(now, DEMO_DATA.read_bytes()).splitlines()]
    cases = [row for row in rows if row["type"] == "case"]
    assert max(case["created_at"] for case in cases)[:10] == "2031-05-06"
    moves = set()
    for case in cases:
        for name in ("created_at", "updated_at", "closed_at"):
            before, after = demo_file.rows["case"][case["id"]][name], case[name]
            assert (before is None) == (after is None)
            if after is not None and datetime.fromisoformat(after) != now:
                moves.add(datetime.fromisoformat(after) - datetime.fromisoformat(before))
    assert len(moves) == 1
    assert moves.pop() % timedelta(days=1) == timedelta(0)
    assert max(datetime.fromisoformat(case["updated_at"]) for case in cases) == now
    without = [{k: v for k, v in row.items() if not k.endswith("_at")} for row in rows]
    assert without == [
        {k: v for k, v in json.loads(line).items() if not k.endswith("_at")}
        for line in DEMO_DATA.read_text(encoding="utf-8").splitlines()
    ]


def nested(demo_file: DemoFile, kind: str, row_id: str | None, shown: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return what the file says of a nested object, with what the service adds to it."""
    if row_id is None or shown is None:
        return None
    row = {name: value for name, value in demo_file.rows[kind][row_id].items() if name != "visitor_id"}
    added = {name: shown[name] for name in ("full_name", "created_at", "updated_at") if name in shown}
    if "full_name" in added:
        added["full_name"] = " ".join(filter(None, (row["first_name"], row["last_name"]))) or None
    return added | row


def exp() -> int:
    return int(time.time()) + 600
