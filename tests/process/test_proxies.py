"""The configurations of reverse proxies that the project ships, in the real proxies, with slow clients."""

import shutil
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.factories import Organization, Visitor
from tests.process.running import LOOPBACK, PROJECT, Service, clients, environment, read_answer, wait_for
from tests.process.test_slow_clients import HEAD
from tests.torture import times

SLOW = times(200, torture=2000)


def free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class Proxy(Service):
    """A reverse proxy, on a port that was free."""

    number = 0

    @property
    def port(self) -> int:
        return self.number

    def is_listening(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex((LOOPBACK, self.port)) == 0


@pytest.fixture
def start_proxy(place: Path) -> Iterator[Callable[..., Proxy]]:
    """Return a function that starts a proxy and waits until it listens."""
    proxies: list[Proxy] = []

    def start(port: int, *arguments: str) -> Proxy:
        proxies.append(Proxy(list(arguments), environment(HOME=str(place)), place, cwd=place))
        proxies[-1].number = port
        wait_for(proxies[-1].is_listening, lambda: proxies[-1].process.poll() is not None, proxies[-1])
        return proxies[-1]

    try:
        yield start
    finally:
        for proxy in proxies:
            proxy.end()


def configured(name: str, place: Path, changes: dict[str, str]) -> str:
    """Write a configuration of deploy/ with another address and upstream, and return its path."""
    text = (PROJECT / "deploy" / name).read_text()
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (place / name).write_text(text)
    return str(place / name)


@pytest.fixture
def service(serve: Callable[..., Service]) -> Service:
    service = serve(CASES_TRUSTED_HOPS="1", CASES_WORKERS="1")
    service.wait_until_ready()
    return service


NGINX_COMPRESSES = "    gzip on;\n    gzip_types application/json;\n    gzip_proxied any;\n"


@pytest.fixture
def nginx(start_nginx: Callable[..., Proxy]) -> Proxy:
    return start_nginx()


@pytest.fixture
def compressing_nginx(start_nginx: Callable[..., Proxy]) -> Proxy:
    return start_nginx(NGINX_COMPRESSES)


@pytest.fixture
def start_nginx(service: Service, place: Path, start_proxy: Callable[..., Proxy]) -> Callable[..., Proxy]:
    return partial(run_nginx, service, place, start_proxy)


def run_nginx(service: Service, place: Path, start_proxy: Callable[..., Proxy], more: str = "") -> Proxy:
    program = program_called("nginx")
    port = free_port()
    changes = {
        "    server_tokens off;\n": f"    server_tokens off;\n{more}",
        "        listen 80;": f"        listen {LOOPBACK}:{port};",
        "server 127.0.0.1:8000;": f"server {LOOPBACK}:{service.port};",
        "access_log /dev/stdout cases;": f"access_log {place}/access.log cases;",
    }
    configuration = configured("nginx.conf", place, changes)
    options = f"daemon off; pid {place}/nginx.pid;"
    return start_proxy(port, program, "-e", "stderr", "-p", str(place), "-c", configuration, "-g", options)


@pytest.fixture
def caddy(start_caddy: Callable[..., Proxy]) -> Proxy:
    return start_caddy()


@pytest.fixture
def compressing_caddy(start_caddy: Callable[..., Proxy]) -> Proxy:
    return start_caddy("encode gzip")


@pytest.fixture
def start_caddy(service: Service, place: Path, start_proxy: Callable[..., Proxy]) -> Callable[..., Proxy]:
    return partial(run_caddy, service, place, start_proxy)


def run_caddy(service: Service, place: Path, start_proxy: Callable[..., Proxy], more: str = "") -> Proxy:
    program = program_called("caddy")
    port = free_port()
    changes = {
        "\trequest_body @import {": f"\t{more}\n\trequest_body @import {{",
        "cases.example.com {": f"http://localhost:{port}, http://{LOOPBACK}:{port} {{\n\tbind {LOOPBACK}",
        "reverse_proxy 127.0.0.1:8000": f"reverse_proxy {LOOPBACK}:{service.port}",
    }
    configuration = configured("Caddyfile", place, changes)
    return start_proxy(port, program, "run", "--adapter", "caddyfile", "--config", configuration)


APACHE = """
ServerRoot {place}
PidFile {place}/apache.pid
Listen {address}
ErrorLog {place}/apache.log
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule filter_module {modules}/mod_filter.so
LoadModule deflate_module {modules}/mod_deflate.so
LoadModule headers_module {modules}/mod_headers.so
LoadModule proxy_module {modules}/mod_proxy.so
LoadModule proxy_http_module {modules}/mod_proxy_http.so
ServerName localhost
AddOutputFilterByType DEFLATE application/json
ProxyPreserveHost On
ProxyPass / http://{service}/
"""


@pytest.fixture
def compressing_apache(service: Service, place: Path, start_proxy: Callable[..., Proxy]) -> Proxy:
    program, modules = program_called("apache2"), Path("/usr/lib/apache2/modules")
    if not modules.is_dir():
        pytest.skip("needs apache2's modules")
    port = free_port()
    addresses = {"address": f"{LOOPBACK}:{port}", "service": f"{LOOPBACK}:{service.port}"}
    (place / "apache.conf").write_text(APACHE.format(place=place, modules=modules, **addresses))
    return start_proxy(port, program, "-D", "FOREGROUND", "-f", str(place / "apache.conf"))


def program_called(name: str) -> str:
    program = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if program is None:
        pytest.skip(f"needs {name}")
    return program


@pytest.mark.parametrize("name", ["nginx", "caddy", "apache"])
def test_behind_a_proxy_that_compresses_an_etag_still_saves_the_answer(
    name: str, request: pytest.FixtureRequest, visitor: Visitor
) -> None:
    proxy: Proxy = request.getfixturevalue(f"compressing_{name}")
    for _ in range(20):
        visitor.organization.case(visitor.contact_ids[0], description="x" * 1000)
    given = ("--header", f"Authorization: Token {visitor.organization.token}", "--header", "Accept-Encoding: gzip")
    first = proxy.curl(visitor.path, *given)
    assert (first.status, first.headers["content-encoding"]) == (200, "gzip")
    again = proxy.curl(visitor.path, *given, "--header", f"If-None-Match: {first.headers['etag']}")
    assert (again.status, again.body) == (304, b"")


@pytest.fixture
def visitor(organization: Organization) -> Visitor:
    visitor = organization.visitor()
    visitor.cases(3)
    return visitor


def ask(proxy: Proxy, visitor: Visitor, *options: str) -> None:
    """Check that a client is answered by the service, with links that lead through the proxy."""
    header = f"Authorization: Token {visitor.organization.token}"
    answer = proxy.curl(f"{visitor.path}?page_size=2", "--header", header, "--max-time", "4", *options)
    assert answer.status == 200
    assert answer.json["next"].startswith(proxy.url("/api/v5/"))
    assert answer.headers["cache-control"] == "private, no-cache"


FORGED = ("--header", "X-Forwarded-Host: evil.example", "--header", "Forwarded: host=evil.example")


@pytest.mark.parametrize("name", ["nginx", "caddy"])
def test_requests_pass_and_tokens_stay_out_of_the_log(
    name: str, request: pytest.FixtureRequest, service: Service, visitor: Visitor, place: Path
) -> None:
    proxy: Proxy = request.getfixturevalue(name)
    ask(proxy, visitor)
    ask(proxy, visitor, *FORGED)
    token = visitor.organization.jwt(visitor.external_id)
    long = "x" * 31_000
    answer = proxy.curl("/healthz", "--header", f"X-External-Identity: {token}", "--header", f"X-Long: {long}")
    assert answer.status == 200
    assert proxy.curl("/readyz").status == 404
    assert proxy.curl(visitor.path, "--data", "x" * 5000).status in (405, 413, 502)
    service.end()
    status = proxy.curl(visitor.path, "--header", f"X-External-Identity: {token}").status
    assert status in (502, 503)

    def read_logs() -> str:
        return proxy.log + proxy.out + "".join(path.read_text() for path in place.glob("access.log"))

    # A proxy writes its line after the answer.
    wait_for(lambda: str(status) in read_logs(), story=proxy)
    logs = read_logs()
    for secret in (token.partition(".")[0], "external-visitors", visitor.organization.token):
        assert secret not in logs


@pytest.mark.parametrize("name", ["nginx", "caddy"])
def test_slow_clients_hold_nobody_up(name: str, request: pytest.FixtureRequest, visitor: Visitor) -> None:
    proxy: Proxy = request.getfixturevalue(name)
    large = (
        f"GET {visitor.path}?page_size=100 HTTP/1.1\r\nHost: localhost:{proxy.port}\r\n"
        f"Authorization: Token {visitor.organization.token}\r\n\r\n"
    ).encode()
    for _ in range(100):
        visitor.organization.case(visitor.contact_ids[0], description="x" * 3000)
    head = HEAD.replace(b"localhost", f"localhost:{proxy.port}".encode())
    with clients(proxy, SLOW, head) as slow, clients(proxy, 20, large) as deaf:
        for letter in b"X-A: b\r\n":
            for client in slow:
                client.sendall(bytes([letter]))
            ask(proxy, visitor)
        for client in slow:
            client.sendall(b"\r\n")
        assert {read_answer(client).status for client in slow} == {200}
        assert len(deaf) == 20


@pytest.mark.parametrize("name", ["nginx", "caddy"])
def test_an_import_may_be_large_and_no_other_body(
    name: str, request: pytest.FixtureRequest, visitor: Visitor, place: Path
) -> None:
    """This service only reads: whoever comes to it is told so, and whoever is too large is not."""
    proxy: Proxy = request.getfixturevalue(name)
    given = (
        "--header",
        f"Authorization: Token {visitor.organization.token_with('cases:write')}",
        "--header",
        "Expect:",
    )
    base = f"/api/v5/orgs/{visitor.organization.id}"
    taken = (f"{base}/import", 15 * 2**20), (f"{base}/import/", 2 * 2**20), (f"{base}/cases", 2**20 - 1)
    for path, allowed in taken:
        (place / "body").write_bytes(b" " * allowed)
        answer = proxy.curl(path, *given, "--data-binary", f"@{place}/body")
        assert (answer.status, answer.json["code"]) == (403, "read_only_deployment")
    for path, refused in ((f"{base}/import", 17 * 2**20), (f"{base}/cases", 2**20 + 4096)):
        (place / "body").write_bytes(b" " * refused)
        assert proxy.curl(path, *given, "--data-binary", f"@{place}/body").status in (403, 413, 502)
