"""Gradual pruning, shared weights and a packed file as one job, and shared weights wherever weights lie."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from modelpress.packed import unpack
from tests.engine.onnx.odd_models import ODD
from tests.engine.pipeline.models import blobs, compress, mlp

RECIPE = [
    {"step": "magnitude_pruning", "sparsity": 0.85, "schedule": "cubic", "epochs": 5},
    {"step": "weight_clustering", "values": 16, "biases": True, "epochs": 2},
]


def test_deep_compression_is_one_recipe(tmp_path):
    data = {"train": blobs(2000, 1)[0], "evaluate": blobs(800, 2)}

    result, _ = compress(tmp_path / "run", mlp(), RECIPE, data=data, formats=["packed", "onnx"])

    assert result.error is None, result.error
    report = result.report
    assert report.quality.change > -0.02
    assert report.files[0].format == "packed"
    assert report.files[0].ratio > 12
    assert all(layer.sparsity > 0.3 for layer in report.layers)
    packed, plain = (tmp_path / "run" / file.path for file in result.files)
    unpack(packed, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == plain.read_bytes()
    x, labels = data["evaluate"]
    (answers,) = onnxruntime.InferenceSession(tmp_path / "again.onnx").run(None, {"x": x})
    assert (answers.argmax(1) == labels).mean() == pytest.approx(report.quality.result)


@pytest.mark.parametrize("name", ODD)
def test_weights_share_values_wherever_they_lie(tmp_path, name):
    content, _ = ODD[name]()
    recipe = [{"step": "magnitude_pruning", "sparsity": 0.5}, {"step": "weight_clustering", "values": 6}]

    result, _ = compress(tmp_path / "run", content, recipe)

    assert result.error is None, result.error
    assert result.report.layers
    for layer in result.report.layers:
        assert layer.sparsity > 0.3, layer
        assert layer.snr_db is not None
    file = onnx.load(tmp_path / "run" / result.files[0].path)
    for tensor in file.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim > 1:
            assert len(np.unique(values)) <= 6, tensor.name
