"""Settings come from the environment, under the names that the README gives."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from app.settings import Settings, UpSettings

NEEDED = {"DATABASE_URL": "postgresql://db/x", "REDIS_URL": "redis://r", "MODELPRESS_SECRET": "s" * 32}


@pytest.fixture
def environment(monkeypatch):
    for name in [*NEEDED, "STORAGE_URL", "MODELPRESS_HOME", "MODELPRESS_API_KEY", "MODELPRESS_MAX_UPLOAD_BYTES"]:
        monkeypatch.delenv(name, raising=False)

    def give(**values: str) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return give


def test_names_and_defaults(environment):
    environment(**NEEDED, MODELPRESS_MAX_UPLOAD_BYTES="1000", MODELPRESS_HOME="~/elsewhere")
    settings = Settings()
    assert settings.database_url == "postgresql://db/x"
    assert settings.redis_url == "redis://r"
    assert settings.storage_url == "postgres:"
    assert settings.max_upload_bytes == 1000
    assert settings.home == Path.home() / "elsewhere"
    assert settings.api_key is None


def test_an_empty_variable_is_one_that_is_not_set(environment):
    """As compose files write it: `STORAGE_URL: ${STORAGE_URL:-}`."""
    environment(**NEEDED, STORAGE_URL="", MODELPRESS_API_KEY="")
    assert Settings().storage_url == "postgres:"
    assert Settings().api_key is None


@pytest.mark.parametrize("missing", NEEDED)
def test_what_is_needed_is_named_where_it_is_missing(environment, missing):
    environment(**{name: value for name, value in NEEDED.items() if name != missing})
    with pytest.raises(
        ValidationError, match=missing.removeprefix("MODELPRESS_").lower() if "SECRET" in missing else missing
    ):
        Settings()


def test_secrets_do_not_show(environment):
    environment(**NEEDED | {"DATABASE_URL": "postgresql://u:hidden@db/x"}, MODELPRESS_API_KEY="mp_hidden_0123456789")
    assert "hidden" not in repr(Settings())
    assert "s" * 32 not in repr(Settings())


def test_an_embedded_start_needs_nothing(environment):
    environment()
    settings = UpSettings()
    assert settings.database_url is None
    assert settings.redis_url is None
    assert settings.home == Path.home() / ".modelpress"
