"""Writes the OpenAPI document of this source into docs/openapi.json: `make openapi`."""

import json
from pathlib import Path
from typing import Final

from flask import Flask
from werkzeug.routing import Map

from cases_service.api.openapi.document import describe
from cases_service.application import add_routes

FILE: Final = Path(__file__).parents[1] / "docs/openapi.json"


def document_text(routes: Map) -> str:
    return json.dumps(describe(routes, "/", writes=True), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    app = Flask("cases_service", static_folder=None)
    add_routes(app, with_docs=True)
    FILE.write_text(document_text(app.url_map), encoding="utf-8")
