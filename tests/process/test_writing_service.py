"""Writes to a real gunicorn: bodies of every framing, and many writers with one tag."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
import requests

from tests.factories import Organization
from tests.process.running import Service, parse_answer, read_all

MEBIBYTE = 1024 * 1024
WRITERS = 50


class Client:
    """What writes the cases of an organization over HTTP."""

    def __init__(self, service: Service, organization: Organization) -> None:
        self.service = service
        self.url = service.url(organization.cases_path)
        self.path = organization.cases_path
        self.headers = {"Authorization": f"Bearer {organization.token_with('cases:write')}"}

    def send(self, method: str, case_id: object = None, **options: Any) -> requests.Response:
        url = self.url if case_id is None else f"{self.url}/{case_id}"
        headers = {**self.headers, **options.pop("headers", {})}
        return requests.request(method, url, headers=headers, timeout=60, **options)


@pytest.fixture
def client(service: Service, organization: Organization) -> Client:
    return Client(service, organization)


def body(**values: Any) -> bytes:
    return json.dumps({"case_number": uuid4().hex, "priority": 3, **values}).encode()


def test_a_case_lives_from_its_first_request_to_its_last(client: Client) -> None:
    made = client.send("POST", json={"case_number": uuid4().hex, "priority": 1})
    assert (made.status_code, made.headers["Location"]) == (201, f"{client.url}/{made.json()['id']}")
    case_id = made.json()["id"]
    changed = client.send("PATCH", case_id, json={"is_closed": True}, headers={"If-Match": made.headers["ETag"]})
    assert (changed.status_code, changed.json()["status"]) == (200, "Closed")
    assert client.send("GET", case_id).headers["ETag"] == changed.headers["ETag"]
    assert client.send("DELETE", case_id, headers={"If-Match": made.headers["ETag"]}).status_code == 412
    gone = client.send("DELETE", case_id, headers={"If-Match": changed.headers["ETag"]})
    assert (gone.status_code, gone.content) == (204, b"")


def test_a_body_may_come_in_chunks(client: Client) -> None:
    def chunks(content: bytes) -> Any:
        yield from (content[start : start + 7] for start in range(0, len(content), 7))

    answer = client.send("POST", data=chunks(body()), headers={"Content-Type": "application/json"})
    assert answer.status_code == 201
    answer = client.send("POST", data=chunks(body()[:-1]), headers={"Content-Type": "application/json"})
    assert answer.json()["code"] == "invalid_body"


@pytest.mark.parametrize("framing", ["Content-Length: 1048577", "Transfer-Encoding: chunked"])
def test_a_body_that_is_too_large_is_refused_before_it_has_come(client: Client, framing: str) -> None:
    head = (
        f"POST {client.path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {client.headers['Authorization']}\r\n"
        f"Content-Type: application/json\r\n{framing}\r\n\r\n"
    )
    size = b"" if "Length" in framing else b"100001\r\n"
    with client.service.connect() as connection:
        connection.sendall(head.encode() + size)
        raw = read_all(connection)
    answer = parse_answer(*raw.split(b"\r\n\r\n", 1))
    assert (answer.status, answer.json["code"]) == (413, "body_too_large")


def test_a_body_of_a_mebibyte_is_taken(client: Client) -> None:
    content = body()
    padded = content + b" " * (MEBIBYTE - len(content))
    assert client.send("POST", data=padded, headers={"Content-Type": "application/json"}).status_code == 201


def test_what_would_be_checked_before_the_body_is_said_before_it(client: Client) -> None:
    large = b" " * (MEBIBYTE + 1)
    options: dict[str, Any] = {"data": large, "headers": {"Content-Type": "text/plain"}}
    assert client.send("POST", **options).json()["code"] == "unsupported_media_type"
    client.headers["Authorization"] = "Bearer no"
    options = {"data": large, "headers": {"Content-Type": "text/plain"}}
    assert client.send("POST", **options).json()["code"] == "api_token_invalid"


def test_of_fifty_patches_with_one_tag_one_succeeds(
    serve: Callable[..., Service], writer_url: str, organization: Organization
) -> None:
    service = serve(CASES_WRITE_DATABASE_URL=writer_url, CASES_POOL_TIMEOUT="5", CASES_GRACEFUL_TIMEOUT="120")
    service.wait_until_ready()
    client = Client(service, organization)
    made = client.send("POST", json={"case_number": "C", "priority": 1})
    condition = {"If-Match": made.headers["ETag"]}

    def patch(index: int) -> int:
        answer = client.send("PATCH", made.json()["id"], json={"subject": str(index)}, headers=condition)
        return answer.status_code

    with ThreadPoolExecutor(WRITERS) as threads:
        statuses = sorted(threads.map(patch, range(WRITERS)))
    assert statuses == [200] + [412] * (WRITERS - 1)
