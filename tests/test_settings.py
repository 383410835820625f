"""The settings: read from the environment, wrong ones named, none quoted."""

import base64
from pathlib import Path

import msgspec
import pytest

from cases_service.settings import (
    Settings,
    SettingsError,
    environment_of,
    read_settings,
    unknown_names,
)

KEY = base64.urlsafe_b64encode(b"x" * 32).decode()

NAMES = [field.encode_name for field in msgspec.structs.fields(Settings)]


def example(key_file: str) -> dict[str, str]:
    """Return a value for each setting, but for the secret key, which the file has."""
    values = {
        "DATABASE_URL": "host=db",
        "CASES_ADMIN_DATABASE_URL": "host=db user=admin",
        "CASES_READ_DATABASE_URL": "host=replica",
        "CASES_WRITE_DATABASE_URL": "host=db user=writer",
        "CASES_POSTGRES_BIN": "/usr/bin",
        "CASES_SECRET_KEY_FILE": key_file,
        "CASES_ADMIN_BIND": "127.0.0.1:9000",
        "CASES_PUBLIC_URL": "https://cases.example.com",
        "CASES_JWT_AUDIENCE": "cases",
        "CASES_JWT_ISSUER": "issuer",
        "CASES_RATE_LIMIT_FAILED_AUTHENTICATIONS": "20/minute",
        "CASES_RATE_LIMIT_TOKEN": "50/second;1000/minute",
        "CASES_RATE_LIMIT_VISITOR": "5/second",
        "CASES_POOL_SIZE": "4",
        "CASES_LOCK_TIMEOUT": "1",
    }
    defaults = {name: value for name, value in environment_of(Settings()).items() if name not in values}
    return {**defaults, **values, "CASES_SECRET_KEY": ""}


def test_without_an_environment_everything_has_a_default() -> None:
    settings = read_settings({})
    assert (settings.database_url, settings.jwt_leeway, settings.jwt_max_ttl) == (None, 30, 86400)
    assert settings.connections * 2 == settings.threads


def test_an_empty_variable_is_not_set() -> None:
    assert read_settings({"CASES_JWT_AUDIENCE": "", "CASES_WORKERS": ""}) == read_settings({})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CASES_JWT_LEEWAY", "soon"),
        ("CASES_JWT_LEEWAY", "-1"),
        ("CASES_JWT_MAX_TTL", "0"),
        ("CASES_JWT_REQUIRE_EXP", "perhaps"),
        ("CASES_WORKERS", "0"),
        ("CASES_THREADS", "1.5"),
        ("CASES_POOL_SIZE", "0"),
        ("CASES_POOL_TIMEOUT", "nan"),
        ("CASES_STATEMENT_TIMEOUT", "inf"),
        ("CASES_TRUSTED_HOPS", "-1"),
        ("CASES_LOG_FORMAT", "xml"),
        ("CASES_LOG_LEVEL", "LOUD"),
        ("CASES_PUBLIC_URL", "help.example"),
        ("CASES_PUBLIC_URL", "ftp://help.example"),
        ("CASES_PUBLIC_URL", "https://user@help.example"),
        ("CASES_PUBLIC_URL", "https://help.example?x"),
        ("CASES_BIND", "8000"),
        ("CASES_BIND", "localhost:99999"),
        ("CASES_ADMIN_BIND", "9000"),
        ("CASES_ADMIN_BIND", "0.0.0.0:8000"),
        ("CASES_SECRET_KEY", "tiny"),
        ("CASES_SECRET_KEY", f"{KEY},tiny"),
        ("CASES_SECRET_KEY", KEY[:-4]),
        ("CASES_SECRET_KEY_FILE", "/nowhere/at/all"),
        ("CASES_ALLOWED_HOSTS", "help.example:443"),
        ("CASES_ALLOWED_HOSTS", "localhost,::1"),
        ("CASES_RATE_LIMIT_TOKEN", "often"),
        ("CASES_RATE_LIMIT_TOKEN", "0/minute"),
        ("CASES_RATE_LIMIT_TOKEN", "1/fortnight"),
        ("CASES_RATE_LIMIT_TOKEN", "9" * 5000 + "/second"),
        ("CASES_RATE_LIMIT_VISITOR", "10/second;often"),
        ("CASES_RATE_LIMIT_FAILED_AUTHENTICATIONS", "1/2 years"),
        ("CASES_RATE_LIMIT_STORAGE", "memory"),
        ("CASES_RATE_LIMIT_STORAGE", "memcached://localhost"),
        ("CASES_RATE_LIMIT_STORAGE", "redis://"),
        ("CASES_RATE_LIMIT_STORAGE", "redis://:hunter2@localhost:port"),
        ("CASES_RATE_LIMIT_STORAGE", "redis://:hunter2@localhost/0?socket_timeout=60"),
        ("CASES_RATE_LIMIT_STORAGE", "redis://:hunter2@[localhost"),
        ("PGTZ", "Asia/Tokyo"),
        ("PGDATESTYLE", "German"),
        ("DATABASE_URL", "postgresql://user:hunter2@[broken"),
        ("DATABASE_URL", "host=x hunter2"),
        ("DATABASE_URL", "host=x,y target_session_attrs=read-write"),
        ("CASES_LOCK_TIMEOUT", "5"),
        ("CASES_GRACEFUL_TIMEOUT", "17"),
    ],
)
def test_a_wrong_value_is_named_in_one_line_and_not_quoted(name: str, value: str) -> None:
    with pytest.raises(SettingsError) as error:
        read_settings({name: value})
    message = str(error.value)
    assert message.startswith(f"{name}: ")
    assert "\n" not in message
    assert "hunter2" not in message
    assert KEY not in message


@pytest.mark.parametrize("name", ["CASES_STATEMENT_TIMEOUT", "CASES_POOL_TIMEOUT", "CASES_DRAIN_SECONDS"])
def test_no_time_out_is_longer_than_the_one_around_it(name: str) -> None:
    with pytest.raises(SettingsError, match="CASES_GRACEFUL_TIMEOUT: expected more than"):
        read_settings({name: "13"})
    assert read_settings({name: "13", "CASES_GRACEFUL_TIMEOUT": "99"}).lock_seconds < 99


def test_several_secret_keys_are_separated_by_commas() -> None:
    other = base64.urlsafe_b64encode(b"y" * 32).decode()
    assert read_settings({"CASES_SECRET_KEY": f"{KEY}, {other}"}).secret_keys == (KEY, other)


def test_secret_keys_may_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    assert read_settings({"CASES_SECRET_KEY_FILE": str(file)}).secret_keys == (KEY,)
    with pytest.raises(SettingsError, match="both"):
        read_settings({"CASES_SECRET_KEY_FILE": str(file), "CASES_SECRET_KEY": KEY})


def test_a_misspelt_variable_is_found() -> None:
    assert unknown_names({"CASES_WORKER": "2", "CASES_WORKERS": "2", "OTHER": "1"}) == ["CASES_WORKER"]


def test_settings_travel_to_another_process() -> None:
    given = {
        "CASES_JWT_REQUIRE_EXP": "false",
        "CASES_POOL_TIMEOUT": "0.5",
        "CASES_WORKERS": "1",
        "CASES_SECRET_KEY": KEY,
    }
    settings = read_settings(given)
    assert read_settings(environment_of(settings)) == settings


def test_settings_do_not_show_their_secrets() -> None:
    settings = read_settings({"CASES_SECRET_KEY": KEY, "DATABASE_URL": "postgresql://u:hunter2@localhost/x"})
    assert KEY not in repr(settings)
    assert "hunter2" not in f"{settings}"


def test_every_setting_is_taken_without_outer_blanks_and_line_ends(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(KEY)
    given = example(str(file))
    assert read_settings({name: f" \t{value}\r\n" for name, value in given.items()}) == read_settings(given)


@pytest.mark.parametrize("blank", [" ", "\n", "\r\n", "\t \u00a0"])
def test_blanks_alone_are_not_set(blank: str) -> None:
    assert read_settings(dict.fromkeys(NAMES, blank)) == read_settings({})


@pytest.mark.parametrize("character", ["\n", "\r", "\t", "\0", "\x7f", "\x85", "\u2028", "\udcff"])
@pytest.mark.parametrize("name", NAMES)
def test_a_control_character_is_refused_in_every_setting(tmp_path: Path, name: str, character: str) -> None:
    value = example(str(tmp_path))[name] or KEY
    with pytest.raises(SettingsError) as error:
        read_settings({name: f"{value[:1]}{character}{value[1:]}x"})
    assert str(error.value) == f"{name}: expected UTF-8 without line ends and other control characters"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("CASES_THREADS", "many", "expected a whole number from 1 to 256"),
        ("CASES_THREADS", "257", "expected a whole number from 1 to 256"),
        ("CASES_POOL_SIZE", "0", "expected a whole number from 1 to 256"),
        ("CASES_JWT_MAX_TTL", "0", "expected a whole number above 0"),
        ("CASES_POOL_TIMEOUT", "0", "expected a number above 0 to 3600"),
        ("CASES_DRAIN_SECONDS", "-1", "expected a number from 0 to 3600"),
        ("CASES_LOCK_TIMEOUT", "soon", "expected a number above 0 to 3600"),
        ("CASES_JWT_REQUIRE_EXP", "maybe", "expected true or false"),
        ("CASES_DOCS", "On", "expected off or on"),
        ("CASES_LOG_FORMAT", "xml", "expected auto, console or json"),
        ("CASES_LOG_LEVEL", "loud", "expected debug, error, info or warning"),
    ],
)
def test_a_message_says_in_words_what_was_expected(name: str, value: str, expected: str) -> None:
    with pytest.raises(SettingsError) as error:
        read_settings({name: value})
    assert str(error.value) == f"{name}: {expected}"


@pytest.mark.parametrize(
    "url",
    [
        'https://cases.example.com/"onclick',
        "https://cases.example.com/'",
        "https://cases.example.com/a b",
        "https://cases .example.com",
        "https://f\u00e4lle.example.com",
        "https://cases.example.com/f\u00e4lle",
        "https://cases.example.com/%zz",
        "https://cases.example.com/<b>",
        "https://cases.example.com:0",
        "https://cases.example.com:65536",
        "https://cases.example.com:",
        "https://",
    ],
)
def test_a_public_url_holds_nothing_that_a_link_cannot_hold(url: str) -> None:
    with pytest.raises(SettingsError, match=r"^CASES_PUBLIC_URL: expected http"):
        read_settings({"CASES_PUBLIC_URL": url})


@pytest.mark.parametrize(
    "url", ["http://[::1]:8000/", "HTTPS://xn--flle-loa.example.com:443/a%20b/~c", "https://cases_1.example.com"]
)
def test_a_public_url_may_have_a_port_and_a_path(url: str) -> None:
    assert read_settings({"CASES_PUBLIC_URL": url}).public_url == url


@pytest.mark.parametrize("bind", ["unix:relative", "unix:/a b", "unix:/a:b", "unix:/a,b", f"unix:/{'x' * 103}"])
def test_a_socket_has_an_absolute_path_that_fits(bind: str) -> None:
    with pytest.raises(SettingsError, match=r"^CASES_BIND: expected"):
        read_settings({"CASES_BIND": bind})


def test_the_operators_address_is_told_by_the_name_of_the_listening_socket() -> None:
    tcp = read_settings({"CASES_BIND": "unix:/run/cases", "CASES_ADMIN_BIND": "127.0.0.1:9000"})
    assert [tcp.is_admin_address(name) for name in ("/run/cases", ("127.0.0.1", 9000), ("::1", 9000, 0, 0))] == [
        False,
        True,
        True,
    ]
    path = read_settings({"CASES_ADMIN_BIND": "unix:/run/admin"})
    assert [path.is_admin_address(name) for name in ("/run/admin", "", ("127.0.0.1", 8000))] == [True, False, False]
    both = {"CASES_BIND": "unix:/run/cases", "CASES_ADMIN_BIND": "unix:/run/cases"}
    with pytest.raises(SettingsError, match="CASES_ADMIN_BIND: expected another address"):
        read_settings(both)
    assert not read_settings({"CASES_BIND": "unix:/run/cases"}).is_admin_address("/run/cases")
