"""What `deploy/` says is true: Kubernetes and systemd accept it, and the names in it are the service's."""

import re
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import msgspec
import pytest
import yaml

from cases_service import __version__
from cases_service.settings import Settings, read_settings
from tests.documents import ROOT, block, run
from tests.process.running import COMMAND, LOOPBACK, PATIENCE, Service

KUSTOMIZATION = ROOT / "deploy/kubernetes/kustomization.yaml"
# The kustomization is kubectl's, and nothing that the cluster sees.
KUBERNETES = sorted({path for path in (ROOT / "deploy/kubernetes").rglob("*") if path.is_file()} - {KUSTOMIZATION})
UNIT = ROOT / "deploy/cases-service.service"
UNITS = sorted(path for path in (ROOT / "deploy").iterdir() if path.suffix in (".service", ".timer"))
SEND_FEED = ROOT / "deploy/send-feed"
# What a container of another image than ours runs.
CURL = "docker.io/curlimages/curl:8.11.1"
# The oldest release that docs/deployment.md promises, and the newest that the validator knows.
RELEASES = ["1.30", "1.37"]


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("manifest", KUBERNETES, ids=lambda path: path.name)
def test_kubernetes_accepts_the_manifest(manifest: Path, release: str) -> None:
    said = kubernetes_validate.validate_file(str(manifest), release, strict=True, quiet=False, no_warn=False)
    assert said == 0  # its reasons are on standard output


def test_the_kustomization_names_every_manifest_and_the_image_of_this_version() -> None:
    document = yaml.safe_load(KUSTOMIZATION.read_text())
    beside = [path.name for path in KUBERNETES if path.parent == KUSTOMIZATION.parent and path.suffix == ".yaml"]
    assert sorted(document["resources"]) == beside
    (image,) = document["images"]
    used = {found for path in KUBERNETES for found in re.findall(r"image: (\S+)", path.read_text())}
    assert used - {CURL} == {f"{image['name']}:{__version__}"}
    assert image["newTag"] == __version__


def test_password_files_for_kubernetes_hold_what_was_typed_and_no_newline(tmp_path: Path) -> None:
    typed = "printf 'pass word\\\\1\\nadmin\\n'"
    run(f"{typed} | {{\n{block('docs/deployment.md', 'bash', 'service-password admin-password')}}}", tmp_path)
    assert (tmp_path / "service-password").read_bytes() == b"pass word\\1"
    assert (tmp_path / "admin-password").read_bytes() == b"admin"
    assert_private(tmp_path / "secret-key", 0o600)


def test_every_variable_in_deploy_is_a_setting() -> None:
    settings = {field.encode_name for field in msgspec.structs.fields(Settings)}
    named = {
        name: path.name
        for path in (*KUBERNETES, *UNITS, ROOT / "compose.yaml", ROOT / "deploy/env.example")
        for name in re.findall(r"\bCASES_(?!FEED_)[A-Z_]+", path.read_text())
    }
    assert named.keys() <= settings, named


def test_compose_passes_every_setting_on_that_it_does_not_make_itself() -> None:
    settings = {field.encode_name for field in msgspec.structs.fields(Settings)}
    text = (ROOT / "compose.yaml").read_text()
    passed, made = (set(re.findall(rf"^ +([A-Z_]+):{value}", text, re.MULTILINE)) for value in ("$", " .+$"))
    # There is no embedded server in the image, which itself says where to listen; its stop time-out is the file's.
    elsewhere = {"CASES_DATA_DIR", "CASES_POSTGRES_BIN", "CASES_BIND", "CASES_GRACEFUL_TIMEOUT", "CASES_SECRET_KEY"}
    assert settings - passed - made == elsewhere
    assert passed <= settings


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
@pytest.mark.parametrize("name", [path.name for path in UNITS])
def test_systemd_accepts_the_unit(tmp_path: Path, name: str) -> None:
    programs = {"/opt/visitor-cases/bin/cases-service": COMMAND, "/opt/visitor-cases/send-feed": str(SEND_FEED)}
    for path in UNITS:
        text = path.read_text()
        for installed, here in programs.items():
            text = text.replace(installed, here)
        (tmp_path / path.name).write_text(text)
    unit = tmp_path / name
    verified = subprocess.run(["systemd-analyze", "verify", unit], check=False, capture_output=True, text=True)
    assert (verified.returncode, verified.stderr) == (0, "")


def test_every_timer_starts_a_unit_that_is_there() -> None:
    names = {path.name for path in UNITS}
    timers = {name for name in names if name.endswith(".timer")}
    assert timers == {"cases-feed.timer", "cases-load.timer"}
    assert {name.replace(".timer", ".service") for name in timers} < names


def test_the_cron_job_runs_the_script_of_the_feed_word_for_word() -> None:
    (container,) = job_of("feed.yaml")["containers"]
    assert (container["command"], container["args"], container["image"]) == (
        ["sh", "-c"],
        [SEND_FEED.read_text()],
        CURL,
    )
    given = {variable["name"] for variable in container["env"]}
    assert given == set(re.findall(r"\bCASES_FEED_[A-Z]+", SEND_FEED.read_text()))


def test_the_nightly_load_is_the_same_under_systemd_and_in_a_cluster() -> None:
    (container,) = job_of("nightly-load.yaml")["containers"]
    (unit,) = re.findall(r"^ExecStart=(.+)$", (ROOT / "deploy/cases-load.service").read_text(), re.MULTILINE)
    assert unit.split()[1:-1] == container["command"][1:-1]
    (last,) = (container["command"][-1],)
    assert Path(unit.split()[-1]).name == Path(last).name


def test_the_feed_may_reach_the_service_and_no_database() -> None:
    policy = yaml.safe_load((ROOT / "deploy/kubernetes/network-policy.yaml").read_text())["spec"]
    document = yaml.safe_load((ROOT / "deploy/kubernetes/feeding/feed.yaml").read_text())
    labels = document["spec"]["jobTemplate"]["spec"]["template"]["metadata"]["labels"]
    assert {"podSelector": {"matchLabels": labels}} in policy["ingress"][0]["from"]
    assert labels != policy["podSelector"]["matchLabels"]


def job_of(name: str) -> Any:
    """Return what a CronJob's pods are."""
    document = yaml.safe_load((ROOT / "deploy/kubernetes/feeding" / name).read_text())
    assert document["spec"]["concurrencyPolicy"] == "Forbid"
    return document["spec"]["jobTemplate"]["spec"]["template"]["spec"]


def test_what_the_feed_reads_is_made_as_the_document_says(tmp_path: Path) -> None:
    run(block("docs/feeding.md", "sh", "umask 077").replace("/etc/visitor-cases", f"{tmp_path}/etc"), tmp_path)
    files = {file.name for file in (tmp_path / "etc").iterdir()}
    assert set(re.findall(r"/etc/visitor-cases/([\w-]+)", (ROOT / "deploy/cases-feed.service").read_text())) == files
    assert {stat.S_IMODE((tmp_path / "etc" / name).stat().st_mode) for name in files} == {0o600}
    assert (tmp_path / "etc/feed").read_text().startswith("CASES_FEED_URL=https://")


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


def assert_private(secret_key: Path, mode: int) -> None:
    assert stat.S_IMODE(secret_key.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(secret_key.stat().st_mode) == mode
    assert len(read_settings({"CASES_SECRET_KEY_FILE": str(secret_key)}).secret_keys) == 1


def test_what_compose_mounts_is_made_as_the_document_says(tmp_path: Path) -> None:
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    run(block("docs/container.md", "sh", "cp deploy/env.example"), tmp_path)
    assert stat.S_IMODE((tmp_path / ".env").stat().st_mode) == 0o600
    assert_private(tmp_path / "secrets/cases_secret_key", 0o444)
    for asked in set(re.findall(r"\$\{(\w+):\?", (ROOT / "compose.yaml").read_text())):
        assert f"\n{asked}=\n" in (tmp_path / ".env").read_text()


def test_what_the_unit_reads_is_made_as_the_document_says(tmp_path: Path) -> None:
    run(block("docs/deployment.md", "sh", "install -d").replace("/etc/visitor-cases", f"{tmp_path}/etc"), tmp_path)
    files = [file.name for file in (tmp_path / "etc").iterdir()]
    assert set(re.findall(r"/etc/visitor-cases/([\w-]+)", UNIT.read_text())) | {"admin"} == set(files)
    assert_private(tmp_path / "etc/secret-key", 0o600)
    given = dict((tmp_path / "etc" / name).read_text().strip().split("=", 1) for name in ("environment", "admin"))
    settings = read_settings(given)
    assert (settings.database_url, settings.admin_database_url) == tuple(given.values())
