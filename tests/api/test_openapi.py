"""The OpenAPI document is one, is linted, and leaves nothing out that routes, schemas and errors know."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient
from marshmallow import Schema
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from cases_service import problems
from cases_service.api import parameters
from cases_service.api.openapi.operations import OPERATIONS
from cases_service.api.organization_parameters import OrganizationCollectionParameters
from cases_service.application import Application
from cases_service.cases import schemas
from tests.openapi_document import FILE, document_text

Json = dict[str, Any]
PATHS = {
    "cases.list_cases": "/api/v5/orgs/{organization_id}/external-visitors/{external_id_jwt_token}/cases",
    "cases.summarize_cases": "/api/v5/orgs/{organization_id}/external-visitors/{external_id_jwt_token}/cases/summary",
    "cases.get_case": "/api/v5/orgs/{organization_id}/external-visitors/{external_id_jwt_token}/cases/{case_id}",
}
QUERIES = {
    "list_cases": parameters.CollectionParameters(),
    "summarize_cases": parameters.FilterParameters(),
    "get_case": parameters.DetailParameters(),
    "list_organization_cases": OrganizationCollectionParameters(),
    "get_organization_case": parameters.DetailParameters(),
    "create_organization_case": parameters.Parameters(),
    "put_organization_case": parameters.Parameters(),
    "change_organization_case": parameters.Parameters(),
    "delete_organization_case": parameters.Parameters(),
    "list_activities": parameters.ConversationParameters(),
    "list_messages": parameters.ConversationParameters(),
    "create_message": parameters.Parameters(),
    "mark_read": parameters.Parameters(),
    "change_case": parameters.Parameters(),
    "list_organization_activities": parameters.ConversationParameters(),
    "list_organization_messages": parameters.ConversationParameters(),
    "create_organization_message": parameters.Parameters(),
    "mark_organization_read": parameters.Parameters(),
    "list_organization_events": parameters.EventParameters(),
    "list_import_runs": parameters.ImportRunParameters(),
    "import_rows": parameters.ImportParameters(),
}


@pytest.fixture
def document(client: FlaskClient) -> Json:
    document: Json = client.get("/openapi.json").get_json()
    return document


def operations(document: Json) -> dict[str, Json]:
    """Return the operations by id, with references to parameters followed."""
    methods = [each for path in document["paths"].values() for method, each in path.items() if method != "head"]
    found = {each["operationId"]: each for each in methods}
    shared = {f"#/components/parameters/{name}": each for name, each in document["components"]["parameters"].items()}
    for operation in found.values():
        operation["parameters"] = [shared.get(each.get("$ref"), each) for each in operation["parameters"]]
    return found


def described_schemas() -> Iterator[tuple[str, Schema]]:
    for name, kind in vars(schemas).items():
        if isinstance(kind, type) and issubclass(kind, Schema) and kind is not Schema:
            yield name.removesuffix("Schema"), kind()


def test_it_is_an_openapi_3_1_document(document: Json) -> None:
    assert document["openapi"] == "3.1.0"
    OpenAPIV31SpecValidator(document).validate()


def test_it_has_every_route(document: Json, app: Application) -> None:
    routes = {rule.endpoint: rule for rule in app.url_map.iter_rules()}
    assert set(routes) == set(OPERATIONS)
    assert len(operations(document)) == len(routes)
    assert set(PATHS.values()) <= set(document["paths"])
    for endpoint, operation in OPERATIONS.items():
        assert (routes[endpoint].methods or set()) - {"HEAD"} == {operation.method.upper()}


def test_one_that_only_reads_has_no_route_that_writes(make_client: Callable[..., FlaskClient]) -> None:
    document = make_client(write_database_url=None).get("/openapi.json").get_json()
    OpenAPIV31SpecValidator(document).validate()
    assert {method for path in document["paths"].values() for method in path} == {"get", "head"}
    assert "get_organization_case" in operations(document)
    assert not {"NewCase", "CaseChange", "NewMessage", "NewOrganizationMessage", "ReadMark", "CaseState"} & set(
        document["components"]["schemas"]
    )


def test_the_body_of_a_case_takes_what_the_source_calls_editable(document: Json) -> None:
    schemas_ = document["components"]["schemas"]
    ignored = {
        name: {key for key, each in schemas_[name]["properties"].items() if each == {"description": "Not looked at."}}
        for name in ("NewCase", "CaseChange")
    }
    read_only = {
        "id", "organization_id", "status", "priority_label", "closed_at", "is_waiting", "unread_message_count",
        "created_at", "updated_at", "updated_by_user", "visitor_unread_message_count",
    }  # fmt: skip
    assert ignored == {
        "NewCase": read_only,
        "CaseChange": read_only | {"created_by_user_id", "created_by_user"},
    }
    assert schemas_["NewCase"]["required"] == ["case_number", "priority"]
    assert "required" not in schemas_["CaseChange"]
    for name in ignored:
        assert set(schemas_[name]["properties"]) == set(schemas.CASE_ATTRIBUTES)
        assert schemas_[name]["additionalProperties"] is False


def test_it_has_every_code_with_its_status_and_an_example(document: Json) -> None:
    described: dict[str, set[int]] = {}
    for operation in operations(document).values():
        for status, response in operation["responses"].items():
            problem = response.get("content", {}).get("application/problem+json")
            if problem:
                narrower = problem["schema"]["allOf"][1]["properties"]
                assert narrower["status"]["enum"] == [int(status)]
                assert list(problem["examples"]) == narrower["code"]["enum"]
                for code in narrower["code"]["enum"]:
                    described.setdefault(code, set()).add(int(status))
                    assert document["components"]["examples"][code]["value"]["status"] == int(status)
    assert described == {kind.code: {kind.status} for kind in problems.kinds()}


@pytest.mark.parametrize("name", QUERIES)
def test_it_has_every_parameter(document: Json, name: str) -> None:
    described = {each["name"]: each for each in operations(document)[name]["parameters"] if each["in"] == "query"}
    assert list(described) == [field.data_key or key for key, field in QUERIES[name].fields.items()]
    for each in described.values():
        assert each["description"]
        assert each["schema"]["type"] in ("string", "integer", "boolean", "array")
        assert each["schema"].get("default", "") is not None
        if each["schema"]["type"] == "array":
            assert (each["style"], each["explode"]) == ("form", True)
            assert each["schema"]["items"].get("enum") or each["schema"]["items"]["anyOf"]


@pytest.mark.parametrize(("name", "schema"), list(described_schemas()))
def test_it_has_every_attribute(document: Json, name: str, schema: Schema) -> None:
    described = document["components"]["schemas"][name]["properties"]
    assert list(described) == [field.data_key or key for key, field in schema.fields.items()]
    for key, field in schema.fields.items():
        each = described[field.data_key or key]
        kinds = [kind.get("type", "object") for kind in each.get("anyOf", [])] or each.get("type", "object")
        assert ("null" in kinds) == field.allow_none, key
        assert "$ref" in each or "description" in each, key


def test_each_operation_names_its_headers(document: Json) -> None:
    everywhere = {"X-Request-ID", "Cache-Control", "Vary", "Referrer-Policy", "X-Content-Type-Options"}
    more = {"401": {"WWW-Authenticate"}, "405": {"Allow"}, "429": {"Retry-After"}, "503": {"Retry-After"}}
    for name, operation in operations(document).items():
        for status, response in operation["responses"].items():
            assert everywhere | more.get(status, set()) <= set(response["headers"]), (name, status)
        successes = [each for status, each in operation["responses"].items() if status.startswith("2")]
        tagged = all("ETag" in each["headers"] for each in successes)
        takes = {each["name"] for each in operation["parameters"] if each["in"] == "header"}
        assert "304" not in operation["responses"] or (tagged and "If-None-Match" in takes)
        assert (operation["security"] == []) == (name not in QUERIES)


def test_each_error_that_it_names_has_a_body_of_one_form(document: Json) -> None:
    """Where one had none, generated clients could not say what the others are."""
    for operation in operations(document).values():
        problems = {status: each for status, each in operation["responses"].items() if int(status) >= 400}
        for response in problems.values():
            assert list(response["content"]) == ["application/problem+json"]


def test_head_answers_what_get_does_without_bodies(document: Json) -> None:
    readable = [item for item in document["paths"].values() if "get" in item]
    names = [each["operationId"] for item in document["paths"].values() for each in item.values()]
    assert len(set(names)) == len(names)
    assert len(readable) > 5
    for item in readable:
        head, get = item["head"], item["get"]
        assert (head["parameters"], head["security"]) == (get["parameters"], get["security"])
        assert list(head["responses"]) == list(get["responses"])
        for status, response in head["responses"].items():
            assert response["headers"] == get["responses"][status]["headers"]
            assert "content" not in response


def test_a_case_has_every_attribute_unless_fields_chooses(document: Json) -> None:
    described = document["components"]["schemas"]
    assert described["Case"]["required"] == list(described["Case"]["properties"])
    assert described["PartialCase"]["properties"] == described["Case"]["properties"]
    assert "required" not in described["PartialCase"]
    takes_fields = {
        name
        for name, operation in operations(document).items()
        if any(each["name"] == "fields" for each in operation["parameters"])
    }
    says_what_is_left = {
        name: content["x-with-fields"]["$ref"].rpartition("/")[2]
        for name, operation in operations(document).items()
        for content in operation["responses"].get("200", {}).get("content", {}).values()
        if "x-with-fields" in content
    }
    assert says_what_is_left == {
        "list_cases": "PageOfPartialCases",
        "get_case": "PartialCase",
        "list_organization_cases": "PageOfPartialOrganizationCases",
        "get_organization_case": "PartialOrganizationCase",
    }
    assert set(says_what_is_left) == takes_fields


def test_the_file_in_the_tree_is_current(app: Application) -> None:
    assert FILE.read_text(encoding="utf-8") == document_text(app.url_map), "make openapi writes it"


def test_its_examples_are_what_it_says(document: Json) -> None:
    examples = [
        (content["schema"], example)
        for operation in operations(document).values()
        for message in [*operation["responses"].values(), operation.get("requestBody", {})]
        for content in message.get("content", {}).values()
        for example in [
            *([content["example"]] if "example" in content else []),
            *(document["components"]["examples"][code]["value"] for code in content.get("examples", {})),
        ]
    ]
    assert len(examples) > 3 * len(QUERIES)
    for schema, example in examples:
        validator = OAS31Validator({**schema, "components": document["components"]})
        assert list(validator.iter_errors(example)) == []
