"""Releases are complete: metadata, licences, documents, and the configuration that keeps them up to date."""

import importlib.metadata
import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from trove_classifiers import classifiers

from cases_service import __version__

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LICENCES = ROOT / "deploy/licenses"
PAGE = ROOT / "cases_service/api/docs_page"
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())


def libraries() -> list[importlib.metadata.Distribution]:
    """Return the libraries that the image has, as they are installed here."""
    # What has a condition is for other systems or older Pythons.
    names = re.findall(r"^([a-z0-9-]+)==[^;\n]+\\$", (ROOT / "requirements/production.lock").read_text(), re.MULTILINE)
    return [importlib.metadata.distribution(name) for name in names]


def said_of(library: importlib.metadata.Distribution, name: str) -> list[str]:
    return library.metadata.get_all(name) or []


def test_the_classifiers_are_some() -> None:
    assert set(PROJECT["classifiers"]) <= classifiers
    assert PROJECT["classifiers"] == sorted(PROJECT["classifiers"])


def test_the_version_has_a_section_of_the_changelog() -> None:
    sections = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert sections[0] == "Unreleased" or sections[0].startswith(__version__)


def test_every_library_of_the_image_brings_its_licence_along() -> None:
    said = (LICENCES / "README.md").read_text()
    without = {
        library.name
        for library in libraries()
        if not any(re.match(r"licen[cs]e|copying", path.name, re.IGNORECASE) for path in library.files or [])
    }
    assert without <= set(re.findall(r"^\| ([\w-]+) \|", said, re.MULTILINE))


def test_licences_that_are_only_named_by_libraries_are_there_in_full() -> None:
    said = (LICENCES / "README.md").read_text()
    for library in libraries():
        licence = " ".join(text for name in ("License-Expression", "License") for text in said_of(library, name))
        for family in re.findall(r"\b(L?GPL|MPL)-", licence):
            assert re.search(rf"^\| .*\b{library.name}\b.* \| .*{family}", said, re.MULTILINE), library.name
    for text in re.findall(r"\]\((\S+)\)", said):
        assert len((LICENCES / text).read_text()) > 5000


def test_the_page_is_of_the_release_that_its_readme_names() -> None:
    (named,) = re.findall(r"swagger-ui-dist ([\d.]+\d)", (PAGE / "README.md").read_text())
    bundle = (PAGE / "swagger-ui/swagger-ui-bundle.js").read_text()
    assert re.findall(r'PACKAGE_VERSION:"([\d.]+)"', bundle) == [named], "make swagger-ui brings its files"


def test_the_hosted_ci_runs_what_is_run_here() -> None:
    jobs = WORKFLOW["jobs"]
    assert {"run": ".ci/run"} in jobs["check"]["steps"]
    minors = sorted(re.findall(r"python:(3\.\d+)", " ".join(jobs["check"]["strategy"]["matrix"]["image"])))
    image = re.findall(r"PYTHON_IMAGE=python:(3\.\d+)", (ROOT / "Dockerfile").read_text())
    assert minors == [PROJECT["requires-python"].removeprefix(">="), *image]


@pytest.mark.parametrize("manager", ["pip_requirements", "custom.regex", "dockerfile", "docker-compose"])
def test_the_update_bot_looks_after_it(manager: str) -> None:
    configuration = json.loads((ROOT / "renovate.json").read_text())
    assert manager in configuration["enabledManagers"]
    (lock,) = configuration["pip_requirements"]["managerFilePatterns"]
    assert all(re.search(lock.strip("/"), f"requirements/{path.name}") for path in ROOT.glob("requirements/*.lock"))
    (page,) = configuration["customManagers"]
    pattern = page["matchStrings"][0].replace("(?<", "(?P<")
    assert re.search(pattern, (PAGE / "README.md").read_text())
