"""The README's first request, run as it is printed there beside the demo that it speaks of."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.documents import block
from tests.process.running import COMMAND, LOOPBACK, Service, environment, wait_for


def test_the_first_request_is_answered_as_the_readme_shows(start: Callable[..., Service], place: Path) -> None:
    data_dir = str(place / "data")
    demo = start(COMMAND, "demo", "--bind", f"{LOOPBACK}:0", CASES_DATA_DIR=data_dir)
    wait_for(lambda: "Ctrl-C" in demo.out, lambda: demo.process.poll() is not None, demo)
    port = demo.port
    script = block("README.md", "sh", "create-token --organization $ORG").replace(
        "127.0.0.1:8000", f"{LOOPBACK}:{port}"
    )
    script = script.replace(".venv/bin/cases-service", COMMAND)
    ran = subprocess.run(
        ["sh", "-ec", script], env=environment(CASES_DATA_DIR=data_dir), check=True, capture_output=True, text=True
    )
    assert demo.end() == 0
    shown, answered = json.loads(block("README.md", "json", "results")), json.loads(ran.stdout)
    assert answered["results"] == shown["results"]
    assert answered["previous"] is shown["previous"] is None
    link = answered["next"].replace(f":{port}/", ":8000/")
    assert link.partition("cursor=")[0] == shown["next"].partition("cursor=")[0]
