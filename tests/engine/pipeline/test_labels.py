"""Labels in all the forms that people have them, from file to verdict."""

import numpy as np
import pytest
import torch
from torch import nn

from modelpress.report import Verdict
from tests.engine.pipeline.models import as_onnx, blobs, compress, mlp

RUIN = [{"step": "magnitude_pruning", "sparsity": 0.97}, {"step": "half_precision"}]
HALF = RUIN[1:]
TRAIN = {"step": "fine_tuning", "epochs": 1}


@pytest.mark.parametrize("dtype", [np.int64, np.float32])
def test_one_hot_labels_measure_what_class_numbers_do(tmp_path, dtype):
    x, labels = blobs(300, 2)
    one, _ = compress(tmp_path / "a", mlp(), RUIN, data={"evaluate": (x, labels)})
    hot, _ = compress(tmp_path / "b", mlp(), RUIN, data={"evaluate": (x, np.eye(4, dtype=dtype)[labels])})
    assert hot.report.quality == one.report.quality
    assert hot.report.verdict == Verdict.DEGRADED


def test_a_ruined_model_of_one_value_is_degraded_without_labels(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 1))
    net[2].bias.data.fill_(50.0)
    model = as_onnx(net, ("batch", 16), output="price")
    ruined, _ = compress(tmp_path / "a", model, RUIN, data={"evaluate": blobs(200, 2)[0]})
    kept, _ = compress(tmp_path / "b", model, HALF, data={"evaluate": blobs(200, 2)[0]})
    assert ruined.report.agreement[0].cosine > 0.999
    assert ruined.report.verdict == Verdict.DEGRADED
    assert kept.report.verdict != Verdict.DEGRADED


@pytest.mark.parametrize(
    "form", [lambda y: y[:, None], lambda y: y.astype(np.uint16), lambda y: y.astype(np.uint64)],
    ids=["column", "uint16", "uint64"],
)  # fmt: skip
def test_labels_in_unusual_clothes_train_and_measure(tmp_path, form):
    x, labels = blobs(200, 2)
    data = {"train": (x, form(labels)), "evaluate": (x, form(labels))}
    result, _ = compress(tmp_path / "run", mlp(), [TRAIN], data=data)
    assert result.error is None
    assert result.report.quality.original > 0.8
    assert not any("flatters" in warning for warning in result.report.warnings)


def test_agreement_on_training_data_is_said_to_flatter(tmp_path):
    result, _ = compress(tmp_path / "run", mlp(), [TRAIN], data={"train": blobs(200, 2)})
    assert any("which flatters the result" in warning for warning in result.report.warnings)


def test_negative_class_numbers_do_not_slip_through_beside_the_one_that_is_left_out(tmp_path):
    x, labels = blobs(100, 2)
    labels[:3] = -100, -5, -100
    result, _ = compress(tmp_path / "a", mlp(), HALF, data={"evaluate": (x, labels)})
    assert "hold -5" in result.error.message
    labels[1] = -100
    result, _ = compress(tmp_path / "b", mlp(), HALF, data={"evaluate": (x, labels)})
    assert result.report.quality.original > 0.8


@pytest.mark.parametrize(
    ("recipe", "request_", "sentence"),
    [
        (HALF, {"targets": {"max_drop": {"metric": "mse", "absolute": 0.01}}}, "'mse' does not fit"),
        ([TRAIN], {"task": {"kind": "none"}}, "task.kind 'none' they are not looked at"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_training(tmp_path, recipe, request_, sentence):
    data = {"train": blobs(50, 1), "evaluate": blobs(50, 2)}
    result, _ = compress(tmp_path / "run", mlp(), recipe, data=data, **request_)
    assert sentence in result.error.message
