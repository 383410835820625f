"""Requests to the real gunicorn, with curl where curl can send them, with plain sockets where it would not."""

import re
from collections.abc import Callable
from uuid import uuid4

import pytest

from tests.factories import Organization, Visitor, b64, cases_path
from tests.process.running import Service, parse_answer, read_all, read_answer

LONGEST_LINE = 8190


@pytest.fixture
def visitor(organization: Organization) -> Visitor:
    visitor = organization.visitor(contacts=2)
    visitor.cases(3)
    return visitor


def authorization(organization: Organization) -> str:
    return f"Authorization: Token {organization.token}"


def token_of_length(length: int) -> str:
    """Return a token of the right form with a signature that no key has made."""
    header, claims = b64(b'{"alg":"HS256"}'), b64(b'{"sub":"nobody"}')
    return f"{header}.{claims}.".ljust(length, "A")


def test_curl_gets_the_visitors_cases(service: Service, visitor: Visitor) -> None:
    answer = service.curl(visitor.path, "--header", authorization(visitor.organization))
    assert answer.status == 200
    assert len(answer.json["results"]) == 3


def test_a_link_to_the_next_page_works_as_it_is(service: Service, visitor: Visitor) -> None:
    header = authorization(visitor.organization)
    first = service.curl(f"{visitor.path}?page_size=2", "--header", header).json
    prefix = service.url("")
    assert first["next"].startswith(prefix)
    second = service.curl(first["next"].removeprefix(prefix), "--header", header).json
    assert len(second["results"]) == 1


def test_head_answers_the_headers_alone_and_keeps_the_connection(service: Service, visitor: Visitor) -> None:
    head = f" {visitor.path} HTTP/1.1\r\nHost: localhost\r\n{authorization(visitor.organization)}\r\n\r\n"
    with service.connect() as client:
        client.sendall(f"GET{head}".encode())
        shown = read_answer(client)
        client.sendall(f"HEAD{head}".encode())
        # Read to the end of the headers; a body would be taken for the next answer.
        data = b""
        while not data.endswith(b"\r\n\r\n"):
            data += client.recv(1)
        hidden = parse_answer(data[:-4], b"")
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert read_answer(client).status == 200
    assert (shown.status, hidden.status) == (200, 200)
    assert hidden.headers["content-length"] == shown.headers["content-length"]
    assert hidden.headers["connection"] == "keep-alive"


def test_a_connection_is_kept_for_many_requests(service: Service) -> None:
    with service.connect() as client:
        for _ in range(50):
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert read_answer(client).status == 200


def test_requests_that_come_together_are_answered_in_turn(service: Service) -> None:
    request = b"GET /%s HTTP/1.1\r\nHost: localhost\r\n%s\r\n"
    answers = service.send(
        request % (b"healthz", b"") + request % (b"nowhere", b"") + request % (b"healthz", b"Connection: close\r\n")
    )
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"200", b"404", b"200"]


@pytest.mark.parametrize(("length", "code"), [(8000, "token_signature_invalid"), (8001, "token_too_long")])
def test_a_token_in_the_header_has_up_to_8000_characters(
    service: Service, organization: Organization, length: int, code: str
) -> None:
    identity = f"X-External-Identity: {token_of_length(length)}"
    answer = service.curl(
        cases_path(organization.id, "-"), "--header", authorization(organization), "--header", identity
    )
    assert (answer.status, answer.json["code"]) == (400, code)


def test_a_much_too_long_header_is_told_so_too(service: Service, organization: Organization) -> None:
    identity = f"X-External-Identity: {token_of_length(16_000)}"
    answer = service.curl(
        cases_path(organization.id, "-"), "--header", authorization(organization), "--header", identity
    )
    assert (answer.status, answer.json["code"]) == (400, "token_too_long")


@pytest.mark.parametrize(
    ("length", "code"),
    [(4000, "token_signature_invalid"), (4001, "token_too_long"), (8000, "token_too_long")],
)
def test_a_token_in_the_path_has_up_to_4000_characters(
    service: Service, organization: Organization, length: int, code: str
) -> None:
    path = cases_path(organization.id, token_of_length(length))
    answer = service.curl(path, "--header", authorization(organization))
    assert (answer.status, answer.json["code"]) == (400, code)


@pytest.mark.parametrize(("length", "status"), [(LONGEST_LINE, 404), (LONGEST_LINE + 1, 414)])
def test_a_request_line_has_up_to_8190_bytes(service: Service, length: int, status: int) -> None:
    path = "/".ljust(length - len("GET  HTTP/1.1"), "x")
    answer = service.curl(path)
    assert answer.status == status
    assert bool(answer.body) == (status == 404)


@pytest.mark.parametrize("values", [(" a.b.c", " a.b.c"), (" a.b.c", ""), ("", " a.b.c"), ("", "")])
def test_the_header_twice_is_ambiguous_even_where_one_is_empty(
    service: Service, organization: Organization, values: tuple[str, str]
) -> None:
    headers = (f"X-External-Identity:{value}" if value else "X-External-Identity;" for value in values)
    identities = [option for header in headers for option in ("--header", header)]
    path = cases_path(organization.id, "-")
    answer = service.curl(path, "--header", authorization(organization), *identities)
    assert answer.json["code"] == "token_ambiguous"


FORWARDED = (
    *("--header", "X-Forwarded-Proto: https"),
    *("--header", "X-Forwarded-Host: cases.example"),
    *("--header", "X-Forwarded-For: 192.0.2.1"),
    *("--header", "Forwarded: proto=https;host=cases.example"),
    *("--header", "X-Forwarded-Protocol: ssl"),
    *("--header", "X-Forwarded-Ssl: on"),
    *("--header", "SCRIPT_NAME: /elsewhere"),
)


def test_forwarded_headers_count_for_nothing_by_default(service: Service, visitor: Visitor) -> None:
    header = authorization(visitor.organization)
    answer = service.curl(f"{visitor.path}?page_size=1", "--header", header, *FORWARDED)
    assert answer.json["next"].startswith(service.url("/api/v5/"))


def test_forwarded_headers_of_a_trusted_proxy_count(serve: Callable[..., Service], visitor: Visitor) -> None:
    behind_proxy = serve(CASES_TRUSTED_HOPS="1", CASES_ALLOWED_HOSTS="cases.example")
    header = authorization(visitor.organization)
    answer = behind_proxy.curl(f"{visitor.path}?page_size=1", "--header", header, *FORWARDED)
    assert answer.json["next"].startswith("https://cases.example/api/v5/")


def test_a_body_is_passed_over(service: Service) -> None:
    with service.connect() as client:
        for framing in (
            b"Content-Length: 5\r\n\r\nhello",
            b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        ):
            client.sendall(b"POST /healthz HTTP/1.1\r\nHost: localhost\r\n" + framing)
            assert read_answer(client).status == 405
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert read_answer(client).status == 200


@pytest.mark.parametrize(("method", "status"), [(b"POST", 400), (b"GET", 200)])
def test_a_malformed_body_is_refused_where_one_is_read_and_ends_the_connection(
    service: Service, method: bytes, status: int
) -> None:
    request = method + b" /healthz HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nhello\r\n"
    with service.connect() as client:
        client.sendall(request)
        assert read_answer(client).status == status
        assert read_all(client) == b""


def test_a_client_that_neither_sends_nor_closes_holds_nobody_up(service: Service) -> None:
    silent = [service.connect() for _ in range(40)]
    refused = [service.connect() for _ in range(40)]
    for client in refused:
        client.sendall(b"nonsense\r\n\r\n")
    try:
        for _ in range(20):
            assert service.curl("/healthz", "--max-time", "4").status == 200
    finally:
        for client in silent + refused:
            client.close()


def test_request_ids_are_the_callers_or_new(service: Service) -> None:
    given = f"test-{uuid4()}"
    assert service.curl("/healthz", "--header", f"X-Request-ID: {given}").headers["x-request-id"] == given
    assert given in service.log


@pytest.mark.parametrize(("number", "status"), [(64, 200), (65, 431)])
def test_a_request_has_up_to_64_header_fields(service: Service, number: int, status: int) -> None:
    fields = b"Connection: close\r\nHost: localhost\r\n" + b"A: b\r\n" * (number - 2)
    assert service.send(b"GET /healthz HTTP/1.1\r\n" + fields + b"\r\n").startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize("fields", ["close, te", "te, Close", "TE ,\tclose", "te\r\nConnection: close"])
def test_close_among_other_options_closes(service: Service, fields: str) -> None:
    """RFC 9112, section 9.6."""
    request = f"GET /healthz HTTP/1.1\r\nHost: localhost\r\nTE: trailers\r\nConnection: {fields}\r\n\r\n"
    with service.connect() as client:
        client.settimeout(5)
        client.sendall(request.encode())
        assert read_answer(client).headers["connection"] == "close"
        assert read_all(client) == b""


def test_an_answer_names_no_version_that_the_service_does_not_speak(service: Service) -> None:
    """RFC 9110, section 2.5."""
    request = b"GET /healthz HTTP/1.9\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert service.send(request).startswith(b"HTTP/1.1 200 ")
