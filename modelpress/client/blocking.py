"""The client for ordinary code. `AsyncClient` has the same methods, awaited."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx

from modelpress.client import calls, flows
from modelpress.client.calls import Call, JobOptions, RecipeLike
from modelpress.client.connection import http_options
from modelpress.client.errors import ModelpressError
from modelpress.client.events import EventFeed
from modelpress.client.flows import Fetch, Flow, Pause, Todo, Work
from modelpress.client.resources import Comparison, Dataset, Job, JobEvent, Model, Page, Plan, StepInfo
from modelpress.report import Report

T = TypeVar("T")


class Client:
    """`with Client(url, api_key) as client: …`. Every method raises ModelpressError where the service says no."""

    def __init__(self, url: str | None = None, api_key: str | None = None) -> None:
        self._http = httpx.Client(**http_options(url, api_key))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # models

    def upload_model(self, path: str | Path, name: str | None = None, *, architecture: str | None = None) -> Model:
        """Send a file as it is, or a folder: one of Hugging Face, or an ONNX file with its external data.

        `architecture`: for weights alone, the id of a model with their layers. The service reads it later: see `wait`.
        """
        return self._run(flows.upload_model(Path(path), name, architecture))

    def get_model(self, model_id: str) -> Model:
        return self._run(flows.send(calls.get_model(model_id)))

    def list_models(self, page_size: int | None = None, page_token: str | None = None) -> Page[Model]:
        return self._run(flows.send(calls.list_page("models", Model, page_size, page_token)))

    def iterate_models(self) -> Iterator[Model]:
        """All of them, newest first."""
        return self._pages(self.list_models)

    def delete_model(self, model_id: str) -> None:
        """Refused while a job or another model refers to it."""
        self._run(flows.send(calls.remove("models", model_id)))

    def download(self, model_id: str, target: str | Path, file_format: str | None = None) -> Path:
        """Write a model's file, checked against its digest, to a path or into a folder. A broken download goes on."""
        return self._run(flows.download(model_id, Path(target), file_format))

    # datasets

    def upload_dataset(self, path: str | Path, name: str | None = None) -> Dataset:
        """Send a file as it is. The service reads it later: see `wait`."""
        return self._run(flows.upload_dataset(Path(path), name))

    def get_dataset(self, dataset_id: str) -> Dataset:
        return self._run(flows.send(calls.get_dataset(dataset_id)))

    def list_datasets(self, page_size: int | None = None, page_token: str | None = None) -> Page[Dataset]:
        return self._run(flows.send(calls.list_page("datasets", Dataset, page_size, page_token)))

    def iterate_datasets(self) -> Iterator[Dataset]:
        return self._pages(self.list_datasets)

    def delete_dataset(self, dataset_id: str) -> None:
        self._run(flows.send(calls.remove("datasets", dataset_id)))

    def wait(self, upload: flows.Upload, timeout: float | None = None) -> flows.Upload:
        """Wait until a model or dataset has been read. Raises ModelpressError where it was rejected, TimeoutError."""
        return self._run(flows.until_read(upload, timeout))

    # jobs

    def create_job(self, model_id: str, recipe: RecipeLike, **options: Unpack[JobOptions]) -> Job:
        """Start a job. Options: data, teacher, task, targets, budget, formats, runtime, seed, queue, labels."""
        return self._run(flows.send(calls.create_job(model_id, recipe, options)))

    def plan_job(self, model_id: str, recipe: RecipeLike, **options: Unpack[JobOptions]) -> Plan:
        """Check everything as `create_job` does, and say what would be done; nothing is started."""
        return self._run(flows.send(calls.plan_job(model_id, recipe, options)))

    def get_job(self, job_id: str) -> Job:
        return self._run(flows.send(calls.get_job(job_id)))

    def list_jobs(self, page_size: int | None = None, page_token: str | None = None) -> Page[Job]:
        return self._run(flows.send(calls.list_page("jobs", Job, page_size, page_token)))

    def iterate_jobs(self) -> Iterator[Job]:
        return self._pages(self.list_jobs)

    def cancel_job(self, job_id: str) -> Job:
        return self._run(flows.send(calls.job_action(job_id, "cancel")))

    def retry_job(self, job_id: str) -> Job:
        return self._run(flows.send(calls.job_action(job_id, "retry")))

    def wait_job(
        self, job_id: str, on_progress: Callable[[Job], None] | None = None, timeout: float | None = None
    ) -> Job:
        """Wait for the end, whatever it is. `on_progress` is called with each new state. Raises TimeoutError."""
        return self._run(flows.until_done(job_id, on_progress, timeout))

    def events(self, job_id: str, after: int = 0) -> Iterator[JobEvent]:
        """What happens to a job, until its end. A broken connection is taken up again; nothing is lost or doubled."""
        feed = EventFeed(after)
        while not feed.finished:
            try:
                with self._open(calls.stream_events(job_id, feed.last)) as response:
                    for line in response.iter_lines():
                        if event := feed.line(line):
                            yield event
                pause = feed.ended()
            except ModelpressError as error:
                pause = feed.failed(error)
            time.sleep(pause)

    def report(self, job_id: str) -> Report:
        return self._run(flows.send(calls.get_report(job_id)))

    def log(self, job_id: str) -> str:
        """What the runner printed, for when something went wrong."""
        return self._run(flows.send(calls.get_log(job_id)))

    # the rest

    def compare(self, baseline: str, candidates: Sequence[str]) -> Comparison:
        """A table of results that were measured against the same original."""
        return self._run(flows.send(calls.compare(baseline, candidates)))

    def steps(self) -> tuple[StepInfo, ...]:
        return self._run(flows.send(calls.list_steps()))

    def step(self, name: str) -> StepInfo:
        return self._run(flows.send(calls.get_step(name)))

    def _run(self, flow: Flow[T]) -> T:
        try:
            todo = next(flow)
            while True:
                try:
                    done = self._do(todo)
                except ModelpressError as error:
                    todo = flow.throw(error)
                else:
                    todo = flow.send(done)
        except StopIteration as end:
            result: T = end.value
            return result

    def _do(self, todo: Todo) -> Any:
        match todo:
            case Pause():
                return time.sleep(todo.seconds)
            case Work():
                return todo.do()
            case Fetch():
                return self._fetch(todo)
            case Call():
                with self._open(todo) as response:
                    response.read()
                    return todo.answer(response)

    @contextmanager
    def _open(self, call: Call[Any]) -> Iterator[httpx.Response]:
        with ExitStack() as stack:
            try:
                content = stack.enter_context(call.upload.open("rb")) if call.upload else None
                response = stack.enter_context(self._http.stream(**call.as_httpx(), content=content))
                if response.is_error:
                    response.read()
                    raise ModelpressError.from_response(response)
                yield response
            except httpx.TransportError as error:
                raise ModelpressError.unreachable(self._http.base_url, error) from error

    def _fetch(self, fetch: Fetch) -> None:
        with self._open(fetch.call) as response:
            fetch.into.begin(resumed=response.status_code == httpx.codes.PARTIAL_CONTENT)
            for piece in response.iter_raw():
                fetch.into.write(piece)

    @staticmethod
    def _pages(list_page: Callable[[int | None, str | None], Page[T]]) -> Iterator[T]:
        token: str | None = None
        while True:
            page = list_page(100, token)
            yield from page.items
            token = page.next_page_token
            if token is None:
                return
