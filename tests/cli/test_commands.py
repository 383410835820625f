"""Each command: what it prints, what it changes, and how it fails."""

import gzip
import inspect
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flask.testing import FlaskClient
from psycopg.conninfo import make_conninfo

from cases_service import __version__
from cases_service.cli import main as command_line
from cases_service.cli.commands import cli
from cases_service.credentials import visitor_jwt as visitor_tokens
from cases_service.credentials.secret_encryption import SecretBox
from cases_service.settings import read_settings
from tests.conftest import new_database
from tests.documents import block
from tests.factories import LONG_AGO, SECRET_KEY, Organization, b64, cases_path, get
from tests.process.running import COMMAND, environment

NEW_KEY = b64(b"n" * 32) + "="


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], database_url: str, tmp_path: Path) -> Run:
    """Return a function that runs a command in this process, with these variables and no others of ours."""

    def run(*arguments: object, given: bytes = b"", **variables: str) -> Result:
        for name in [name for name in os.environ if name.startswith("CASES_")]:
            monkeypatch.delenv(name)
        for name, value in {"DATABASE_URL": database_url, "CASES_SECRET_KEY": SECRET_KEY, **variables}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
        capsys.readouterr()
        status = command_line.run([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return Result(status, said.out, said.err)

    return run


def assert_fails(result: Result, status: int, pattern: str) -> None:
    """Check that a command has failed with one line that says why."""
    assert (result.status, result.out) == (status, "")
    assert re.fullmatch(f"cases-service: [^\n]*{pattern}[^\n]*\n", result.err), result.err


def public_key(tmp_path: Path, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> Path:
    file = tmp_path / "public.pem"
    file.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return file


class TestAllCommands:
    def test_the_version_is_shown(self, run: Run) -> None:
        assert run("--version") == Result(0, f"cases-service {__version__}\n", "")

    def test_the_help_of_each_command_has_an_example(self, run: Run) -> None:
        for name in cli.commands:
            result = run(name, "--help")
            assert (result.status, result.err) == (0, "")
            example = re.search(rf"^ +.*\b{name}\b", result.out.partition("\n")[2], re.MULTILINE)
            assert example, result.out

    def test_the_help_lists_each_command_with_a_whole_sentence(self, run: Run) -> None:
        listed = re.findall(r"^  ([a-z-]+)  +(.*)$", run("--help").out.partition("Commands:")[2], re.MULTILINE)
        assert {name for name, _ in listed} == set(cli.commands)
        assert [sentence for _, sentence in listed if not sentence.endswith(".") or sentence.endswith("...")] == []

    @pytest.mark.parametrize(
        ("arguments", "pattern"),
        [
            ((), r"Missing command \(see cases-service --help\)"),
            (("fetch",), "No such command 'fetch'"),
            (("init-db", "--fast"), "No such option.*init-db --help"),
            (("init-db", "x"), "unexpected extra argument"),
            (("create-token",), "Missing option '--organization'"),
        ],
    )
    def test_a_wrong_call_is_status_2(self, run: Run, arguments: tuple[str, ...], pattern: str) -> None:
        assert_fails(run(*arguments), 2, pattern)

    @pytest.mark.parametrize(("typed", "completed"), [("check", {"check-token"}), ("list-keys --j", {"--json"})])
    def test_bash_completes_it(self, typed: str, completed: set[str]) -> None:
        """With the line that the README gives, and then what bash calls on a tab."""
        script = f"""{block("README.md", "sh", "_CASES_SERVICE_COMPLETE=bash_source")}
            COMP_WORDS=(cases-service {typed}) COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
            $(complete -p cases-service | sed 's/.*-F \\([^ ]*\\).*/\\1/') cases-service
            printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        path = f"{Path(COMMAND).parent}:{os.environ['PATH']}"
        ran = subprocess.run(
            ["bash", "--norc", "-c", script], check=True, capture_output=True, text=True, env=environment(PATH=path)
        )
        assert (set(ran.stdout.split()), ran.stderr) == (completed, "")

    @pytest.mark.parametrize("arguments", [("--version",), ("load", "--help"), ()])
    def test_what_needs_no_command_imports_no_more_than_it_needs(self, arguments: tuple[str, ...]) -> None:
        """The completion runs at each press of the key."""
        script = f"""
            import atexit, sys
            heavy = {{"flask", "psycopg", "cryptography", "msgspec", "jwt", "structlog", "tqdm", "marshmallow"}}
            atexit.register(lambda: print(sorted(heavy & set(sys.modules)), file=sys.stderr))
            sys.argv[1:] = {list(arguments)}
            from cases_service.__main__ import main
            main()
        """
        completing = {"_CASES_SERVICE_COMPLETE": "bash_complete", "COMP_WORDS": "cases-service lo", "COMP_CWORD": "1"}
        ran = subprocess.run(
            [sys.executable, "-c", inspect.cleandoc(script)],
            check=False,
            capture_output=True,
            text=True,
            env=environment(**({} if arguments else completing)),
        )
        assert (ran.returncode, ran.stderr) == (0, "[]\n")
        assert ran.stdout

    def test_a_token_in_the_place_of_an_id_is_not_repeated(self, run: Run, organization: Organization) -> None:
        result = run("revoke-token", "--organization", organization.id, organization.token)
        assert_fails(result, 2, "expected a UUID")
        assert organization.token not in result.err

    def test_a_wrong_setting_is_named(self, run: Run) -> None:
        assert_fails(run("init-db", CASES_CONNECT_TIMEOUT="soon"), 1, "CASES_CONNECT_TIMEOUT: ")

    def test_a_database_that_is_away_is_one_line_without_its_password(self, run: Run) -> None:
        result = run("rotate-secrets", DATABASE_URL="postgresql://cases:hunter2@127.0.0.1:1/cases")
        assert_fails(result, 75, "cannot reach the database: .*refused")
        assert "hunter2" not in result.err

    def test_a_database_without_the_schema_is_told_what_to_do(self, run: Run, server_url: str) -> None:
        url = make_conninfo(server_url, dbname="postgres")
        assert_fails(run("rotate-secrets", DATABASE_URL=url), 1, "run cases-service init-db")

    def test_without_any_database_none_is_made(self, run: Run, tmp_path: Path) -> None:
        assert_fails(run("rotate-secrets", DATABASE_URL=""), 1, "there is no database: set DATABASE_URL, or run")
        assert list(tmp_path.iterdir()) == []

    def test_permissions_that_are_missing_are_one_line(
        self, run: Run, connection: psycopg.Connection, database_url: str, organization: Organization
    ) -> None:
        role = f"nobody_{uuid4().hex}"
        connection.execute(f"create role {role} login".encode())
        try:
            result = run(
                "retire-key", "--organization", organization.id, uuid4(), DATABASE_URL=f"{database_url} user={role}"
            )
        finally:
            connection.execute(f"drop role {role}".encode())
        assert_fails(result, 1, "the database refuses: permission denied")

    def test_the_connect_time_out_of_the_settings_holds_unless_the_url_says_otherwise(self, run: Run) -> None:
        began = time.monotonic()
        # An address that answers nothing, or that cannot be reached at all.
        result = run("rotate-secrets", DATABASE_URL="host=192.0.2.1", CASES_CONNECT_TIMEOUT="2")
        assert_fails(result, 75, "cannot reach the database")
        assert time.monotonic() - began < 10


class TestInitDb:
    def test_it_may_be_repeated(self, run: Run, server_url: str) -> None:
        with new_database(server_url, f"init_{uuid4().hex}") as url:
            first, second = run("init-db", DATABASE_URL=url), run("init-db", DATABASE_URL=url)
        assert first.status == second.status == 0
        assert re.fullmatch(r"schema version \d+\n", first.out)
        assert first == second

    def test_a_newer_schema_is_left_alone(self, run: Run, connection: psycopg.Connection, database_url: str) -> None:
        schema = f"newer_{uuid4().hex}"
        connection.execute(f"create schema {schema}".encode())
        connection.execute(f"create table {schema}.schema_version as select 9999 as version".encode())
        try:
            result = run("init-db", DATABASE_URL=f"{database_url} options='-c search_path={schema}'")
        finally:
            connection.execute(f"drop schema {schema} cascade".encode())
        assert_fails(result, 1, "the schema has version 9999")


class TestLoad:
    @pytest.fixture
    def lines(self) -> tuple[UUID, bytes]:
        organization_id = uuid4()
        rows = [
            {"type": "organization", "id": str(organization_id), "name": "Loaded", "subscription_status": "active"},
            {"type": "user", "id": str(uuid4()), "organization_id": str(organization_id)},
        ]
        return organization_id, "".join(json.dumps(row) + "\n" for row in rows).encode()

    def test_files_and_standard_input_are_loaded_together(
        self, run: Run, lines: tuple[UUID, bytes], tmp_path: Path, connection: psycopg.Connection
    ) -> None:
        organization_id, data = lines
        organization, user = data.splitlines(keepends=True)
        (tmp_path / "user.ndjson").write_bytes(user)
        result = run("load", "user.ndjson", "-", given=organization)
        assert (result.status, result.err) == (0, "")
        assert result.out == "2 lines: 1 organization, 1 user\n"
        found = connection.execute("select name from organizations where organization_id = %s", [organization_id])
        assert found.fetchone() == ("Loaded",)

    def test_a_removal_is_told(self, run: Run, organization: Organization) -> None:
        visitor = organization.visitor(contacts=0)
        row = {"type": "visitor", "id": str(visitor.id), "organization_id": str(organization.id), "deleted": True}
        assert run("load", "-", given=json.dumps(row).encode()).out == "1 line: removed 1 visitor\n"

    def test_a_wrong_line_is_named_and_nothing_is_loaded(
        self, run: Run, lines: tuple[UUID, bytes], connection: psycopg.Connection
    ) -> None:
        organization_id, data = lines
        result = run("load", "-", given=data + b'{"type": "user", "id": "x"}\n')
        assert_fails(result, 1, "standard input:3: ")
        found = connection.execute("select 1 from organizations where organization_id = %s", [organization_id])
        assert found.fetchone() is None

    def test_a_file_that_is_missing_is_a_wrong_call(self, run: Run) -> None:
        assert_fails(run("load", "nowhere.ndjson"), 2, "'nowhere.ndjson' does not exist")

    def test_each_right_line_is_loaded_and_the_wrong_ones_are_written_to_a_file(
        self, run: Run, tmp_path: Path, lines: tuple[UUID, bytes]
    ) -> None:
        organization = lines[1].splitlines(keepends=True)[0]
        organization_id = json.loads(organization)["id"]
        user = {"type": "user", "id": "7", "organization_id": organization_id}
        wrong = json.dumps({**user, "title": 7}), json.dumps({**user, "type": "contact", "visitor_id": "nobody"})
        file = tmp_path / "wrong.ndjson"
        data = "\n".join([organization.decode().strip(), wrong[0], json.dumps(user), "{", wrong[1]]).encode()
        result = run("load", "--each", "--errors", file, "--json", "-", given=data)
        assert (result.status, result.err) == (1, "cases-service: 3 lines wrong; what is right was loaded\n")
        told = json.loads(result.out)
        assert (told["written"]["user"], told["error_count"], len(told["errors"])) == (1, 3, 3)
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        assert [(row["file"], row["line"], row["field"], row["text"]) for row in rows] == [
            ("standard input", 2, "title", wrong[0]),
            ("standard input", 4, None, "{"),
            ("standard input", 5, "visitor_id", wrong[1]),
        ]
        again = run("load", "--each", "-", given=data)
        assert again.status == 1
        assert "standard input:2: title: expected" in again.err
        assert again.out == "5 lines: 3 wrong\n"

    def test_an_old_export_loaded_again_with_if_newer_reverts_nothing(
        self, run: Run, lines: tuple[UUID, bytes]
    ) -> None:
        organization = lines[1].splitlines(keepends=True)[0]
        case = {
            "type": "case",
            "id": "1",
            "organization_id": str(lines[0]),
            "case_number": "1",
            "status": "Open",
            "priority": 3,
            "created_at": "2024-01-01T00:00:00Z",
        }
        old, new = ({**case, "updated_at": f"2024-01-0{day}T00:00:00Z", "subject": str(day)} for day in (1, 2))
        data = organization + json.dumps(new).encode()
        assert run("load", "-", given=data).status == 0
        assert run("load", "--if-newer", "-", given=json.dumps(old).encode()).out == "1 line: 1 stale\n"
        kept = {name: value for name, value in new.items() if name != "subject"}
        assert run("load", "--keep-left-out", "-", given=json.dumps(kept).encode()).out == "1 line: nothing changed\n"

    def test_a_file_for_errors_is_for_each_line(self, run: Run, tmp_path: Path) -> None:
        assert_fails(run("load", "--errors", tmp_path / "x", "-"), 2, "--errors belongs to --each")

    def test_a_packed_file_is_loaded(self, run: Run, tmp_path: Path, lines: tuple[UUID, bytes]) -> None:
        file = tmp_path / "data.ndjson.gz"
        file.write_bytes(gzip.compress(lines[1]))
        assert run("load", file).out.startswith(f"{lines[1].count(b'type')} lines: ")

    def test_a_directory_is_a_wrong_call(self, run: Run, tmp_path: Path) -> None:
        assert_fails(run("load", tmp_path), 2, "is a directory")

    def test_no_file_is_a_wrong_call(self, run: Run) -> None:
        assert_fails(run("load"), 2, "Missing argument 'FILE...'")

    @pytest.mark.parametrize(("is_known", "pattern"), [(True, r"0%\|.*/5\.\d+M"), (False, r"0\.00B")])
    def test_a_terminal_gets_a_progress_bar(
        self, database_url: str, tmp_path: Path, lines: tuple[UUID, bytes], is_known: bool, pattern: str
    ) -> None:
        organization_id, data = lines
        user = {"type": "user", "organization_id": str(organization_id), "avatar_url": "x" * 1000}
        users = "".join(json.dumps(user | {"id": str(uuid4())}) + "\n" for _ in range(5000)).encode()
        file = tmp_path / "data.ndjson"
        file.write_bytes(data + users)
        terminal, its_end = pty.openpty()
        termios.tcsetwinsize(terminal, (24, 80))
        given = environment(DATABASE_URL=database_url, TERM="xterm")
        with file.open("rb") as stream:
            source = str(file) if is_known else "-"
            loaded = subprocess.run(
                [COMMAND, "load", source], stdin=stream, stdout=subprocess.PIPE, stderr=its_end, env=given, check=True
            )
        shown = os.read(terminal, 65536).decode()
        os.close(its_end)
        os.close(terminal)
        assert re.search(pattern, shown), shown
        assert loaded.stdout == b"5,002 lines: 1 organization, 5,001 users\n"


class TestTokens:
    def test_a_new_token_stands_alone_and_works(
        self, run: Run, organization: Organization, client: FlaskClient
    ) -> None:
        visitor = organization.visitor()
        result = run("create-token", "--organization", organization.id, "--user", organization.user_id)
        assert result.status == 0
        assert re.fullmatch(r"cst_[A-Za-z0-9_-]{72}\n", result.out)
        assert re.fullmatch(r"token id: [0-9a-f-]{36}\n", result.err)
        headers = {"Authorization": f"Token {result.out.strip()}"}
        assert client.get(visitor.path, headers=headers).status_code == 200
        token_id = result.err.split()[-1]
        assert run("revoke-token", "--organization", organization.id, token_id) == Result(0, "", "")
        assert client.get(visitor.path, headers=headers).status_code == 401

    def test_description_and_expiry_are_kept(
        self, run: Run, organization: Organization, connection: psycopg.Connection
    ) -> None:
        expiry = datetime.now(UTC) + timedelta(days=1)
        owner = ("--organization", organization.id, "--user", organization.user_id)
        result = run("create-token", *owner, "--description", "für CI", "--expires-at", expiry.isoformat())
        found = connection.execute(
            "select description, expires_at from api_tokens where organization_id = %s and id = %s",
            [organization.id, result.err.split()[-1]],
        )
        assert found.fetchone() == ("für CI", expiry)

    @pytest.mark.parametrize(
        ("option", "value", "pattern"),
        [
            ("--expires-at", "2020-01-31T12:00:00Z", "expected a time in the future"),
            ("--expires-at", "2999-01-31T12:00:00", "expected ISO 8601 with a zone"),
            ("--expires-at", "2999-01-31", "expected ISO 8601 with a zone"),
            ("--expires-at", "tomorrow", "expected ISO 8601 with a zone"),
            ("--expires-at", "9999-12-31T23:59:59-14:00", "expected a time before the year 10000"),
            ("--description", "", "expected 1 to 256 characters"),
            ("--description", "\udcff", "expected UTF-8"),
            ("--description", "CI\x1b[2J", "expected a text without control characters"),
            ("--description", "two\nlines", "expected a text without control characters"),
            ("--description", "CI\x9b2J", "expected a text without control characters"),
            ("--description", "CI\u202e", "expected a text without control characters"),
            ("--user", "me", "expected a UUID"),
            ("--scope", "cases", "'cases' is not one of 'visitors:read'"),
        ],
    )
    def test_wrong_options_are_named(
        self, run: Run, organization: Organization, option: str, value: str, pattern: str
    ) -> None:
        owner = ("--organization", organization.id, "--user", organization.user_id)
        assert_fails(run("create-token", *owner, option, value), 2, f"'{option}': {pattern}")

    def test_control_characters_that_are_stored_are_shown_in_escapes(
        self, run: Run, organization: Organization
    ) -> None:
        organization.update("api_tokens", "user_id", organization.user_id, description="für\x1b[2J\x07\n\x9b1m\u202e")
        shown = run("list-tokens", "--organization", organization.id).out
        assert r"für\x1b[2J\x07\n\x9b1m\u202e" in shown
        assert len(shown.splitlines()) == 2

    def test_a_user_of_another_organization_is_none(self, run: Run, organization: Organization) -> None:
        result = run("create-token", "--organization", uuid4(), "--user", organization.user_id)
        assert_fails(result, 1, "has no user")

    def test_an_unknown_token_cannot_be_revoked(self, run: Run, organization: Organization) -> None:
        assert_fails(run("revoke-token", "--organization", organization.id, uuid4()), 1, "has no API token")


class TestKeys:
    def test_a_new_hmac_key_is_printed_with_its_secret_and_works(
        self, run: Run, organization: Organization, client: FlaskClient
    ) -> None:
        visitor = organization.visitor()
        result = run("create-key", "--organization", organization.id, "--algorithm", "HS512")
        key = json.loads(result.out)
        assert (result.status, result.err, set(key)) == (0, "", {"kid", "algorithm", "secret"})
        assert key["algorithm"] == "HS512"
        jwt = visitor_tokens.sign(
            visitor.external_id, secret=key["secret"], algorithm="HS512", key_id=UUID(key["kid"]), ttl=60
        )
        assert get(client, organization, cases_path(organization.id, jwt)).status_code == 200
        assert run("retire-key", "--organization", organization.id, key["kid"]) == Result(0, "", "")
        assert get(client, organization, cases_path(organization.id, jwt)).status_code == 400

    def test_a_public_key_is_registered_without_a_secret(
        self, run: Run, organization: Organization, tmp_path: Path
    ) -> None:
        file = public_key(tmp_path, ec.generate_private_key(ec.SECP256R1()))
        result = run("create-key", "--organization", organization.id, "--algorithm", "ES256", "--public-key", file)
        assert result.status == 0
        assert set(json.loads(result.out)) == {"kid", "algorithm"}

    @pytest.mark.parametrize("algorithm", ["RS256", "ES384", "EdDSA"])
    def test_an_asymmetric_algorithm_needs_a_public_key(
        self, run: Run, organization: Organization, algorithm: str
    ) -> None:
        result = run("create-key", "--organization", organization.id, "--algorithm", algorithm)
        assert_fails(result, 2, f"--algorithm {algorithm} needs a --public-key")

    def test_an_hmac_algorithm_takes_none(self, run: Run, organization: Organization, tmp_path: Path) -> None:
        file = public_key(tmp_path, ed25519.Ed25519PrivateKey.generate())
        result = run("create-key", "--organization", organization.id, "--public-key", file)
        assert_fails(result, 2, "--algorithm HS256 takes no --public-key")

    @pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"-----BEGIN PUBLIC KEY-----\nx\n-----END PUBLIC KEY-----"])
    def test_what_is_no_public_key_is_refused(
        self, run: Run, organization: Organization, tmp_path: Path, content: bytes
    ) -> None:
        file = tmp_path / "key"
        file.write_bytes(content)
        result = run("create-key", "--organization", organization.id, "--algorithm", "RS256", "--public-key", file)
        assert_fails(result, 1, "expected a public key in PEM")

    def test_a_key_for_another_algorithm_is_refused(self, run: Run, organization: Organization, tmp_path: Path) -> None:
        file = public_key(tmp_path, ed25519.Ed25519PrivateKey.generate())
        result = run("create-key", "--organization", organization.id, "--algorithm", "ES256", "--public-key", file)
        assert_fails(result, 1, "ES256 takes a key on the curve")

    def test_an_unknown_algorithm_is_a_wrong_call(self, run: Run, organization: Organization) -> None:
        assert_fails(
            run("create-key", "--organization", organization.id, "--algorithm", "none"), 2, "'none' is not one of"
        )

    def test_an_eleventh_live_key_is_refused(self, run: Run, organization: Organization) -> None:
        for _ in range(9):
            assert run("create-key", "--organization", organization.id).status == 0
        assert_fails(run("create-key", "--organization", organization.id), 1, "retire one first")

    def test_an_unknown_organization_gets_no_key(self, run: Run) -> None:
        assert_fails(run("create-key", "--organization", uuid4()), 1, "there is no organization")

    def test_without_a_secret_key_nothing_can_be_encrypted(self, run: Run, organization: Organization) -> None:
        result = run("create-key", "--organization", organization.id, CASES_SECRET_KEY="")
        assert_fails(result, 1, "set CASES_SECRET_KEY")

    def test_an_unknown_key_cannot_be_retired(self, run: Run, organization: Organization) -> None:
        assert_fails(run("retire-key", "--organization", organization.id, uuid4()), 1, "has no signing key")

    def test_secrets_are_rotated_for_a_new_secret_key(self, run: Run, server_url: str, box: SecretBox) -> None:
        with new_database(server_url, f"rotate_{uuid4().hex}") as url:
            run("init-db", DATABASE_URL=url)
            with psycopg.connect(url, autocommit=True) as connection:
                organization = Organization(connection, box)
            sign = ("sign", "--organization", organization.id, "--external-id", "me")
            both = f"{NEW_KEY},{SECRET_KEY}"
            assert_fails(run(*sign, DATABASE_URL=url, CASES_SECRET_KEY=NEW_KEY), 1, "opens with none of the keys")
            rotated = run("rotate-secrets", DATABASE_URL=url, CASES_SECRET_KEY=both)
            assert rotated == Result(0, "1 secret encrypted with the first secret key\n", "")
            assert run(*sign, DATABASE_URL=url, CASES_SECRET_KEY=NEW_KEY).status == 0
            assert_fails(run("rotate-secrets", DATABASE_URL=url), 1, "opens with none of the keys")


class TestLists:
    @pytest.mark.parametrize("name", ["list-tokens", "list-keys"])
    def test_what_opens_the_service_is_listed_without_what_opens_it(
        self, run: Run, organization: Organization, name: str
    ) -> None:
        secrets = organization.connection.execute(
            "select encode(token_hash, 'hex') from api_tokens where organization_id = %(id)s"
            " union all select encode(token_hash, 'base64') from api_tokens where organization_id = %(id)s"
            " union all select encrypted_secret from signing_keys where organization_id = %(id)s",
            {"id": organization.id},
        ).fetchall()
        for form in ((), ("--json",)):
            result = run(name, "--organization", organization.id, *form)
            assert (result.status, result.err) == (0, "")
            for secret in (organization.token, organization.secret, *(text for (text,) in secrets)):
                assert secret not in result.out

    def test_tokens_are_listed_with_what_became_of_them(self, run: Run, organization: Organization) -> None:
        organization.update(
            "api_tokens", "id", organization.token_id, created_at=LONG_AGO, revoked_at=LONG_AGO, description="shop"
        )
        time = "2015-08-31T16:32:17.879Z"
        shown = {
            "id": str(organization.token_id),
            "user_id": str(organization.user_id),
            "scopes": ["visitors:read"],
            "description": "shop",
            "created_at": time,
            "expires_at": None,
            "revoked_at": time,
            "last_used_at": None,
        }
        assert json.loads(run("list-tokens", "--organization", organization.id, "--json").out) == [shown]
        heading, line = run("list-tokens", "--organization", organization.id).out.splitlines()
        assert heading.split() == list(shown)
        assert line.split() == [value or "-" for value in {**shown, "scopes": "visitors:read"}.values()]

    def test_tokens_are_listed_with_their_scopes(self, run: Run, organization: Organization) -> None:
        owner = ("--organization", organization.id, "--user", organization.user_id)
        assert run("create-token", *owner, "--scope", "cases:write", "--scope", "cases:read").status == 0
        found = json.loads(run("list-tokens", "--organization", organization.id, "--json").out)
        assert [token["scopes"] for token in found] == [["visitors:read"], ["cases:read", "cases:write"]]
        assert " cases:read,cases:write " in run("list-tokens", "--organization", organization.id).out

    def test_keys_are_listed_with_their_last_use(self, run: Run, organization: Organization) -> None:
        times = {"created_at": LONG_AGO, "retired_at": LONG_AGO, "last_used_at": LONG_AGO}
        organization.update("signing_keys", "id", organization.kid, **times)
        shown = {"kid": str(organization.kid), "algorithm": "HS256"} | dict.fromkeys(times, "2015-08-31T16:32:17.879Z")
        assert json.loads(run("list-keys", "--organization", organization.id, "--json").out) == [shown]

    def test_an_organization_without_keys_has_an_empty_list(self, run: Run, organization: Organization) -> None:
        organization.connection.execute("delete from signing_keys where organization_id = %s", [organization.id])
        assert run("list-keys", "--organization", organization.id) == Result(0, "", "")
        assert run("list-keys", "--organization", organization.id, "--json") == Result(0, "[]\n", "")

    @pytest.mark.parametrize(
        "call", [["list-tokens"], ["list-keys"], ["sign", "--external-id", "me"], ["check-token", "a.b.c"]]
    )
    def test_an_unknown_organization_is_an_error(self, run: Run, call: list[str]) -> None:
        assert_fails(run(*call, "--organization", uuid4()), 1, "there is no organization")


class TestSign:
    def test_it_signs_with_the_newest_hmac_key(
        self, run: Run, organization: Organization, tmp_path: Path, client: FlaskClient
    ) -> None:
        visitor = organization.visitor()
        newest = json.loads(run("create-key", "--organization", organization.id, "--algorithm", "HS384").out)
        file = public_key(tmp_path, ed25519.Ed25519PrivateKey.generate())
        run("create-key", "--organization", organization.id, "--algorithm", "EdDSA", "--public-key", file)
        result = run("sign", "--organization", organization.id, "--external-id", visitor.external_id)
        assert (result.status, result.err) == (0, "")
        parsed = visitor_tokens.parse(result.out.strip())
        assert (parsed.header["kid"], parsed.header["alg"]) == (newest["kid"], "HS384")
        assert parsed.claims["sub"] == visitor.external_id
        assert parsed.claims["exp"] - parsed.claims["iat"] == 600
        assert abs(parsed.claims["iat"] - time.time()) < 30
        assert get(client, organization, cases_path(organization.id, result.out.strip())).status_code == 200

    def test_key_and_life_are_options(self, run: Run, organization: Organization) -> None:
        run("create-key", "--organization", organization.id)
        chosen = ("--kid", organization.kid, "--ttl", 60)
        result = run("sign", "--organization", organization.id, "--external-id", "ü" * 256, *chosen)
        parsed = visitor_tokens.parse(result.out.strip())
        assert parsed.header["kid"] == str(organization.kid)
        assert parsed.claims["exp"] - parsed.claims["iat"] == 60

    def test_it_names_the_audience_and_issuer_that_the_service_expects(
        self, run: Run, organization: Organization
    ) -> None:
        expected = {"CASES_JWT_AUDIENCE": "cases", "CASES_JWT_ISSUER": "https://issuer.example"}
        sign = ("sign", "--organization", organization.id, "--external-id", organization.visitor().external_id)
        jwt = run(*sign, **expected).out.strip()
        assert run("check-token", "--organization", organization.id, jwt, **expected).status == 0

    @pytest.mark.parametrize(
        ("option", "value", "pattern"),
        [
            ("--external-id", "", "expected 1 to 256 characters"),
            ("--external-id", "x" * 257, "expected 1 to 256 characters"),
            ("--external-id", "\udcff", "expected UTF-8"),
            ("--ttl", "0", "0 is not in the range"),
            ("--ttl", "soon", "'soon' is not a valid"),
            ("--ttl", "86401", "86400 seconds at the most"),
            ("--kid", "k1", "expected a UUID"),
        ],
    )
    def test_wrong_options_are_named(
        self, run: Run, organization: Organization, option: str, value: str, pattern: str
    ) -> None:
        result = run("sign", "--organization", organization.id, "--external-id", "me", option, value)
        assert_fails(result, 2, f"'{option}': .*{pattern}")

    def test_without_a_live_hmac_key_it_says_how_to_make_one(self, run: Run, organization: Organization) -> None:
        run("retire-key", "--organization", organization.id, organization.kid)
        result = run("sign", "--organization", organization.id, "--external-id", "me")
        assert_fails(result, 1, f"create-key --organization {organization.id}")

    def test_a_retired_key_signs_nothing(self, run: Run, organization: Organization) -> None:
        run("retire-key", "--organization", organization.id, organization.kid)
        sign = ("sign", "--organization", organization.id, "--external-id", "me")
        assert_fails(run(*sign, "--kid", organization.kid), 1, "has no live signing key")

    def test_nor_does_an_asymmetric_one(self, run: Run, organization: Organization, tmp_path: Path) -> None:
        file = public_key(tmp_path, rsa.generate_private_key(65537, 2048))
        made = run("create-key", "--organization", organization.id, "--algorithm", "RS256", "--public-key", file)
        sign = ("sign", "--organization", organization.id, "--external-id", "me")
        assert_fails(run(*sign, "--kid", json.loads(made.out)["kid"]), 1, "its private key is not here")


class TestCheckToken:
    def report(self, result: Result) -> dict[str, str]:
        return {line[:14].strip(): line[14:] for line in result.out.splitlines()}

    def test_a_good_token_is_explained(self, run: Run, organization: Organization) -> None:
        visitor = organization.visitor(contacts=3)
        sign = ("sign", "--organization", organization.id, "--external-id", visitor.external_id)
        jwt = run(*sign).out
        result = run("check-token", "--organization", organization.id, given=jwt.encode())
        assert (result.status, result.err) == (0, "")
        report = self.report(result)
        assert report["algorithm"] == "HS256"
        assert report["key"] == str(organization.kid)
        assert report["signature"] == f"valid, by {organization.kid}"
        assert re.fullmatch(r"\d+ s ago", report["issued"])
        assert re.fullmatch(r"in \d+ s", report["expires"])
        assert report["visitor"] == repr(visitor.external_id)
        assert (report["contacts"], report["answer"]) == ("3", "200")
        assert run("check-token", "--organization", organization.id, jwt.strip()).status == 0

    @pytest.mark.parametrize(
        "ended",
        [{"subscription_status": "inactive"}, {"subscription_ends_at": datetime.now(UTC) - timedelta(seconds=1)}],
    )
    def test_a_subscription_that_is_not_active_is_the_answer_whatever_the_token(
        self, run: Run, organization: Organization, client: FlaskClient, ended: dict[str, object]
    ) -> None:
        visitor = organization.visitor()
        organization.update("organizations", "organization_id", organization.id, **ended)
        for jwt in (organization.jwt(visitor.external_id), organization.jwt("nobody"), "a.b.c"):
            report = self.report(self.check(run, organization, jwt))
            answer = get(client, organization, cases_path(organization.id, jwt))
            assert (
                report["answer"] == f"{answer.status_code} {answer.get_json()['code']}" == "403 subscription_inactive"
            )
            assert report["subscription"] == "not active"

    def check(self, run: Run, organization: Organization, jwt: str, **variables: str) -> Result:
        result = run("check-token", "--organization", organization.id, given=jwt.encode("latin-1"), **variables)
        assert result.status == 1
        code = result.out.splitlines()[-1].split()[-1]
        assert re.fullmatch(f"cases-service: {code}: [^\n]+\n", result.err)
        return result

    def test_every_refusal_has_the_code_that_the_service_answers(
        self, run: Run, organization: Organization, client: FlaskClient
    ) -> None:
        me = organization.visitor().external_id
        now = int(time.time())
        tokens = {
            "token_malformed": ["", "x", "a.b.c", "\xff.a.b"],
            "token_too_long": ["x" * 8001],
            "token_ambiguous": ["a.b.c,d.e.f"],
            "token_algorithm_not_allowed": [
                organization.signed({}, {"alg": "none"}),
                organization.signed({}, {"alg": "\x1b"}),
            ],
            "token_key_unknown": [organization.signed({}, {"alg": "HS256", "kid": str(uuid4())})],
            "token_signature_invalid": [organization.jwt(me)[:-4] + "AAAA"],
            "token_claim_missing": [organization.signed({"sub": me})],
            "token_claim_invalid": [organization.jwt(me, exp="soon"), organization.jwt(me, iat=True)],
            "token_expired": [organization.jwt(me, exp=now - 100)],
            "token_not_yet_valid": [organization.jwt(me, nbf=now + 100), organization.jwt(me, iat=now + 100)],
            "token_lifetime_too_long": [organization.jwt(me, exp=now + 100_000)],
            "visitor_not_found": [organization.jwt("nobody")],
        }
        for code, each in tokens.items():
            for jwt in each:
                result = self.check(run, organization, jwt)
                assert self.report(result)["answer"].split()[1] == code
                identity = {"X-External-Identity": jwt}
                answer = get(client, organization, cases_path(organization.id, "-"), **identity)
                assert self.report(result)["answer"] == f"{answer.status_code} {answer.get_json()['code']}"

    def test_a_clock_that_is_ahead_is_noticed(self, run: Run, organization: Organization) -> None:
        visitor = organization.visitor()
        jwt = organization.jwt(visitor.external_id, iat=int(time.time()) + 20)
        result = run("check-token", "--organization", organization.id, jwt)
        assert result.status == 0
        assert "the clock that signed is ahead" in self.report(result)["issued"]

    def test_a_bad_signature_is_said(self, run: Run, organization: Organization) -> None:
        result = self.check(run, organization, organization.jwt("me")[:-4] + "AAAA")
        assert self.report(result)["signature"] == "not valid"
        assert "expires" not in self.report(result)

    def test_a_program_reads_the_same_as_json(self, run: Run, organization: Organization) -> None:
        jwt = organization.jwt(organization.visitor().external_id)
        accepted = run("check-token", "--json", "--organization", organization.id, jwt)
        document = json.loads(accepted.out)
        assert (accepted.status, document["status"], document["code"]) == (0, 200, None)
        assert document["findings"]["signature"] == f"valid, by {organization.kid}"

        refused = run("check-token", "--json", "--organization", organization.id, organization.jwt("nobody"))
        document = json.loads(refused.out)
        assert (refused.status, document["status"], document["code"]) == (1, 404, "visitor_not_found")
        assert document["findings"]["visitor"] == "'nobody'"

    def test_a_token_too_long_for_the_path_is_said(self, run: Run, organization: Organization) -> None:
        visitor = organization.visitor()
        jwt = organization.jwt(visitor.external_id, padding="x" * 3500)
        result = run("check-token", "--organization", organization.id, jwt)
        assert result.status == 0
        assert self.report(result)["place"].startswith("in the header only")

    def test_an_organization_without_keys_is_noticed(self, run: Run, organization: Organization) -> None:
        organization.connection.execute("delete from signing_keys where organization_id = %s", [organization.id])
        result = run("check-token", "--organization", organization.id, organization.jwt("me"))
        assert (result.status, self.report(result)["live keys"]) == (1, "0")

    def test_a_secret_that_does_not_open_is_an_internal_error(self, run: Run, organization: Organization) -> None:
        result = self.check(run, organization, organization.jwt("me"), CASES_SECRET_KEY=NEW_KEY)
        assert self.report(result)["answer"] == "500 internal_error"
        assert str(organization.kid) in result.err

    def test_control_characters_do_not_reach_the_terminal(self, run: Run, organization: Organization) -> None:
        result = self.check(run, organization, organization.signed({}, {"alg": "\x1b[2J" * 50}))
        assert "\x1b" not in result.out + result.err
        assert len(self.report(result)["algorithm"]) <= 80


class TestProcess:
    """What only shows from outside."""

    def test_the_statuses_are_the_processs(self, tmp_path: Path, database_url: str) -> None:
        statuses = {("--version",): 0, ("fetch",): 2, ("rotate-secrets",): 1}
        given = environment(CASES_DATA_DIR=str(tmp_path / "none"))
        for arguments, status in statuses.items():
            ended = subprocess.run([COMMAND, *arguments], env=given, cwd=tmp_path, capture_output=True, check=False)
            assert ended.returncode == status
            assert b"Traceback" not in ended.stderr

    @pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_a_signal_ends_a_command_quietly(self, database_url: str, number: signal.Signals, status: int) -> None:
        given = environment(DATABASE_URL=database_url)
        with subprocess.Popen(
            [COMMAND, "load", "-"], env=given, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as command:
            assert command.stdin is not None
            command.stdin.write(b" \n" * 3_000_000)
            command.send_signal(number)
            out, err = command.communicate()
        assert (command.returncode, out, err.strip()) == (status, b"", b"")

    def test_a_reader_that_has_gone_is_no_traceback(self, tmp_path: Path) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        with os.fdopen(writer, "wb") as out:
            ended = subprocess.run(
                [COMMAND, "--help"], env=environment(), cwd=tmp_path, stdout=out, stderr=subprocess.PIPE, check=False
            )
        assert b"Traceback" not in ended.stderr

    def test_it_runs_as_a_module_too(self) -> None:
        ran = subprocess.run(
            [sys.executable, "-m", "cases_service", "--version"], env=environment(), capture_output=True, check=True
        )
        assert ran.stdout.decode() == f"cases-service {__version__}\n"

    def test_two_processes_make_one_secret_key(self, tmp_path: Path) -> None:
        script = (
            "import pathlib, sys; from cases_service.embedded.data_directory import secret_key_file;"
            "print(secret_key_file(pathlib.Path(sys.argv[1])).read_text())"
        )
        commands = [
            subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, env=environment())
            for _ in range(8)
        ]
        keys = {command.communicate()[0] for command in commands}
        assert len(keys) == 1
        assert [path.name for path in tmp_path.iterdir()] == ["secret.key"]
        assert (tmp_path / "secret.key").stat().st_mode & 0o777 == 0o600
        assert read_settings({"CASES_SECRET_KEY_FILE": str(tmp_path / "secret.key")}).secret_keys


class TestListOrganizationsAndUsers:
    def test_organizations_are_shown_with_their_ids(self, run: Run, organization: Organization) -> None:
        rows = json.loads(run("list-organizations", "--json").out)
        (row,) = (row for row in rows if row["id"] == str(organization.id))
        assert row == {
            "id": str(organization.id),
            "name": "Acme",
            "subscription_status": "active",
            "subscription_ends_at": None,
        }
        assert str(organization.id) in run("list-organizations").out

    def test_users_are_shown_with_the_ids_that_create_token_takes(self, run: Run, organization: Organization) -> None:
        organization.user(email="zoe@example.com")
        rows = json.loads(run("list-users", "--organization", organization.id, "--json").out)
        assert [row["email"] for row in rows] == ["zoe@example.com", None]
        assert rows[1] == {"id": str(organization.user_id), "email": None, "first_name": "Ada", "last_name": "Byron"}
        made = run("create-token", "--organization", organization.id, "--user", rows[0]["id"])
        assert made.status == 0

    def test_a_terminal_is_shown_nothing_that_it_would_obey(self, run: Run, organization: Organization) -> None:
        organization.user(first_name="\x1b[2J")
        assert "\x1b" not in run("list-users", "--organization", organization.id).out

    def test_an_organization_that_does_not_exist_is_said(self, run: Run) -> None:
        assert_fails(run("list-users", "--organization", uuid4()), 1, "there is no organization")
