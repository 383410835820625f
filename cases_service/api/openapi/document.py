"""Generates the OpenAPI 3.1 document from the routes, the schemas and the errors."""

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Final, cast

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from apispec.ext.marshmallow.openapi import OpenAPIConverter
from marshmallow import Schema, fields
from werkzeug.routing import Map, Rule

from cases_service import __version__, problems
from cases_service.api import parameters
from cases_service.api.openapi.components import (
    ANSWER_HEADERS,
    CASE,
    DESCRIPTION,
    EVERYWHERE,
    OF_STATUS,
    PATH_PARAMETERS,
    RATE_LIMIT,
    REQUEST_HEADERS,
    SECURITY_OF,
    SECURITY_SCHEMES,
    STATUS_WORDS,
    TAGS,
    UUID,
    Json,
)
from cases_service.api.openapi.operations import OPERATIONS, Operation
from cases_service.api.organization_parameters import Identifiers
from cases_service.cases import schemas
from cases_service.cases.conversation_bodies import CASE_STATE, NEW_MESSAGE, NEW_ORGANIZATION_MESSAGE, READ_MARK
from cases_service.cases.organization_filters import NONE
from cases_service.cases.write_bodies import CHANGE, WHOLE, Identifier, Kind, Reference
from cases_service.problems import ProblemError


def describe(routes: Map, server: str, *, writes: bool) -> Json:
    """Return the document of these routes, for a service with this URL that writes or only reads."""
    spec = _new_spec(server)
    _add_components(spec)
    for rule in routes.iter_rules():
        operation = OPERATIONS.get(rule.endpoint)
        if operation is not None and (writes or not operation.writes):
            spec.path(path=_path(rule), operations={operation.method: _operation(rule, operation)})
    document: Json = spec.to_dict()
    for path in document["paths"].values():
        if "get" in path:
            path["head"] = _without_bodies(path["get"])
    described = document["components"]["schemas"]
    for name, schema in described.items():
        _say_what_is_there(name, schema)
    described |= _narrowed_by_fields(described)
    if writes:
        described["NewCase"] = _body_schema("A new case.", WHOLE, described["OrganizationCase"])
        described["Lines"] = {"type": "string", "description": "Lines of the load format, an object each (NDJSON)."}
        described["CaseChange"] = _body_schema(
            "What is to be changed of a case.", CHANGE, described["OrganizationCase"]
        )
        described |= {name: _members(schema) for name, schema in _BODIES.items()}
    return document


def _new_spec(server: str) -> APISpec:
    """Return a document without routes, which knows how to describe the schemas' own types of fields."""
    marshmallow = MarshmallowPlugin(schema_name_resolver=_schema_name)
    spec = APISpec(
        "Visitor cases",
        __version__,
        "3.1.0",
        info={
            "summary": "The support cases of your signed-in customers",
            "description": DESCRIPTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        servers=[{"url": server, "description": "This service."}],
        tags=TAGS,
        plugins=[marshmallow],
    )
    # The document has just made it.
    converter = cast("OpenAPIConverter", marshmallow.converter)
    converter.add_attribute_function(_property_of)  # type: ignore[no-untyped-call]
    converter.add_parameter_attribute_function(_style_of)
    return spec


def _add_components(spec: APISpec) -> None:
    for name, header in ANSWER_HEADERS.items():
        spec.components.header(name, header)
    for name, parameter in REQUEST_HEADERS.items():
        spec.components.parameter(name, "header", parameter)
    for name, scheme in SECURITY_SCHEMES.items():
        spec.components.security_scheme(name, scheme)
    for kind in problems.kinds():
        spec.components.example(kind.code, {"summary": _title(kind), "value": _example_of(kind)})
    spec.components.schema("Problem", schema=schemas.ProblemSchema)


def _schema_name(schema: type[Schema] | Schema) -> str:
    return (schema if isinstance(schema, type) else type(schema)).__name__.removesuffix("Schema")


def _path(rule: Rule) -> str:
    return re.sub(r"<(?:\w+:)?(\w+)>", lambda match: "{" + PATH_PARAMETERS[match[1]]["name"] + "}", rule.rule)


def _operation(rule: Rule, operation: Operation) -> Json:
    is_api = operation.tag != "Service"
    in_path = re.findall(r"<(?:\w+:)?(\w+)>", rule.rule)
    taken: list[Any] = [{"in": "path", "required": True, **PATH_PARAMETERS[name]} for name in in_path]
    if operation.parameters is not None:
        taken.append({"in": "query", "schema": operation.parameters})
    taken += ["RequestId", *operation.takes]
    return {
        "operationId": _operation_id(rule.endpoint),
        "tags": [operation.tag],
        "summary": operation.summary,
        "description": operation.description,
        "parameters": taken,
        **({} if operation.body is None else {"requestBody": _request_body(operation)}),
        "security": SECURITY_OF[operation.tag],
        "responses": _responses(operation, RATE_LIMIT if is_api else ()),
    }


def _without_bodies(operation: Json) -> Json:
    """Return the operation of HEAD, given that of GET."""
    responses = {
        status: {name: value for name, value in response.items() if name != "content"}
        for status, response in operation["responses"].items()
    }
    return operation | {
        "operationId": f"head_{operation['operationId']}",
        "summary": f"{operation['summary']}: the headers alone",
        "description": "What `GET` answers, without the body.",
        "responses": responses,
    }


def _operation_id(endpoint: str) -> str:
    blueprint, _, name = endpoint.rpartition(".")
    if blueprint == "organization_conversations":
        return name.replace("_", "_organization_", 1)
    return name.replace("case", "organization_case") if blueprint == "organization_cases" else name


def _request_body(operation: Operation) -> Json:
    schema = {"$ref": f"#/components/schemas/{operation.body}"}
    content = {"schema": schema, "example": operation.body_example}
    return {"required": True, "content": dict.fromkeys(operation.body_types, content)}


def _body_schema(description: str, kind: Kind, case: Json) -> Json:
    """Return the schema of a body: writable attributes as in an answer, and others with any value."""
    properties = {
        name: _reference(name) if isinstance(kind.schema.fields.get(name), Reference) else schema
        for name, schema in case["properties"].items()
    }
    ignored = {name: {"description": "Not looked at."} for name in properties if name in kind.read_only}
    required = [name for name, field in kind.schema.fields.items() if field.required]
    return {
        "type": "object",
        "description": description,
        "properties": {**properties, **ignored},
        **({"required": required} if required else {}),
        "additionalProperties": False,
    }


_BODIES: Final[dict[str, Schema]] = {
    "NewMessage": NEW_MESSAGE,
    "NewOrganizationMessage": NEW_ORGANIZATION_MESSAGE,
    "ReadMark": READ_MARK,
    "CaseState": CASE_STATE,
}


def _members(schema: Schema) -> Json:
    """Return the schema of a body other than a case."""
    required = [name for name, field in schema.fields.items() if field.required]
    return {
        "type": "object",
        "description": (type(schema).__doc__ or "").strip(),
        "properties": {name: {**_kind_of(field), **field.metadata} for name, field in schema.fields.items()},
        **({"required": required} if required else {}),
        "additionalProperties": False,
    }


def _kind_of(field: fields.Field[Any]) -> Json:
    if isinstance(field, Identifier):
        return UUID
    is_text = "enum" in field.metadata or "maxLength" in field.metadata
    return {"type": "string" if is_text else "boolean"}


def _reference(name: str) -> Json:
    by_id = {"type": "object", "properties": {"id": UUID}, "required": ["id"]}
    return {"description": f"Stands for its id, like {name}_id.", "anyOf": [by_id, {"type": "null"}]}


def _responses(operation: Operation, more_headers: tuple[str, ...]) -> dict[int, Json]:
    headers = _named((*EVERYWHERE, *more_headers))
    if operation.etag is not None:
        headers["ETag"] = {"$ref": f"#/components/headers/{operation.etag}"}
    responses: dict[int, Json] = {
        status: {
            "description": operation.summary + ".",
            "headers": headers | (_named(["Location"]) if operation.makes_a_case else {}),
            **_content(operation),
        }
        for status in operation.answers
    }
    if "IfNoneMatch" in operation.takes:
        responses[304] = {"description": "The current content has the tag in `If-None-Match`.", "headers": headers}
    by_status: dict[int, list[type[ProblemError]]] = defaultdict(list)
    for kind in operation.problems:
        by_status[kind.status].append(kind)
    for status, kinds in sorted(by_status.items()):
        responses[status] = _problem(status, kinds, more_headers)
    return responses


def _content(operation: Operation) -> Json:
    if operation.schema is None:
        return {}
    content: Json = {"schema": operation.schema}
    if operation.example is not None:
        content["example"] = operation.example
    if operation.with_fields is not None:
        content["x-with-fields"] = {"$ref": f"#/components/schemas/{operation.with_fields}"}
    return {"content": {operation.media_type: content}}


def _problem(status: int, kinds: list[type[ProblemError]], more_headers: tuple[str, ...]) -> Json:
    codes = [kind.code for kind in kinds]
    narrower = {
        "type": "object",
        "properties": {"status": {"type": "integer", "enum": [status]}, "code": {"type": "string", "enum": codes}},
    }
    lines = "\n".join(f"- `{kind.code}`: {_title(kind)}." for kind in kinds)
    return {
        "description": f"{STATUS_WORDS[status]}\n\n{lines}",
        "headers": _named((*EVERYWHERE, *more_headers, *OF_STATUS.get(status, ()))),
        "content": {
            "application/problem+json": {
                "schema": {"allOf": [{"$ref": "#/components/schemas/Problem"}, narrower]},
                "examples": {code: {"$ref": f"#/components/examples/{code}"} for code in codes},
            }
        },
    }


def _named(names: Iterable[str]) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


_DETAILS: Final[dict[type[ProblemError], str]] = {
    problems.TokenClaimMissingError: "The claim exp is required.",
    problems.TokenClaimInvalidError: "The claim iss is not the issuer that this service expects.",
}


_WRONG_MEMBER: Final = {"pointer": "/priority", "detail": "Expected a whole number from 1 to 5."}

_WRONG_LINE: Final = {"line": 7, "field": "priority", "detail": "expected an integer from 1 to 5"}


def _example_of(kind: type[ProblemError]) -> Json:
    wrong = {"parameter": "page_size", "detail": "Expected a whole number from 1 to 100."}
    return schemas.ProblemSchema().dump(  # type: ignore[no-any-return]
        {
            "code": kind.code,
            "title": _title(kind),
            "status": kind.status,
            "detail": kind.default_detail or _DETAILS[kind],
            "request_id": "4f0c6a1b2d3e4f5061728394a5b6c7d8",
            **({"errors": [wrong]} if kind is problems.InvalidParameterError else {}),
            **({"errors": [_WRONG_MEMBER]} if kind is problems.InvalidBodyError else {}),
            **({"errors": [_WRONG_LINE], "error_count": 1} if kind is problems.InvalidLinesError else {}),
            **({"case_id": CASE["id"]} if kind is problems.CaseNumberTakenError else {}),
            **({"position": 4711} if kind is problems.EventsGoneError else {}),
        }
    )


def _title(kind: type[ProblemError]) -> str:
    return (kind.__doc__ or "").strip().rstrip(".")


def _property_of(_converter: OpenAPIConverter, field: fields.Field[Any], *, ret: Json) -> Json:
    """Return what apispec cannot know: the form of the parameters' own fields, and that a URL has no null."""
    if field.load_default is None:
        ret.pop("default")
        ret["type"] = "string"
    match field:
        case parameters.CommaSeparated():
            return {"type": "array", "minItems": 1, "items": _items(field)}
        case parameters.Flag():
            return {"type": "boolean"}
        case parameters.Moment():
            return {"type": "string", "format": "date-time", "examples": [CASE["updated_at"]]}
        case parameters.WholeNumber():
            return {"minimum": field.limits.start, "maximum": field.limits.stop - 1}
        case schemas.Instant():
            return {"pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$"}
    return {}


def _items(field: parameters.CommaSeparated) -> Json:
    if isinstance(field, Identifiers):
        return {"anyOf": [UUID, {"const": NONE}]}
    choices = list(field.choices.values())
    return {"type": "integer" if isinstance(choices[0], int) else "string", "enum": choices}


def _style_of(_converter: OpenAPIConverter, field: fields.Field[Any], **_: Any) -> Json:
    return {"style": "form", "explode": True} if isinstance(field, parameters.CommaSeparated) else {}


_SOMETIMES: Final = frozenset(
    {
        *(("Problem", name) for name in ("errors", "error_count", "case_id", "position")),
        *(("ParameterError", name) for name in ("parameter", "pointer", "line", "field")),
    }
)


def _say_what_is_there(name: str, schema: Json) -> None:
    """Complete an object's schema: the attributes that an answer always has, and that there may be more."""
    del schema["additionalProperties"]
    schema["description"] = (getattr(schemas, f"{name}Schema").__doc__ or "").strip()
    schema["required"] = [attribute for attribute in schema["properties"] if (name, attribute) not in _SOMETIMES]


def _narrowed_by_fields(described: Json) -> Json:
    """Return the schemas of answers with `fields`. In shared schemas, every attribute could be missing."""
    said = "with the attributes that `fields` names, and no others."
    narrowed = {}
    for page, name in (("Page", "Case"), ("OrganizationPage", "OrganizationCase")):
        partial = f"Partial{name}"
        narrowed[partial] = {key: value for key, value in described[name].items() if key != "required"}
        narrowed[partial]["description"] = f"A case {said}"
        results = described[page]["properties"]["results"] | {"items": {"$ref": f"#/components/schemas/{partial}"}}
        properties = described[page]["properties"] | {"results": results}
        of_page = {"properties": properties, "description": f"A page whose cases are {said}"}
        narrowed[f"PageOf{partial}s"] = described[page] | of_page
    return narrowed
