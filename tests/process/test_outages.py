"""The database away: at the start, in the middle, for good."""

import re
import time
from collections.abc import Callable
from pathlib import Path

from cases_service.embedded.server import join
from tests.factories import SECRET_KEY
from tests.process.conftest import serve_arguments
from tests.process.embedded_data import FAST, Template, stop, url_of
from tests.process.running import Answer, Service, wait_for

BOUND_SECONDS = 5.0
READY_SECONDS = 2.0


def ask(service: Service, template: Template) -> Answer:
    began = time.monotonic()
    answer = service.curl(template.path, "--header", template.header)
    assert time.monotonic() - began < BOUND_SECONDS
    return answer


def assert_unavailable(answer: Answer) -> None:
    assert (answer.status, answer.json["code"]) == (503, "unavailable")
    assert answer.headers["retry-after"] == "1"


def assert_back(service: Service, template: Template) -> None:
    """Check that from the first one on requests succeed again, whichever worker they meet."""
    assert [ask(service, template).status for _ in range(12)] == [200] * 12, service.log


def test_without_a_database_it_starts_and_recovers_by_itself(
    start: Callable[..., Service], template: Template, data_dir: Path
) -> None:
    service = start(*serve_arguments(), DATABASE_URL=url_of(data_dir), CASES_SECRET_KEY=SECRET_KEY)
    assert service.curl("/healthz").status == 200
    assert_unavailable(service.curl("/readyz"))
    assert_unavailable(ask(service, template))
    server = join(data_dir, settings=FAST)
    assert_back(service, template)
    assert len(ask(service, template).json["results"]) == 3
    wait_for(lambda: service.curl("/readyz").status == 200, seconds=READY_SECONDS)
    service.end()
    stop(server)


def test_a_restart_of_the_database_needs_none_of_the_service(
    start: Callable[..., Service], template: Template, data_dir: Path
) -> None:
    server = join(data_dir, settings=FAST)
    service = start(*serve_arguments(), DATABASE_URL=url_of(data_dir), CASES_SECRET_KEY=SECRET_KEY)
    service.wait_until_ready()
    assert ask(service, template).status == 200
    stop(server)
    for pause in (0.0, 0.1, 0.4, 0.9):
        for _ in range(4):
            assert_unavailable(ask(service, template))
        time.sleep(pause)
        server = join(data_dir, settings=FAST)
        assert_back(service, template)
        stop(server)
    server = join(data_dir, settings=FAST)
    assert "unexpected_error" not in service.log
    assert len(service.workers()) == 2
    service.end()
    stop(server)


def test_a_password_is_never_in_the_log(start: Callable[..., Service], place: Path) -> None:
    url = f"postgresql://cases:hunter2@/cases?host={place}"
    service = start(*serve_arguments(), DATABASE_URL=url, CASES_LOG_LEVEL="debug")
    assert_unavailable(service.curl("/readyz"))
    service.wait_for_log("error connecting")
    service.end()
    assert "hunter2" not in service.log


def test_an_outage_fills_no_disk_with_log(start: Callable[..., Service], place: Path) -> None:
    service = start(*serve_arguments(), DATABASE_URL=url_of(place))
    service.wait_for_log("error connecting")
    earlier = len(service.log)
    time.sleep(3)
    lines = service.log[earlier:].splitlines()
    # A line for each attempt, and an attempt a second for each of the connections of the two workers at the most.
    assert len(lines) <= 3 * 8 + 8, lines
    assert re.search("error connecting", "".join(lines)) or lines == []
