"""`load --follow`, `--batch`, `--snapshot` and `--check` as their callers see them."""

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from cases_service.credentials.secret_encryption import SecretBox
from tests.documents import block
from tests.factories import SECRET_KEY
from tests.loading.test_loading import Company, Fields, content_of
from tests.process.running import COMMAND, environment

Run = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def company(connection: psycopg.Connection, box: SecretBox) -> Company:
    company = Company(connection, box)
    company.load(company.organization())
    return company


@pytest.fixture
def variables(database_url: str) -> dict[str, str]:
    return environment(DATABASE_URL=database_url, CASES_SECRET_KEY=SECRET_KEY)


@pytest.fixture
def run(variables: dict[str, str], tmp_path: Path) -> Run:
    def run(*arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        command = [COMMAND, "load", *arguments]
        return subprocess.run(command, env=variables, cwd=tmp_path, input=given, capture_output=True, check=False)

    return run


class Relay:
    """A load that follows, and what it says."""

    def __init__(self, variables: dict[str, str], *arguments: str) -> None:
        self.process = subprocess.Popen(
            [COMMAND, "load", "--follow", *arguments, "-"],
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def write(self, *lines: Fields | bytes) -> None:
        assert self.process.stdin
        self.process.stdin.write(b"".join(x if isinstance(x, bytes) else content_of(x) for x in lines))
        self.process.stdin.flush()

    def told(self) -> dict[str, int]:
        assert self.process.stdout
        told: dict[str, int] = json.loads(self.process.stdout.readline())
        return told

    def end(self) -> tuple[int, bytes, bytes]:
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@pytest.fixture
def follow(variables: dict[str, str]) -> Iterator[Callable[..., Relay]]:
    relays: list[Relay] = []

    def start(*arguments: str, **changes: str) -> Relay:
        relays.append(Relay(variables | changes, *arguments))
        return relays[-1]

    yield start
    for relay in relays:
        relay.process.kill()
        relay.process.communicate()


def test_each_commit_is_told_while_the_input_stays_open(company: Company, follow: Callable[..., Relay]) -> None:
    relay = follow("--batch", "2", "--interval", "60")
    relay.write(company.case(), b"\n", company.case(), company.case())
    told = relay.told()
    assert told == {"committed": 3, "written": 2, "removed": 0, "unchanged": 0, "stale": 0, "wrong": 0}
    assert len(company.rows("cases")) == 2
    relay.write(company.case())
    assert relay.told()["committed"] == 5
    assert list(told) == list(json.loads(block("docs/load.md", "json", "committed")))
    assert relay.end() == (0, b"", b"")
    assert len(company.rows("cases")) == 4


def test_a_line_waits_no_longer_than_the_interval(company: Company, follow: Callable[..., Relay]) -> None:
    relay = follow("--interval", "0.1")
    relay.write(company.case())
    assert relay.told()["committed"] == 1


def test_sigterm_commits_what_it_has_read_and_ends_well(company: Company, follow: Callable[..., Relay]) -> None:
    relay = follow("--batch", "2", "--interval", "60")
    relay.write(company.case(), company.case())
    assert relay.told()["committed"] == 2
    relay.write(company.case(), content_of(company.case())[:-9])
    relay.process.send_signal(signal.SIGTERM)
    status, out, err = relay.end()
    # Whether it had read the third line by then is the machine's business; what it told is what there is.
    committed = [json.loads(line)["committed"] for line in out.splitlines()]
    assert (status, err) == (0, b"")
    assert committed in ([], [3])
    assert len(company.rows("cases")) == (committed or [2])[-1]


def test_a_wrong_line_ends_it_and_what_was_told_stays(company: Company, follow: Callable[..., Relay]) -> None:
    relay = follow("--batch", "1")
    relay.write(company.case())
    assert relay.told()["committed"] == 1
    relay.write(company.case(status="Done"))
    status, out, err = relay.end()
    assert (status, out) == (1, b"")
    assert err.startswith(b"cases-service: standard input:2: status: ")
    assert len(company.rows("cases")) == 1


def test_a_database_that_goes_away_ends_it_with_75(
    company: Company, follow: Callable[..., Relay], database_url: str
) -> None:
    name = f"follow-{uuid4().hex[:8]}"
    relay = follow("--batch", "1", DATABASE_URL=make_conninfo(database_url, application_name=name))
    relay.write(company.case())
    assert relay.told()["committed"] == 1
    company.connection.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name = %s", [name]
    )
    relay.write(company.case())
    status, out, err = relay.end()
    assert (status, out, err.count(b"\n")) == (75, b"", 1)
    assert len(company.rows("cases")) == 1


def test_each_commit_of_a_relay_is_seen_as_a_run(company: Company, follow: Callable[..., Relay]) -> None:
    relay = follow("--batch", "1")
    relay.write(company.case(), company.case())
    assert relay.end()[0] == 0
    (found,) = company.connection.execute(
        "select count(*), sum(written) from import_runs where organization_id = %s and lines = 1", [company.id]
    ).fetchall()
    assert found == (3, 3)  # with the organization's own


def test_a_commit_of_two_organizations_is_a_run_of_each(company: Company, follow: Callable[..., Relay]) -> None:
    other = company.another()
    other.load(other.organization())
    relay = follow("--each", "--batch", "4")
    relay.write(company.case(), other.case(), company.case(), other.case(priority=9))
    told = relay.told()
    assert relay.end()[0] == 1
    found = [
        company.connection.execute(
            "select lines, written, wrong from import_runs where organization_id = %s order by finished_at desc",
            [one.id],
        ).fetchone()
        for one in (company, other)
    ]
    assert found == [(2, 2, 0), (2, 1, 1)]
    assert (told["written"], told["wrong"]) == (3, 1)


def test_wrong_lines_are_in_the_file_before_their_commit_is_told(
    company: Company, follow: Callable[..., Relay], tmp_path: Path
) -> None:
    report = tmp_path / "wrong.ndjson"
    report.write_text("earlier\n")
    relay = follow("--each", "--errors", str(report), "--batch", "2")
    wrong = [company.case(priority=9), company.case(owner_id="nobody")]
    relay.write(company.case(), wrong[0])
    assert relay.told()["wrong"] == 1
    assert len(report.read_text().splitlines()) == 2
    relay.write(b"\n", wrong[1], company.case())
    assert relay.told()["committed"] == 5
    status, _, err = relay.end()
    assert (status, err) == (1, b"cases-service: 2 lines wrong; what is right was loaded\n")
    told = [json.loads(line) for line in report.read_text().splitlines()[1:]]
    assert [(error["file"], error["line"], error["field"]) for error in told] == [
        ("standard input", 2, "priority"),
        ("standard input", 4, "owner_id"),
    ]
    assert [json.loads(error["text"])["id"] for error in told] == [case["id"] for case in wrong]


def test_check_names_every_error_and_loads_nothing(company: Company, run: Run) -> None:
    lines = [company.case(), company.case(status="Done"), company.case(priority=9)]
    ran = run("--check", "-", given=b"".join(map(content_of, lines)))
    assert (ran.returncode, ran.stdout) == (1, b"")
    places = [line.split(b": ")[1:3] for line in ran.stderr.splitlines()]
    assert places[:2] == [[b"standard input:2", b"status"], [b"standard input:3", b"priority"]]
    assert ran.stderr.splitlines()[2] == b"cases-service: 2 wrong lines: nothing was loaded"
    right = run("--check", "-", given=content_of(company.case()))
    assert (right.returncode, right.stdout) == (0, b"1 line: all right, and nothing was loaded\n")
    assert company.rows("cases") == {}


def test_check_tells_everything_in_json(company: Company, run: Run) -> None:
    lines = [*(company.case(priority=9) for _ in range(120)), company.case(), company.user()]
    ran = run("--check", "--each", "--json", "-", given=b"".join(map(content_of, lines)))
    summary = json.loads(ran.stdout)
    assert (ran.returncode, ran.stderr) == (1, b"cases-service: 120 wrong lines: nothing was loaded\n")
    assert (summary["lines"], summary["error_count"], summary["written"]["case"]) == (122, 120, 1)
    assert [error["line"] for error in summary["errors"]] == list(range(1, 121))
    right = run("--check", "--json", "-", given=content_of(company.case()))
    assert (right.returncode, right.stderr, json.loads(right.stdout)["errors"]) == (0, b"", [])
    assert not company.rows("cases")


@pytest.mark.parametrize("held", ["select from cases for update", "lock table cases in access exclusive mode"])
@pytest.mark.parametrize("options", [(), ("--each",), ("--batch", "1"), ("--follow",)])
def test_a_wait_for_another_session_that_is_over_may_be_tried_again(
    company: Company, run: Run, held: str, options: tuple[str, ...]
) -> None:
    case = company.case()
    company.load(case)
    with company.connection.transaction():
        company.connection.execute(held)
        ran = run("--wait", "0.2", *options, "-", given=content_of({**case, "subject": "new"}))
    assert (ran.returncode, ran.stdout) == (75, b"")
    assert ran.stderr.startswith(b"cases-service: gave up waiting for process ")
    assert company.rows("cases")[case["id"]]["subject"] is None


def test_snapshot_removes_what_is_not_named_up_to_a_tenth(company: Company, run: Run) -> None:
    lines = [company.case() for _ in range(20)]
    company.load(*lines)
    ran = run("--snapshot", "-", given=b"".join(map(content_of, lines[2:])))
    assert (ran.returncode, ran.stdout) == (0, b"18 lines: removed 2 cases\n")
    refused = run("--snapshot", "-", given=b"".join(map(content_of, lines[8:])))
    assert refused.returncode == 1
    assert refused.stderr.startswith(b"cases-service: nothing was loaded: the files name all but 6 of the 18 cases of")
    assert len(company.rows("cases")) == 18
    ran = run("--snapshot", "--max-removals", "50", "-", given=b"".join(map(content_of, lines[8:])))
    assert (ran.returncode, ran.stdout) == (0, b"12 lines: removed 6 cases\n")


def test_batches_stay_where_a_later_line_is_wrong(company: Company, run: Run) -> None:
    lines = [*(company.case() for _ in range(5)), company.case(status="Done")]
    ran = run("--batch", "2", "-", given=b"".join(map(content_of, lines)))
    assert (ran.returncode, ran.stdout) == (1, b"")
    assert ran.stderr.startswith(b"cases-service: standard input:6: status: ")
    assert ran.stderr.endswith(b"; of the lines before its batch, 4 are loaded\n")
    assert len(company.rows("cases")) == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--follow", "--snapshot", "-"), b"--follow and --snapshot do not go together"),
        (("--snapshot", "--check", "-"), b"--snapshot and --check do not go together"),
        (("--snapshot", "--batch", "5", "-"), b"--snapshot and --batch do not go together"),
        (("--check", "--batch", "5", "-"), b"--check and --batch do not go together"),
        (("--interval", "5", "-"), b"--interval belongs to --follow"),
        (("--max-removals", "5", "-"), b"--max-removals belongs to --snapshot"),
        (("--follow", "-", "-"), b"--follow reads standard input"),
    ],
)
def test_what_does_not_go_together_is_a_wrong_call(run: Run, arguments: tuple[str, ...], said: bytes) -> None:
    ran = run(*arguments)
    assert (ran.returncode, ran.stdout) == (2, b"")
    assert said in ran.stderr
