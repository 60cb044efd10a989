"""What becomes of a job, whatever its runner does. Real runners in their sandbox, with an engine that obeys us."""

import json
from urllib.parse import urlsplit

import psutil
import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.db.tables import Dataset, Job, Model, ModelFile
from app.settings import Settings
from tests.worker.jobs import Desk, program, until
from workers.worker import Worker

pytestmark = pytest.mark.usefixtures("worker")


def test_a_compression_ends_with_a_new_model(desk: Desk) -> None:
    job_id = desk.compress(program("succeed", result="much smaller"))
    job = desk.wait(job_id, "succeeded")
    (model,) = desk.results(job_id)
    assert (model.name, model.filename, model.status) == ("digits (half_precision)", "digits.onnx", "ready")
    assert model.parent_id == job.model_id
    with Session(desk.engine) as session:
        file = session.get_one(ModelFile, (model.id, "onnx"))
    assert b"".join(desk.store.read(file.blob_id)) == b"much smaller"
    assert job.report is not None
    assert job.report["verdict"] == "passed"
    assert job.environment is not None
    assert "no_new_privs" in job.environment["sandbox"]
    assert job.warnings == ["slow"]
    assert job.progress is not None
    assert [event["status"] for event in desk.events(job_id)] == ["running", "succeeded"]


def test_a_result_may_have_several_files(desk: Desk) -> None:
    paths = {"safetensors": "out/weights.zip", "onnx": "out/model.onnx", "packed": "out/model.small"}
    job_id = desk.compress(program("succeed_in_formats", paths=paths))
    desk.wait(job_id, "succeeded")
    (model,) = desk.results(job_id)
    assert model.filename == "digits.onnx"
    with Session(desk.engine) as session:
        files = session.scalars(select(ModelFile).where(ModelFile.model_id == model.id)).all()
    assert {file.format: file.suffix for file in files} == {"safetensors": ".zip", "onnx": ".onnx", "packed": ".small"}
    assert {file.format: b"".join(desk.store.read(file.blob_id)).decode() for file in files} == paths


@pytest.mark.parametrize("kind", ["inspect_model", "compress"])
def test_weights_alone_come_with_their_architecture(desk: Desk, kind: str) -> None:
    whole = desk.wait(desk.inspect_model(program("succeed")), "succeeded").model_id
    job_id = getattr(desk, kind)(program("tell_architecture"), architecture_id=whole)
    job = desk.wait(job_id, "succeeded")
    assert job.log is not None
    assert json.loads(job.log.splitlines()[-1]) == {"act": "succeed"}


def test_a_teacher_comes_with_its_architecture_too(desk: Desk) -> None:
    whole = desk.wait(desk.inspect_model(program("succeed")), "succeeded").model_id
    weights = desk.wait(desk.inspect_model(program("succeed", result="w"), architecture_id=whole), "succeeded").model_id
    job = desk.wait(desk.compress(program("tell_architecture", of="teacher"), teacher_id=weights), "succeeded")
    assert job.log is not None
    assert json.loads(job.log.splitlines()[-1]) == {"act": "succeed"}


def test_reading_an_upload_makes_it_ready(desk: Desk) -> None:
    model_job = desk.wait(desk.inspect_model(program("succeed")), "succeeded")
    dataset_job = desk.wait(desk.inspect_dataset(program("succeed")), "succeeded")
    with Session(desk.engine) as session:
        model = session.get_one(Model, model_job.model_id)
        assert model.status == "ready"
        assert session.get_one(ModelFile, (model.id, "onnx"))
        assert session.get_one(Dataset, dataset_job.dataset_id).spec == {"examples": 1, "arrays": []}


def test_an_upload_that_cannot_be_read_is_rejected_with_the_reason(desk: Desk) -> None:
    model_job = desk.wait(desk.inspect_model(program("refuse", code="invalid_model")), "failed")
    dataset_job = desk.wait(desk.inspect_dataset(program("refuse", code="invalid_data")), "failed")
    with Session(desk.engine) as session:
        model = session.get_one(Model, model_job.model_id)
        dataset = session.get_one(Dataset, dataset_job.dataset_id)
    assert (model.status, dataset.status) == ("rejected", "rejected")
    assert model.error == model_job.error
    assert dataset.error == {"code": "invalid_data", "message": "in/x is no model", "retryable": False}
    assert model_job.attempt == 1


@pytest.mark.parametrize("orders", [program("crash"), program("fail"), program("leave", code=3)])
def test_a_crash_is_tried_again_until_attempts_run_out(desk: Desk, orders: bytes) -> None:
    job_id = desk.compress(orders, max_attempts=2)
    job = desk.wait(job_id, "failed")
    assert job.error is not None
    assert job.error["code"] == "runner_crashed"
    assert "tried 2 times" in job.error["message"]
    assert job.attempt == 2
    assert [event["status"] for event in desk.events(job_id)] == ["running", "queued", "running", "failed"]


def test_a_crash_says_how_and_where(desk: Desk) -> None:
    job = desk.wait(desk.compress(program("crash"), max_attempts=1), "failed")
    assert job.error is not None
    assert "SIGSEGV" in job.error["message"]
    assert job.log is not None
    assert "in crash" in job.log


def test_running_out_of_memory_fails_at_once_with_the_peak(desk: Desk) -> None:
    job = desk.wait(desk.compress(program("allocate")), "failed")
    assert job.error is not None
    assert job.error["code"] == "out_of_memory"
    assert "512 MiB" in job.error["message"]
    assert job.attempt == 1


def test_a_deadline_ends_the_job_and_the_log_says_where_it_was(desk: Desk) -> None:
    job = desk.wait(desk.compress(program("hang"), deadline_seconds=0.5), "failed")
    assert job.error is not None
    assert job.error["code"] == "deadline_exceeded"
    assert job.attempt == 1
    assert job.log is not None
    assert "in hang" in job.log


def test_canceling_ends_a_running_job_within_a_second(desk: Desk) -> None:
    job_id = desk.compress(program("hang"))
    until(lambda: desk.job(job_id).progress is not None)
    with Session(desk.engine) as session:
        session.execute(update(Job).values(status="canceling"))
        session.commit()
    desk.wait(job_id, "canceled", seconds=1.5)
    assert desk.results(job_id) == []


def test_the_best_waiting_job_goes_first(desk: Desk, worker: Worker) -> None:
    worker.lanes[0].slots.acquire()
    later, sooner = (desk.compress(program("succeed"), priority=priority) for priority in (1, 0))
    worker.lanes[0].slots.release()
    first, second = (desk.wait(job_id, "succeeded") for job_id in (sooner, later))
    assert first.finished_at is not None
    assert second.started_at is not None
    assert first.finished_at <= second.started_at


def test_uploads_are_read_while_a_long_job_runs(desk: Desk) -> None:
    long = desk.compress(program("hang"))
    until(lambda: desk.job(long).status == "running")
    desk.wait(desk.inspect_model(program("succeed")), "succeeded")
    assert desk.job(long).status == "running"


def test_thousands_of_metrics_become_hundreds(desk: Desk) -> None:
    job_id = desk.compress(program("metrics", count=5000))
    job = desk.wait(job_id, "succeeded")
    numbers = [event["values"]["number"] for event in desk.events(job_id, "metric")]
    assert numbers[:100] == list(range(100))
    assert numbers[-1] == 4999
    assert 200 < len(numbers) < 1200
    assert desk.events(job_id, "metric")[0]["values"]["loss"] is None
    assert job.warnings == ["nul � inside", "slow"]


def test_the_log_is_bounded_and_names_no_place_on_the_server(desk: Desk, worker: Worker) -> None:
    job = desk.wait(desk.compress(program("talk", lines=20_000)), "succeeded")
    assert job.log is not None
    assert len(job.log) < 150_000
    assert "line 19999 of a long story about ." in job.log
    assert str(worker.scratch.folder) not in job.log
    assert "on the event pipe were no events" in job.log


def test_nothing_outlives_its_run(desk: Desk) -> None:
    for then in ({"act": "succeed", "seconds": 0.2}, {"act": "leave", "code": 5}):
        desk.wait(desk.compress(program("bear_children", then=then), max_attempts=1), "succeeded", "failed")
        until(lambda: not orphans())


@pytest.mark.parametrize(
    "orders",
    [
        program("answer", text="{"),
        program("answer", text="{}"),
        program("answer", text="x" * (33 << 20)),
        program("answer_with_link", target="/etc/hostname", name="result.json"),
        program("answer_with_link", target="/etc/hostname", name="model.onnx"),
        program("answer_with_path", path="/etc/hostname"),
        program("answer_with_path", path="out/../job.json"),
        program("answer_with_path", path="out/missing.onnx"),
        program("answer_with_path", path="out/model"),
        program("answer_with_path", path='out/model.on"x'),
        program("answer_with_path", path="job.json"),
        program("answer_twice"),
        program("answer_with_long_names"),
        program("answer_without_numbers"),
    ],
    ids=lambda orders: json.loads(orders)["act"] + str(len(orders)),
)
def test_a_result_is_not_trusted(desk: Desk, orders: bytes) -> None:
    job_id = desk.compress(orders)
    job = desk.wait(job_id, "failed")
    assert job.error is not None
    assert job.error["code"] == "invalid_result"
    assert desk.results(job_id) == []


def test_a_runner_sees_no_credentials_no_files_of_others_and_no_network(
    desk: Desk, worker: Worker, settings: Settings
) -> None:
    others = str(worker.scratch.folder)
    port = urlsplit(settings.redis_url).port
    job = desk.wait(desk.compress(program("spy", paths=["/etc/passwd", "/root", others], port=port)), "succeeded")
    assert job.log is not None
    seen = json.loads(next(line for line in job.log.splitlines() if line.startswith("{")))
    assert not {"DATABASE_URL", "REDIS_URL", "MODELPRESS_SECRET"} & set(seen["environment"])
    assert len(seen["files"]) <= 5  # 0, 1, 2, the events, and the folder that is being listed
    if "landlock" in worker.pool.sandbox:
        assert [seen[path] for path in ("/etc/passwd", "/root", others)] == ["PermissionError"] * 3
        assert seen["planted"] == "PermissionError"
    if "no_network" in worker.pool.sandbox:
        assert seen["network"] != "open"


def test_the_run_directory_is_gone_afterwards(desk: Desk, worker: Worker) -> None:
    desk.wait(desk.compress(program("succeed")), "succeeded")
    until(lambda: [path.name for path in worker.scratch.folder.iterdir()] == ["lock"])


def orphans() -> list[psutil.Process]:
    """Of the children that the stand-in bears."""
    everyone = psutil.process_iter(["cmdline"])
    return [process for process in everyone if "modelpress-test-orphan" in (process.info["cmdline"] or ())]
