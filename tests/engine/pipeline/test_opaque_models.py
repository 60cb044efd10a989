"""Whole jobs on models with parts that the op table does not reach."""

import pytest

from tests.engine.onnx.odd_models import ODD, floats
from tests.engine.pipeline.models import compress, inspect_model

PRUNE = {"step": "magnitude_pruning", "sparsity": 0.5}
HALF = {"step": "half_precision"}
DYNAMIC = {"step": "dynamic_quantization"}
STATIC = {"step": "static_quantization"}
DISTIL = {"step": "distillation", "epochs": 2}


@pytest.mark.parametrize("name", ODD)
def test_weights_are_stored_smaller_wherever_they_lie(tmp_path, name):
    content, _ = ODD[name]()
    inspected = inspect_model(tmp_path / "a", content)
    assert inspected.error is None
    assert "out of reach" in inspected.model.notes[0]

    result, _ = compress(tmp_path / "b", content, [PRUNE, HALF])

    assert result.error is None, result.error
    assert result.report.layers
    for layer in result.report.layers:
        assert layer.sparsity > 0.3, layer
        assert layer.bits == 16
    assert any("out of reach" in warning for warning in result.report.warnings)


@pytest.mark.parametrize(("recipe", "ratio"), [([DYNAMIC], 2.5), ([STATIC], 1.15)], ids=["dynamic", "static"])
def test_layers_that_an_optimiser_fused_are_quantized(tmp_path, recipe, ratio):
    content, _ = ODD["optimised"]()
    result, _ = compress(tmp_path, content, recipe)
    assert result.error is None, result.error
    assert result.report.size_ratio > ratio
    assert result.report.agreement[0].cosine > 0.999


def test_what_comes_after_an_opaque_part_is_trained_by_distillation(tmp_path):
    content, _ = ODD["sequences"]()
    data = {"train": {"x": floats(64, 24)}}
    result, _ = compress(tmp_path, content, [PRUNE, DISTIL], data=data)
    assert result.error is None, result.error
    assert result.report.agreement[0].cosine > 0.9


def test_training_what_no_gradient_reaches_is_refused_in_words(tmp_path):
    content, _ = ODD["forest"]()
    result, _ = compress(tmp_path, content, [DISTIL], data={"train": {"x": floats(16, 6)}})
    assert result.error.code == "step_failed"
    assert "no gradient passes" in result.error.message


@pytest.mark.parametrize("step", [{"step": "movement_pruning"}, {"step": "lottery_ticket", "round_share": 0.5}])
def test_pruning_by_training_treats_what_comes_after_an_opaque_part(tmp_path, step):
    content, _ = ODD["sequences"]()
    data = {"train": {"x": floats(64, 24)}}
    result, _ = compress(tmp_path, content, [step | {"sparsity": 0.5, "epochs": 20}], data=data)
    assert result.error is None, result.error
    before, after = result.report.layers
    assert "no gradient reaches it" in before.note
    assert before.sparsity == 0
    assert after.sparsity == pytest.approx(0.5, abs=0.05)


def test_layers_of_an_opaque_part_stay_whole(tmp_path):
    content, _ = ODD["optimised"]()
    result, _ = compress(tmp_path, content, [{"step": "low_rank_factorization", "energy": 0.5, "measure": False}])
    assert result.error is None, result.error
    notes = {layer.name: layer.note for layer in result.report.layers}
    assert "out of reach" in notes["qkv"]


def test_what_runs_in_no_runtime_is_refused_at_inspection(tmp_path):
    content, _ = ODD["loop"]()
    broken = content.replace(b"\x04Tanh", b"\x04Tank")
    assert broken != content
    error = inspect_model(tmp_path, broken).error
    assert error.code == "unsupported_model"
    assert "Tank" in error.message
