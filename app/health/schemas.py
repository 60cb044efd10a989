from typing import Literal

from pydantic import BaseModel, Field

State = Literal["up", "down"]


class Alive(BaseModel):
    status: Literal["alive"] = "alive"


class Part(BaseModel):
    status: State
    detail: str = ""


class Readiness(BaseModel):
    status: Literal["ready", "not ready"]
    parts: dict[str, Part] = Field(description="database, redis, storage")


class Version(BaseModel):
    version: str
    api: Literal["v1"] = "v1"
