"""The real engine in the real sandbox: what it needs to load, read and write must lie within."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.settings import Settings
from tests.worker.jobs import Desk
from workers.worker import Worker

EXAMPLE = Path(__file__).parents[2] / "examples/fashion_mnist"


@pytest.fixture
def worker(settings: Settings) -> Iterator[Worker]:
    worker = Worker(settings.model_copy(update={"runner_memory_bytes": 4 << 30}), ("cpu", "ingest"))
    worker.start()
    yield worker
    worker.close()


@pytest.mark.usefixtures("worker")
def test_a_small_network_goes_through(desk: Desk) -> None:
    model, data = ((EXAMPLE / name).read_bytes() for name in ("lenet5.onnx", "calibrate.npz"))
    desk.wait(desk.inspect_model(model), "succeeded", seconds=60)
    desk.wait(desk.inspect_dataset(data), "succeeded")
    job_id = desk.compress(model)
    job = desk.wait(job_id, "succeeded")
    assert job.report is not None
    assert job.report["size_ratio"] > 1.5
    assert len(desk.results(job_id)) == 1
    assert job.environment is not None
    assert "no_network" in job.environment["sandbox"]
    assert not job.log


def test_the_engine_loads_without_starting_a_thread(worker: Worker) -> None:
    """The zygote ends with an error where it does."""
    assert worker.pool.ready.wait(60)
