"""The route that lists the results of an organization's loads and imports."""

from typing import Final

import orjson
from flask import Blueprint

from cases_service.api.authorization import for_organization
from cases_service.api.parameters import ImportRunParameters, read_parameters
from cases_service.api.request import CasesRequest
from cases_service.api.response import Response
from cases_service.service import current_service
from cases_service.store import import_runs
from cases_service.store.cases import Access

blueprint = Blueprint("import_runs", __name__, url_prefix="/api/v5/orgs/<uuid:organization_id>/import")

_PARAMETERS: Final = ImportRunParameters()


@blueprint.get("")
@for_organization("cases:read")
def list_import_runs(request: CasesRequest, access: Access) -> Response:
    """Answer the latest loads and imports, the newest first."""
    page_size = read_parameters(_PARAMETERS, request.query_string)["page_size"]
    query = import_runs.list_runs(organization_id=access.organization_id, page_size=page_size)
    runs = current_service().database.ask(access.organization_id, query)
    return Response(orjson.dumps({"results": runs}), content_type="application/json")
