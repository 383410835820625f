"""The routes of an organization's own cases. The order of the calls in a view is the order of the checks."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import orjson
from flask import Blueprint

from cases_service.api.authorization import for_organization, writing_database
from cases_service.api.etag import answer
from cases_service.api.organization_parameters import OrganizationCollectionParameters
from cases_service.api.page_links import link_of_organization
from cases_service.api.parameters import DetailParameters, Parameters, read_parameters
from cases_service.api.request import CasesRequest
from cases_service.api.request_body import read_body
from cases_service.api.response import Response
from cases_service.cases.identifiers import uuid_or_none
from cases_service.cases.organization_filters import OrganizationFilters
from cases_service.cases.pagination import Collection, Cursor
from cases_service.cases.preconditions import Preconditions, is_known
from cases_service.cases.strong_etag import tag_of_some
from cases_service.cases.write_bodies import CHANGE, MAXIMUM_BODY, WHOLE, CaseBody, Kind, read_case_body
from cases_service.problems import CaseNotFoundError
from cases_service.service import current_service
from cases_service.store import organization_cases as case_store
from cases_service.store import organization_pages
from cases_service.store.case_writing import CaseWriter
from cases_service.store.cases import Access
from cases_service.store.organization_cases import StoredCase

blueprint = Blueprint("organization_cases", __name__, url_prefix="/api/v5/orgs/<uuid:organization_id>/cases")

_COLLECTION: Final = OrganizationCollectionParameters()
_DETAIL: Final = DetailParameters()
# No visitor's filters begin like this, so no visitor's cursor is valid here.
_KIND: Final = "organization:"
_NONE: Final = Parameters()
_JSON: Final = frozenset({"application/json"})
_JSON_OR_PATCH: Final = _JSON | {"application/merge-patch+json"}


@blueprint.get("")
@for_organization("cases:read")
def list_cases(request: CasesRequest, access: Access) -> Response:
    """Answer a page of the organization's cases, as the primary has them now."""
    parameters = read_parameters(_COLLECTION, request.query_string)
    filters: OrganizationFilters = parameters["filters"]
    collection = Collection(access.organization_id, parameters["ordering"], f"{_KIND}{filters.canonical()}")
    given = parameters["cursor"]
    query = organization_pages.list_cases(
        organization_id=access.organization_id,
        ordering=collection.ordering,
        filters=filters,
        fields=parameters["attributes"],
        cursor=None if given is None else Cursor.decode(given, collection),
        page_size=parameters["page_size"],
    )
    page = current_service().database.ask(access.organization_id, query)
    following, preceding = (None if c is None else c.encode(collection) for c in (page.next, page.previous))

    def document() -> bytes:
        link = partial(link_of_organization, request, access.organization_id)
        return orjson.dumps({"next": link(following), "previous": link(preceding), "results": page.cases})

    return answer(request, document, page.etag_input, f"{following} {preceding}".encode())


@blueprint.get("/<case_id>")
@for_organization("cases:read")
def get_case(request: CasesRequest, access: Access, case_id: str) -> Response:
    """Answer one case of the organization, as the primary has it now."""
    fields = read_parameters(_DETAIL, request.query_string)["attributes"]
    query = case_store.get_case(organization_id=access.organization_id, case_id=uuid_or_none(case_id))
    case = current_service().database.ask(access.organization_id, query)
    if case is None:
        raise CaseNotFoundError("The organization has no case with this id.")
    tag = tag_of_some(case.tag, fields)
    if is_known(request.if_none_match, tag):
        return _tagged(None, 304, tag)
    document = case.document if fields is None else {name: case.document[name] for name in case_store.only(fields)}
    return _tagged(document, 200, tag)


@blueprint.post("")
@for_organization("cases:write")
def create_case(request: CasesRequest, access: Access) -> Response:
    """Create a case."""
    writer = _writer(access)
    case = writer.create(_body(request, _JSON, WHOLE)).case
    response = _whole(case, 201)
    response.headers["Location"] = (
        f"{request.service_url}/api/v5/orgs/{access.organization_id}/cases/{case.document['id']}"
    )
    return response


@blueprint.put("/<case_id>")
@for_organization("cases:write")
def put_case(request: CasesRequest, access: Access, case_id: str) -> Response:
    """Create a case under the caller's id, or replace the existing one."""
    writer = _writer(access)
    body = _body(request, _JSON, WHOLE)
    written = writer.put(uuid_or_none(case_id), body, Preconditions.of(request.environ))
    return _whole(written.case, 201 if written.is_new else 200)


@blueprint.patch("/<case_id>")
@for_organization("cases:write")
def change_case(request: CasesRequest, access: Access, case_id: str) -> Response:
    """Change the attributes of a case that the body names."""
    writer = _writer(access)
    body = _body(request, _JSON_OR_PATCH, CHANGE)
    return _whole(writer.patch(uuid_or_none(case_id), body, Preconditions.of(request.environ)).case, 200)


@blueprint.delete("/<case_id>")
@for_organization("cases:write")
def delete_case(request: CasesRequest, access: Access, case_id: str) -> Response:
    """Remove a case."""
    writer = _writer(access)
    read_parameters(_NONE, request.query_string)
    writer.remove(uuid_or_none(case_id), Preconditions.of(request.environ))
    return Response(status=204)


def _writer(access: Access) -> CaseWriter:
    return CaseWriter(database=writing_database(), organization_id=access.organization_id, user_id=access.user_id)


def _body(request: CasesRequest, media_types: frozenset[str], kind: Kind) -> CaseBody:
    read_parameters(_NONE, request.query_string)
    return read_case_body(read_body(request, media_types=media_types, maximum=MAXIMUM_BODY), kind)


def _whole(case: StoredCase, status: int) -> Response:
    return _tagged(case.document, status, case.tag)


def _tagged(document: Mapping[str, Any] | None, status: int, tag: str) -> Response:
    headers = [("ETag", f'"{tag}"'), ("Cache-Control", "private, no-cache")]
    if document is None:
        return Response(status=status, headers=headers)
    return Response(orjson.dumps(document), status, headers, content_type="application/json")
