"""What takes more than one request: repeating, waiting, downloading. Written once, for both clients.

A flow is a generator that yields what shall be done (a `Call`, a `Fetch`, `Work` or a `Pause`), is sent what came of
it, and returns the result. It does no network traffic itself, reads no file and never sleeps.
"""

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from modelpress.client import calls
from modelpress.client.calls import Call
from modelpress.client.errors import ModelpressError
from modelpress.client.files import PartFile, repr_digest
from modelpress.client.folders import zip_folder
from modelpress.client.resources import Dataset, File, Job, Model

T = TypeVar("T")
Upload = TypeVar("Upload", Model, Dataset)

TRIES = 4
BUSY = frozenset({429, 502, 503, 504})
LONG_POLL_SECONDS = 30


@dataclass(frozen=True)
class Pause:
    seconds: float


@dataclass(frozen=True)
class Work:
    """Something that keeps the disk busy."""

    do: Callable[[], Any]


@dataclass(frozen=True)
class Fetch:
    """Write the answer's body to the file as it comes."""

    call: Call[None]
    into: PartFile


Todo = Call[Any] | Fetch | Work | Pause
Flow = Generator[Todo, Any, T]


def send(call: Call[T]) -> Flow[T]:
    """One call, sent again where that is harmless and may help."""
    for attempt in range(1, TRIES + 1):
        try:
            answer: T = yield call
        except ModelpressError as error:
            hopeless = error.code != "unreachable" and error.status not in BUSY
            if hopeless or attempt == TRIES or not call.repeatable:
                raise
            yield Pause(backoff(attempt))
        else:
            return answer
    raise AssertionError("the last try returns or raises")


def backoff(failures: int) -> float:
    """Seconds to wait after so many failures in a row."""
    return min(0.25 * 2.0 ** (failures - 1), 10)


def upload_model(path: Path, name: str | None, architecture: str | None) -> Flow[Model]:
    """A folder goes as an archive, which is gone afterwards."""
    with TemporaryDirectory(prefix="modelpress-") as scratch:
        if path.is_dir():
            archive = Path(scratch) / f"{path.resolve().name}.zip"
            yield Work(partial(zip_folder, path, archive))
            path = archive
        digest = yield Work(partial(repr_digest, path))
        call = calls.upload("models", path, digest, calls.MODEL, name=name, architecture=architecture)
        return (yield from send(call))


def upload_dataset(path: Path, name: str | None) -> Flow[Dataset]:
    digest = yield Work(partial(repr_digest, path))
    return (yield from send(calls.upload("datasets", path, digest, calls.DATASET, name=name)))


def until_read(upload: Upload, timeout: float | None) -> Flow[Upload]:
    """Wait until the service has read an upload. Raises ModelpressError where it was rejected."""
    get: Any = calls.get_model if isinstance(upload, Model) else calls.get_dataset
    deadline = deadline_in(timeout)
    while upload.status == "processing":
        if time.monotonic() > deadline:
            raise TimeoutError(f"{upload.id} was not read within {timeout} s: is a worker running?")
        upload = yield from send(get(upload.id, LONG_POLL_SECONDS))
    if upload.error is not None:
        raise ModelpressError(upload.error.code, upload.error.message, title=f"{upload.name} was rejected")
    return upload


def until_done(job_id: str, on_progress: Callable[[Job], None] | None, timeout: float | None) -> Flow[Job]:
    """Wait for a job's end, whatever that is. `on_progress` is called with each new state of the job."""
    deadline = deadline_in(timeout)
    job = yield from send(calls.get_job(job_id))
    while True:
        if on_progress is not None:
            on_progress(job)
        if job.done:
            return job
        known = job
        while job is known:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"{job_id} is still {job.status} after {timeout} s")
            job = yield from send(calls.watch_job(job_id, known, min(left, LONG_POLL_SECONDS)))


def download(model_id: str, target: Path, file_format: str | None) -> Flow[Path]:
    """Bytes that are already here from an earlier, broken download are not fetched again."""
    model = yield from send(calls.get_model(model_id))
    wanted = choose_file(model, file_format)
    path = target / suggested_name(model, wanted) if target.is_dir() else target
    failures = 0
    part = PartFile(path, wanted.sha256)
    yield Work(part.open)
    try:
        while part.size < wanted.size_bytes:
            before = part.size
            try:
                yield Fetch(calls.get_content(model_id, wanted.format, part.size), part)
            except ModelpressError as error:
                failures = 1 if part.size > before else failures + 1
                if error.code != "unreachable" or failures == TRIES:
                    raise
                yield Pause(backoff(failures))
        yield Work(part.finish)
    finally:
        part.close()
    return path


def choose_file(model: Model, file_format: str | None) -> File:
    for file in model.files:
        if file_format in {None, file.format}:
            return file
    there = ", ".join(file.format for file in model.files) or "none"
    raise ModelpressError("format_not_found", f"{model.id} has no file in the format {file_format}; it has: {there}")


def suggested_name(model: Model, file: File) -> str:
    stem = "".join(c if c.isalnum() or c in "-_." else "_" for c in model.name).strip("._") or model.id
    suffix = PurePath(file.filename).suffix
    return stem if stem.endswith(suffix) else f"{stem}{suffix}"


def deadline_in(timeout: float | None) -> float:
    return float("inf") if timeout is None else time.monotonic() + timeout
