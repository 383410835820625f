"""What every answer of the API carries, errors included, and how requests may be written."""

from collections.abc import Callable

import pytest
from flask.testing import FlaskClient

from tests.factories import Organization, assert_problem, cases_path, get

PROMISED = {
    "Cache-Control": "private, no-store",
    "Vary": "Authorization, X-External-Identity",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def test_every_answer_has_the_promised_headers(client: FlaskClient, organization: Organization) -> None:
    visitor = organization.visitor()
    answers = [
        get(client, organization, visitor.path),
        get(client, organization, f"{visitor.path}/x"),
        client.get(visitor.path),
        client.post(visitor.path),
        client.get("/nowhere"),
        client.get(visitor.path, headers={"Host": "evil.example"}),
    ]
    assert [answer.status_code for answer in answers] == [200, 404, 401, 405, 404, 400]
    kept = {**PROMISED, "Cache-Control": "private, no-cache"}
    for answer in answers:
        promised = kept if answer.headers.get("ETag") else PROMISED
        assert ("ETag" in answer.headers) == (answer.status_code == 200)
        assert {name: answer.headers.get(name) for name in promised} == promised
        assert answer.headers["X-Request-ID"]
        assert not [name for name, _ in answer.headers if name.lower().startswith("access-control-")]


def test_success_is_json(client: FlaskClient, organization: Organization) -> None:
    assert get(client, organization, organization.visitor().path).content_type == "application/json"


@pytest.mark.parametrize("given", ["a", "A-z_9", "x" * 64])
def test_the_callers_request_id_is_kept(client: FlaskClient, given: str) -> None:
    assert client.get("/healthz", headers={"X-Request-ID": given}).headers["X-Request-ID"] == given


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "a\u00e9", "a,b", "<script>"])
def test_any_other_request_id_is_replaced(client: FlaskClient, given: str) -> None:
    answered = client.get("/healthz", headers={"X-Request-ID": given}).headers["X-Request-ID"]
    assert answered != given
    assert len(answered) == 32


def test_head_is_get_without_a_body(client: FlaskClient, organization: Organization) -> None:
    visitor = organization.visitor()
    case_id = visitor.cases(1)[0]
    for path in (visitor.path, f"{visitor.path}/{case_id}", f"{visitor.path}/x", "/healthz", "/readyz"):
        expected = get(client, organization, path)
        answer = client.head(path, headers=organization.headers())
        assert (answer.status_code, answer.data) == (expected.status_code, b"")
        assert answer.headers["Content-Length"] == expected.headers["Content-Length"]


def test_a_trailing_slash_is_accepted_without_a_redirect(client: FlaskClient, organization: Organization) -> None:
    visitor = organization.visitor()
    case_id = visitor.cases(1)[0]
    for path in (f"{visitor.path}/", f"{visitor.path}/{case_id}/", "/healthz/", "/readyz/"):
        assert get(client, organization, path).status_code == 200
    assert get(client, organization, f"{visitor.path}/?page_size=1").status_code == 200


@pytest.mark.parametrize("path", ["/api//v5", "/healthz//", "/./healthz", "/%2e/healthz"])
def test_odd_paths_are_not_found_and_not_redirected(client: FlaskClient, path: str) -> None:
    assert_problem(
        client.get(path, base_url="http://localhost", environ_overrides={"PATH_INFO": path}), 404, "not_found"
    )


def test_forwarded_headers_do_not_count_by_default(client: FlaskClient, organization: Organization) -> None:
    visitor = organization.visitor()
    visitor.cases(2)
    forwarded = {"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "https", "X-Forwarded-Prefix": "/evil"}
    document = get(client, organization, f"{visitor.path}?page_size=1", **forwarded).get_json()
    assert document["next"].startswith("http://localhost/api/")


def test_forwarded_headers_of_a_trusted_proxy_count(
    make_client: Callable[..., FlaskClient], organization: Organization
) -> None:
    client = make_client(trusted_hops=1, allowed_hosts="cases.example")
    visitor = organization.visitor()
    visitor.cases(2)
    forwarded = {"X-Forwarded-Host": "evil.example, cases.example", "X-Forwarded-Proto": "http, https"}
    document = get(client, organization, f"{visitor.path}?page_size=1", **forwarded).get_json()
    assert document["next"].startswith("https://cases.example/api/")
    forwarded["X-Forwarded-Host"] = "cases.example, evil.example"
    assert_problem(get(client, organization, visitor.path, **forwarded), 400, "host_not_allowed")


def test_links_begin_with_the_public_url_and_any_host_is_answered(
    make_client: Callable[..., FlaskClient], organization: Organization
) -> None:
    client = make_client(public_url="https://help.example/support/")
    visitor = organization.visitor()
    visitor.cases(2)
    document = get(client, organization, f"{visitor.path}?page_size=1", Host="anything.example").get_json()
    assert document["next"].startswith(f"https://help.example/support/api/v5/orgs/{organization.id}/")


def test_an_encoded_slash_in_the_token_is_another_path(client: FlaskClient, organization: Organization) -> None:
    response = get(client, organization, cases_path(organization.id, "a%2Fb"))
    assert_problem(response, 404, "not_found")
