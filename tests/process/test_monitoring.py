"""The dashboard, the alerts and Prometheus' configuration, held to a service that runs and to the real Prometheus."""

import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.factories import Organization, cases_path
from tests.process.conftest import killed_at_end
from tests.process.running import LOOPBACK, PROJECT, Running, Service, wait_for

DEPLOY = PROJECT / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/visitor-cases.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
VARIABLES = {"$instance": ".*", "$__rate_interval": "10s"}
PROMTOOL = shutil.which("promtool")
PROMETHEUS = shutil.which("prometheus")


@pytest.fixture
def used(serve: Callable[..., Service], organization: Organization, service_url: str) -> Service:
    """A service that has answered requests of each kind, and counts who reads from its replica."""
    service = used_by(organization, serve(CASES_READ_DATABASE_URL=service_url))
    wait_for(lambda: b"cases_replica_workers" in service.curl("/metrics").body, story=service)
    return service


def used_by(organization: Organization, service: Service) -> Service:
    service.wait_until_ready()
    header = f"Authorization: Token {organization.token}"
    assert service.curl(organization.visitor().path, "--header", header).status == 200
    assert service.curl(cases_path(organization.id, "no-token"), "--header", header).status == 400
    return service


def names(text: str) -> set[str]:
    return set(re.findall(r"\bcases_\w+", text))


def filled(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


def test_dashboard_and_alerts_use_metrics_that_exist(used: Service) -> None:
    families = text_string_to_metric_families(used.curl("/metrics").body.decode())
    labels: dict[str, set[str]] = {}
    for sample in (sample for family in families for sample in family.samples):
        labels.setdefault(sample.name, set()).update(sample.labels)
    variable = DASHBOARD["templating"]["list"][1]["query"]["query"]
    texts = [*EXPRESSIONS, variable.replace(", instance", ""), *(DEPLOY / "alerts.yml").read_text().split("- alert: ")]
    assert len(texts) > 30
    for text in texts:
        assert names(text) <= set(labels), text
        given = {"instance", "le", "job", *(label for name in names(text) for label in labels[name])}
        selected = re.findall(r"(\w+)(?:=~|!~|!=|=)\"", text)
        grouped = [name for group in re.findall(r"\bby \(([^)]*)\)", text) for name in group.split(", ")]
        assert {*selected, *grouped} <= given, text


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
def test_promtool_accepts_configuration_and_rules() -> None:
    assert PROMTOOL is not None
    subprocess.run([PROMTOOL, "check", "config", str(DEPLOY / "prometheus.yml")], check=True, capture_output=True)


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
def test_promtool_finds_nothing_to_mend_in_the_exposition(used: Service) -> None:
    assert PROMTOOL is not None
    text = used.curl("/metrics").body
    ran = subprocess.run([PROMTOOL, "check", "metrics"], input=text, check=False, capture_output=True, timeout=60)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"", b"")


@pytest.fixture
def prometheus(place: Path, used: Service) -> Any:
    """The real Prometheus with the real configuration, apart from the target and the intervals."""
    if PROMETHEUS is None:
        pytest.skip("prometheus is not installed")
    shutil.copy(DEPLOY / "alerts.yml", place)
    text = (DEPLOY / "prometheus.yml").read_text().replace("15s", "1s")
    (place / "prometheus.yml").write_text(text.replace("service:9000", f"{LOOPBACK}:{used.port}"))
    arguments = [
        PROMETHEUS,
        f"--config.file={place / 'prometheus.yml'}",
        f"--storage.tsdb.path={place / 'data'}",
        f"--web.listen-address={LOOPBACK}:0",
    ]
    program = Running(arguments, {}, place)
    with killed_at_end([program]):  # type: ignore[list-item]
        address = program.wait_for_log(r"Listening on.*address=(127[0-9.:]+)")[1]

        def ask(path: str, **parameters: str) -> Any:
            url = f"http://{address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]

        wait_for(lambda: "Server is ready" in program.log, story=program)
        yield ask


def test_prometheus_scrapes_and_understands_all_of_it(prometheus: Callable[..., Any], used: Service) -> None:
    wait_for(lambda: [t for t in prometheus("targets")["activeTargets"] if t["health"] == "up"], story=used)
    # A rate needs two scrapes.
    wait_for(lambda: prometheus("query", query=filled(EXPRESSIONS[0]))["result"], story=used)
    shown = {expression: prometheus("query", query=filled(expression))["result"] for expression in EXPRESSIONS}
    assert [expression for expression, result in shown.items() if not result] == []
    wait_for(lambda: all(rule["health"] == "ok" for rule in rules(prometheus)), story=used)
    # What stands for the replica is a primary, and left out; other tests on this database leave feeds that stopped.
    firing = {rule["name"] for rule in rules(prometheus) if rule["state"] != "inactive"}
    assert firing <= {"CasesReplicaLeftOut", "CasesFeedLate"}


def rules(prometheus: Callable[..., Any]) -> list[dict[str, Any]]:
    return [rule for group in prometheus("rules")["groups"] for rule in group["rules"]]
