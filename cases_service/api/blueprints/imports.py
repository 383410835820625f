"""The route that imports many of an organization's rows at a time."""

from typing import Any, Final

import orjson
from flask import Blueprint

from cases_service.api.authorization import for_organization, writing_database
from cases_service.api.parameters import ImportParameters, read_parameters
from cases_service.api.request import CasesRequest
from cases_service.api.request_body import read_body
from cases_service.api.response import Response
from cases_service.loading.imports import MAXIMUM_LINES, import_lines
from cases_service.loading.outcome import LoadOptions, LoadSummary
from cases_service.observability.metrics import count_import
from cases_service.problems import BodyTooLargeError, InvalidLinesError
from cases_service.store.cases import Access

blueprint = Blueprint("imports", __name__, url_prefix="/api/v5/orgs/<uuid:organization_id>/import")

MAXIMUM_BYTES: Final = 16 * 2**20

_PARAMETERS: Final = ImportParameters()
_NDJSON: Final = frozenset({"application/x-ndjson"})
_MOST: Final = f"It has at most {MAXIMUM_BYTES // 2**20} MiB when unpacked, and at most {MAXIMUM_LINES:,} lines."


@blueprint.post("")
@for_organization("cases:write")
def import_rows(request: CasesRequest, access: Access) -> Response:
    """Store what the lines of the body say."""
    database = writing_database()
    given = read_parameters(_PARAMETERS, request.query_string)
    body = read_body(request, media_types=_NDJSON, maximum=MAXIMUM_BYTES, most=_MOST, unpacks=True)
    if body.count(b"\n") + (not body.endswith(b"\n")) > MAXIMUM_LINES:
        raise BodyTooLargeError(_MOST)
    options = LoadOptions(
        mode=given["mode"],
        if_newer=given["if_newer"],
        keeps_left_out=given["left_out"] == "keep",
        organization_id=access.organization_id,
    )
    result = _document(summary := import_lines(database, body, options, api_token_id=access.token_id))
    is_stored = not summary.error_count or options.mode == "each"
    count_import(lines=summary.lines, stale=summary.stale, wrong=summary.error_count, is_stored=is_stored)
    if not is_stored:
        raise InvalidLinesError(result["errors"], error_count=summary.error_count)
    return Response(orjson.dumps(result), content_type="application/json")


def _document(summary: LoadSummary) -> dict[str, Any]:
    result = summary.as_dict()
    return result | {
        "errors": [{name: error[name] for name in ("line", "field", "detail")} for error in result["errors"]]
    }
