"""The peer that lets PostgreSQL make the JSON, as PostgREST does: one statement an answer, which Python passes on."""

from typing import Any, Final

import orjson

from benchmarks.contestants.plain import Plain, case_statement, links, page_statements

_PAGES: Final = page_statements("write_cases")
_CASE: Final = case_statement("write_cases")


class PostgresJson(Plain):
    """The WSGI callable."""

    def page(self, parameters: dict[str, Any], url: str, *, backward: bool, has_cursor: bool) -> bytes:
        """Return the answer with a page."""
        results, first, last, keys = self.rows(_PAGES[backward], parameters)[0]
        has_more = (keys or 0) == parameters["row_limit"]
        following, preceding = links(url, first, last, backward=backward, has_cursor=has_cursor, has_more=has_more)
        return b'{"next":%b,"previous":%b,"results":%b}' % (
            orjson.dumps(following),
            orjson.dumps(preceding),
            results.encode(),
        )

    def case(self, parameters: dict[str, Any]) -> bytes:
        """Return the answer with a case."""
        results: str = self.rows(_CASE, parameters)[0][0]
        return results[1:-1].encode()


app = PostgresJson()
