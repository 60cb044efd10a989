"""The client against a real service: what a program does with it, from upload to download."""

import hashlib
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from modelpress import Client, ModelpressError
from modelpress.client import Job, Model
from modelpress.client.connection import http_options
from modelpress.jobs import JobStatus
from modelpress.report import Verdict
from modelpress.steps import HalfPrecision
from tests.client.cutting_proxy import CuttingProxy
from tests.service_process import EXAMPLE, Service


def test_an_uploaded_model_is_read_and_described(lenet: Model) -> None:
    assert (lenet.name, lenet.format, lenet.status) == ("lenet5", "onnx", "ready")
    assert lenet.sha256 == hashlib.sha256((EXAMPLE / "lenet5.onnx").read_bytes()).hexdigest()
    assert lenet.stats is not None
    assert lenet.stats.parameters == 61_706
    assert lenet.signature is not None
    assert [spec.shape[1:] for spec in lenet.signature.inputs] == [(1, 28, 28)]


def test_a_name_can_be_given(client: Client) -> None:
    assert client.upload_model(EXAMPLE / "lenet5.onnx", name="clothes, small").name == "clothes, small"


def test_a_dataset_is_read_and_described(client: Client) -> None:
    dataset = client.wait(client.upload_dataset(EXAMPLE / "calibrate.npz"), timeout=180)
    assert dataset.examples == 500
    assert {array.name for array in dataset.arrays} == {"x", "labels"}
    assert client.get_dataset(dataset.id) == dataset
    assert dataset.id in {each.id for each in client.iterate_datasets()}


def test_waiting_for_a_file_that_is_no_model_says_why(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "noise.onnx"
    path.write_bytes(np.random.default_rng(0).bytes(1000))
    uploaded = client.upload_model(path)
    with pytest.raises(ModelpressError) as caught:
        client.wait(uploaded, timeout=180)
    assert caught.value.title == "noise was rejected"
    assert caught.value.detail


def test_a_job_from_its_creation_to_its_report(client: Client, halved: Job, lenet: Model) -> None:
    assert halved.status is JobStatus.SUCCEEDED
    assert halved.model == lenet.id
    assert halved.labels == {"made": "by the fixture"}
    assert halved.result is not None
    assert halved.result.verdict is Verdict.PASSED
    report = client.report(halved.id)
    assert report == halved.report
    assert report.size_ratio > 1.8
    assert isinstance(client.log(halved.id), str)


def test_progress_is_told_while_waiting(client: Client, lenet: Model) -> None:
    seen: list[Job] = []
    job = client.create_job(lenet.id, [HalfPrecision(dtype="bfloat16")])
    assert client.wait_job(job.id, seen.append, timeout=240) == seen[-1]
    assert seen[-1].done
    assert len({each.version for each in seen}) == len(seen) > 1


def test_a_plan_starts_nothing(client: Client, lenet: Model) -> None:
    before = client.list_jobs(page_size=1)
    plan = client.plan_job(lenet.id, [HalfPrecision()])
    assert [each.step["step"] for each in plan.steps] == ["half_precision"]
    assert plan.steps[0].step["dtype"] == "float16"
    assert plan.prediction.size_ratio > 1.5
    assert client.list_jobs(page_size=1) == before


def test_what_nothing_refers_to_can_be_deleted(client: Client, lenet: Model, halved: Job) -> None:
    assert halved.model == lenet.id
    with pytest.raises(ModelpressError, match="in_use"):
        client.delete_model(lenet.id)
    spare = client.wait(client.upload_model(EXAMPLE / "lenet5.onnx", name="spare"), timeout=180)
    client.delete_model(spare.id)
    with pytest.raises(ModelpressError, match="not_found"):
        client.get_model(spare.id)
    dataset = client.wait(client.upload_dataset(EXAMPLE / "calibrate.npz"), timeout=180)
    client.delete_dataset(dataset.id)
    assert dataset.id not in {each.id for each in client.iterate_datasets()}


def test_waiting_ends_when_the_time_is_over(client: Client, lenet: Model) -> None:
    job = client.create_job(lenet.id, [HalfPrecision()])
    with pytest.raises(TimeoutError, match=f"{job.id} is still"):
        client.wait_job(job.id, timeout=-1)


def test_events_come_in_order_and_end_with_the_job(client: Client, halved: Job) -> None:
    events = list(client.events(halved.id))
    assert [event.data["status"] for event in events if event.type == "status"] == ["queued", "running", "succeeded"]
    assert [event.id for event in events] == sorted(event.id for event in events)
    fractions = [event.data["fraction"] for event in events if event.type == "progress"]
    assert fractions
    assert fractions == sorted(fractions)
    assert list(client.events(halved.id, after=events[2].id)) == events[3:]


def test_events_go_on_over_a_broken_connection(service: Service, client: Client, halved: Job) -> None:
    whole = list(client.events(halved.id))
    with CuttingProxy(service.url, 700, 400) as proxy, Client(proxy.url, service.api_key) as cut:
        assert list(cut.events(halved.id)) == whole
    first, second, *_ = proxy.requests
    assert b"last-event-id" not in first.lower()
    assert b"last-event-id" in second.lower()


def test_a_download_is_the_file_that_was_announced(client: Client, halved: Job, tmp_path: Path) -> None:
    assert halved.result is not None
    model = client.get_model(halved.result.model_id)
    assert model.parent_id == halved.model
    path = client.download(model.id, tmp_path / "small.onnx")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == model.sha256
    assert list(tmp_path.iterdir()) == [path]


def test_a_download_into_a_folder_is_named_after_the_model(client: Client, lenet: Model, tmp_path: Path) -> None:
    assert client.download(lenet.id, tmp_path) == tmp_path / "lenet5.onnx"


def test_a_broken_download_goes_on_where_it_was(service: Service, lenet: Model, tmp_path: Path) -> None:
    # the first connection serves the model's description, and 100 kB of the file on it or on the second
    with CuttingProxy(service.url, 100_000) as proxy, Client(proxy.url, service.api_key) as cut:
        path = cut.download(lenet.id, tmp_path / "model.onnx")
    assert path.read_bytes() == (EXAMPLE / "lenet5.onnx").read_bytes()
    asked = b"".join(proxy.requests).lower()
    assert b"range: bytes=" in asked
    assert b"range: bytes=0-" not in asked


def test_a_part_that_was_left_behind_is_used_by_the_next_download(
    service: Service, lenet: Model, tmp_path: Path
) -> None:
    content = (EXAMPLE / "lenet5.onnx").read_bytes()
    (tmp_path / f"model.onnx.{lenet.sha256[:12]}.part").write_bytes(content[:200_000])
    with CuttingProxy(service.url) as proxy, Client(proxy.url, service.api_key) as client:
        path = client.download(lenet.id, tmp_path / "model.onnx")
    assert path.read_bytes() == content
    assert b"range: bytes=200000-" in proxy.requests[0].lower()


def test_bytes_that_are_not_the_announced_ones_are_not_kept(client: Client, lenet: Model, tmp_path: Path) -> None:
    (tmp_path / f"model.onnx.{lenet.sha256[:12]}.part").write_bytes(b"something else")
    with pytest.raises(ModelpressError, match="digest_mismatch"):
        client.download(lenet.id, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_format_that_is_not_there_is_said_with_those_that_are(client: Client, lenet: Model, tmp_path: Path) -> None:
    with pytest.raises(ModelpressError, match=r"no file in the format pt2; it has: onnx"):
        client.download(lenet.id, tmp_path, file_format="pt2")


def test_results_are_compared(client: Client, halved: Job, lenet: Model) -> None:
    assert halved.result is not None
    comparison = client.compare(lenet.id, [halved.result.model_id])
    assert comparison.baseline.model_id == lenet.id
    assert [candidate.model_id for candidate in comparison.candidates] == [halved.result.model_id]
    assert comparison.candidates[0].steps == ("half_precision",)


def test_lists_are_walked_to_their_end(client: Client, lenet: Model, halved: Job) -> None:
    first = client.list_models(page_size=1)
    assert len(first.items) == 1
    assert first.next_page_token is not None
    second = client.list_models(page_size=1, page_token=first.next_page_token)
    assert [*first.items, *second.items] == list(islice(client.iterate_models(), 2))
    assert lenet.id in {model.id for model in client.iterate_models()}
    assert halved.id in {job.id for job in client.iterate_jobs()}


def test_a_job_is_canceled_and_tried_again(client: Client, lenet: Model) -> None:
    job = client.create_job(lenet.id, [HalfPrecision()])
    client.cancel_job(job.id)
    ended = client.wait_job(job.id, timeout=180)
    if ended.status is JobStatus.CANCELED:  # else it was faster than we
        assert client.retry_job(job.id).status is JobStatus.QUEUED
        statuses = [event.data["status"] for event in client.events(job.id) if event.type == "status"]
        assert statuses[-1] == "succeeded"
        assert "canceled" in statuses
    else:
        with pytest.raises(ModelpressError, match="not_retryable"):
            client.retry_job(job.id)


def test_the_catalogue_has_every_step(client: Client) -> None:
    steps = {step.name: step for step in client.steps()}
    assert "magnitude_pruning" in steps["static_quantization"].may_follow
    assert client.step("half_precision") == steps["half_precision"]
    assert "dtype" in steps["half_precision"].options["properties"]


def test_the_key_of_this_machine_goes_to_this_machine_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "api-key").write_text("mp_mine\n")
    monkeypatch.setenv("MODELPRESS_HOME", str(tmp_path))
    monkeypatch.delenv("MODELPRESS_API_KEY", raising=False)
    assert http_options("http://localhost:9000", None)["headers"]["Authorization"] == "Bearer mp_mine"
    assert http_options("http://localhost:9000", "mp_other")["headers"]["Authorization"] == "Bearer mp_other"
    assert "Authorization" not in http_options("https://models.example.com", None)["headers"]
