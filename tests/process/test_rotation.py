"""Each kind of secret, replaced by the lines of docs/security.md under requests, of which none is refused or lost."""

import json
import secrets
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import jwt
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from cases_service.credentials.secret_encryption import SecretBox
from cases_service.embedded.server import join
from cases_service.embedded.supervisor import CLUSTER
from tests.documents import ROOT, block, run
from tests.factories import SECRET_KEY, Organization, Visitor, cases_path
from tests.process.conftest import serve_arguments
from tests.process.embedded_data import FAST, Template, stop, url_of
from tests.process.running import Service, wait_for
from tests.process.traffic import Traffic
from tests.redis_server import RedisServer, needs_redis, redis_server

SECURITY = "docs/security.md"
SIGNING = "docs/recipes/signing.md"
ROTATING = "docs/recipes/rotating-a-key.md"
# A refusal here must be caused by the secret, not by the time-out of a busy machine.
PATIENT = {"CASES_SECRET_KEY": SECRET_KEY, "CASES_POOL_TIMEOUT": "5", "CASES_GRACEFUL_TIMEOUT": "60"}


@contextmanager
def asking(service: Service, path: str, token: str) -> Iterator[Traffic]:
    """Ask for three cases all the while, and check in the end that every request was answered with them."""
    service.wait_until_ready()
    with Traffic(service, path, f"Authorization: Token {token}", results=3, threads=3) as traffic:
        traffic.wait_for_answers(20)
        yield traffic
        traffic.wait_for_answers(20)
    assert set(traffic.outcome.statuses) == {"200"}, [line for line in service.events if line.get("status") != 200]
    assert traffic.outcome.lost == []


@pytest.fixture
def visitor(organization: Organization) -> Visitor:
    visitor = organization.visitor()
    visitor.cases(3)
    return visitor


def test_an_api_token(
    serve: Callable[..., Service], organization: Organization, visitor: Visitor, database_url: str, place: Path
) -> None:
    service = serve(**PATIENT)
    given = {"DATABASE_URL": database_url, "ORGANIZATION": str(organization.id)}
    with asking(service, visitor.path, organization.token):
        run(block(SECURITY, "sh", "create-token"), place, USER_ID=str(organization.user_id), **given)
        new = (place / "new-token").read_text().strip()
        with asking(service, visitor.path, new):
            pass
    with asking(service, visitor.path, new):
        run(block(SECURITY, "sh", "revoke-token"), place, OLD_TOKEN_ID=str(organization.token_id), **given)
    refused = service.curl(visitor.path, "--header", f"Authorization: Token {organization.token}")
    assert (refused.status, refused.json["code"]) == (401, "api_token_invalid")
    assert (place / "new-token").stat().st_mode & 0o077 == 0


def test_an_hmac_key_by_a_key_pair(
    serve: Callable[..., Service], organization: Organization, visitor: Visitor, database_url: str, place: Path
) -> None:
    service = serve(**PATIENT)
    given = {"DATABASE_URL": database_url, "CASES_SECRET_KEY": SECRET_KEY, "ORGANIZATION": str(organization.id)}
    with asking(service, visitor.path, organization.token):
        run(block(SIGNING, "bash", "genpkey"), place)
        new = json.loads(run(block(SIGNING, "bash", "-pubout"), place, **given))
        signed = jwt.encode(
            organization.claims(visitor.external_id), (place / "es256.pem").read_text(), "ES256", {"kid": new["kid"]}
        )
        path = cases_path(organization.id, signed)
        with asking(service, path, organization.token):
            pass
    with asking(service, path, organization.token):
        run(block(ROTATING, "bash", "retire-key"), place, OLD_KID=str(organization.kid), **given)
    refused = service.curl(visitor.path, "--header", f"Authorization: Token {organization.token}")
    assert (refused.status, refused.json["code"]) == (400, "token_algorithm_not_allowed")


def opened(url: str, secret_key: str) -> str:
    """Return the one signing secret of a database, as a secret key opens it."""
    with psycopg.connect(url) as connection:
        ((organization_id, key_id, algorithm, sealed),) = connection.execute(
            "select organization_id, id, algorithm, encrypted_secret from signing_keys"
        )
    return SecretBox([secret_key]).open(sealed, organization_id=organization_id, key_id=key_id, algorithm=algorithm)


def test_the_secret_key(start: Callable[..., Service], template: Template, data_dir: Path, place: Path) -> None:
    """Of one instance that is never stopped: its workers are replaced, and read the file anew."""
    server = join(data_dir, settings=FAST)
    secret = opened(server.conninfo, SECRET_KEY)
    key_file = place / "secret-key"
    key_file.write_text(f"{SECRET_KEY}\n")
    key_file.chmod(0o600)
    given = {"DATABASE_URL": server.conninfo, "CASES_SECRET_KEY_FILE": str(key_file)}
    variables = PATIENT | {"CASES_SECRET_KEY": "", "CASES_SECRET_KEY_FILE": str(key_file)}
    service = start(*serve_arguments(), DATABASE_URL=url_of(data_dir), **variables)

    def reload() -> None:
        workers = len(service.workers())
        run(block(SECURITY, "sh", "kill -HUP"), place, MASTER_PID=str(service.process.pid))
        wait_for(lambda: len(service.workers()) == workers + 2, story=service)
        wait_for(lambda: service.log.count("Worker exiting") == workers, story=service)

    with asking(service, template.path, template.header.rpartition(" ")[2]) as traffic:
        run(block(SECURITY, "sh", "> new-key"), place, **given)
        reload()
        traffic.wait_for_answers(20)
        run(block(SECURITY, "sh", "rotate-secrets"), place, **given)
        traffic.wait_for_answers(20)
        run(block(SECURITY, "sh", "cat new-key > "), place, **given)
        reload()
    new = key_file.read_text().strip()
    assert new != SECRET_KEY
    assert opened(server.conninfo, new) == secret
    assert service.end() == 0
    stop(server)


class Installation:
    """A PostgreSQL that asks for passwords, with the roles of deploy/roles.sql and a visitor of three cases."""

    def __init__(self, data_dir: Path) -> None:
        self._server = join(data_dir, settings=FAST)
        self._socket = data_dir / "socket"
        self.passwords = {name: secrets.token_hex(8) for name in ("ADMIN_PASSWORD", "SERVICE_PASSWORD")}
        self.superuser_url = self.url("postgres")
        with psycopg.connect(self.superuser_url, dbname="postgres", autocommit=True) as connection:
            connection.execute("drop database cases")
            connection.execute("drop role cases_service")
            url = make_conninfo(self.superuser_url, dbname="postgres")
            roles = ROOT / "deploy/roles.sql"
            run(f'psql --quiet --set ON_ERROR_STOP=1 --file {roles} "$URL"', data_dir, URL=url, **self.passwords)
            hba = data_dir / CLUSTER / "pg_hba.conf"
            hba.write_text("local all postgres trust\nlocal all all scram-sha-256\n")
            connection.execute("select pg_reload_conf()")
        self.service_url = self.url("cases_service", self.passwords["SERVICE_PASSWORD"])
        self.admin_url = self.url("cases_admin", self.passwords["ADMIN_PASSWORD"])
        wait_for(lambda: not self.lets_in(self.url("cases_service", "wrong")))
        run("cases-service init-db", data_dir, **self.variables)
        self.connection = psycopg.connect(self.superuser_url, autocommit=True)
        self.organization = Organization(self.connection, SecretBox([SECRET_KEY]))
        self.visitor = self.organization.visitor()
        self.visitor.cases(3)

    def url(self, user: str, password: str = "") -> str:
        return make_conninfo(host=str(self._socket), port=5432, dbname="cases", user=user, password=password)

    @property
    def variables(self) -> dict[str, str]:
        """The variables of who runs commands."""
        return {"DATABASE_URL": self.service_url, "CASES_ADMIN_DATABASE_URL": self.admin_url}

    def lets_in(self, url: str) -> bool:
        try:
            psycopg.connect(url).close()
        except psycopg.OperationalError:
            return False
        return True

    def connections(self) -> int:
        """Return how many connections services have."""
        found = self.connection.execute("select from pg_stat_activity where usename = 'cases_service'")
        return len(found.fetchall())

    def asking(self, service: Service) -> AbstractContextManager[Traffic]:
        return asking(service, self.visitor.path, self.organization.token)

    def end(self) -> None:
        self.connection.close()
        stop(self._server)


@pytest.fixture
def installation(place: Path) -> Iterator[Installation]:
    installation = Installation(place / "data")
    yield installation
    installation.end()


def test_the_services_password_by_another_role(
    start: Callable[..., Service], installation: Installation, place: Path
) -> None:
    """Instance by instance: requests go to the old one until the new one answers them."""

    def instance(url: str) -> Service:
        return start(*serve_arguments(), DATABASE_URL=url, **PATIENT)

    old = instance(installation.service_url)
    superuser, new_password = {"SUPERUSER_URL": installation.superuser_url}, secrets.token_hex(8)
    new_url = installation.url("cases_service_2", new_password)
    with installation.asking(old):
        names = {"NEW_ROLE": "cases_service_2", "NEW_PASSWORD": new_password, "NEW_DATABASE_URL": new_url}
        run(block(SECURITY, "sh", "NEW_ROLE"), place, **installation.variables, **superuser, **names)
        new = instance(new_url)
        with installation.asking(new):
            pass
    with installation.asking(new) as traffic:
        assert old.end(signal.SIGTERM) == 0
        run(block(SECURITY, "sh", "OLD_ROLE"), place, OLD_ROLE="cases_service", **superuser)
        traffic.wait_for_answers(20)
    assert not installation.lets_in(installation.service_url)
    assert "row_security_bypassed" not in new.log


def test_the_services_password_of_the_same_role(
    start: Callable[..., Service], installation: Installation, place: Path
) -> None:
    """What an instance has open stays open, so that it answers until it is replaced."""
    old = start(*serve_arguments(), DATABASE_URL=installation.service_url, **PATIENT)
    password = secrets.token_hex(8)
    given = {"ROLE": "cases_service", "NEW_PASSWORD": password, "SUPERUSER_URL": installation.superuser_url}
    with installation.asking(old) as traffic:
        # All that both workers want: what is missing now could not be made any more.
        wait_for(lambda: installation.connections() >= 8)
        run(block(SECURITY, "sh", "alter role"), place, **given)
        assert not installation.lets_in(installation.service_url)
        traffic.wait_for_answers(100)
        url = installation.url("cases_service", password)
        new = start(*serve_arguments(), DATABASE_URL=url, **PATIENT)
        with installation.asking(new):
            pass
    cut = "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'cases_service'"
    installation.connection.execute(cut)
    header = f"Authorization: Token {installation.organization.token}"
    assert old.curl(installation.visitor.path, "--header", header).status == 503
    assert new.curl(installation.visitor.path, "--header", header).status == 200
    assert old.end(signal.SIGTERM) == 0


def test_the_password_of_the_commands(start: Callable[..., Service], installation: Installation, place: Path) -> None:
    service = start(*serve_arguments(), DATABASE_URL=installation.service_url, **PATIENT)
    password = secrets.token_hex(8)
    given = {"ROLE": "cases_admin", "NEW_PASSWORD": password, "SUPERUSER_URL": installation.superuser_url}
    with installation.asking(service):
        run(block(SECURITY, "sh", "alter role"), place, **given)
        variables = installation.variables | {"CASES_ADMIN_DATABASE_URL": installation.url("cases_admin", password)}
        run(f"cases-service list-keys --organization {installation.organization.id}", place, **variables)
    assert not installation.lets_in(installation.admin_url)


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@needs_redis
def test_the_password_of_redis(
    serve: Callable[..., Service], organization: Organization, visitor: Visitor, redis: RedisServer, place: Path
) -> None:
    password = secrets.token_hex(8)
    given = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(redis.port)}
    limit = {"CASES_RATE_LIMIT_TOKEN": "1000000/hour"} | PATIENT
    old = serve(CASES_RATE_LIMIT_STORAGE=redis.url, **limit)
    with asking(old, visitor.path, organization.token):
        run(
            block(SECURITY, "sh", 'NEW_PASSWORD" | redis-cli'),
            place,
            OLD_PASSWORD=redis.password,
            NEW_PASSWORD=password,
            **given,
        )
        new = serve(CASES_RATE_LIMIT_STORAGE=redis.url.replace(redis.password, password), **limit)
        with asking(new, visitor.path, organization.token):
            pass
    with asking(new, visitor.path, organization.token) as traffic:
        assert old.end(signal.SIGTERM) == 0
        run(
            block(SECURITY, "sh", 'OLD_PASSWORD" | redis-cli'),
            place,
            OLD_PASSWORD=redis.password,
            NEW_PASSWORD=password,
            **given,
        )
        traffic.wait_for_answers(20)
        answer = new.curl(visitor.path, "--header", f"Authorization: Token {organization.token}")
    assert int(answer.headers["ratelimit-remaining"]) < 999_950
    assert all("rate_limit_storage_away" not in service.log for service in (old, new))
