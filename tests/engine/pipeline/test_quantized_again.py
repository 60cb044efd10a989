"""The result of static quantization is the model of another job."""

import pytest

from tests.engine.onnx.odd_models import floats
from tests.engine.pipeline.models import compress
from tests.engine.steps.nets import apply, context_for, trained
from workers.engine.writers.onnx import write_onnx


@pytest.fixture(scope="module")
def quantized():
    return write_onnx(apply(trained("recurrent"), context_for("recurrent"), {"step": "static_quantization"}))


@pytest.mark.parametrize(
    ("step", "ratio"),
    [
        ({"step": "magnitude_pruning", "sparsity": 0.3}, 0.97),
        ({"step": "half_precision"}, 1.5),
        ({"step": "dynamic_quantization"}, 1.8),
        ({"step": "channel_pruning", "ratio": 0.5}, 2),
    ],
    ids=lambda case: case["step"] if isinstance(case, dict) else "",
)
def test_its_integers_stay_and_the_rest_gets_smaller(tmp_path, quantized, step, ratio):
    result, _ = compress(tmp_path, quantized, [step], data={"calibrate": {"x": floats(16, 10, 8)}})
    assert result.error is None, result.error
    assert result.report.size_ratio > ratio
    (head,) = (layer for layer in result.report.layers if layer.name == "head")
    assert head.bits == 8


def test_quantizing_it_once_more_is_refused_in_words(tmp_path, quantized):
    result, _ = compress(tmp_path, quantized, [{"step": "static_quantization"}])
    assert result.error.code == "step_failed"
    assert "in 8 bits already" in result.error.message
