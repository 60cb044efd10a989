"""Every request of the API as data. How it is sent, at once or awaited, is not known here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypedDict, TypeVar
from urllib.parse import quote
from uuid import uuid4

import httpx
from pydantic import TypeAdapter

from modelpress.client.resources import Comparison, Dataset, Job, Model, Page, Plan, StepInfo
from modelpress.jobs import Budget, Format, JobData, Runtime, Targets, Task
from modelpress.report import Report
from modelpress.steps import Step

T = TypeVar("T")
Answer = Callable[[httpx.Response], T]

RecipeLike = Sequence[Step | Mapping[str, Any]] | Literal["auto"]


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request, and what its answer means."""

    method: str
    path: str
    answer: Answer[T]
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    upload: Path | None = None

    @property
    def repeatable(self) -> bool:
        """Whether sending it twice does no more than sending it once."""
        return self.method == "GET" or "Idempotency-Key" in self.headers

    def as_httpx(self) -> dict[str, Any]:
        """Arguments of httpx's `stream`, all but the content."""
        fields = {"method": self.method, "url": self.path, "params": self.params, "headers": self.headers}
        return fields if self.json is None else {**fields, "json": self.json}


def typed(kind: type[T]) -> Answer[T]:
    adapter = TypeAdapter(kind)
    return lambda response: adapter.validate_json(response.content)


MODEL, DATASET, JOB = typed(Model), typed(Dataset), typed(Job)


def at(collection: str, resource_id: str, *more: str) -> str:
    return "/".join(("/v1", collection, quote(resource_id, safe=""), *more))


def upload(collection: str, path: Path, digest: str, answer: Answer[T], **given: str | None) -> Call[T]:
    params = {"filename": path.name} | {key: value for key, value in given.items() if value is not None}
    headers = {
        "Content-Type": "application/octet-stream",
        "Content-Length": str(path.stat().st_size),
        "Repr-Digest": digest,
    }
    return Call("POST", f"/v1/{collection}", answer, params, headers, upload=path)


def get_model(model_id: str, wait_seconds: float = 0) -> Call[Model]:
    return Call("GET", at("models", model_id), MODEL, headers=prefer_wait(wait_seconds))


def get_dataset(dataset_id: str, wait_seconds: float = 0) -> Call[Dataset]:
    return Call("GET", at("datasets", dataset_id), DATASET, headers=prefer_wait(wait_seconds))


def get_job(job_id: str) -> Call[Job]:
    return Call("GET", at("jobs", job_id), JOB)


def watch_job(job_id: str, known: Job, wait_seconds: float) -> Call[Job]:
    """Answered when the job is no longer as it is known; with what is known, where that takes too long."""
    headers = prefer_wait(wait_seconds) | {"If-None-Match": f'"{known.version}"'}

    def answer(response: httpx.Response) -> Job:
        return known if response.status_code == httpx.codes.NOT_MODIFIED else JOB(response)

    return Call("GET", at("jobs", job_id), answer, headers=headers)


def prefer_wait(seconds: float) -> dict[str, str]:
    """The answer may be held back until there is news."""
    return {"Prefer": f"wait={max(1, round(seconds))}"} if seconds else {}


def remove(collection: str, resource_id: str) -> Call[None]:
    return Call("DELETE", at(collection, resource_id), lambda _: None)


def list_page(collection: str, kind: type[T], page_size: int | None, page_token: str | None) -> Call[Page[T]]:
    given = {"page_size": page_size, "page_token": page_token}
    params = {key: str(value) for key, value in given.items() if value is not None}
    return Call("GET", f"/v1/{collection}", typed(Page[kind]), params)  # type: ignore[valid-type] # made at run time


class JobOptions(TypedDict, total=False):
    """What a job may be given besides a model and a recipe; see the API's description of POST /v1/jobs."""

    data: JobData[str] | Mapping[str, str]
    teacher: str
    task: Task | Mapping[str, Any]
    targets: Targets | Mapping[str, Any]
    formats: Sequence[Format]
    budget: Budget | Mapping[str, Any]
    runtime: Runtime
    seed: int
    queue: Literal["cpu", "gpu"]
    labels: Mapping[str, str]


def create_job(model: str, recipe: RecipeLike, options: JobOptions) -> Call[Job]:
    """The service has the last word on the recipe: what is given as a mapping is sent as it is."""
    headers = {"Idempotency-Key": uuid4().hex}
    return Call("POST", "/v1/jobs", JOB, headers=headers, json=job_request(model, recipe, options))


def plan_job(model: str, recipe: RecipeLike, options: JobOptions) -> Call[Plan]:
    body = job_request(model, recipe, options)
    return Call("POST", "/v1/jobs", typed(Plan), {"dry_run": "true"}, json=body)


def job_request(model: str, recipe: RecipeLike, options: JobOptions) -> dict[str, Any]:
    given = {key: plain(value) for key, value in options.items()}
    steps = recipe if isinstance(recipe, str) else [plain(step) for step in recipe]
    return {"model": model, "recipe": steps, **given}


def job_action(job_id: str, action: str) -> Call[Job]:
    return Call("POST", at("jobs", job_id, action), JOB)


def stream_events(job_id: str, after: int) -> Call[None]:
    headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": str(after)} if after else {})
    return Call("GET", at("jobs", job_id, "events"), lambda _: None, headers=headers)


def get_report(job_id: str) -> Call[Report]:
    return Call("GET", at("jobs", job_id, "report"), typed(Report))


def get_log(job_id: str) -> Call[str]:
    return Call("GET", at("jobs", job_id, "log"), lambda response: response.text)


def get_content(model_id: str, file_format: str, start: int) -> Call[None]:
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    return Call("GET", at("models", model_id, "content"), lambda _: None, {"format": file_format}, headers)


def compare(baseline: str, candidates: Sequence[str]) -> Call[Comparison]:
    body = {"baseline": baseline, "candidates": list(candidates)}
    return Call("POST", "/v1/comparisons", typed(Comparison), json=body)


def list_steps() -> Call[tuple[StepInfo, ...]]:
    return Call("GET", "/v1/steps", lambda response: typed(Page[StepInfo])(response).items)


def get_step(name: str) -> Call[StepInfo]:
    return Call("GET", at("steps", name), typed(StepInfo))


def plain(value: Any) -> Any:
    """A model of pydantic as its JSON, without what was not set; anything else as it is."""
    if isinstance(value, Step):  # its discriminator is a default
        return {"step": value.step, **value.model_dump(mode="json", exclude_unset=True)}
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json", exclude_unset=True)
    return dict(value) if isinstance(value, Mapping) else value
