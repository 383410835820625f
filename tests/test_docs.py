"""The documents say what the code does: settings, commands, parameters, attributes, error codes and links."""

import ast
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import click
import msgspec
import pytest
from prometheus_client.metrics import MetricWrapperBase

from cases_service import problems
from cases_service.api.parameters import CollectionParameters
from cases_service.cases.schemas import CASE_ATTRIBUTES
from cases_service.cli.commands import cli
from cases_service.credentials.api_tokens import new_token
from cases_service.loading.records import RECORDS
from cases_service.observability import metrics
from cases_service.settings import Settings
from tests.documents import block

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
API = (ROOT / "docs/api.md").read_text()
SECURITY = (ROOT / "docs/security.md").read_text()
FAULTS = (ROOT / "docs/operations.md").read_text().split("**Fail-over.**")[0]
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]
DOCUMENTS += [ROOT / "examples/portal/README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def rows(document: str, first: str) -> Iterator[list[str]]:
    """Return the cells of each table row whose first cell is like this."""
    for line in document.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and re.fullmatch(first, cells[0]):
            yield cells


def test_the_readme_lists_every_setting_with_its_default_and_meaning() -> None:
    hints = typing.get_type_hints(Settings, include_extras=True)
    described = {}
    for field in msgspec.structs.fields(Settings):
        default = field.default
        shown = f"{default:g}" if isinstance(default, float) else str(default)
        shown = shown.lower() if isinstance(default, bool) else shown
        (meaning,) = (meta.description for meta in hints[field.name].__metadata__ if meta.description)
        described[f"`{field.encode_name}`"] = ["" if default is None else f"`{shown}`", meaning]
    assert {
        name: [default, meaning] for name, default, meaning in rows(README, r"`(DATABASE_URL|CASES_\w+)`")
    } == described


def test_the_readme_names_every_command() -> None:
    assert isinstance(cli, click.Group)
    listed = {
        name
        for (cell, *_) in rows(README, r"`[a-z-]+( FILE\.\.\.)?`(, `[a-z-]+`)?")
        for name in re.findall(r"`([a-z-]+)", cell)
    }
    assert listed == set(cli.commands)


def test_the_document_on_architecture_shows_every_package() -> None:
    packages = {folder.parent.name for folder in (ROOT / "cases_service").glob("*/__init__.py")}
    text = (ROOT / "docs/architecture.md").read_text()
    assert set(re.findall(r"<b>(\w+)</b>", text)) == packages
    listed = {cells[0].strip("`"): cells[2] for cells in rows(text, r"`\w+`")}
    assert set(listed) == packages
    for package, start in listed.items():
        (module, *_) = re.findall(r"`([\w/]+\.py)`", start)
        assert (ROOT / "cases_service" / package / module).is_file(), module


def test_the_api_document_lists_every_code_with_its_status() -> None:
    raised = set(problems.kinds())
    documented = {
        code: int(status) for status, codes, *_ in rows(API, r"\d{3}") for code in re.findall(r"`(\w+)`", codes)
    }
    assert documented == {kind.code: kind.status for kind in raised}
    assert len(raised) == len({kind.code for kind in raised})
    assert problems.__doc__


def test_the_api_document_lists_every_parameter_and_attribute() -> None:
    parameters = {field.data_key or name for name, field in CollectionParameters().load_fields.items()}
    listed = {name for (cell, *_) in rows(API, r"`\w+`(, `\w+`)?") for name in re.findall(r"`(\w+)`", cell)}
    assert parameters <= listed
    assert set(CASE_ATTRIBUTES) <= listed


def test_the_document_on_observability_lists_every_metric() -> None:
    described = {
        f"`{collector._name}{'_total' * (collector._type == 'counter')}`": [
            collector._type,
            ", ".join(collector._labelnames),
            collector._documentation,
        ]
        for collector in metrics.registry._collector_to_names
        if isinstance(collector, MetricWrapperBase)
    }
    text = (ROOT / "docs/observability.md").read_text()
    assert {name: cells for name, *cells in rows(text, r"`cases_\w+`")} == described
    assert described


def test_the_document_on_observability_lists_every_alert() -> None:
    alerts = re.findall(r"alert: (\w+)", (ROOT / "deploy/alerts.yml").read_text())
    text = (ROOT / "docs/observability.md").read_text()
    assert alerts == [name.strip("`") for name, *_ in rows(text, r"`Cases\w+`")]


def test_the_load_document_lists_every_field() -> None:
    text = (ROOT / "docs/load.md").read_text()
    documented = {
        cells[0].strip("`"): set(re.findall(r"\w+", re.sub(r"\([^)]*\)", "", cells[1]))) - {"or"}
        for cells in rows(text, r"`\w+`")
    }
    assert documented == {
        name: {field.encode_name for field in msgspec.structs.fields(record)} for name, record in RECORDS.items()
    }


def test_the_pattern_for_secret_scanners_finds_api_tokens_and_nothing_longer() -> None:
    pattern = block("docs/security.md", "text", "cst_").strip()
    for _ in range(100):
        token = new_token(uuid4())
        for text in (token, f"token={token}\n", f'"{token}"'):
            assert re.findall(pattern, text) == [token]
        assert not re.search(pattern, f"{token}A")
        assert not re.search(pattern, token[:-1])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
        assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_tests_that_it_names_exist(document: Path) -> None:
    for file, name in re.findall(r"\b(tests/[\w/]+\.py)(?:::(\w+))?", document.read_text()):
        assert (ROOT / file).exists(), file
        tree = ast.parse((ROOT / file).read_text())
        assert not name or name in {f.name for f in ast.walk(tree) if isinstance(f, ast.FunctionDef)}, f"{file}::{name}"


def test_each_threat_and_each_fault_names_a_test() -> None:
    threats = list(rows(SECURITY.split("**What is not stopped**")[0], r"|(who|a) .*"))
    faults = list(rows(FAULTS, r"(?!fault|-).+"))
    assert min(len(threats), len(faults)) > 10
    assert [cells for cells in (*threats, *faults) if "tests/" not in cells[-1]] == []


def test_the_faults_name_alerts_and_lines_of_the_log_that_exist() -> None:
    alerts = set(re.findall(r"alert: (\w+)", (ROOT / "deploy/alerts.yml").read_text()))
    code = "".join(file.read_text() for file in (ROOT / "cases_service").rglob("*.py"))
    calls = "".join(re.findall(r"\blog\.\w+\(.*", code))
    seen = [name for _, _, cell, *_ in rows(FAULTS, r"(?!fault|-).+") for name in re.findall(r"`(\w+)`", cell)]
    for name in seen:
        if name.startswith("pg_"):
            continue
        known = name in alerts or f'"{name}"' in calls or name in {kind.code for kind in problems.kinds()}
        assert known or name in README + (ROOT / "docs/observability.md").read_text(), name
    assert len(set(seen) & alerts) > 5


def test_the_recipe_of_errors_says_what_to_do_about_every_code() -> None:
    recipe = (ROOT / "docs/recipes/errors.md").read_text()
    advised = {code for _, codes, *_ in rows(recipe, r"\d{3}(, \d{3})?") for code in re.findall(r"`(\w+)`", codes)}
    assert advised == {kind.code for kind in problems.kinds()}


def test_the_site_leads_to_every_document() -> None:
    listed = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    existing = {str(path.relative_to(ROOT)) for path in DOCUMENTS} | {"benchmarks/README.md"}
    assert sorted(listed) == sorted(existing)
