"""The recipes, run as they are printed: what they sign is accepted, what they walk is complete."""

import contextlib
import json
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from uuid import UUID, uuid4

import psycopg
import pytest

from cases_service.credentials.secret_encryption import SecretBox
from tests.documents import block, run
from tests.factories import LONG_AGO, SECRET_KEY, Organization, Visitor, cases_path
from tests.process.conftest import serve_arguments
from tests.process.running import LOOPBACK, Service, environment

SIGNING = "docs/recipes/signing.md"
WALKING = "docs/recipes/walking.md"
ROTATING = "docs/recipes/rotating-a-key.md"
# The family, its program, what the program is called, and how it is run.
PROGRAMS = {
    "Python": (block(SIGNING, "python", "KEY_FILE"), "sign.py", [sys.executable]),
    "Node": (block(SIGNING, "js", "KEY_FILE"), "sign.mjs", ["node"]),
    "PHP": (block(SIGNING, "php", "KEY_FILE"), "sign.php", ["php"]),
    "Java": (block(SIGNING, "java", "KEY_FILE"), "Sign.java", ["java", "-XX:TieredStopAtLevel=1"]),
    "openssl": (block(SIGNING, "bash", "KEY_FILE"), "sign.sh", ["bash"]),
}
KEY_FILES = {"RS256": "rs.pem", "RS512": "rs.pem", "ES256": "es256.pem", "ES384": "es384.pem", "EdDSA": "eddsa.pem"}
AWKWARD = 'Zoë "4711" \\ 客'


def need(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


def free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as server:
        port: int = server.getsockname()[1]
        return port


def status(service: Service, organization: Organization, jwt: str) -> int:
    headers = (f"Authorization: Token {organization.token}", f"X-External-Identity: {jwt}")
    return service.curl(cases_path(organization.id, "-"), "--header", headers[0], "--header", headers[1]).status


@pytest.fixture(scope="module")
def company(session_connection: psycopg.Connection, box: SecretBox) -> Organization:
    return Organization(session_connection, box)


@pytest.fixture(scope="module")
def customer(company: Organization) -> Visitor:
    """A visitor whose identifier needs care in JSON, with more cases than a page shows."""
    customer = company.visitor(AWKWARD, contacts=2)
    customer.cases(230)
    return customer


@pytest.fixture(scope="module")
def keys(company: Organization, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[UUID, Path]]:
    """The kid and the file of a key of each family, the pairs made as the recipe says."""
    need("openssl")
    directory = tmp_path_factory.mktemp("keys")
    run(block(SIGNING, "bash", "genpkey"), directory)
    keys = {}
    for algorithm, name in KEY_FILES.items():
        public = run(f"openssl pkey -in {name} -pubout", directory)
        keys[algorithm] = (company.public_key(algorithm, public), directory / name)
    for algorithm in ("HS256", "HS512"):
        kid, secret = company.key(algorithm)
        keys[algorithm] = (kid, directory / f"{algorithm}.txt")
        keys[algorithm][1].write_text(f"{secret}\n")
    return keys


@pytest.fixture(scope="module")
def surroundings(service: Service, company: Organization, customer: Visitor) -> dict[str, str]:
    """The variables that the recipes of a client read."""
    return {
        "CASES_URL": service.url(""),
        "ORGANIZATION": str(company.id),
        "API_TOKEN": company.token,
        "JWT": company.jwt(customer.external_id),
    }


@pytest.mark.parametrize("algorithm", ["HS256", "HS512", *KEY_FILES])
@pytest.mark.parametrize("program", PROGRAMS)
def test_what_a_recipe_signs_is_answered(
    service: Service,
    company: Organization,
    customer: Visitor,
    keys: dict[str, tuple[UUID, Path]],
    tmp_path: Path,
    program: str,
    algorithm: str,
) -> None:
    source, name, command = PROGRAMS[program]
    need(command[0], "jq")
    (tmp_path / name).write_text(source)
    kid, key_file = keys[algorithm]
    signed = subprocess.run(
        [*command, tmp_path / name, customer.external_id],
        env=environment(ALGORITHM=algorithm, KID=str(kid), KEY_FILE=str(key_file)),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert status(service, company, signed.stdout.strip()) == 200


def test_the_keys_of_the_recipe_are_registered_with_its_commands(
    session_connection: psycopg.Connection, box: SecretBox, database_url: str, tmp_path: Path
) -> None:
    need("openssl", "jq")
    organization = Organization(session_connection, box)
    given = {"DATABASE_URL": database_url, "CASES_SECRET_KEY": SECRET_KEY, "ORGANIZATION": str(organization.id)}
    run(block(SIGNING, "bash", "genpkey"), tmp_path)
    hmac = run(block(SIGNING, "bash", "secret.txt"), tmp_path, **given)
    ecdsa = json.loads(run(block(SIGNING, "bash", "-pubout"), tmp_path, **given))
    registered = session_connection.execute(
        "select algorithm from signing_keys where organization_id = %s and id = any(%s) order by 1",
        (organization.id, [UUID(hmac.strip()), UUID(ecdsa["kid"])]),
    )
    assert registered.fetchall() == [("ES256",), ("HS256",)]
    assert ecdsa["algorithm"] == "ES256"
    assert (tmp_path / "secret.txt").stat().st_mode & 0o077 == 0


def test_curl_walks_all_pages(customer: Visitor, surroundings: dict[str, str], tmp_path: Path) -> None:
    need("jq")
    printed = run(block(WALKING, "bash", "while"), tmp_path, **surroundings)
    assert len({json.loads(line)["id"] for line in printed.splitlines()}) == len(printed.splitlines()) == 230


def test_python_walks_all_pages(customer: Visitor, surroundings: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "cases_client.py").write_text(block(WALKING, "python", "def walk("))
    (tmp_path / "list_cases.py").write_text(block(WALKING, "python", "import walk"))
    printed = run(f"{sys.executable} list_cases.py", tmp_path, **surroundings).splitlines()
    assert len(set(printed)) == len(printed) == 230
    assert all(line.endswith(" Open") for line in printed)


@pytest.fixture
def client(tmp_path: Path) -> ModuleType:
    """The Python client as a module."""
    module = ModuleType("cases_client")
    exec(block(WALKING, "python", "def walk("), module.__dict__)  # noqa: S102  the document is ours
    return module


def test_the_client_tells_the_code_of_an_error(client: ModuleType, surroundings: dict[str, str]) -> None:
    url = surroundings["CASES_URL"] + cases_path(surroundings["ORGANIZATION"], "-")
    with pytest.raises(client.CasesError) as raised:
        client.get(url, {})
    assert (raised.value.status, raised.value.code) == (401, "authentication_required")
    assert raised.value.request_id in str(raised.value)


def test_the_client_asks_again_while_the_service_starts(
    monkeypatch: pytest.MonkeyPatch,
    client: ModuleType,
    start: Callable[..., Service],
    database_url: str,
    surroundings: dict[str, str],
    customer: Visitor,
) -> None:
    monkeypatch.setattr(client, "ATTEMPTS", 12)  # a slow machine's start takes longer than the six
    port = free_port()
    url = f"http://{LOOPBACK}:{port}{cases_path(surroundings['ORGANIZATION'], '-')}?page_size=7"
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(client.get, url, tokens(surroundings))
        start(*serve_arguments(f"{LOOPBACK}:{port}"), DATABASE_URL=database_url, CASES_SECRET_KEY=SECRET_KEY)
        assert len(answer.result()["results"]) == 7


def test_the_client_gives_up_after_its_attempts(
    monkeypatch: pytest.MonkeyPatch, client: ModuleType, serve: Callable[..., Service], surroundings: dict[str, str]
) -> None:
    monkeypatch.setattr(client, "ATTEMPTS", 2)
    service = serve(DATABASE_URL=f"postgresql://{LOOPBACK}:{free_port()}/none")
    service.wait_for_log("Booting worker")
    with pytest.raises(client.CasesError) as raised:
        client.get(service.url(cases_path(surroundings["ORGANIZATION"], "-")), tokens(surroundings))
    assert (raised.value.status, raised.value.code) == (503, "unavailable")
    assert [line["status"] for line in service.events if "status" in line] == [503, 503]


def tokens(surroundings: dict[str, str]) -> dict[str, str]:
    return {"Authorization": f"Token {surroundings['API_TOKEN']}", "X-External-Identity": surroundings["JWT"]}


@pytest.fixture
def copying(client: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The copying recipe as a module, beside the client."""
    monkeypatch.setitem(sys.modules, "cases_client", client)
    module = ModuleType("copying")
    exec(block("docs/recipes/keeping-a-copy.md", "python", "def catch_up("), module.__dict__)  # noqa: S102
    return module


def test_a_copy_follows_changes_and_what_is_committed_late_and_forgets_on_a_full_walk(
    copying: ModuleType, service: Service, organization: Organization
) -> None:
    visitor = organization.visitor(contacts=2)
    first, second, third, *_ = visitor.cases(120)
    newest = LONG_AGO + timedelta(seconds=119)
    url = service.url(cases_path(organization.id, "-"))

    def headers() -> dict[str, str]:
        return organization.headers(**{"X-External-Identity": organization.jwt(visitor.external_id)})

    def copied() -> dict[str, str]:
        return dict(copy.execute("select id, document ->> 'subject' from cases"))

    with contextlib.closing(sqlite3.connect(":memory:")) as copy:
        copying.catch_up(copy, url, headers)
        assert len(copied()) == 120
        organization.update("cases", "id", first, subject="changed", updated_at=newest + timedelta(minutes=1))
        late = organization.case(visitor.contact_ids[0], newest - timedelta(minutes=9), subject="committed late")
        older = organization.case(visitor.contact_ids[0], newest - timedelta(days=1), subject="loaded with an old time")
        organization.connection.execute(
            "delete from cases where organization_id = %s and id = %s", (organization.id, third)
        )
        organization.update("cases", "id", second, contact_id=None)
        copying.catch_up(copy, url, headers)
        assert (copied()[str(first)], copied()[str(late)]) == ("changed", "committed late")
        assert {str(second), str(third)} < set(copied()) == set(copied()) - {str(older)}
        copying.copy_all(copy, url, headers)
        assert len(copied()) == 120
        assert not {str(second), str(third)} & set(copied())
        assert copied()[str(older)] == "loaded with an old time"


def test_a_key_is_rotated_without_a_refused_request(
    service: Service, organization: Organization, database_url: str, tmp_path: Path
) -> None:
    visitor = organization.visitor()
    old_kid, old_secret = organization.kid, organization.secret

    def answered(kid: str | UUID, secret: str) -> int:
        header = {"alg": "HS256", "typ": "JWT", "kid": str(kid)}
        return status(
            service, organization, organization.signed(organization.claims(visitor.external_id), header, secret)
        )

    given = {"DATABASE_URL": database_url, "CASES_SECRET_KEY": SECRET_KEY, "ORGANIZATION": str(organization.id)}
    run(block(ROTATING, "bash", "create-key"), tmp_path, **given)
    new = json.loads((tmp_path / "new.json").read_text())
    assert (answered(old_kid, old_secret), answered(new["kid"], new["secret"])) == (200, 200)
    run(block(ROTATING, "bash", "retire-key"), tmp_path, OLD_KID=str(old_kid), **given)
    assert (answered(old_kid, old_secret), answered(new["kid"], new["secret"])) == (400, 200)


def test_a_poll_is_a_304_until_something_changes(service: Service, organization: Organization, tmp_path: Path) -> None:
    visitor = organization.visitor()
    visitor.cases(3)
    script = block("docs/recipes/polling.md", "bash", "--etag-compare")

    def poll() -> tuple[str, int]:
        given = {"CASES_URL": service.url(""), "ORGANIZATION": str(organization.id), "API_TOKEN": organization.token}
        printed = run(script, tmp_path, JWT=organization.jwt(visitor.external_id, jti=str(uuid4())), **given)
        return printed.strip(), json.loads((tmp_path / "summary.json").read_text())["total"]

    assert [poll(), poll(), poll()] == [("200", 3), ("304", 3), ("304", 3)]
    organization.case(visitor.contact_ids[0])
    assert [poll(), poll()] == [("200", 4), ("304", 4)]
