"""A client that a public generator makes from the OpenAPI document, beside the running service."""

import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.documents import block, run
from tests.factories import Organization, Visitor, cases_path
from tests.process.running import SCRIPTS, Service

API = "docs/api.md"
GENERATOR = SCRIPTS / "openapi-python-client"


@pytest.fixture(scope="module")
def client_package(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if not GENERATOR.exists():
        pytest.skip("openapi-python-client is not installed")
    place = tmp_path_factory.mktemp("generated")
    script = block(API, "sh", "openapi-python-client generate").replace("http://127.0.0.1:8000", service.url(""))
    run(script.replace(" generate ", " generate --fail-on-warning "), place, HOME=str(place), LANG="C.UTF-8")
    sys.path.insert(0, str(place))
    yield place
    sys.path.remove(str(place))
    for name in [name for name in sys.modules if name.partition(".")[0] == "cases_client"]:
        del sys.modules[name]
    shutil.rmtree(place)


@pytest.fixture
def visitor(organization: Organization) -> Visitor:
    return organization.visitor()


@pytest.fixture
def client(client_package: Path, service: Service, organization: Organization, visitor: Visitor) -> Iterator[Any]:
    kind = importlib.import_module("cases_client").AuthenticatedClient
    jwt = organization.jwt(visitor.external_id)
    client = kind(base_url=service.url(""), token=organization.token, headers={"X-External-Identity": jwt})
    with client:
        yield client


def operation(name: str) -> Any:
    return importlib.import_module(f"cases_client.api.cases.{name}")


def test_it_lists_counts_and_shows_cases(client: Any, organization: Organization, visitor: Visitor) -> None:
    ids = visitor.cases(3)
    page = operation("list_cases").sync(organization.id, "-", client=client, page_size=2, is_closed=False)
    assert [case.id for case in page.results] == ids[:2]
    assert page.next_.startswith("http://")
    assert page.previous is None
    summary = operation("summarize_cases").sync(organization.id, "-", client=client)
    assert (summary.total, summary.by_status.open_) == (3, 3)
    case = operation("get_case").sync(organization.id, "-", ids[2], client=client)
    assert (case.id, case.organization_id, case.contact.organization_id) == (ids[2], organization.id, organization.id)
    assert (case.status, case.priority_label, case.owner, case.closed_at) == ("Open", "Normal", None, None)
    assert json.loads(json.dumps(case.to_dict()))["created_at"].startswith("2015-08-31T16:32:19.879")


def test_it_gives_several_values_of_a_list(client: Any, organization: Organization, visitor: Visitor) -> None:
    first, second, third = visitor.cases(3)
    organization.update("cases", "id", second, status="Pending")
    organization.update("cases", "id", third, status="In Progress")
    status = importlib.import_module("cases_client.models").ListCasesStatusItem
    page = operation("list_cases").sync(
        organization.id, "-", client=client, status=[status("Open"), status("Pending")], page_size=1
    )
    assert [case.id for case in page.results] == [first]
    assert "status=Open&status=Pending" in page.next_


def test_it_reads_what_fields_leaves(client: Any, organization: Organization, visitor: Visitor) -> None:
    visitor.cases(2)
    partial = importlib.import_module("cases_client.models").PageOfPartialCases
    names = importlib.import_module("cases_client.models").ListCasesFieldsItem
    path = cases_path(organization.id, "-")
    answer = client.get_httpx_client().get(path, params={"fields": [names("case_number"), names("status")]})
    page = partial.from_dict(answer.json())
    assert [set(case.to_dict()) for case in page.results] == [{"case_number", "status"}] * 2


def test_it_prints_what_the_document_has_it_print(
    client: Any, service: Service, organization: Organization, visitor: Visitor, capsys: pytest.CaptureFixture[str]
) -> None:
    (case_id,) = visitor.cases(1)
    organization.update("cases", "id", case_id, case_number="7", subject="Noise")
    source = block(API, "python", "list_cases.sync").replace("http://127.0.0.1:8000", service.url(""))
    given: dict[str, Any] = {"API_TOKEN": organization.token, "ORGANIZATION_ID": organization.id}
    names = given | {"JWT": organization.jwt(visitor.external_id)}
    exec(source, names)  # noqa: S102  the document is ours
    names["client"].get_httpx_client().close()
    assert capsys.readouterr().out == "7 Open Noise\n"


def test_it_understands_errors(client: Any, organization: Organization) -> None:
    get_case = operation("get_case")
    missing = get_case.sync_detailed(organization.id, "-", uuid4(), client=client)
    assert (missing.status_code, missing.parsed.code) == (404, "case_not_found")
    forbidden = get_case.sync_detailed(uuid4(), "-", uuid4(), client=client)
    assert (forbidden.status_code, forbidden.parsed.code) == (403, "organization_forbidden")
