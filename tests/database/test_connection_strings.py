"""What libpq takes from service files and the environment decides who serves and where the schema is."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from cases_service.database import connection_strings
from cases_service.database.connection_pool import Database
from cases_service.embedded.command_database import CommandDatabase
from cases_service.settings import Settings, SettingsError, read_settings
from tests.factories import SECRET_KEY


@pytest.fixture
def database(server_url: str) -> Iterator[str]:
    """The name of an empty database, of its schema, and of a role that may serve it."""
    name = f"libpq_{uuid4().hex[:12]}"
    with psycopg.connect(server_url, autocommit=True) as server:
        server.execute(f"create role {name} login password 'secret'".encode())
        server.execute(f"create database {name} template template0 encoding 'UTF8'".encode())
        try:
            with psycopg.connect(server_url, dbname=name, autocommit=True) as connection:
                connection.execute(f"create schema {name}".encode())
            yield name
        finally:
            server.execute(f"drop database {name} with (force)".encode())
            server.execute(f"drop role {name}".encode())


@pytest.fixture
def service_file(database: str, server_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A service file with `serving` and `administration`, whose options choose the schema."""
    administration = conninfo_to_dict(server_url)
    administration |= {"dbname": database, "options": f"-c search_path={database}"}
    serving = administration | {"user": database, "password": "secret"}
    services = {"serving": serving, "administration": administration}
    file = tmp_path / "services.conf"
    file.write_text(
        "".join(
            f"[{name}]\n" + "".join(f"{key}={value}\n" for key, value in given.items())
            for name, given in services.items()
        )
    )
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    return file


def schema_of(server_url: str, database: str) -> list[str]:
    with psycopg.connect(server_url, dbname=database) as connection:
        statement = "select schemaname from pg_tables where tablename = 'schema_version'"
        return [name for (name,) in connection.execute(statement)]


def reads(settings: Settings) -> bool:
    """Tell whether the service can read what init-db has made."""
    database = Database(settings.require_database_url(), settings)
    database.open()
    try:
        return database.read(lambda given: given.execute("select count(*) from cases").fetchone()) == (0,)
    finally:
        database.close()


@pytest.mark.parametrize("url", ["service=serving", "postgresql:///?service=serving"])
@pytest.mark.usefixtures("service_file")
def test_a_service_in_the_url_names_who_serves_and_where_the_schema_is(
    server_url: str, database: str, url: str
) -> None:
    settings = read_settings({"DATABASE_URL": url, "CASES_ADMIN_DATABASE_URL": "service=administration"})
    CommandDatabase(settings, None).initialize()
    assert schema_of(server_url, database) == [database]
    assert reads(settings)


@pytest.mark.usefixtures("service_file")
def test_pgservice_names_who_serves_and_where_the_schema_is(
    server_url: str, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGSERVICE", "serving")
    admin = make_conninfo(server_url, dbname=database)
    settings = read_settings({"DATABASE_URL": f"dbname={database}", "CASES_ADMIN_DATABASE_URL": admin})
    CommandDatabase(settings, None).initialize()
    assert schema_of(server_url, database) == [database]
    assert reads(settings)


def test_pgoptions_and_pguser_count(server_url: str, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGOPTIONS", f"-c search_path={database}")
    monkeypatch.setenv("PGUSER", database)
    monkeypatch.setenv("PGPASSWORD", "secret")
    admin = make_conninfo(server_url, dbname=database)
    place = {name: value for name, value in conninfo_to_dict(admin).items() if name not in ("user", "password")}
    settings = read_settings({"DATABASE_URL": make_conninfo("", **place), "CASES_ADMIN_DATABASE_URL": admin})
    CommandDatabase(settings, None).initialize()
    assert schema_of(server_url, database) == [database]
    assert reads(settings)


@pytest.mark.parametrize("name", ["DATABASE_URL", "PGSERVICE"])
@pytest.mark.usefixtures("service_file")
def test_a_service_that_is_in_no_file_ends_the_start_with_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("PGSERVICE", "nowhere" if name == "PGSERVICE" else "")
    with pytest.raises(SettingsError, match=f"^{name}: expected a service that the service file of libpq has$"):
        read_settings({name: "service=nowhere", "CASES_SECRET_KEY": SECRET_KEY})


def test_the_hosts_of_a_service_are_replicas_by_themselves(service_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service_file.write_text("[reading]\nhost=one,two\nport=5433\n")
    assert [connection_strings.place_of(url) for url in connection_strings.single_hosts("service=reading")] == [
        {"host": "one", "port": "5433"},
        {"host": "two", "port": "5433"},
    ]
    monkeypatch.setenv("PGHOST", "three")
    assert connection_strings.place_of("dbname=cases") == {}


def test_nothing_is_connected_to_in_order_to_resolve() -> None:
    given = "host=192.0.2.1 user=ada password='a b' target_session_attrs=primary"
    found = connection_strings.resolve(given)
    assert (found["user"], found["password"], found["target_session_attrs"]) == ("ada", "a b", "primary")
