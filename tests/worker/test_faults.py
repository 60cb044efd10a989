"""Processes die, stop and are ended at the worst moment; every job comes to a good end, once."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from redis import Redis
from sqlalchemy import Engine, func
from uuid6 import uuid7

from app.db.tables import Job
from app.queue import make_celery, wake
from app.settings import Settings
from tests.worker.jobs import Desk, program, until
from tests.worker.processes import REAL_WORKER, RECONCILER, WORKER, Service, busy_runner
from workers.takeover import take_back

pytestmark = pytest.mark.slow


EXAMPLE = Path(__file__).parents[2] / "examples/fashion_mnist"
EPOCHS = 40
"""Some seconds of training, so that there is time to end it."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "logs"
    folder.mkdir()
    return folder


@pytest.fixture
def service(settings: Settings, folder: Path) -> Iterator[Service]:
    with Service(settings, folder, WORKER) as service:
        yield service


@pytest.fixture
def reconciler(settings: Settings, folder: Path) -> Iterator[Service]:
    with Service(settings, folder, RECONCILER) as reconciler:
        yield reconciler


def test_a_killed_runner_costs_one_attempt(desk: Desk, service: Service) -> None:
    job_id = desk.compress(program("succeed", seconds=1))
    busy_runner(service).kill()
    job = desk.wait(job_id, "succeeded")
    assert job.attempt == 2
    assert len(desk.results(job_id)) == 1
    assert [event["status"] for event in desk.events(job_id)] == ["running", "queued", "running", "succeeded"]


@pytest.mark.usefixtures("reconciler")
def test_a_killed_worker_takes_its_runners_along_and_the_next_one_does_the_job(
    desk: Desk, service: Service, settings: Settings, folder: Path
) -> None:
    job_id = desk.compress(program("succeed", seconds=1))
    busy_runner(service)
    family = service.below()
    assert len(family) >= 3
    service.kill()
    until(lambda: not any(process.is_running() for process in family), 3)
    with Service(settings, folder):
        folders = [path for path in (settings.home / "scratch").iterdir() if path.is_dir()]
        assert len(folders) == 1  # what the killed one left is swept
        assert desk.wait(job_id, "succeeded").attempt == 2
        assert len(desk.results(job_id)) == 1


def test_a_worker_that_comes_back_need_not_wait_for_the_lease_of_the_killed_one(
    desk: Desk, settings: Settings, folder: Path
) -> None:
    patient = settings.model_copy(update={"lease_seconds": 1000})
    with Service(patient, folder) as service:
        job_id = desk.compress(program("succeed", seconds=1))
        busy_runner(service)
        service.kill()
        with Service(patient, folder):
            assert desk.wait(job_id, "succeeded").attempt == 2


def test_a_worker_leaves_the_jobs_of_its_living_neighbours_alone(
    desk: Desk, service: Service, settings: Settings, folder: Path
) -> None:
    job_id = desk.compress(program("succeed", seconds=3))
    busy_runner(service)
    with Service(settings, folder):
        assert desk.wait(job_id, "succeeded").attempt == 1


def test_a_training_survives_the_end_of_its_runner_and_of_its_worker(
    desk: Desk, settings: Settings, folder: Path
) -> None:
    """The real engine: what two attempts have trained, the third does not train again."""
    model, data = ((EXAMPLE / name).read_bytes() for name in ("lenet5.onnx", "calibrate.npz"))
    roomy = settings.model_copy(update={"runner_memory_bytes": 4 << 30})
    recipe = {"recipe": [{"step": "distillation", "epochs": EPOCHS, "batch_size": 16}]}
    with Service(roomy, folder, REAL_WORKER) as service:
        dataset = desk.wait(desk.inspect_dataset(data), "succeeded", seconds=60).dataset_id
        job_id = desk.compress(model, request=recipe, data={"train": str(dataset)})
        until(lambda: last_epoch(desk, job_id, 1) >= 2, 60)
        busy_runner(service).kill()
        until(lambda: last_epoch(desk, job_id, 2) >= 4, 60)
        service.kill()
        with Service(roomy, folder, REAL_WORKER):
            job = desk.wait(job_id, "succeeded", seconds=90)
    assert job.attempt == 3
    for attempt in (2, 3):
        assert epochs(desk, job_id, attempt)[0] > 1, "it began anew"
    assert job.report is not None
    (note,) = [note for note in job.report["steps"][0]["notes"] if "earlier attempt" in note]
    assert f"in {EPOCHS} epochs" in note
    assert len(desk.results(job_id)) == 1


def epochs(desk: Desk, job_id: UUID, attempt: int) -> list[float]:
    return [event["values"]["epoch"] for event in desk.events(job_id, "metric", attempt=attempt)]


def last_epoch(desk: Desk, job_id: UUID, attempt: int) -> float:
    return max(epochs(desk, job_id, attempt), default=0)


def test_a_killed_zygote_is_replaced(desk: Desk, service: Service) -> None:
    job_id = desk.compress(program("succeed", seconds=1))
    busy_runner(service)
    (zygote,) = service.below("modelpress-zyg")
    zygote.kill()
    assert desk.wait(job_id, "succeeded").attempt == 2


def test_attempts_run_out_when_every_worker_is_lost(desk: Desk, service: Service, engine: Engine) -> None:
    job_id = desk.compress(program("hang"), max_attempts=1)
    busy_runner(service)
    service.kill()
    until(lambda: take_back(engine, Job.lease_until < func.clock_timestamp()) == 1)
    job = desk.job(job_id)
    assert job.status == "failed"
    assert job.error is not None
    assert job.error["code"] == "worker_lost"
    assert "tried once" in job.error["message"]


@pytest.mark.usefixtures("reconciler")
def test_a_worker_that_slept_past_its_lease_is_fenced(desk: Desk, service: Service, engine: Engine) -> None:
    job_id = desk.compress(program("succeed", seconds=4))
    runner = busy_runner(service)
    os.kill(service.process.pid, signal.SIGSTOP)
    until(lambda: desk.job(job_id).status == "queued")
    os.kill(service.process.pid, signal.SIGCONT)
    until(lambda: not runner.is_running(), 3)
    job = desk.wait(job_id, "succeeded")
    assert job.attempt == 2
    assert len(desk.results(job_id)) == 1
    assert "attempt 1 is not ours any more" in service.log.read_text()


def test_a_lost_message_is_no_lost_job(desk: Desk, service: Service) -> None:
    """The worker looks by itself."""
    desk.wait(desk.compress(program("succeed")), "succeeded")
    assert "Task modelpress.look" not in service.log.read_text()


def test_the_reconciler_sends_lost_messages_again(
    desk: Desk, settings: Settings, folder: Path, reconciler: Service
) -> None:
    with Service(settings.model_copy(update={"poll_seconds": 1000}), folder) as service:
        desk.wait(desk.compress(program("succeed")), "succeeded")
        assert "modelpress.look" in service.log.read_text()


def test_messages_do_not_pile_up_while_no_worker_is_there(desk: Desk, settings: Settings, reconciler: Service) -> None:
    for _ in range(20):
        desk.compress(program("succeed"))
    redis = Redis.from_url(settings.redis_url)
    until(lambda: redis.llen("cpu") >= 16)
    time.sleep(5 * settings.reconcile_seconds)
    assert redis.llen("cpu") == 16


def test_doubled_and_stray_messages_are_harmless(desk: Desk, settings: Settings, folder: Path) -> None:
    celery = make_celery(settings.redis_url)
    with Service(settings.model_copy(update={"poll_seconds": 1000}), folder) as service:
        wake(celery, "cpu", uuid7())
        job_id = desk.compress(program("succeed", seconds=0.5))
        for _ in range(5):
            wake(celery, "cpu", job_id)
        assert desk.wait(job_id, "succeeded").attempt == 1
        assert len(desk.results(job_id)) == 1
        second = desk.compress(program("succeed"))
        wake(celery, "cpu", second)
        desk.wait(second, "succeeded")
        assert service.process.poll() is None


def test_a_worker_that_is_ended_lets_a_short_job_finish(desk: Desk, settings: Settings, folder: Path) -> None:
    with Service(settings.model_copy(update={"shutdown_seconds": 10}), folder) as service:
        job_id = desk.compress(program("succeed", seconds=1))
        waits = desk.compress(program("succeed"), priority=1)
        busy_runner(service)
        assert service.terminate() == 0
    assert desk.job(job_id).status == "succeeded"
    assert desk.job(waits).status == "queued"


def test_a_worker_that_is_ended_gives_a_long_job_back_without_costing_an_attempt(desk: Desk, service: Service) -> None:
    job_id = desk.compress(program("hang"), max_attempts=1)
    busy_runner(service)
    family = service.below()
    assert service.terminate() == 0
    job = desk.job(job_id)
    assert (job.status, job.max_attempts - job.attempt, job.error) == ("queued", 1, None)
    until(lambda: not any(process.is_running() for process in family), 3)


def test_the_supervisor_never_loads_torch() -> None:
    names = "torch", "onnx", "onnxruntime"
    check = f"import sys, workers.wiring, workers.reconciler; sys.exit(any(name in sys.modules for name in {names}))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
