"""GET /metrics: the counts, and the values that no label may have."""

from collections.abc import Callable

from flask.testing import FlaskClient

from cases_service import __version__
from tests.factories import Organization, assert_problem, cases_path, get
from tests.metrics import Samples, label_values, samples, value

LIST = "/api/v5/orgs/<uuid:organization_id>/external-visitors/<token>/cases"


def scrape(client: FlaskClient) -> Samples:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.content_type == "text/plain; version=0.0.4; charset=utf-8"
    return samples(answer.text)


def growth(client: FlaskClient, action: Callable[[], object]) -> Callable[..., float]:
    """Return a function from a metric and labels to what an action adds to it."""
    before = scrape(client)
    action()
    after = scrape(client)
    return lambda name, **labels: value(after, name, **labels) - value(before, name, **labels)


def test_a_page_counts_as_a_request_with_two_queries(client: FlaskClient, organization: Organization) -> None:
    visitor = organization.visitor()
    visitor.cases(1)
    assert get(client, organization, visitor.path).status_code == 200, "what the token opens is known from now on"
    grown = growth(client, lambda: get(client, organization, visitor.path))
    assert grown("cases_requests_total", route=LIST, method="GET", status="200", code="") == 1
    assert grown("cases_request_duration_seconds_count", route=LIST) == 1
    assert grown("cases_request_duration_seconds_bucket", route=LIST, le="+Inf") == 1
    assert grown("cases_queries_total", route=LIST) == 2
    assert grown("cases_request_database_seconds_count", route=LIST) == 1
    database, whole = (grown(f"cases_request_{kind}_seconds_sum", route=LIST) for kind in ("database", "duration"))
    assert 0 < database < whole


def test_a_request_without_a_query_has_no_database_time(client: FlaskClient) -> None:
    grown = growth(client, lambda: client.get("/healthz"))
    assert grown("cases_requests_total", route="/healthz") == 1
    assert grown("cases_request_database_seconds_count", route="/healthz") == 0


def test_an_invented_method_and_an_unknown_path_are_no_labels(client: FlaskClient) -> None:
    before = label_values(scrape(client))
    grown = growth(client, lambda: client.open("/hunter2", method="HUNTER2"))
    assert grown("cases_requests_total", route="", method="OTHER", status="404", code="not_found") == 1
    assert {"OTHER", "404", "not_found"} >= label_values(scrape(client)) - before - {"", "/metrics"}
    assert "hunter2" not in client.get("/metrics").text.lower()


def test_no_label_holds_the_organization_or_the_token(client: FlaskClient, organization: Organization) -> None:
    visitor = organization.visitor()
    assert get(client, organization, visitor.path).status_code == 200
    text = client.get("/metrics").text
    for secret in (str(organization.id), organization.token, visitor.path.split("/")[6], visitor.external_id):
        assert secret not in text


def test_a_refused_jwt_is_counted_by_its_code(client: FlaskClient, organization: Organization) -> None:
    path = cases_path(organization.id, "no-token")
    grown = growth(client, lambda: get(client, organization, path))
    assert grown("cases_jwt_refusals_total", code="token_malformed") == 1
    assert grown("cases_jwt_refusals_total") == 1
    assert grown("cases_requests_total", route=LIST, status="400", code="token_malformed") == 1


def test_metrics_answer_to_any_host_and_to_head(client: FlaskClient) -> None:
    answer = client.head("/metrics", headers={"Host": "10.0.0.7:8000"})
    assert (answer.status_code, answer.data) == (200, b"")


def test_the_release_is_named(client: FlaskClient) -> None:
    assert value(scrape(client), "cases_build_info", version=__version__) == 1
    assert value(scrape(client), "cases_workers") == 1


def test_an_address_for_operators_has_metrics_and_readiness_alone(
    make_client: Callable[..., FlaskClient], organization: Organization
) -> None:
    client = make_client(bind="127.0.0.1:8000", admin_bind="127.0.0.1:9000", trusted_hops=1)
    public, operators = "http://localhost:8000", "http://localhost:9000"
    # The address is where the request arrived, and not what it says about that.
    lies = {"Host": "localhost:9000", "X-Forwarded-Host": "localhost:9000", "X-Forwarded-Port": "9000"}
    truths = {"X-Forwarded-Host": "localhost:8000"}
    for path in ("/metrics", "/readyz", "/metrics/", "/readyz/"):
        assert_problem(client.get(path, base_url=public), 404, "not_found")
        assert_problem(client.get(path, base_url=public, headers=lies), 404, "not_found")
        assert client.get(path, base_url=operators).status_code == 200
        assert client.get(path, base_url=operators, headers=truths).status_code == 200
    for url in (public, operators):
        assert client.get("/healthz", base_url=url).status_code == 200
    visitor = organization.visitor()
    header = organization.headers()
    assert client.get(visitor.path, base_url=public, headers=header).status_code == 200
    assert_problem(client.get(visitor.path, base_url=operators, headers=header), 404, "not_found")


def test_one_address_has_everything_by_default(client: FlaskClient) -> None:
    for path in ("/healthz", "/readyz", "/metrics"):
        assert client.get(path).status_code == 200
