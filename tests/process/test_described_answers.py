"""The running service beside its OpenAPI document: of many generated requests none has an answer outside it."""

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import hypothesis
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import strategies as st
from openapi_schema_validator import OAS31Validator
from schemathesis import BaseSchema, Case, GenerationMode
from schemathesis.core.result import Ok
from schemathesis.specs.openapi import checks

from tests.factories import Organization, Visitor
from tests.process.running import Service
from tests.writing import contents

REQUESTS = 10_000 if hypothesis.settings().max_examples > 1000 else 300
CHECKS = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
# What never reaches the service has no body, and is not listed with the operations.
BARE = (414, 431)
WRITING = ("post", "put", "patch", "delete")
Request = Case[Any]
Caller = Callable[[Request], dict[str, str]]


@schemathesis.serializer("application/x-ndjson")
def lines_of(_: schemathesis.SerializationContext, value: Any) -> bytes:
    """Return the body of an import: a generated text, or, against the document's words, anything else as JSON."""
    return value if isinstance(value, bytes) else (value if isinstance(value, str) else json.dumps(value)).encode()


def closed(document: Any) -> Any:
    """Return a document by which an attribute that it does not name is an error."""
    for schema in document["components"]["schemas"].values():
        schema["additionalProperties"] = False
    return document


def schemas_with_fields(document: Any) -> dict[str, OAS31Validator]:
    """Return by path what is promised of an answer to a request that names `fields`."""
    read = {path: item["get"]["responses"]["200"] for path, item in document["paths"].items() if "get" in item}
    return {
        path: OAS31Validator(
            answer["content"]["application/json"]["x-with-fields"] | {"components": document["components"]}
        )
        for path, answer in read.items()
        if "x-with-fields" in answer["content"].get("application/json", {})
    }


def has_fields(url: str | None) -> bool:
    return "fields" in parse_qs(urlsplit(url or "").query)


def callers(
    organization: Organization, visitor: Visitor, case_ids: list[UUID], *, writes: bool
) -> st.SearchStrategy[Caller]:
    """Return who may ask: mostly the visitor's own organization, so that the requests come past the first checks.

    Of those that write, nearly everybody may.
    """
    jwt = organization.jwt(visitor.external_id)

    def with_path(case: Request, *, token: str = jwt, **headers: str) -> dict[str, str]:
        given = {"organization_id": str(organization.id), "external_id_jwt_token": token}
        case.path_parameters |= {name: value for name, value in given.items() if name in case.path_parameters}
        return organization.headers(**headers)

    def with_header(case: Request) -> dict[str, str]:
        return with_path(case, token="-", **{"X-External-Identity": jwt})

    def with_own_case(case: Request) -> dict[str, str]:
        if "case_id" in case.path_parameters:
            case.path_parameters["case_id"] = str(case_ids[0])
        return with_header(case)

    def with_any_jwt(case: Request) -> dict[str, str]:
        return with_path(case, token=case.path_parameters.get("external_id_jwt_token", ""))

    def anyone(case: Request) -> dict[str, str]:
        return {}

    token = organization.token_with("visitors:read", "visitors:write", "cases:write")

    def as_writer(case: Request) -> dict[str, str]:
        return {**with_header(case), "Authorization": f"Bearer {token}"}

    def as_writer_of_a_case(case: Request) -> dict[str, str]:
        if "case_id" in case.path_parameters:
            case.path_parameters["case_id"] = str(case_ids[case.path_parameters.get("case_id", "")[:1].isdigit()])
        return as_writer(case)

    readers = [with_header, with_path, with_own_case, with_own_case, with_any_jwt, anyone]
    kinds = {
        False: [*readers, as_writer, as_writer, as_writer_of_a_case, as_writer_of_a_case],
        # The first one is drawn far more often than its share.
        True: [*[as_writer_of_a_case, as_writer] * 8, with_header, anyone],
    }
    return st.sampled_from(kinds[writes])


def weight(operation: Any) -> int:
    return 1 if operation.tags == ["Service"] or operation.method == "head" else 8


def requested(schema: BaseSchema, *, writes: bool) -> st.SearchStrategy[Request]:
    """Return requests in and against the document's words, mostly to operations with parameters.

    They are to every operation, or to those that write.
    """
    found = [result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)]
    found = [operation for operation in found if not writes or operation.method in WRITING]
    weighted = [operation for operation in found for _ in range(weight(operation))]
    return st.one_of([operation.as_strategy(generation_mode=mode) for operation in weighted for mode in GenerationMode])


@pytest.mark.fuzz
@pytest.mark.parametrize("writes", [False, True], ids=["every route", "routes that write"])
def test_no_answer_lies_outside_the_document(service: Service, organization: Organization, writes: bool) -> None:
    visitor = organization.visitor(contacts=2)
    asking = callers(organization, visitor, visitor.cases(30), writes=writes)
    other = Organization(organization.connection, organization.box)
    other.case(other.visitor().contact_ids[0], owner_id=other.user_id, case_funnel_stage_id=other.stage())
    before = contents(other.connection, other)
    schema = schemathesis.openapi.from_dict(closed(service.curl("/openapi.json").json))
    narrow = schemas_with_fields(schema.raw_schema)
    statuses: list[int] = []
    narrowed: list[str] = []
    with requests.Session() as session:

        @hypothesis.settings(
            max_examples=REQUESTS,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=requested(schema, writes=writes), caller=asking)
        def ask(case: Request, caller: Caller) -> None:
            response = case.call(base_url=service.url(""), session=session, headers=caller(case), timeout=60)
            statuses.append(response.status_code)
            if response.status_code in BARE:
                assert not response.content
                return
            is_narrow = response.status_code == 200 and has_fields(response.request.url)
            by_schema = checks.response_schema_conformance
            case.validate_response(response, checks=[c for c in CHECKS if not (is_narrow and c is by_schema)])
            if is_narrow and response.content:
                narrow[case.operation.path].validate(response.json())
                narrowed.append(case.operation.path)

        ask()
    assert len(statuses) >= REQUESTS
    # They come past each check, and to what lies behind.
    assert writes or narrowed
    assert not writes or statuses.count(403) < len(statuses) / 5
    assert set(statuses) >= {200, 400, 401, 403, 404}
    assert REQUESTS < 1000 or set(statuses) >= {201, 204, 409, 412, *([] if writes else [304])}
    assert contents(other.connection, other) == before
