"""What a job says of itself where there was nothing to do, nothing to gain, or something was ruined: over HTTP."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from modelpress import Client
from modelpress.client import Dataset, Job, Model
from modelpress.report import Report, Verdict
from tests.service_process import EXAMPLE


@pytest.fixture(scope="module")
def evaluate(client_of_module: Client) -> Dataset:
    return client_of_module.wait(client_of_module.upload_dataset(EXAMPLE / "evaluate.npz"), timeout=60)


@pytest.fixture(scope="module")
def tiny(client_of_module: Client, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Layers so small that what 8 bits need beside them outweighs them, in bytes and in time."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.onnx"
    net = nn.Sequential(*(layer for _ in range(6) for layer in (nn.Linear(8, 8), nn.ReLU())))
    for layer in net[::2]:
        nn.init.eye_(layer.weight)
    torch.onnx.export(net, (torch.randn(2, 8),), path, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "N"}})
    return client_of_module.wait(client_of_module.upload_model(path), timeout=60)


def run(client: Client, model: Model, *recipe: dict[str, Any], **options: Any) -> tuple[Job, Report]:
    job = client.wait_job(client.create_job(model.id, list(recipe), **options).id, timeout=240)
    assert job.result is not None, f"{job.error}\n{client.log(job.id)}"
    return job, client.report(job.id)


def test_a_step_with_nothing_to_do_says_so(client: Client, lenet: Model) -> None:
    half = run(client, lenet, {"step": "magnitude_pruning", "sparsity": 0.5})[0].result
    assert half is not None
    job, report = run(client, client.get_model(half.model_id), {"step": "magnitude_pruning", "sparsity": 0.2})
    assert any("were zero already, so that no other became zero" in warning for warning in report.warnings)
    assert job.warnings == report.warnings
    assert report.agreement[0].max_abs == 0


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        ({"step": "channel_pruning", "kinds": ["heads"]}, "nothing can be removed"),
        ({"step": "depth_pruning"}, "block"),
        ({"step": "half_precision", "layers": {"include": ["nowhere"]}}, "layer"),
    ],
    ids=lambda value: value["step"] if isinstance(value, dict) else "",
)
def test_a_job_in_which_nothing_can_be_done_fails_with_what_to_do(
    client: Client, lenet: Model, evaluate: Dataset, step: dict[str, Any], sentence: str
) -> None:
    job = client.wait_job(client.create_job(lenet.id, [step], data={"calibrate": evaluate.id}).id, timeout=240)
    assert job.status == "failed"
    assert job.error is not None
    assert job.error.code == "step_failed"
    assert sentence in job.error.message


def test_a_larger_and_slower_result_is_no_gain(client: Client, tiny: Model) -> None:
    job, report = run(client, tiny, {"step": "static_quantization"})
    assert report.verdict is Verdict.NO_GAIN
    assert report.size_ratio < 1
    assert "the file grew" in report.reasons[0]
    assert any(reason.startswith("the result is slower at batch 1") for reason in report.reasons)
    assert job.result is not None
    assert job.result.verdict is Verdict.NO_GAIN


def test_a_ruined_result_is_degraded_though_it_is_much_smaller(client: Client, lenet: Model, evaluate: Dataset) -> None:
    ruin = {"step": "channel_pruning", "ratio": 0.95, "importance": "random", "refit": False, "round_to": 1}
    targets = {"max_drop": {"absolute": 0.01}, "size_ratio": 2}
    job, report = run(client, lenet, ruin, data={"evaluate": evaluate.id}, targets=targets)
    assert report.verdict is Verdict.DEGRADED
    assert report.reasons[0].startswith("accuracy fell from 0.")
    assert report.size_ratio > 2
    assert {target.target: target.met for target in report.targets} == {"max_drop": False, "size_ratio": True}
    assert job.result is not None
    assert job.result.targets_met is False


def test_without_labels_a_ruined_result_is_told_by_its_answers(client: Client, lenet: Model, tmp_path: Path) -> None:
    with np.load(EXAMPLE / "evaluate.npz") as arrays:
        np.savez(tmp_path / "images.npz", **{name: arrays[name][:300] for name in arrays if name != "labels"})
    images = client.wait(client.upload_dataset(tmp_path / "images.npz"), timeout=60)
    ruin = {"step": "magnitude_pruning", "sparsity": 0.995}
    _, report = run(client, lenet, ruin, data={"evaluate": images.id}, formats=["packed"])
    assert report.quality is None
    assert report.verdict is Verdict.DEGRADED
    assert "answers as the original does for only" in report.reasons[0]


def test_without_a_recipe_the_model_gets_smaller_all_the_same(client: Client, lenet: Model, evaluate: Dataset) -> None:
    job = client.wait_job(client.create_job(lenet.id, "auto", data={"evaluate": evaluate.id}).id, timeout=240)
    assert [step["step"] for step in job.recipe] == ["static_quantization"]
    report = client.report(job.id)
    assert report.verdict is Verdict.PASSED, report.reasons
    assert report.size_ratio > 2.5
    assert any("made-up" in warning for warning in report.warnings), "it says on what it was calibrated"
