"""The client for asynchronous code: the same methods as `Client`, awaited."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import anyio
import anyio.to_thread
import httpx

from modelpress.client import calls, flows
from modelpress.client.calls import Call, JobOptions, RecipeLike
from modelpress.client.connection import http_options
from modelpress.client.errors import ModelpressError
from modelpress.client.events import EventFeed
from modelpress.client.files import PIECE
from modelpress.client.flows import Fetch, Flow, Pause, Todo, Work
from modelpress.client.resources import Comparison, Dataset, Job, JobEvent, Model, Page, Plan, StepInfo
from modelpress.report import Report

T = TypeVar("T")


class AsyncClient:
    """`async with AsyncClient(url, api_key) as client: …`. See `Client` for what each method does."""

    def __init__(self, url: str | None = None, api_key: str | None = None) -> None:
        self._http = httpx.AsyncClient(**http_options(url, api_key))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()

    # models

    async def upload_model(
        self, path: str | Path, name: str | None = None, *, architecture: str | None = None
    ) -> Model:
        return await self._run(flows.upload_model(Path(path), name, architecture))

    async def get_model(self, model_id: str) -> Model:
        return await self._run(flows.send(calls.get_model(model_id)))

    async def list_models(self, page_size: int | None = None, page_token: str | None = None) -> Page[Model]:
        return await self._run(flows.send(calls.list_page("models", Model, page_size, page_token)))

    def iterate_models(self) -> AsyncIterator[Model]:
        return self._pages(self.list_models)

    async def delete_model(self, model_id: str) -> None:
        await self._run(flows.send(calls.remove("models", model_id)))

    async def download(self, model_id: str, target: str | Path, file_format: str | None = None) -> Path:
        return await self._run(flows.download(model_id, Path(target), file_format))

    # datasets

    async def upload_dataset(self, path: str | Path, name: str | None = None) -> Dataset:
        return await self._run(flows.upload_dataset(Path(path), name))

    async def get_dataset(self, dataset_id: str) -> Dataset:
        return await self._run(flows.send(calls.get_dataset(dataset_id)))

    async def list_datasets(self, page_size: int | None = None, page_token: str | None = None) -> Page[Dataset]:
        return await self._run(flows.send(calls.list_page("datasets", Dataset, page_size, page_token)))

    def iterate_datasets(self) -> AsyncIterator[Dataset]:
        return self._pages(self.list_datasets)

    async def delete_dataset(self, dataset_id: str) -> None:
        await self._run(flows.send(calls.remove("datasets", dataset_id)))

    async def wait(self, upload: flows.Upload, timeout: float | None = None) -> flows.Upload:  # noqa: ASYNC109 - as in Client
        return await self._run(flows.until_read(upload, timeout))

    # jobs

    async def create_job(self, model_id: str, recipe: RecipeLike, **options: Unpack[JobOptions]) -> Job:
        return await self._run(flows.send(calls.create_job(model_id, recipe, options)))

    async def plan_job(self, model_id: str, recipe: RecipeLike, **options: Unpack[JobOptions]) -> Plan:
        return await self._run(flows.send(calls.plan_job(model_id, recipe, options)))

    async def get_job(self, job_id: str) -> Job:
        return await self._run(flows.send(calls.get_job(job_id)))

    async def list_jobs(self, page_size: int | None = None, page_token: str | None = None) -> Page[Job]:
        return await self._run(flows.send(calls.list_page("jobs", Job, page_size, page_token)))

    def iterate_jobs(self) -> AsyncIterator[Job]:
        return self._pages(self.list_jobs)

    async def cancel_job(self, job_id: str) -> Job:
        return await self._run(flows.send(calls.job_action(job_id, "cancel")))

    async def retry_job(self, job_id: str) -> Job:
        return await self._run(flows.send(calls.job_action(job_id, "retry")))

    async def wait_job(
        self,
        job_id: str,
        on_progress: Callable[[Job], None] | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - as in Client
    ) -> Job:
        return await self._run(flows.until_done(job_id, on_progress, timeout))

    async def events(self, job_id: str, after: int = 0) -> AsyncIterator[JobEvent]:
        feed = EventFeed(after)
        while not feed.finished:
            try:
                async with self._open(calls.stream_events(job_id, feed.last)) as response:
                    async for line in response.aiter_lines():
                        if event := feed.line(line):
                            yield event
                pause = feed.ended()
            except ModelpressError as error:
                pause = feed.failed(error)
            await anyio.sleep(pause)

    async def report(self, job_id: str) -> Report:
        return await self._run(flows.send(calls.get_report(job_id)))

    async def log(self, job_id: str) -> str:
        return await self._run(flows.send(calls.get_log(job_id)))

    # the rest

    async def compare(self, baseline: str, candidates: Sequence[str]) -> Comparison:
        return await self._run(flows.send(calls.compare(baseline, candidates)))

    async def steps(self) -> tuple[StepInfo, ...]:
        return await self._run(flows.send(calls.list_steps()))

    async def step(self, name: str) -> StepInfo:
        return await self._run(flows.send(calls.get_step(name)))

    async def _run(self, flow: Flow[T]) -> T:
        try:
            todo = next(flow)
            while True:
                try:
                    done = await self._do(todo)
                except ModelpressError as error:
                    todo = flow.throw(error)
                else:
                    todo = flow.send(done)
        except StopIteration as end:
            result: T = end.value
            return result

    async def _do(self, todo: Todo) -> Any:
        match todo:
            case Pause():
                return await anyio.sleep(todo.seconds)
            case Work():
                return await anyio.to_thread.run_sync(todo.do)
            case Fetch():
                return await self._fetch(todo)
            case Call():
                async with self._open(todo) as response:
                    await response.aread()
                    return todo.answer(response)

    @asynccontextmanager
    async def _open(self, call: Call[Any]) -> AsyncIterator[httpx.Response]:
        try:
            content = _pieces(call.upload) if call.upload else None
            async with self._http.stream(**call.as_httpx(), content=content) as response:
                if response.is_error:
                    await response.aread()
                    raise ModelpressError.from_response(response)
                yield response
        except httpx.TransportError as error:
            raise ModelpressError.unreachable(self._http.base_url, error) from error

    async def _fetch(self, fetch: Fetch) -> None:
        async with self._open(fetch.call) as response:
            fetch.into.begin(resumed=response.status_code == httpx.codes.PARTIAL_CONTENT)
            async for piece in response.aiter_raw():
                await anyio.to_thread.run_sync(fetch.into.write, piece)

    @staticmethod
    async def _pages(list_page: Callable[[int | None, str | None], Awaitable[Page[T]]]) -> AsyncIterator[T]:
        token: str | None = None
        while True:
            page = await list_page(100, token)
            for item in page.items:
                yield item
            token = page.next_page_token
            if token is None:
                return


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    async with await anyio.open_file(path, "rb") as file:
        while piece := await file.read(PIECE):
            yield piece
