"""GET /openapi.json and /docs: who gets them, and that credentials are in a demo's page alone."""

import re
from collections.abc import Callable, Iterator

import pytest
from flask.testing import FlaskClient

from cases_service.application import create_app
from cases_service.settings import DemoCredentials, Settings
from tests.factories import assert_problem

PATHS = ("/openapi.json", "/docs", "/docs/page.js", "/docs/swagger-ui.css")


@pytest.fixture
def demo_client(settings: Settings) -> Iterator[FlaskClient]:
    app = create_app(settings, DemoCredentials('cst_"><script>', "a.b.c"))
    yield app.test_client()
    app.close()


def test_they_need_no_token(client: FlaskClient) -> None:
    types = {path: client.get(path).content_type for path in PATHS}
    assert types == {
        "/openapi.json": "application/json",
        "/docs": "text/html; charset=utf-8",
        "/docs/page.js": "text/javascript; charset=utf-8",
        "/docs/swagger-ui.css": "text/css; charset=utf-8",
    }


def test_only_a_demos_address_leads_to_the_page(client: FlaskClient, demo_client: FlaskClient) -> None:
    answer = demo_client.get("/")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/docs")
    assert demo_client.get("/openapi.json").json == client.get("/openapi.json").json
    assert_problem(client.get("/"), 404, "not_found")
    assert_problem(client.post("/"), 404, "not_found")


def test_they_are_off_where_the_operator_says_so(make_client: Callable[..., FlaskClient]) -> None:
    client = make_client(docs="off")
    for path in PATHS:
        assert_problem(client.get(path), 404, "not_found")


@pytest.mark.parametrize("path", PATHS)
def test_another_host_is_refused(client: FlaskClient, path: str) -> None:
    assert_problem(client.get(path, headers={"Host": "evil.example"}), 400, "host_not_allowed")


@pytest.mark.parametrize("path", ["/openapi.json", "/docs/swagger-ui-bundle.js"])
def test_what_stays_the_same_is_not_sent_again(client: FlaskClient, path: str) -> None:
    first = client.get(path)
    again = client.get(path, headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")


@pytest.mark.parametrize("name", ["page.html", "README.md", "LICENSE", "..%2Fopenapi%2Fexamples.json", "%00"])
def test_only_the_pages_own_files_are_there(client: FlaskClient, name: str) -> None:
    assert_problem(client.get(f"/docs/{name}"), 404, "not_found")


def test_the_page_may_load_its_own_files_alone(client: FlaskClient) -> None:
    response = client.get("/docs")
    policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    assert not re.search(r"<script(?! src=)|style=|\son\w+=|https?:", response.text)


def test_the_page_has_credentials_in_a_demo_alone(client: FlaskClient, demo_client: FlaskClient) -> None:
    assert "data-api-token" not in client.get("/docs").text
    page = demo_client.get("/docs").text
    assert 'data-api-token="cst_&#34;&gt;&lt;script&gt;" data-visitor-jwt="a.b.c"' in page
    assert "cst_&#34;" not in demo_client.get("/openapi.json").text


def test_behind_a_prefix_everything_is_found(make_client: Callable[..., FlaskClient]) -> None:
    client = make_client(public_url="https://help.example/support/")
    assert client.get("/openapi.json").get_json()["servers"][0]["url"] == "https://help.example/support"
    page = client.get("/docs/").text
    assert 'src="/support/docs/page.js"' in page
    assert 'data-document="/support/openapi.json"' in page
