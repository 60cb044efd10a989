from typing import Literal

from pydantic import BaseModel, Field

State = Literal["up", "down"]


class Alive(BaseModel):
    status: Literal["alive"] = "alive"


class Part(BaseModel):
    status: State
    detail: str = ""


class Worker(BaseModel):
    name: str
    queues: list[str]
    sandbox: list[str] = Field(description="the rungs that hold for its runners; empty until they are ready")


class Readiness(BaseModel):
    status: Literal["ready", "not ready"]
    parts: dict[str, Part] = Field(description="database, redis, storage")
    workers: list[Worker] = Field(
        description="those seen lately; without any, jobs are taken and wait, so the service is ready all the same"
    )


class Version(BaseModel):
    version: str
    api: Literal["v1"] = "v1"
