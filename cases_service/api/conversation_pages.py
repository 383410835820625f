"""Pages of a case's activities and messages, for visitors and for organizations."""

from collections.abc import Callable, Mapping
from typing import Any, Final
from uuid import UUID

import orjson

from cases_service.api.etag import answer
from cases_service.api.request import CasesRequest
from cases_service.api.response import Response
from cases_service.cases.pagination import Collection, Cursor
from cases_service.store import conversations as store
from cases_service.store.conversations import Page, Things

JSON: Final = frozenset({"application/json"})
JSON_OR_PATCH: Final = JSON | {"application/merge-patch+json"}


def starting_point(
    things: Things, parameters: Mapping[str, Any], organization_id: UUID, case_id: UUID | None, *, of: str
) -> tuple[Collection, Cursor | None]:
    """Return the collection that a request walks, and its cursor.

    Raises:
        InvalidCursorError: The cursor belongs to another collection.

    """
    collection = store.collection(
        things, organization_id=organization_id, case_id=case_id, ordering=parameters["ordering"], of=of
    )
    given = parameters["cursor"]
    return collection, None if given is None else Cursor.decode(given, collection)


def respond_with_page(
    request: CasesRequest, page: Page, collection: Collection, link: Callable[[str | None], str | None]
) -> Response:
    """Return a page with its links, and an ETag of its content."""
    following, preceding = (None if each is None else each.encode(collection) for each in (page.next, page.previous))

    results = orjson.dumps(page.results)

    def document() -> bytes:
        return orjson.dumps({"next": link(following), "previous": link(preceding), "results": orjson.Fragment(results)})

    return answer(request, document, results, f"{following} {preceding}".encode())
