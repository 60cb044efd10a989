"""Compress jobs from run directory to report, with real models, real steps and ONNX Runtime."""

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

from modelpress.report import Verdict
from modelpress.run import RunResult
from tests.engine.pipeline.models import as_onnx, blobs, compress, convolutional, images, mlp
from workers.engine.measuring.environment import own_runtime

HALF = [{"step": "half_precision"}]


def accuracy(content, x, labels):
    session = ort.InferenceSession(content)
    return (session.run(None, {"x": x})[0].argmax(1) == labels).mean()


def test_a_job_without_data(tmp_path):
    result, events = compress(tmp_path / "run", mlp(), HALF)

    assert result.error is None
    report = result.report
    assert report.verdict == Verdict.PASSED
    assert 1.8 < report.size_ratio < 2.1
    assert report.agreement[0].cosine > 0.9999
    assert report.agreement_data == "synthetic"
    assert report.quality is None
    assert [latency.batch for latency in report.latency] == [1, 32]
    assert {layer.bits for layer in report.layers} == {16.0}
    assert any("made-up inputs" in warning for warning in report.warnings)
    assert report.size[1].bytes == (tmp_path / "run" / result.files[0].path).stat().st_size
    assert report.environment.threads == 1

    fractions = [event.progress.fraction for event in events if event.type == "progress"]
    assert fractions == sorted(fractions)
    assert [event.progress.step for event in events if event.type == "progress"][:2] == ["reading", "half_precision"]


def test_options_without_effect_are_warned_of(tmp_path):
    layers = {"include": ["layer0*", "encoder.*"], "exclude": ["haed"]}
    smooth = {"step": "static_quantization", "smooth": 0.5}
    recipe = [{"step": "magnitude_pruning", "sparsity": 0.3, "layers": layers}, smooth]
    result, events = compress(tmp_path / "run", convolutional(), recipe)
    told = [event.message for event in events if event.type == "warning"]
    unmatched = [
        f"magnitude_pruning: the pattern {name!r} matches the name of no layer" for name in ("encoder.*", "haed")
    ]
    assert [warning for warning in told if warning.startswith("magnitude_pruning")] == unmatched
    assert any(warning.startswith("static_quantization: smooth had no effect") for warning in told)
    assert set(told) <= set(result.report.warnings)


def test_the_result_on_disk_is_the_result_returned(tmp_path):
    result, _ = compress(tmp_path / "run", mlp(), HALF)
    stored = RunResult.model_validate_json((tmp_path / "run" / "out" / "result.json").read_text())
    assert stored == result
    assert sorted(path.name for path in (tmp_path / "run" / "out").iterdir()) == ["model.onnx", "result.json"]


def test_reported_quality_is_what_the_stored_file_does(tmp_path):
    x, labels = blobs(600, 2)
    recipe = [{"step": "magnitude_pruning", "sparsity": 0.6}]
    result, _ = compress(tmp_path / "run", mlp(), recipe, data={"evaluate": (x, labels)})

    quality = result.report.quality
    assert (quality.metric, quality.n) == ("accuracy", 600)
    assert quality.original == pytest.approx(accuracy(mlp(), x, labels))
    assert quality.result == pytest.approx(accuracy((tmp_path / "run/out/model.onnx").read_bytes(), x, labels))
    assert quality.low <= quality.change <= quality.high
    assert result.report.size[1].nonzeros < 0.5 * result.report.size[0].nonzeros
    assert result.report.layers[0].name.startswith("layer0")


def test_a_ruined_model_is_degraded(tmp_path):
    recipe = [{"step": "magnitude_pruning", "sparsity": 0.99}, {"step": "half_precision"}]
    labelled, _ = compress(tmp_path / "a", mlp(), recipe, data={"evaluate": blobs(600, 2)})
    unlabelled, _ = compress(tmp_path / "b", mlp(), recipe, data={"calibrate": blobs(600, 2)[0]})
    without, _ = compress(tmp_path / "c", mlp(), recipe)
    for result in (labelled, unlabelled, without):
        assert result.error is None
        assert result.report.verdict == Verdict.DEGRADED
    assert "accuracy fell" in labelled.report.reasons[0]
    assert unlabelled.report.agreement_data == "calibrate"


def test_zeros_that_no_runtime_uses_are_no_gain(tmp_path):
    result, _ = compress(tmp_path / "run", mlp(), [{"step": "magnitude_pruning", "sparsity": 0.1}])
    assert result.report.verdict == Verdict.NO_GAIN
    assert result.report.size[1].nonzeros < result.report.size[0].nonzeros
    assert "not faster beyond noise" in result.report.reasons[0]


def test_a_file_that_grew_is_no_gain(tmp_path):
    tiny = as_onnx(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)), ("batch", 2))
    x = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    result, _ = compress(tmp_path / "run", tiny, [{"step": "static_quantization"}], data={"calibrate": x})
    assert result.report.size_ratio < 1
    assert result.report.verdict in (Verdict.NO_GAIN, Verdict.DEGRADED)
    assert any("file grew" in reason for reason in result.report.reasons)


def test_distillation_brings_a_pruned_model_back(tmp_path):
    prune = {"step": "magnitude_pruning", "sparsity": 0.9}
    data = {"train": blobs(2000, 3)[0], "evaluate": blobs(1000, 2)}
    pruned, _ = compress(tmp_path / "a", mlp(), [prune], data=data)
    taught, events = compress(tmp_path / "b", mlp(), [prune, {"step": "distillation", "epochs": 4}], data=data)
    assert taught.report.quality.result > pruned.report.quality.result
    assert taught.report.agreement[0].cosine > pruned.report.agreement[0].cosine
    assert taught.report.size[1].nonzeros == pruned.report.size[1].nonzeros
    assert any(event.type == "metric" for event in events)


def test_an_uploaded_teacher_teaches(tmp_path):
    torch.manual_seed(1)
    untrained = as_onnx(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)), ("batch", 16))
    data = {"train": blobs(2000, 3)[0], "evaluate": blobs(1000, 2)}
    recipe = [{"step": "distillation", "epochs": 10, "learning_rate": 0.01}]
    result, _ = compress(tmp_path / "a", untrained, recipe, data=data, teacher=mlp())
    assert result.report.quality.original < 0.5
    assert result.report.quality.result > 0.8
    assert result.report.verdict == Verdict.PASSED  # not smaller, not faster, but better
    assert result.report.agreement_with == "teacher"
    assert result.report.agreement_before[0].top1 < 0.5
    assert result.report.agreement[0].top1 > 0.8

    without_labels = {"train": data["train"], "evaluate": data["evaluate"][0]}
    taught, _ = compress(tmp_path / "c", untrained, recipe, data=without_labels, teacher=mlp())
    assert taught.report.quality is None
    assert taught.report.verdict == Verdict.PASSED, taught.report.reasons
    assert "answers as the teacher does for" in taught.report.reasons[0]

    refused, _ = compress(tmp_path / "b", untrained, recipe, data=data, teacher=convolutional())
    assert refused.error.code == "invalid_model"
    assert "teacher's 'x'" in refused.error.message or "teacher's input 'x'" in refused.error.message


def test_a_runtime_that_is_not_this_one_is_said(tmp_path):
    result, _ = compress(tmp_path / "run", mlp(), HALF, runtime="cpu-arm")
    assert result.report.verdict == Verdict.PASSED
    assert (own_runtime() == "cpu-arm") != any("made for cpu-arm" in warning for warning in result.report.warnings)


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    recipe = [{"step": "magnitude_pruning", "sparsity": 0.5}, {"step": "distillation", "epochs": 1}]
    for name in "ab":
        compress(tmp_path / name, mlp(), recipe, data={"train": blobs(200, 3)[0]}, seed=7)
    assert (tmp_path / "a/out/model.onnx").read_bytes() == (tmp_path / "b/out/model.onnx").read_bytes()


def test_targets_and_regression(tmp_path):
    x, labels = blobs(300, 2)
    values = np.eye(4, dtype=np.float32)[labels]
    result, _ = compress(
        tmp_path / "run",
        mlp(),
        HALF,
        data={"evaluate": {"x": x, "wanted": values}},
        task={"label": "wanted", "metric": "mae"},
        targets={"max_drop": {"absolute": 0.01}, "size_ratio": 3},
    )
    report = result.report
    assert report.quality.metric == "mae"
    assert set(report.quality.others) == {"mse", "correlation", "cosine"}
    assert [(target.target, target.met) for target in report.targets] == [("max_drop", True), ("size_ratio", False)]
    assert report.targets_met is False


def test_a_fixed_batch_size_is_kept(tmp_path):
    model = as_onnx(nn.Sequential(nn.Linear(16, 200), nn.ReLU(), nn.Linear(200, 4)), (3, 16))
    result, _ = compress(tmp_path / "run", model, HALF, data={"evaluate": blobs(100, 2)})
    assert result.error is None
    assert result.report.quality.n == 100
    assert [latency.batch for latency in result.report.latency] == [3]


def test_static_quantization_of_a_convolutional_network(tmp_path):
    data = {"calibrate": images(200, 3)[0], "evaluate": images(1000, 2)}
    result, _ = compress(tmp_path / "run", convolutional(), [{"step": "static_quantization"}], data=data)
    assert result.error is None
    assert result.report.quality.change > -0.02
    assert result.report.size_ratio > 1.5


def test_an_array_of_its_own_name_may_feed_the_only_input(tmp_path):
    x, labels = blobs(100, 2)
    result, _ = compress(
        tmp_path / "run", mlp(), HALF, data={"evaluate": {"features": x.astype(np.float64), "y": labels}}
    )
    assert result.report.quality.n == 100
