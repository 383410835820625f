"""The recipe of a relay, run as it is printed: killed at every step, it misses nothing and hands over in order."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from cases_service.credentials.secret_encryption import SecretBox
from tests.documents import block
from tests.factories import LONG_AGO, Organization
from tests.process.running import LOOPBACK, Service, environment, wait_for

RELAY = block("docs/recipes/relaying-events.md", "python", "def relay():")
# Where the relay is killed: before and after each of its steps, one of them in the middle of handing over.
STEPS = {
    "before it reads": ("        try:\n            answer = read(after)", "before"),
    "after it has read": ('        for event in answer["results"]:', "before"),
    "between two events": ("            hand_over(event)\n", "after"),
    "before it remembers": ("            remember(after)", "before"),
    "in the middle of remembering": ("    new.replace(PLACE)", "before"),
    "after it has remembered": ("            remember(after)\n", "after"),
}
# Ends the process as kill -9 does, the second time that it comes by.
KILL = """
{indent}KILLS[0] -= 1
{indent}if not KILLS[0]:
{indent}    os.kill(os.getpid(), 9)
"""


def killed_at(step: str) -> str:
    """Return the recipe, as it dies by itself at a step."""
    text, side = STEPS[step]
    assert RELAY.count(text) == 1
    indent = " " * (len(text) - len(text.lstrip(" ")))
    kill = KILL.format(indent=indent).lstrip("\n")
    marked = kill + text if side == "before" else text + kill
    return RELAY.replace(text, marked).replace("PLACE = Path", "KILLS = [2]\nPLACE = Path", 1)


@pytest.fixture
def company(session_connection: psycopg.Connection, box: SecretBox) -> Organization:
    return Organization(session_connection, box)


def add_events(organization: Organization, first: int, last: int) -> None:
    about = {"organization_id": organization.id, "created_at": LONG_AGO}
    organization.connection.execute(
        "insert into event_positions (organization_id, last_position) values (%s, %s)"
        " on conflict (organization_id) do update set last_position = excluded.last_position",
        [organization.id, last],
    )
    for position in range(first, last + 1):
        organization.insert(
            "events", position=position, type="case_read", external_id="x", case_id=organization.id,
            case_number=str(position), **about,
        )  # fmt: skip


class Relay:
    """The program with its place; what it hands over is appended to a file, as a system would take it."""

    def __init__(self, service: Service, organization: Organization, directory: Path) -> None:
        self.taken, self._directory = directory / "taken", directory
        self._variables = {
            "EVENTS_URL": f"http://{LOOPBACK}:{service.port}/api/v5/orgs/{organization.id}/events",
            "API_TOKEN": organization.token_with("cases:read"),
            "PLACE_FILE": str(directory / "place"),
            "PAUSE": "0.05",
        }

    def start(self, text: str = RELAY) -> subprocess.Popen[bytes]:
        # Small pages, so that it comes by each step more than once.
        text = text.replace("page_size=100", "page_size=3")
        with self.taken.open("ab") as taken:
            return subprocess.Popen(
                [sys.executable, "-c", text], env=environment(**self._variables), stdout=taken, cwd=self._directory
            )

    def positions(self) -> list[int]:
        if not self.taken.exists():
            return []
        return [json.loads(line)["position"] for line in self.taken.read_text().splitlines()]


def once(positions: list[int]) -> list[int]:
    """Return what a receiving end makes of it that passes over what is not higher than all it has taken."""
    kept: list[int] = []
    for position in positions:
        if not kept or position > kept[-1]:
            kept.append(position)
    return kept


@pytest.mark.parametrize("step", STEPS)
def test_a_relay_that_is_killed_misses_nothing(
    service: Service, company: Organization, tmp_path: Path, step: str
) -> None:
    add_events(company, 1, 8)
    relay = Relay(service, company, tmp_path)
    assert relay.start(killed_at(step)).wait(30) == -signal.SIGKILL
    before = relay.positions()
    add_events(company, 9, 10)
    with relay.start() as again:
        try:
            wait_for(lambda: 10 in relay.positions())
        finally:
            again.terminate()
    assert once(relay.positions()) == list(range(1, 11))
    # What was remembered is not handed over again, and no more than a page is.
    after = relay.positions()[len(before) :]
    assert after == list(range(after[0], 11))
    assert after[0] > max(before, default=0) - 3


def test_a_relay_waits_for_what_is_away_and_stops_at_what_has_gone(
    service: Service, company: Organization, tmp_path: Path
) -> None:
    add_events(company, 1, 3)
    company.connection.execute(
        "update event_positions set pruned_position = 2 where organization_id = %s", [company.id]
    )
    relay = Relay(service, company, tmp_path)
    assert relay.start().wait(30) == 1
    (tmp_path / "place").write_text("2")
    with relay.start() as running:
        wait_for(lambda: 3 in relay.positions())
        company.connection.execute("update events set position = 4 where organization_id = %s and position = 3",
                                   [company.id])  # fmt: skip
        wait_for(lambda: 4 in relay.positions())
        running.terminate()
    assert relay.positions() == [3, 4]
