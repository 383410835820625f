"""Rate limits: who is counted, in which order, what the answers say, and what the storage gets to know."""

import signal
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from cases_service.credentials.api_tokens import new_token
from cases_service.service import Service
from tests.conftest import LogLines
from tests.factories import Organization, Visitor, assert_problem, cases_path, get
from tests.redis_server import RedisServer, needs_redis, redis_server

# Long enough for no window to end within a test.
FEW = "3/year"
MANY = "1000/year"
HEADERS = ("RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset")

MakeClient = Callable[..., FlaskClient]


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(params=["memory", pytest.param("redis", marks=needs_redis)])
def limited(request: pytest.FixtureRequest, make_client: MakeClient) -> MakeClient:
    """Return a function from the limits that are set to a client; once for each storage."""
    url = "memory://" if request.param == "memory" else request.getfixturevalue("redis").url

    def limited(**limits: Any) -> FlaskClient:
        renamed = {name if name == "trusted_hops" else f"rate_limit_{name}": value for name, value in limits.items()}
        return make_client(rate_limit_storage=url, **renamed)

    return limited


@pytest.fixture
def visitor(organization: Organization) -> Visitor:
    return organization.visitor()


def shown(response: TestResponse) -> tuple[int, ...]:
    return tuple(int(response.headers[name]) for name in HEADERS)


def a_client_address() -> str:
    """Return an address that no other test has used."""
    return f"2001:db8:{uuid4().hex[:4]}:{uuid4().hex[:4]}::1"


def fail(client: FlaskClient, address: str, token: str | None = None, **headers: str) -> TestResponse:
    given = headers if token is None else {"Authorization": f"Token {token}", **headers}
    return client.get(cases_path(uuid4(), "x"), headers=given, environ_overrides={"REMOTE_ADDR": address})


def test_without_limits_no_answer_speaks_of_them(client: FlaskClient, visitor: Visitor) -> None:
    answers = [get(client, visitor.organization, visitor.path), client.get(visitor.path)]
    assert not [name for answer in answers for name in answer.headers.keys() if name.startswith("RateLimit")]  # noqa: SIM118


@needs_redis
def test_without_limits_the_storage_is_not_asked(make_client: MakeClient, visitor: Visitor, redis: RedisServer) -> None:
    client = make_client(rate_limit_storage=redis.url)
    earlier = redis.commands()
    asked_by_looking = redis.commands() - earlier
    earlier = redis.commands()
    assert get(client, visitor.organization, visitor.path).status_code == 200
    assert redis.commands() - earlier == asked_by_looking


def test_a_token_has_its_limit(limited: MakeClient, visitor: Visitor) -> None:
    client = limited(token=FEW)
    answers = [get(client, visitor.organization, visitor.path) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert [shown(answer)[:2] for answer in answers] == [(3, 2), (3, 1), (3, 0), (3, 0)]
    assert_problem(answers[3], 429, "rate_limited")
    assert int(answers[3].headers["Retry-After"]) == shown(answers[3])[2] > 0


def test_each_token_is_counted_for_itself(limited: MakeClient, visitor: Visitor) -> None:
    client, other = limited(token=FEW), Organization(visitor.organization.connection, visitor.organization.box)
    for _ in range(4):
        get(client, visitor.organization, visitor.path)
    assert get(client, other, other.visitor().path).status_code == 200


def test_a_request_that_fails_later_counts_for_its_token(limited: MakeClient, visitor: Visitor) -> None:
    client, organization = limited(token=FEW), visitor.organization
    paths = [f"{visitor.path}?page_size=0", cases_path(organization.id, "x"), cases_path(uuid4(), "x"), visitor.path]
    answers = [get(client, organization, path) for path in paths]
    assert [answer.status_code for answer in answers] == [400, 400, 403, 429]
    assert [shown(answer)[1] for answer in answers] == [2, 1, 0, 0]


def test_a_visitor_has_a_limit_whatever_token_and_jwt_ask(limited: MakeClient, visitor: Visitor) -> None:
    client, organization = limited(visitor=FEW), visitor.organization
    jwts = [organization.jwt(visitor.external_id, nonce=n) for n in range(4)]
    answers = [get(client, organization, cases_path(organization.id, jwt)) for jwt in jwts]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert get(client, organization, organization.visitor().path).status_code == 200


def test_visitors_of_the_same_name_are_each_organizations_own(limited: MakeClient, visitor: Visitor) -> None:
    client, other = limited(visitor=FEW), Organization(visitor.organization.connection, visitor.organization.box)
    for _ in range(4):
        get(client, visitor.organization, visitor.path)
    assert get(client, other, other.visitor(visitor.external_id).path).status_code == 200


def test_a_visitor_is_counted_when_the_jwt_has_proven_who_it_is(limited: MakeClient, visitor: Visitor) -> None:
    client, organization = limited(visitor=FEW), visitor.organization
    unproven = cases_path(organization.id, organization.signed(organization.claims(visitor.external_id), secret="x"))
    for _ in range(5):
        assert_problem(get(client, organization, unproven), 400, "token_signature_invalid")
    assert shown(get(client, organization, visitor.path))[1] == 2


@pytest.mark.parametrize("end", ["", "/summary", f"/{uuid4()}"])
def test_a_visitor_that_does_not_exist_is_not_counted(
    limited: MakeClient, organization: Organization, end: str
) -> None:
    client, name = limited(visitor="1/year", token=MANY), f"nobody-{uuid4()}"
    path = cases_path(organization.id, organization.jwt(name))
    for _ in range(3):
        assert_problem(get(client, organization, f"{path}{end}"), 404, "visitor_not_found")
    organization.visitor(name)
    statuses = [get(client, organization, path).status_code for _ in range(2)]
    assert statuses == [200, 429]


def test_in_memory_no_count_is_kept_of_visitors_that_do_not_exist(
    make_client: MakeClient, organization: Organization
) -> None:
    client = make_client(rate_limit_visitor=MANY, rate_limit_storage="memory://")
    for number in range(5):
        get(client, organization, cases_path(organization.id, organization.jwt(f"nobody {number}")))
    get(client, organization, organization.visitor().path)
    service: Service = client.application.extensions["cases_service"]
    assert service.rate_limits is not None
    assert len(service.rate_limits._storage._storage) == 1  # type: ignore[arg-type]


def test_an_address_has_a_limit_of_failed_authentications(limited: MakeClient, visitor: Visitor) -> None:
    client, address = limited(failed_authentications=FEW), a_client_address()
    tokens = [None, "cst_mistyped", new_token(visitor.organization.id)]
    answers = [fail(client, address, token) for token in tokens]
    assert [answer.status_code for answer in answers] == [401, 401, 401]
    assert [shown(answer)[1] for answer in answers] == [2, 1, 0]
    refused = fail(client, address)
    assert_problem(refused, 429, "rate_limited")
    assert int(refused.headers["Retry-After"]) == shown(refused)[2] > 0
    assert fail(client, a_client_address()).status_code == 401


def test_an_address_without_failures_left_is_refused_before_its_token_is_read(
    limited: MakeClient, visitor: Visitor, log_lines: LogLines
) -> None:
    client, address = limited(failed_authentications=FEW, token=FEW), a_client_address()
    for _ in range(3):
        fail(client, address)
    assert fail(client, address, visitor.organization.token).status_code == 429
    assert log_lines()[-1]["queries"] == 0
    assert shown(get(client, visitor.organization, visitor.path))[1] == 2


def test_successful_authentications_do_not_count_for_the_address(limited: MakeClient, visitor: Visitor) -> None:
    client = limited(failed_authentications=FEW)
    before = [get(client, visitor.organization, visitor.path) for _ in range(5)][-1]
    assert before.status_code == 200
    assert shown(before)[:2] == (3, 3)


@pytest.mark.parametrize(
    ("one", "other", "is_the_same"),
    [
        ("2001:db8:0:{}::1", "2001:db8:0:{}:ffff:ffff:ffff:ffff", True),
        ("2001:db8:{}:1::1", "2001:db8:{}:2::1", False),
        ("192.0.2.1", "192.0.2.2", False),
        ("198.51.100.7", "::ffff:198.51.100.7", True),
    ],
)
def test_an_ipv6_address_counts_as_its_64_network(
    make_client: MakeClient, one: str, other: str, is_the_same: bool
) -> None:
    client, part = make_client(rate_limit_failed_authentications=FEW), uuid4().hex[:4]
    fail(client, one.format(part))
    assert shown(fail(client, other.format(part)))[1] == (1 if is_the_same else 2)


def test_the_address_is_the_peers_whatever_a_caller_claims(limited: MakeClient) -> None:
    client, address = limited(failed_authentications=FEW), a_client_address()
    for n in range(3):
        claimed = f"192.0.2.{n}"
        fail(client, address, **{"X-Forwarded-For": claimed, "X-Real-IP": claimed, "Forwarded": f"for={claimed}"})
    assert fail(client, address, **{"X-Forwarded-For": "192.0.2.99"}).status_code == 429


def test_behind_trusted_hops_the_address_is_the_one_that_the_first_of_them_saw(limited: MakeClient) -> None:
    client, proxy = limited(failed_authentications=FEW, trusted_hops=2), "192.0.2.1"
    address = a_client_address()
    for n in range(3):
        assert fail(client, proxy, **{"X-Forwarded-For": f"10.0.0.{n}, {address}, 192.0.2.9"}).status_code == 401
    assert fail(client, proxy, **{"X-Forwarded-For": f"10.0.0.9, {address}, 192.0.2.9"}).status_code == 429
    assert fail(client, proxy, **{"X-Forwarded-For": f"{a_client_address()}, 192.0.2.9"}).status_code == 401


@pytest.mark.parametrize("form", ["{}:{}", "[::ffff:{}]:{}"])
def test_a_port_that_a_proxy_adds_to_the_address_is_left_out(make_client: MakeClient, form: str) -> None:
    client = make_client(rate_limit_failed_authentications=FEW, trusted_hops=1)
    for port in range(3):
        fail(client, "192.0.2.1", **{"X-Forwarded-For": form.format("203.0.113.5", port)})
    assert fail(client, "192.0.2.1", **{"X-Forwarded-For": "203.0.113.5"}).status_code == 429


def test_every_answer_of_the_api_shows_a_limit(limited: MakeClient, visitor: Visitor) -> None:
    client, organization = limited(failed_authentications=MANY), visitor.organization
    case_id = visitor.cases(1)[0]
    etag = get(client, organization, visitor.path).headers["ETag"]
    answers = [
        get(client, organization, visitor.path),
        get(client, organization, visitor.path, **{"If-None-Match": etag}),
        get(client, organization, f"{visitor.path}/{case_id}"),
        get(client, organization, f"{visitor.path}/summary"),
        get(client, organization, f"{visitor.path}/x"),
        get(client, organization, f"{visitor.path}?x=1"),
        client.head(visitor.path, headers=organization.headers()),
        client.get(visitor.path),
        client.post(visitor.path),
        client.get("/api/v5/nowhere"),
        client.get(visitor.path, headers={"Host": "evil.example"}),
    ]
    assert [answer.status_code for answer in answers] == [200, 304, 200, 200, 404, 400, 200, 401, 405, 404, 400]
    assert [shown(answer)[0] for answer in answers] == [1000] * len(answers)
    assert "RateLimit-Limit" not in client.get("/healthz").headers


def test_a_request_that_proves_nothing_is_shown_the_limit_that_it_would_have(
    limited: MakeClient, visitor: Visitor
) -> None:
    assert shown(limited(token=FEW, visitor="5/year").get(visitor.path)) == (3, 3, 0)


def test_the_tightest_limit_is_shown(limited: MakeClient, visitor: Visitor) -> None:
    client = limited(failed_authentications="1/year", token="4/year", visitor="3/year;1000/year")
    answers = [get(client, visitor.organization, visitor.path) for _ in range(2)]
    assert [shown(answer)[:2] for answer in answers] == [(3, 2), (3, 1)]
    other = get(client, visitor.organization, visitor.organization.visitor().path)
    assert shown(other)[:2] == (4, 1)


def test_the_token_comes_before_the_visitor(limited: MakeClient, visitor: Visitor) -> None:
    client = limited(token="2/year", visitor="2/year")
    for _ in range(2):
        get(client, visitor.organization, cases_path(visitor.organization.id, "x"))
    assert get(client, visitor.organization, visitor.path).status_code == 429
    other = Organization(visitor.organization.connection, visitor.organization.box)
    assert get(client, other, other.visitor().path).status_code == 200


def test_after_retry_after_seconds_a_request_passes(limited: MakeClient, visitor: Visitor) -> None:
    client = limited(token="2/second")
    while (refused := get(client, visitor.organization, visitor.path)).status_code == 200:
        pass
    assert_problem(refused, 429, "rate_limited")
    time.sleep(int(refused.headers["Retry-After"]))
    assert get(client, visitor.organization, visitor.path).status_code == 200


@needs_redis
def test_processes_that_share_a_redis_count_together(
    make_client: MakeClient, visitor: Visitor, redis: RedisServer
) -> None:
    clients = [make_client(rate_limit_token=FEW, rate_limit_storage=redis.url) for _ in range(2)]
    answers = [get(clients[n % 2], visitor.organization, visitor.path) for n in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]


@needs_redis
def test_the_storage_holds_neither_tokens_nor_identities_nor_addresses(
    make_client: MakeClient, visitor: Visitor, redis: RedisServer
) -> None:
    client = make_client(
        rate_limit_failed_authentications=MANY, rate_limit_token=MANY, rate_limit_visitor=MANY,
        rate_limit_storage=redis.url,
    )  # fmt: skip
    redis.client.flushall()
    jwt = visitor.path.split("/")[-2]
    fail(client, "203.0.113.77")
    assert get(client, visitor.organization, visitor.path).status_code == 200
    keys = [str(key) for key in redis.client.keys("*")]
    assert sorted(key.split("/")[1] for key in keys) == ["address", "token", "visitor"]
    for secret in (visitor.organization.token, visitor.external_id, jwt, "203.0.113", str(visitor.organization.id)):
        assert secret not in "\n".join(keys)
    assert all(redis.client.ttl(key) > 0 for key in keys)


@needs_redis
@pytest.mark.parametrize("fault", ["stopped", "frozen"])
def test_without_its_storage_the_service_answers_uncounted_and_says_so_once(
    make_client: MakeClient, visitor: Visitor, log_lines: LogLines, fault: str
) -> None:
    with redis_server() as server:
        client = make_client(rate_limit_token=FEW, rate_limit_failed_authentications=FEW, rate_limit_storage=server.url)
        assert shown(get(client, visitor.organization, visitor.path))[1] == 2
        if fault == "stopped":
            server.stop()
        else:
            server.process.send_signal(signal.SIGSTOP)
        answers = [get(client, visitor.organization, visitor.path) for _ in range(8)]
        assert [answer.status_code for answer in answers] == [200] * 8
        assert not [answer for answer in answers if "RateLimit-Limit" in answer.headers]
        assert client.get(visitor.path).status_code == 401
        lines = log_lines()
        assert [line["event"] for line in lines if line["event"] != "request"] == ["rate_limit_storage_away"]
        assert server.password not in str(lines)
        if fault == "stopped":
            server.start()
        else:
            server.process.send_signal(signal.SIGCONT)
        deadline = time.monotonic() + 30
        while "RateLimit-Limit" not in get(client, visitor.organization, visitor.path).headers:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert "rate_limit_storage_back" in str(log_lines())


@needs_redis
def test_a_restarted_redis_is_used_again_at_once(make_client: MakeClient, visitor: Visitor) -> None:
    with redis_server() as server:
        client = make_client(rate_limit_token=FEW, rate_limit_storage=server.url)
        get(client, visitor.organization, visitor.path)
        server.stop()
        server.start()
        assert shown(get(client, visitor.organization, visitor.path))[1] == 2
