"""What `deploy/` says is true: Kubernetes and systemd accept it, and the names in it are the service's."""

import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from cases_service.settings import Settings
from tests.documents import ROOT
from tests.process.running import COMMAND, LOOPBACK, PATIENCE, Service

KUBERNETES = sorted(path for path in (ROOT / "deploy/kubernetes").rglob("*") if path.is_file())
UNIT = ROOT / "deploy/cases-service.service"
# The oldest release that docs/deployment.md promises, and the newest that the validator knows.
RELEASES = ["1.30", "1.37"]


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("manifest", KUBERNETES, ids=lambda path: path.name)
def test_kubernetes_accepts_the_manifest(manifest: Path, release: str) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    said = validator.validate_file(str(manifest), release, strict=True, quiet=False, no_warn=False)
    assert said == 0  # its reasons are on standard output


def test_every_variable_in_deploy_is_a_setting() -> None:
    settings = {field.encode_name for field in msgspec.structs.fields(Settings)}
    named = {
        name: path.name
        for path in (*KUBERNETES, UNIT, ROOT / "compose.yaml", ROOT / "deploy/env.example")
        for name in re.findall(r"\bCASES_[A-Z_]+", path.read_text())
    }
    assert named.keys() <= settings, named


def test_whoever_ends_the_service_leaves_it_the_time_that_it_takes() -> None:
    takes = Settings().graceful_timeout
    deployment = (ROOT / "deploy/kubernetes/deployment.yaml").read_text()

    def seconds(pattern: str, text: str) -> int:
        return int(re.findall(pattern, text)[0])

    pre_stop = seconds(r"preStop:\n +sleep:\n +seconds: (\d+)", deployment)
    assert seconds(r"terminationGracePeriodSeconds: (\d+)", deployment) > pre_stop + takes
    assert seconds(r"TimeoutStopSec=(\d+)", UNIT.read_text()) > takes
    assert seconds(r"stop_grace_period: (\d+)s", (ROOT / "compose.yaml").read_text()) > takes


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/visitor-cases/bin/cases-service", COMMAND))
    verified = subprocess.run(["systemd-analyze", "verify", unit], check=False, capture_output=True, text=True)
    assert (verified.returncode, verified.stderr) == (0, "")


@pytest.fixture
def manager(place: Path) -> Iterator[socket.socket]:
    """A socket where systemd would listen for notifications."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(place / "notify"))
        manager.settimeout(PATIENCE)
        yield manager


def test_the_service_tells_systemd_when_it_listens(
    start: Callable[..., Service], manager: socket.socket, place: Path, database_url: str
) -> None:
    service = start(
        COMMAND, "serve", "--bind", f"{LOOPBACK}:0", DATABASE_URL=database_url, NOTIFY_SOCKET=str(place / "notify")
    )
    assert manager.recv(1024).startswith(b"READY=1\n")
    service.connect().close()
