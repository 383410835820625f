"""Every code block of the documents is run by a test, or stands here with the reason why it cannot be run.

A test runs a block that it takes by `block()` with the document, the language and a part of it; so no list of those is
kept. A new block fails here until some test takes it.
"""

import ast
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import pytest

from cases_service.cli.commands import cli
from cases_service.settings import Settings
from tests.documents import ROOT, Block, all_blocks, run, without_blocks

DOCUMENTS = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
ENGINE = "needs a container engine; `make image` builds and tries the image without one"
CLUSTER = "needs a Kubernetes cluster; test_deployment.py holds the manifests to Kubernetes' schemas"
SYSTEMD = "needs systemd as the first process; test_deployment.py has systemd verify the unit"
OF_TESTS = r"\bCASES_TEST_[A-Z_]+"
MINUTES = "runs for minutes, or until it is ended; below, make says what each line would do"
NOT_RUN = {
    ("README.md", "make demo"): MINUTES,
    ("CONTRIBUTING.md", "make check"): MINUTES,
    ("CONTRIBUTING.md", "CASES_TEST_CITUS=start"): "needs a PostgreSQL with Citus, which is in no package",
    ("CONTRIBUTING.md", "apt-get install postgresql-15"): "builds a server from source that is not here",
    ("benchmarks/README.md", "make bench"): MINUTES,
    ("docs/architecture.md", "flowchart"): "a picture; test_docs.py holds its packages to the tree",
    ("docs/container.md", "docker compose up"): ENGINE,
    ("docs/container.md", "docker compose run"): ENGINE,
    ("docs/container.md", "docker build"): ENGINE,
    ("docs/container.md", "docker run --detach"): ENGINE,
    ("docs/container.md", "docker run --rm"): ENGINE,
    ("docs/deployment.md", "kubectl create namespace"): CLUSTER,
    ("docs/deployment.md", "kubectl create secret"): CLUSTER,
    ("docs/deployment.md", "kubectl exec"): CLUSTER,
    ("docs/deployment.md", "kubectl replace"): CLUSTER,
    ("docs/deployment.md", "python3 -m venv"): "downloads packages; the image is made by the same lines",
    ("docs/deployment.md", "systemctl enable"): SYSTEMD,
    ("docs/deployment.md", "systemd-run"): SYSTEMD,
    ("docs/feeding.md", "systemctl enable"): SYSTEMD,
    ("docs/recipes/signing.md", "using System.Security.Cryptography"): "Debian has no .NET; the others are run",
}


def taken_by(file: Path) -> Iterator[tuple[str, str, str]]:
    """Yield the document, language and part that each call of `block()` in a file names."""
    tree = ast.parse(file.read_text())
    names = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "block":
            said = [a.value if isinstance(a, ast.Constant) else names.get(getattr(a, "id", "")) for a in call.args]
            document, language, part = said
            assert all(isinstance(text, str) for text in said), f"{file}:{call.lineno}: name the block by literals"
            yield str(document), str(language), str(part)


def run_blocks() -> set[Block]:
    return {
        found
        for file in (ROOT / "tests").rglob("*.py")
        for document, language, part in taken_by(file)
        for found in all_blocks(document)
        if found.language == language and part in found.text
    }


def blocks_not_run() -> list[Block]:
    return [found for document, part in NOT_RUN for found in all_blocks(document) if part in found.text]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_block_is_run_by_a_test_or_is_listed_here(document: str) -> None:
    known = Counter([*run_blocks(), *blocks_not_run()])
    assert [(found.line, known[found]) for found in all_blocks(document) if known[found] != 1] == []


def test_what_is_listed_here_exists() -> None:
    assert len(blocks_not_run()) == len(NOT_RUN)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_block_has_a_language_and_a_fence(document: str) -> None:
    assert all(found.language for found in all_blocks(document))
    assert "\n\n    " not in without_blocks(document)


def test_what_cannot_be_run_names_what_exists() -> None:
    """Commands with their options, settings, and files of this project."""
    settings = {field.encode_name for field in msgspec.structs.fields(Settings)}
    settings |= {name for file in (ROOT / "tests").rglob("*.py") for name in re.findall(OF_TESTS, file.read_text())}
    assert isinstance(cli, click.Group)
    for found in blocks_not_run():
        assert set(re.findall(r"\bCASES_(?!TEST_)[A-Z_]+", found.text)) <= settings
        for path in re.findall(r"\b(?:deploy|requirements)/[\w./-]+", found.text):
            assert (ROOT / path).exists(), path
        for line in re.findall(r"cases-service ([a-z]+-[a-z]+.*|load.*)", found.text):
            name, *arguments = shlex.split(line.partition(" <")[0])
            options = {option for parameter in cli.commands[name].params for option in parameter.opts}
            assert {argument for argument in arguments if argument.startswith("--")} <= options, line


@pytest.mark.parametrize("found", [found for found in blocks_not_run() if found.text.startswith("make ")])
def test_make_knows_what_each_line_would_do(found: Block) -> None:
    for line in found.text.splitlines():
        assert run(line.replace("make ", "make --dry-run --always-make ", 1), ROOT)
