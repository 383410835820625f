"""Data directories of embedded servers, made once and copied."""

import os
import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psycopg

from cases_service.credentials.secret_encryption import SecretBox
from cases_service.database.migrations import init_db
from cases_service.embedded.server import SERVICE_ROLE, WRITER_ROLE, EmbeddedServer, join
from cases_service.embedded.supervisor import CLUSTER, SERVER_LOCK
from tests.factories import SECRET_KEY, Organization

# Speed over safety: nothing in these servers is worth keeping.
FAST: Mapping[str, str] = {"fsync": "off", "shared_buffers": "16MB"}


@dataclass(frozen=True)
class Template:
    """A data directory with the schema and a visitor of three cases, and what a client of it needs."""

    data_dir: Path
    organization_id: str
    user_id: str
    external_id: str
    path: str
    header: str

    def copy(self, place: Path) -> Path:
        return shutil.copytree(self.data_dir, place / "data")


def make_template(data_dir: Path, *, bin_dir: Path | None = None) -> Template:
    server = join(data_dir, bin_dir=bin_dir, settings=FAST)
    with psycopg.connect(server.conninfo, autocommit=True) as connection:
        init_db(connection, service_role=SERVICE_ROLE, writer_role=WRITER_ROLE)
        organization = Organization(connection, SecretBox([SECRET_KEY]))
        visitor = organization.visitor()
        visitor.cases(3)
    stop(server)
    return Template(
        data_dir,
        str(organization.id),
        str(organization.user_id),
        visitor.external_id,
        visitor.path,
        f"Authorization: Token {organization.token}",
    )


def stop(server: EmbeddedServer) -> None:
    server.leave()
    assert server.wait_stopped(60)


def crash(data_dir: Path) -> None:
    """End a running server as a machine's failure does: none of its processes outlives another."""
    number = int((data_dir / CLUSTER / "postmaster.pid").read_text().splitlines()[0])
    os.kill(number, signal.SIGSTOP)  # or it would notice, and the others through it
    for child in Path(f"/proc/{number}/task/{number}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
    os.kill(number, signal.SIGKILL)


def url_of(data_dir: Path, *, user: str = SERVICE_ROLE) -> str:
    """Return what reaches the server of a directory once it runs, by default as the service does."""
    return f"host={data_dir}/socket port=5432 user={user} dbname=cases"


def is_down(data_dir: Path) -> bool:
    """Tell whether no process of a server is left."""
    return EmbeddedServer(data_dir, "", -1).wait_stopped(0) if (data_dir / SERVER_LOCK).exists() else True
