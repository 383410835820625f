"""The OpenAPI document is one, is linted, and leaves nothing out that routes, schemas and errors know."""

from collections.abc import Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient
from marshmallow import Schema
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from cases_service import errors, parameters, schemas
from cases_service.application import Application
from cases_service.openapi import OPERATIONS
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
}


@pytest.fixture
def document(client: FlaskClient) -> Json:
    document: Json = client.get("/openapi.json").get_json()
    return document


def operations(document: Json) -> dict[str, Json]:
    """Return the operations by id, with references to parameters followed."""
    found = {path["get"]["operationId"]: path["get"] for path in document["paths"].values()}
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
    routes = {rule.endpoint for rule in app.url_map.iter_rules()}
    assert routes - set(OPERATIONS) == set()
    assert len(document["paths"]) == len(routes)
    assert set(PATHS.values()) <= set(document["paths"])
    assert all(set(path) == {"get", "head"} for path in document["paths"].values())
    assert all((rule.methods or set()) == {"GET", "HEAD"} for rule in app.url_map.iter_rules())


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
    assert described == {kind.code: {kind.status} for kind in errors.kinds()}


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
            assert each["schema"]["items"]["enum"]


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
        assert ("304" in operation["responses"]) == ("ETag" in operation["responses"]["200"]["headers"])
        assert (operation["security"] == []) == (name not in QUERIES)


def test_each_error_that_it_names_has_a_body_of_one_form(document: Json) -> None:
    """Where one had none, generated clients could not say what the others are."""
    for operation in operations(document).values():
        problems = {status: each for status, each in operation["responses"].items() if int(status) >= 400}
        for response in problems.values():
            assert list(response["content"]) == ["application/problem+json"]


def test_head_answers_what_get_does_without_bodies(document: Json) -> None:
    names = [item["head"]["operationId"] for item in document["paths"].values()]
    assert len(set(names)) == len(names)
    for item in document["paths"].values():
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
        for content in operation["responses"]["200"]["content"].values()
        if "x-with-fields" in content
    }
    assert says_what_is_left == {"list_cases": "PageOfPartialCases", "get_case": "PartialCase"}
    assert set(says_what_is_left) == takes_fields


def test_the_file_in_the_tree_is_current(app: Application) -> None:
    assert FILE.read_text(encoding="utf-8") == document_text(app.url_map), "make openapi writes it"


def test_its_examples_are_what_it_says(document: Json) -> None:
    examples = [
        (content["schema"], example)
        for operation in operations(document).values()
        for response in operation["responses"].values()
        for content in response.get("content", {}).values()
        for example in [
            *([content["example"]] if "example" in content else []),
            *(document["components"]["examples"][code]["value"] for code in content.get("examples", {})),
        ]
    ]
    assert len(examples) > 3 * len(QUERIES)
    for schema, example in examples:
        validator = OAS31Validator({**schema, "components": document["components"]})
        assert list(validator.iter_errors(example)) == []
