"""Input that nobody sends by accident: each gets a clear 4xx or its due answer, and nothing of it comes back."""

import json
from datetime import UTC, datetime

import pytest

from tests.factories import Organization, Visitor
from tests.process.running import Answer, Service, parse_answer

CANARY = "canary7f3a"


@pytest.fixture(scope="module")
def visitor(service: Service, session_connection: object, box: object) -> Visitor:
    visitor = Organization(session_connection, box).visitor()  # type: ignore[arg-type]
    visitor.cases(2)
    return visitor


def ask(service: Service, visitor: Visitor, target: str, *headers: str, host: str | None = "localhost") -> Answer:
    """Send a request with the visitor's API token and JWT (in the header, where {cases} stands), byte by byte."""
    organization = visitor.organization
    target = target.format(org=organization.id, cases=f"/api/v5/orgs/{organization.id}/external-visitors/-/cases")
    lines = [f"GET {target} HTTP/1.1", "Connection: close", *headers]
    lines += [] if host is None else [f"Host: {host}"]
    if not any(header.startswith("Authorization") for header in headers):
        lines.append(f"Authorization: Token {organization.token}")
    if "/-/" in target:
        lines.append(f"X-External-Identity: {organization.jwt(visitor.external_id)}")
    request = "\r\n".join(lines) + "\r\n\r\n"
    head, _, body = service.send(request.encode("latin-1")).partition(b"\r\n\r\n")
    return parse_answer(head, body)


def outcome(answer: Answer) -> tuple[int, str | None]:
    return answer.status, answer.json.get("code") if answer.body else None


@pytest.mark.parametrize(
    ("target", "host", "expected"),
    [
        ("http://localhost{cases}", "localhost", (200, None)),
        ("http://LOCALHOST:1{cases}", "evil.example", (200, None)),
        ("http://evil.example{cases}", "localhost", (400, "host_not_allowed")),
        ("https://evil.example:443{cases}", "localhost", (400, "host_not_allowed")),
        ("http://localhost@evil.example{cases}", "localhost", (400, "host_not_allowed")),
        ("http://evil.example@localhost{cases}", "localhost", (400, "host_not_allowed")),
        ("http://localhost{cases}", None, (400, "host_not_allowed")),
        ("{cases}", None, (400, "host_not_allowed")),
        ("{cases}", "", (400, "host_not_allowed")),
        ("{cases}", "localhost, evil.example", (400, "host_not_allowed")),
        ("{cases}", "localhost/evil.example", (400, "host_not_allowed")),
        ("{cases}", "localhost:80:80", (400, "host_not_allowed")),
    ],
)
def test_the_host_is_the_targets_or_else_the_headers(
    service: Service, visitor: Visitor, target: str, host: str | None, expected: tuple[int, str | None]
) -> None:
    assert outcome(ask(service, visitor, target, host=host)) == expected


def test_links_lead_to_the_host_of_an_absolute_target(service: Service, visitor: Visitor) -> None:
    answer = ask(service, visitor, "http://127.0.0.1:8080{cases}?page_size=1", host="evil.example")
    assert answer.json["next"].startswith("http://127.0.0.1:8080/api/v5/")


NOT_FOUND = (404, "not_found")


@pytest.mark.parametrize(("method", "target"), [("OPTIONS", "*"), ("CONNECT", "localhost:443")])
@pytest.mark.parametrize(("host", "expected"), [("localhost", NOT_FOUND), ("evil.example", (400, "host_not_allowed"))])
def test_a_target_that_is_no_url_leaves_the_host_to_the_header(
    service: Service, method: str, target: str, host: str, expected: tuple[int, str | None]
) -> None:
    request = f"{method} {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    head, _, body = service.send(request.encode()).partition(b"\r\n\r\n")
    assert outcome(parse_answer(head, body)) == expected


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/{cases}", NOT_FOUND),
        ("//{cases}", NOT_FOUND),
        ("/%2F{cases}", NOT_FOUND),
        ("//healthz", NOT_FOUND),
        ("/.{cases}", NOT_FOUND),
        ("/api/v5/../v5/orgs/{org}/external-visitors/-/cases", NOT_FOUND),
        ("/api%2Fv5/orgs/{org}/external-visitors/-/cases", (200, None)),
        ("/api/v5/orgs/{org}%2Fx/external-visitors/-/cases", NOT_FOUND),
        ("/api/v5/orgs/{org}%00/external-visitors/-/cases", NOT_FOUND),
        ("/api/v5/orgs/%7B{org}%7D/external-visitors/-/cases", NOT_FOUND),
        ("/api/v5/orgs/{org}/external-visitors/a%2Fb/cases", NOT_FOUND),
        ("/api/v5/orgs/{org}/external-visitors//cases", NOT_FOUND),
        ("/api/v5/orgs/{org}/external-visitors/%00/cases", (400, "token_malformed")),
        ("/api/v5/orgs/{org}/external-visitors/%ff%fe/cases", (400, "token_malformed")),
        ("/api/v5/orgs/{org}/external-visitors/%E2%80%AE.a.b/cases", (400, "token_malformed")),
        ("/api/v5/orgs/{org}/external-visitors/%2E%2E/cases", (400, "token_malformed")),
        ("/api/v5/orgs/{org}/external-visitors/a.b.c%0d%0aX-Injected:%20yes/cases", (400, "token_malformed")),
        ("{cases}/%00", (404, "case_not_found")),
        ("{cases}/%ff", (404, "case_not_found")),
        ("{cases}/a%2Fb", NOT_FOUND),
        ("{cases}/" + "x" * 7000, (404, "case_not_found")),
        ("{cases}/%D9%A1c1a4a3e-0d6b-4b0e-9a54-8d5b7a3f6f10", (404, "case_not_found")),
        ("{cases}/;x=1", (404, "case_not_found")),
        ("{cases}//", NOT_FOUND),
    ],
)
def test_paths_are_read_to_the_letter(
    service: Service, visitor: Visitor, target: str, expected: tuple[int, str | None]
) -> None:
    answer = ask(service, visitor, target)
    assert outcome(answer) == expected
    assert "x-injected" not in answer.headers


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("page_size=%00", ["page_size"]),
        ("page_size=1%00", ["page_size"]),
        ("page_size=%D9%A3", ["page_size"]),
        ("page_size=%EF%BC%91", ["page_size"]),
        ("page_size=1_0", ["page_size"]),
        ("page_size=1e1", ["page_size"]),
        ("page_size=" + "9" * 5000, ["page_size"]),
        ("page_size=1&page_size=1", ["page_size"]),
        ("page_size=1;page_size=1", ["page_size"]),
        ("page_size[]=1", ["page_size[]"]),
        ("PAGE_SIZE=1", ["PAGE_SIZE"]),
        ("page_size", ["page_size"]),
        ("cursor=", ["cursor"]),
        ("cursor=a&cursor=b", ["cursor"]),
        ("fields=", ["fields"]),
        ("fields=id,,status", ["fields"]),
        ("fields=__class__", ["fields"]),
        ("status=Open%00", ["status"]),
        ("status=open", ["status"]),
        ("is_closed=TRUE", ["is_closed"]),
        ("created_since=2024-02-30T00:00:00Z", ["created_since"]),
        ("created_since=9999-12-31T23:59:59-23:59", []),
        ("created_since=0000-01-01T00:00:00Z", ["created_since"]),
        ("created_since=2024-01-01T00:00:00%E2%88%9201:00", ["created_since"]),
        ("ordering=created_at,id", ["ordering"]),
        ("ordering=%27%20or%201=1--", ["ordering"]),
        ("%ff=1", ["\ufffd"]),
        ("=1", [""]),
        ("x=1&x=2&page_size=0", ["page_size", "x"]),
        (f"{CANARY * 20}=1", [(CANARY * 20)[:64]]),
    ],
)
def test_parameters_are_read_to_the_letter(service: Service, visitor: Visitor, query: str, names: list[str]) -> None:
    answer = ask(service, visitor, "{cases}?" + query.replace("{", "{{"))
    if not names:
        assert answer.status == 200
        return
    assert outcome(answer) == (400, "invalid_parameter")
    assert sorted(error["parameter"] for error in answer.json["errors"]) == sorted(names)


def test_a_parameter_that_is_both_unknown_and_repeated_is_called_unknown(service: Service, visitor: Visitor) -> None:
    (error,) = ask(service, visitor, "{cases}?x=1&x=2").json["errors"]
    assert error["detail"].startswith("Unknown parameter.")


@pytest.mark.parametrize("query", ["", "&", "&&&", "status=Open&is_closed=true", "format=json&"])
def test_a_query_that_says_nothing_or_contradicts_itself_is_answered(
    service: Service, visitor: Visitor, query: str
) -> None:
    answer = ask(service, visitor, "{cases}?" + query)
    assert answer.status == 200
    assert len(answer.json["results"]) == (0 if "is_closed" in query else 2)


def test_a_time_span_that_ends_before_it_begins_holds_nothing(service: Service, visitor: Visitor) -> None:
    now, year = datetime.now(UTC).year, "-01-01T00:00:00Z"
    answer = ask(service, visitor, f"{{cases}}?created_since={now}{year}&created_until=2000{year}")
    assert (answer.status, answer.json["results"]) == (200, [])


def test_thousands_of_unknown_parameters_have_an_answer_of_sane_size(service: Service, visitor: Visitor) -> None:
    answer = ask(service, visitor, "{cases}?" + "&".join(f"a{n:x}" for n in range(1500)))
    assert outcome(answer) == (400, "invalid_parameter")
    assert len(answer.body) < 16384


@pytest.mark.parametrize(
    "header",
    [
        "X-Request-ID: a%0d%0aX-Injected: yes",
        "X-Request-ID: <script>",
        "X-Request-ID: \xff",
        "If-None-Match: \xff, W/\"x, '",
        "If-None-Match: " + "x," * 5000,
        "Accept: ;;;q=\xff",
        "Accept-Encoding: ,,,;",
        "Cookie: =;;=\xff; a",
        "Range: bytes=0-0,-1,99999999999999999999-",
        "If-Range: \xff",
        "If-Modified-Since: Thu, 99 Xxx 99999 99:99:99 GMT",
        "Content-Type: multipart/form-data; boundary=\xff",
        "Content-Length: 0",
        "Cache-Control: max-age=\xff",
        "X-HTTP-Method-Override: DELETE",
        "X-Forwarded-For: " + "1.2.3.4, " * 1000,
        "X-Forwarded-Host: evil.example",
        "X_Forwarded_Host: evil.example",
        "X-Forwarded-Prefix: /evil",
        "X-Original-URL: /healthz",
        "X-Rewrite-URL: /healthz",
        "Upgrade: h2c",
        "TE: trailers",
    ],
)
def test_headers_that_mean_nothing_here_change_nothing(service: Service, visitor: Visitor, header: str) -> None:
    answer = ask(service, visitor, "{cases}?page_size=1", header)
    assert answer.status == 200
    assert len(answer.json["results"]) == 1
    assert answer.json["next"].startswith("http://localhost/api/v5/")
    assert "x-injected" not in answer.headers
    assert "\xff" not in json.dumps(answer.headers)


@pytest.mark.parametrize("credentials", ["\xff", "Token \xff", "Token cst_\xff", "Bearer ", "Token " + "x" * 20000])
def test_credentials_of_any_bytes_are_refused(service: Service, visitor: Visitor, credentials: str) -> None:
    answer = ask(service, visitor, "{cases}", f"Authorization: {credentials}")
    assert answer.status == 401
    assert answer.json["code"] in ("authentication_required", "api_token_invalid")


def test_two_api_tokens_are_none(service: Service, visitor: Visitor) -> None:
    both = (f"Authorization: Token {visitor.organization.token}",) * 2
    assert outcome(ask(service, visitor, "{cases}", *both)) == (401, "api_token_invalid")


def test_a_body_that_is_announced_and_never_sent_does_not_keep_the_answer(service: Service, visitor: Visitor) -> None:
    request = (
        f"GET {visitor.path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n"
        f"Authorization: Token {visitor.organization.token}\r\n\r\n"
    )
    with service.connect() as client:
        client.sendall(request.encode())
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_nothing_hostile_was_an_error_of_the_service_or_reached_its_log(service: Service, visitor: Visitor) -> None:
    earlier = len(service.log)
    for target in ("{cases}?" + CANARY, f"/{CANARY}", f"http://{CANARY}/", "{cases}/" + CANARY, f"//{CANARY}"):
        assert 400 <= ask(service, visitor, target, f"X-Request-ID: {CANARY}!", f"Cookie: {CANARY}").status < 500
    log = service.log[earlier:]
    assert CANARY not in log
    assert '"level":"error"' not in log
