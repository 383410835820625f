"""The recipe for Zendesk, run as it is printed: its answer becomes lines, and the lines become cases."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.documents import block, run
from tests.factories import Organization
from tests.process.running import LOOPBACK, Service, environment

ZENDESK = "docs/recipes/zendesk.md"
PAGE: dict[str, Any] = json.loads(block(ZENDESK, "json", "metric_sets"))
Lines = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def program(tmp_path: Path) -> Path:
    (tmp_path / "zendesk_lines.py").write_text(block(ZENDESK, "python", "def lines_of("))
    return tmp_path / "zendesk_lines.py"


@pytest.fixture
def lines(program: Path, organization: Organization) -> Lines:
    """A function from pages to the lines that the recipe makes of them."""

    def make(*pages: dict[str, Any]) -> list[dict[str, Any]]:
        ran = subprocess.run(
            [sys.executable, program],
            input="".join(json.dumps(page) + "\n" for page in pages),
            env=environment(ORGANIZATION=str(organization.id)),
            check=True,
            capture_output=True,
            text=True,
        )
        return [json.loads(text) for text in ran.stdout.splitlines()]

    return make


def found(lines: list[dict[str, Any]], kind: str, id_: str) -> dict[str, Any]:
    (line,) = (line for line in lines if (line["type"], line["id"]) == (kind, id_))
    return line


def test_users_come_before_the_tickets_that_refer_to_them(lines: Lines) -> None:
    kinds = [line["type"] for line in lines(PAGE)]
    assert kinds == ["user", "contact", "visitor", "contact", "contact", "contact", "case", "case", "case", "case"]


def test_an_open_ticket_with_an_assignee_is_in_progress_and_waits(lines: Lines) -> None:
    case = found(lines(PAGE), "case", "35436")
    assert (case["status"], case["is_waiting"], case["closed_at"]) == ("In Progress", True, None)
    assert (case["case_number"], case["contact_id"], case["owner_id"]) == ("35436", "20978392", "235323")
    assert (case["priority"], case["latest_messaging_channel"], case["channel_priority"]) == (4, "email", 1)


def test_a_closed_ticket_was_closed_when_it_was_solved(lines: Lines) -> None:
    case = found(lines(PAGE), "case", "35437")
    assert (case["status"], case["closed_at"], case["latest_messaging_channel"]) == (
        "Closed",
        "2026-01-29T10:00:00Z",
        "webchat",
    )
    without = found(lines({**PAGE, "metric_sets": []}), "case", "35437")
    assert without["closed_at"] == without["updated_at"] == "2026-01-30T10:00:00Z"


@pytest.mark.parametrize(
    ("status", "assignee", "expected"),
    [
        ("new", None, "Open"),
        ("open", None, "Open"),
        ("open", 235323, "In Progress"),
        ("pending", 235323, "Pending"),
        ("hold", None, "In Progress"),
        ("solved", 235323, "Closed"),
        ("closed", None, "Closed"),
    ],
)
def test_every_status_is_one_of_the_four(lines: Lines, status: str, assignee: int | None, expected: str) -> None:
    ticket = {**PAGE["tickets"][0], "status": status, "assignee_id": assignee}
    (case,) = lines({"tickets": [ticket]})
    assert case["status"] == expected
    assert (case["closed_at"] is not None) == (expected == "Closed")


def test_a_deleted_ticket_is_removed_unless_it_was_written_since(lines: Lines, organization: Organization) -> None:
    assert found(lines(PAGE), "case", "35439") == {
        "type": "case",
        "organization_id": str(organization.id),
        "id": "35439",
        "deleted": True,
        "updated_at": "2026-01-30T13:01:00Z",
    }


def test_who_has_an_external_id_is_a_visitor_and_who_has_none_only_a_contact(lines: Lines) -> None:
    made = lines(PAGE)
    assert found(made, "visitor", "customer-4711")["external_id"] == "customer-4711"
    assert found(made, "contact", "20978392")["visitor_id"] == "customer-4711"
    assert found(made, "contact", "20978393")["visitor_id"] is None


def test_who_is_no_longer_active_is_nobodys_contact_and_has_no_name(lines: Lines) -> None:
    contact = found(lines(PAGE), "contact", "20978394")
    assert contact["visitor_id"] is None
    assert not {"first_name", "last_name", "email", "phone"} & set(contact)


def test_an_export_is_loaded_by_the_lines_of_the_recipe(
    program: Path, organization: Organization, database_url: str, tmp_path: Path
) -> None:
    (tmp_path / "pages.ndjson").write_text(json.dumps(PAGE) + "\n")
    for _ in range(2):
        run(
            block(ZENDESK, "bash", "pages.ndjson"),
            tmp_path,
            DATABASE_URL=database_url,
            ORGANIZATION=str(organization.id),
        )
    found = organization.connection.execute(
        "select c.case_number, c.status, v.external_id, u.full_name from cases c"
        " join contacts x on x.organization_id = c.organization_id and x.id = c.contact_id"
        " left join visitors v on v.organization_id = c.organization_id and v.id = x.visitor_id"
        " left join users u on u.organization_id = c.organization_id and u.id = c.owner_id"
        " where c.organization_id = %s order by c.case_number",
        [organization.id],
    ).fetchall()
    assert found == [
        ("35436", "In Progress", "customer-4711", "First Agent"),
        ("35437", "Closed", "customer-4711", None),
        ("35438", "In Progress", None, None),
    ]
    again = organization.connection.execute(
        "select written, stale from import_runs where organization_id = %s order by finished_at", [organization.id]
    ).fetchall()
    assert again[1] == (0, 8), "every contact, case and removal; of the rest nothing changed"


@pytest.fixture
def zendesk() -> Iterator[tuple[str, list[str]]]:
    """What answers as Zendesk's export does, the page and behind its cursor an empty one, and what it was asked."""
    asked: list[str] = []

    class Export(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            nothing: dict[str, Any] = {"tickets": [], "users": [], "metric_sets": []}
            page = {**PAGE, **(nothing if "cursor=" in self.path else {"end_of_stream": False})}
            body = json.dumps(page, indent=1).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer((LOOPBACK, 0), Export)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://{LOOPBACK}:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_what_changed_is_sent_and_the_cursor_moves_on(
    service: Service,
    organization: Organization,
    program: Path,
    zendesk: tuple[str, list[str]],
    tmp_path: Path,
) -> None:
    url, asked = zendesk
    (tmp_path / "zendesk").write_text("Authorization: Bearer none\n")
    (tmp_path / "cases").write_text(f"Authorization: Bearer {organization.token_with('cases:write')}\n")
    given = {"CASES_URL": service.url(""), "ORGANIZATION": str(organization.id), "ZENDESK_URL": url, "START": "1"}
    files = {"ZENDESK_HEADERS": str(tmp_path / "zendesk"), "CASES_HEADERS": str(tmp_path / "cases")}
    answers = [
        json.loads(line)
        for line in run(block(ZENDESK, "bash", "after_cursor"), tmp_path, **given, **files).splitlines()
    ]
    assert [(answer["lines"], answer["written"]["case"], answer["error_count"]) for answer in answers] == [
        (10, 3, 0),
        (0, 0, 0),
    ]
    assert [path.rpartition("&")[2] for path in asked] == ["start_time=1", f"cursor={PAGE['after_cursor']}"]
    assert (tmp_path / "cursor").read_text().strip() == PAGE["after_cursor"]
