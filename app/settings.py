"""Every setting of the service and the worker, read from the environment."""

from functools import lru_cache
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

DEFAULT_HOME = Path.home() / ".modelpress"
Home = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]


class Settings(BaseSettings):
    """The three URLs have names that platforms know; everything else starts with MODELPRESS_."""

    model_config = SettingsConfigDict(env_prefix="MODELPRESS_", env_ignore_empty=True, validate_by_name=True)

    database_url: str = Field(validation_alias="DATABASE_URL", repr=False)
    redis_url: str = Field(validation_alias="REDIS_URL", repr=False)
    storage_url: str = Field("postgres:", validation_alias="STORAGE_URL", description="postgres: or file:///folder")

    home: Home = Field(DEFAULT_HOME, description="all state of an embedded start")
    secret: str = Field(min_length=32, repr=False, description="HMAC key of the API keys")
    api_key: str | None = Field(None, min_length=16, repr=False, description="created as the first key at start")
    max_upload_bytes: int = Field(64 << 30, gt=0)

    lease_seconds: float = Field(60, gt=0, description="a worker that is silent for this long has lost its job")
    heartbeat_seconds: float = Field(15, gt=0)
    reconcile_seconds: float = Field(5, gt=0, description="pause between two rounds of the reconciler")
    staged_seconds: float = Field(
        86400, gt=0, description="bytes that were never published are removed after this long"
    )

    worker_slots: int | None = Field(
        None, ge=1, description="compressions at once; one for every four cores by default"
    )
    ingest_slots: int = Field(1, ge=1, description="uploads read at once, beside the compressions")
    runner_memory_bytes: int | None = Field(None, gt=0, description="of one run; by default most of the machine's")
    poll_seconds: float = Field(5, gt=0, description="an idle worker looks for jobs this often without being woken")
    retry_seconds: float = Field(2, ge=0, description="pause before a second attempt; it doubles with each after that")
    shutdown_seconds: float = Field(20, ge=0, description="a job that has not ended by then is given back")
    scratch: Path | None = Field(None, description="folder for run directories; by default below MODELPRESS_HOME")


class UpSettings(BaseSettings):
    """What an embedded start decides by. All of the environment reaches the processes that it starts."""

    model_config = SettingsConfigDict(env_prefix="MODELPRESS_", env_ignore_empty=True, validate_by_name=True)

    database_url: str | None = Field(None, validation_alias="DATABASE_URL", repr=False)
    redis_url: str | None = Field(None, validation_alias="REDIS_URL", repr=False)
    home: Home = DEFAULT_HOME
    secret: str | None = Field(None, min_length=32, repr=False)
    api_key: str | None = Field(None, min_length=16, repr=False)


@lru_cache
def get_settings() -> Settings:
    return Settings()
