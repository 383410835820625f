"""The settings: read from the environment, wrong ones named, none quoted."""

import base64
from pathlib import Path

import pytest

from cases_service.settings import (
    SettingsError,
    environment_of,
    read_settings,
    unknown_names,
)

KEY = base64.urlsafe_b64encode(b"x" * 32).decode()


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
