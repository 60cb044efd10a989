"""Jobs whose results take and answer something else: fed with what callers send, measured by what answers mean."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.engine.pipeline.models import CLASSES, blobs, compress, convolutional, images, mlp

BYTES = {"step": "input_compression", "scale": 0.05, "mean": 6.4}
TOP = {"step": "output_compression", "top": 2}


def grid(x):
    """The nearest inputs that bytes can say."""
    return (np.clip(np.round((x + 6.4) / 0.05), 0, 255) * 0.05 - 6.4).astype(np.float32)


def job(path, model, examples, recipe, **request):
    """Inputs are what bytes can say."""
    sets = {"train": (500, 3), "calibrate": (100, 4), "evaluate": (400, 2)}
    data = {use: (grid(x), labels) for use, (x, labels) in ((use, examples(*of)) for use, of in sets.items())}
    result, _ = compress(path / "run", model, recipe, data=data, **request)
    assert result.error is None, result.error
    return result, onnxruntime.InferenceSession(path / "run" / result.files[0].path)


def test_a_result_that_takes_bytes_is_measured_on_bytes(tmp_path):
    result, session = job(tmp_path, convolutional(), images, [BYTES])
    report = result.report
    (agreement,) = report.agreement
    assert agreement.top1 == 1
    assert agreement.snr_db > 80
    assert report.quality.result == report.quality.original
    assert report.traffic.sent_bytes == (256, 64)
    assert report.verdict == "passed", report.reasons
    assert any("an example to send is 4.00 times smaller" in reason for reason in report.reasons)
    assert len(report.latency) >= 2
    assert [(spec.name, spec.dtype) for spec in result.model.signature.inputs] == [("x", "uint8")]
    assert session.get_inputs()[0].type == "tensor(uint8)"
    metadata = {entry.key: entry.value for entry in onnx.load(tmp_path / "run" / result.files[0].path).metadata_props}
    assert "byte × 0.05 - 6.4" in json.loads(metadata["modelpress.interface"])["inputs"]["x"]


def test_made_up_inputs_are_such_as_bytes_can_say(tmp_path):
    result, _ = compress(tmp_path / "run", convolutional(), [BYTES], data={})
    (agreement,) = result.report.agreement
    assert result.report.agreement_data == "synthetic"
    assert agreement.snr_db > 80


@pytest.mark.parametrize(("options", "size"), [({"top": 2}, 6), ({"top": 1, "values": False}, 1)])
def test_the_best_classes_are_judged_by_labels_and_by_the_original(tmp_path, options, size):
    result, _ = job(tmp_path, convolutional(), images, [{"step": "output_compression", **options}])
    report = result.report
    assert report.quality.metric == "accuracy"
    assert report.quality.result == report.quality.original > 0.9
    assert "top5_accuracy" not in report.quality.others
    assert report.agreement[0].top1 == 1
    assert report.traffic.answered_bytes == (4 * CLASSES, size)
    assert report.verdict == "passed", report.reasons


def test_yes_or_no_is_a_choice_of_its_own(tmp_path):
    result, session = job(
        tmp_path, convolutional(), images, [{"step": "output_compression", "decide": "auto"}], task={"kind": "none"}
    )
    report = result.report
    assert report.quality is None
    assert report.agreement[0].top1 == 1
    assert report.verdict == "passed", report.reasons
    assert session.get_outputs()[0].type == "tensor(uint8)"


def test_after_a_cut_the_result_is_compared_with_the_same_layer_of_the_original(tmp_path):
    recipe = [{"step": "feature_selection", "cut": "layer2"}, {"step": "distillation", "epochs": 1}]
    result, session = job(tmp_path, mlp(), blobs, [*recipe, {"step": "dynamic_quantization"}])
    report = result.report
    assert report.quality is None
    assert any("of which labels say nothing" in warning for warning in report.warnings)
    (agreement,) = report.agreement
    assert agreement.output == "layer2"
    assert 0.99 < agreement.cosine < 1
    assert report.steps[0].metrics["embedding_size"] == 96
    assert session.get_outputs()[0].shape[1:] == [96]
    assert result.model.signature.outputs[0].name == "layer2"


def test_everything_at_once(tmp_path):
    recipe = [
        {"step": "feature_selection", "keep": 14},
        {"step": "distillation", "epochs": 6},
        {"step": "activation_clipping"},
        {"step": "static_quantization"},
        TOP,
        BYTES,
    ]
    result, session = job(tmp_path, mlp(), blobs, recipe, formats=["onnx", "pt2", "packed"])
    report = result.report
    assert [value.shape[1:] for value in session.get_inputs()] == [[14]]
    assert report.traffic.sent_bytes == (64, 14)
    assert report.quality.result > report.quality.original - 0.05
    assert report.size_ratio > 2
    assert {file.format for file in report.files} == {"onnx", "packed"}, report.warnings


def test_weights_alone_do_not_pass_for_a_smaller_interface(tmp_path):
    result, _ = job(tmp_path, convolutional(), images, [BYTES], formats=["safetensors", "onnx"])
    assert [file.format for file in result.report.files] == ["onnx"]
    assert any("it cannot hold what becomes of inputs" in warning for warning in result.report.warnings)
