"""Traces, as a collector receives them from the real service: what they tell, and what they never do."""

import gzip
import http.server
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from cases_service import __version__
from tests.documents import block
from tests.factories import SECRET_KEY, Organization, b64
from tests.metrics import value
from tests.process.running import LOOPBACK, PATIENCE, SCRIPTS, Service, environment, wait_for
from tests.process.test_metrics import scrape

LIST = "/api/v5/orgs/<uuid:organization_id>/external-visitors/<token>/cases"
OUTSIDE = "4bf92f3577b34da6a3ce929d0e0e4736"


class Collector(http.server.ThreadingHTTPServer):
    """Receives traces by OTLP over HTTP."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        super().__init__((LOOPBACK, 0), Receiver)

    @property
    def variables(self) -> dict[str, str]:
        url = f"http://{LOOPBACK}:{self.server_port}"
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_BSP_SCHEDULE_DELAY": "100"}

    def resources(self) -> list[Any]:
        return [found for body in self.bodies for found in ExportTraceServiceRequest.FromString(body).resource_spans]

    def spans(self) -> list[Span]:
        return [span for found in self.resources() for scope in found.scope_spans for span in scope.spans]

    def roots(self) -> list[Span]:
        return [span for span in self.spans() if span.kind == Span.SPAN_KIND_SERVER]


class Receiver(http.server.BaseHTTPRequestHandler):
    """Keeps what is posted to it."""

    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.bodies.append(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def running() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    with running() as server:
        yield server


def attributes(span: Span) -> dict[str, Any]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in span.attributes}


def test_a_request_is_a_span_with_its_round_trips_below(
    serve: Callable[..., Service], organization: Organization, collector: Collector
) -> None:
    service = serve(**collector.variables)
    service.wait_until_ready()
    visitor = organization.visitor()
    parent = f"traceparent: 00-{OUTSIDE}-00f067aa0ba902b7-01"
    authorization = f"Authorization: Token {organization.token}"
    assert service.curl(visitor.path, "--header", authorization, "--header", parent).status == 200
    wait_for(collector.roots, story=service)
    (root,) = collector.roots()
    assert (root.name, root.trace_id.hex()) == (f"GET {LIST}", OUTSIDE)
    assert attributes(root) == {"http.method": "GET", "http.route": LIST, "http.status_code": 200}
    below = [span for span in collector.spans() if span.parent_span_id == root.span_id]
    first, second = "access.get_access", "access.get_access cases.list_by_created_at_ascending"
    assert [span.name for span in below] == [first, second]
    assert attributes(below[0]) == {"db.system.name": "postgresql", "db.query.summary": "access.get_access"}
    # Health is not worth a span.
    assert len(collector.spans()) == 3
    shown = {item.key: item.value.string_value for item in collector.resources()[0].resource.attributes}
    assert (shown["service.name"], shown["service.version"]) == ("visitor-cases-service", __version__)


def test_the_lines_of_the_document_turn_traces_on(
    start: Callable[..., Service], service_url: str, organization: Organization, collector: Collector
) -> None:
    lines = block("docs/observability.md", "sh", "OTEL_EXPORTER_OTLP_ENDPOINT")
    # The project is installed here, and pip has nothing to build.
    lines = lines.replace(".[tracing]", "visitor-cases-service[tracing]")
    lines = lines.replace("http://collector:4318", collector.variables["OTEL_EXPORTER_OTLP_ENDPOINT"])
    # It is installed, with its extra; there is nothing to fetch.
    lines = lines.replace("'.[tracing]'", "'visitor-cases-service[tracing]'")
    lines = lines.replace("cases-service serve", f"exec cases-service serve --bind {LOOPBACK}:0")
    variables = collector.variables | {"DATABASE_URL": service_url, "CASES_SECRET_KEY": SECRET_KEY}
    del variables["OTEL_EXPORTER_OTLP_ENDPOINT"]
    service = start("bash", "-ec", lines, PATH=f"{SCRIPTS}:/usr/bin:/bin", **variables)
    service.wait_for_log("Listening at")
    service.wait_until_ready()
    path = organization.visitor().path
    assert service.curl(path, "--header", f"Authorization: Token {organization.token}").status == 200
    wait_for(collector.roots, story=service)
    assert service.end() == 0


def test_no_span_tells_what_a_caller_sent(
    serve: Callable[..., Service], organization: Organization, collector: Collector
) -> None:
    semantics = {"OTEL_SEMCONV_STABILITY_OPT_IN": "http/dup,database/dup"}
    captured = {"OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST": ".*"}
    service = serve(**collector.variables, **semantics, **captured)
    service.wait_until_ready()
    external_id = "customer-hunter2"
    visitor = organization.visitor(external_id)
    token = organization.jwt(external_id)
    known = f"Authorization: Token {organization.token}"
    in_header = visitor.path.replace(visitor.path.split("/")[6], "-")
    requests: list[tuple[str, ...]] = [
        (visitor.path.replace(visitor.path.split("/")[6], token), known),
        (f"{visitor.path}?page_size=hunter2", known),
        (visitor.path + "/hunter2", known),
        (in_header, known, f"X-External-Identity: {token}"),
        (f"/hunter2/{token}?q=hunter2", known),
        (visitor.path, "Authorization: Token hunter2"),
    ]
    for path, *headers in requests:
        service.curl(path, *(part for header in headers for part in ("--header", header)))
    service.curl(visitor.path, "--request", "HUNTER2")
    wait_for(lambda: len(collector.roots()) == len(requests) + 1, story=service)
    received = b"".join(collector.bodies)
    secrets = ("hunter2", "HUNTER2", token, organization.token, str(organization.id), str(visitor.id), b64(b'{"sub"'))
    assert [text for text in secrets if text.encode() in received] == []
    assert {root.name for root in collector.roots()} >= {f"GET {LIST}", "GET"}
    assert not [span for span in collector.spans() if span.events or span.status.message]


def test_workers_that_trace_count_together(serve: Callable[..., Service], collector: Collector) -> None:
    service = serve(CASES_WORKERS="2", **collector.variables)
    service.wait_until_ready()
    wait_for(lambda: value(scrape(service), "cases_workers") == 2, story=service)
    for _ in range(20):
        assert service.curl("/healthz").status == 200
    assert {value(scrape(service), "cases_requests_total", route="/healthz") for _ in range(10)} == {20}


def test_the_last_spans_are_sent_before_the_end(serve: Callable[..., Service], collector: Collector) -> None:
    service = serve(**collector.variables | {"OTEL_BSP_SCHEDULE_DELAY": "60000"})
    service.wait_until_ready()
    assert service.curl("/nowhere").status == 404
    assert service.end() == 0
    assert [root.name for root in collector.roots()] == ["GET"]


def test_a_collector_that_is_away_holds_up_neither_answers_nor_the_stop(serve: Callable[..., Service]) -> None:
    with running() as gone:
        variables = gone.variables
    service = serve(**variables)
    service.wait_until_ready()
    assert service.curl("/nowhere").status == 404
    assert service.end() == 0
    assert "/nowhere" not in service.log


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("OTEL_TRACES_EXPORTER", "jaeger"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")],
)
def test_what_it_cannot_do_ends_the_start(serve: Callable[..., Service], name: str, wrong: str) -> None:
    service = serve(**{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", name: wrong})
    assert service.process.wait(PATIENCE) == 1
    (line,) = service.log.splitlines()
    assert line.startswith(f"cases-service: {name}: ")


def test_without_the_extra_the_start_says_what_to_install(gunicorn: Callable[..., Service], place: Any) -> None:
    # What is not importable is not installed, for all that the service can tell.
    (place / "opentelemetry").mkdir()
    (place / "opentelemetry" / "__init__.py").write_text("")
    service = gunicorn(OTEL_TRACES_EXPORTER="otlp", PYTHONPATH=str(place))
    assert service.process.wait(PATIENCE) == 1
    (line,) = service.log.splitlines()
    assert "pip install '.[tracing]'" in line


def test_nothing_of_it_is_imported_while_it_is_not_wanted() -> None:
    program = """
import sys
from cases_service.application import create_app
from cases_service.settings import Settings
create_app(Settings(database_url="host=127.0.0.1 port=1")).close()
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""
    variables = environment(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1", OTEL_SDK_DISABLED="true")
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, env=variables, text=True)
    assert ran.stdout == "[]\n"
