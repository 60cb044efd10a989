"""The real engine in the real sandbox: what it needs to load, read and write must lie within."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.settings import Settings
from tests.worker.jobs import Desk
from workers.worker import Worker

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[2] / "examples/fashion_mnist"


@pytest.fixture
def worker(settings: Settings) -> Iterator[Worker]:
    worker = Worker(settings.model_copy(update={"runner_memory_bytes": 4 << 30}), ("cpu", "ingest"))
    worker.start()
    yield worker
    worker.close()


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    ("name", "step", "least"),
    [("lenet5.onnx", "half_precision", 1.5), ("resnet.pt2", "static_quantization", 2.5)],
)
def test_a_small_network_goes_through(desk: Desk, name: str, step: str, least: float) -> None:
    model, data = (EXAMPLE / name).read_bytes(), (EXAMPLE / "calibrate.npz").read_bytes()
    desk.wait(desk.inspect_model(model), "succeeded", seconds=60)
    dataset = desk.wait(desk.inspect_dataset(data), "succeeded").dataset_id
    roles = {"calibrate": str(dataset), "evaluate": str(dataset)}
    job_id = desk.compress(model, request={"recipe": [{"step": step}]}, data=roles)
    job = desk.wait(job_id, "succeeded", seconds=60)
    assert job.report is not None
    assert job.report["size_ratio"] > least
    assert len(desk.results(job_id)) == 1
    assert job.environment is not None
    assert "no_network" in job.environment["sandbox"]
    assert not job.log


def test_the_engine_loads_without_starting_a_thread(worker: Worker) -> None:
    """The zygote ends with an error where it does."""
    assert worker.pool.ready.wait(60)
