"""Results in other formats than ONNX: read back before they are given out, and never absent without a word."""

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file

from modelpress.packed import unpack
from tests.engine.pipeline.models import blobs, compress, inspect_model, mlp

PRUNE = [{"step": "magnitude_pruning", "sparsity": 0.9}]
HALF = [{"step": "half_precision"}]


def test_a_packed_result_is_the_onnx_result_in_less_bytes(tmp_path):
    result, _ = compress(tmp_path / "run", mlp(), PRUNE, formats=["onnx", "packed"])
    assert result.error is None, result.error
    assert [(file.format, file.path) for file in result.files] == [
        ("onnx", "out/model.onnx"),
        ("packed", "out/model.packed"),
    ]
    plain, packed = (tmp_path / "run" / file.path for file in result.files)
    unpack(packed, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == plain.read_bytes()
    assert [file.bytes for file in result.report.files] == [plain.stat().st_size, packed.stat().st_size]
    assert result.report.size[1].bytes == plain.stat().st_size
    assert result.report.files[1].ratio > 3


def test_sizes_are_judged_by_the_first_format(tmp_path):
    result, _ = compress(tmp_path / "run", mlp(), PRUNE, formats=["packed"], targets={"size_ratio": 3})
    assert [file.format for file in result.files] == ["packed"]
    assert result.report.targets_met
    assert result.report.size_ratio == result.report.files[0].ratio > 3
    assert sorted(path.name for path in (tmp_path / "run" / "out").iterdir()) == [
        "model.onnx",
        "model.packed",
        "result.json",
    ]


def test_a_packed_file_is_an_original_too(tmp_path):
    packed, _ = compress(tmp_path / "a", mlp(), PRUNE, formats=["packed"])
    content = (tmp_path / "a" / packed.files[0].path).read_bytes()
    found = inspect_model(tmp_path / "b", content).model
    assert found.format == "packed"
    assert found.stats.nonzeros < 0.2 * found.stats.parameters
    again, events = compress(tmp_path / "c", content, HALF, data={"evaluate": blobs(100, 2)})
    assert again.report.agreement[0].cosine > 0.999
    assert any(event.type == "warning" and "came as packed" in event.message for event in events)


def partly_known():
    """A layer of the table, and one of another's making that ONNX Runtime knows."""
    weights = [
        numpy_helper.from_array(np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32), name)
        for name in ("first", "second")
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["inner"]),
        helper.make_node("FusedMatMul", ["inner", "second"], ["y"], domain="com.microsoft", transB=1),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 16]) for name in "xy"]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph(nodes, "partly", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


def test_what_was_out_of_reach_is_said_of_the_model_and_in_the_report(tmp_path):
    found = inspect_model(tmp_path / "a", partly_known()).model
    (note,) = found.notes
    assert "com.microsoft.FusedMatMul" in note
    result, events = compress(tmp_path / "b", partly_known(), PRUNE, formats=["onnx", "packed"])
    assert [file.format for file in result.files] == ["onnx", "packed"]
    assert note in result.report.warnings
    assert note in {event.message for event in events if event.type == "warning"}
    assert {layer.name: round(layer.sparsity, 1) for layer in result.report.layers} == {"first": 0.9, "second": 0.9}


@pytest.mark.parametrize("format_", ["safetensors", "pt2"])
def test_a_format_that_cannot_hold_the_model_fails_the_job_before_its_first_step(tmp_path, format_):
    result, events = compress(tmp_path / "run", partly_known(), PRUNE, formats=["onnx", format_])
    assert result.error.code == "unsupported_model"
    assert f"leave {format_} out of `formats`" in result.error.message
    assert {event.progress.step for event in events if event.type == "progress"} == {"reading"}


def test_a_format_that_cannot_hold_the_result_is_left_out_with_a_warning(tmp_path):
    recipe, data = [{"step": "static_quantization"}], {"calibrate": blobs(100, 2)[0]}
    several, _ = compress(tmp_path / "a", mlp(), recipe, data=data, formats=["safetensors", "packed"])
    alone, _ = compress(tmp_path / "b", mlp(), recipe, data=data, formats=["safetensors"])
    assert [file.format for file in several.files] == ["packed"]
    assert [file.format for file in alone.files] == ["onnx"]
    for result in (several, alone):
        assert any("the result is not there as safetensors" in warning for warning in result.report.warnings)
    assert "the result is given as onnx instead" in alone.report.warnings


def test_weights_are_written_alone_under_their_names(tmp_path):
    result, _ = compress(tmp_path / "run", mlp(), [{"step": "half_precision"}], formats=["safetensors"])
    (file,) = result.files
    assert file.path == "out/model.safetensors"
    weights = load_file(tmp_path / "run" / file.path)
    assert sorted(weights) == [f"layer{index}.{name}" for index in (0, 2, 4) for name in ("bias", "weight")]
    assert weights["layer0.weight"].dtype == torch.float16


@pytest.mark.parametrize("recipe", [HALF, PRUNE, [{"step": "dynamic_quantization"}]])
def test_a_program_answers_as_the_result_does(tmp_path, recipe):
    result, _ = compress(tmp_path / "run", mlp(), recipe, formats=["pt2", "onnx"])
    assert [file.path for file in result.files] == ["out/model.pt2", "out/model.onnx"], result.report.warnings
    x = blobs(7, 3)[0]
    program = torch.export.load(tmp_path / "run" / "out" / "model.pt2").module()
    session = ort.InferenceSession(tmp_path / "run" / "out" / "model.onnx")
    with torch.no_grad():
        answer = program(torch.from_numpy(x))
        np.testing.assert_allclose(answer, session.run(None, {"x": x})[0], atol=2e-2, rtol=0)


@pytest.mark.parametrize("formats", [["packed"], ["pt2", "packed"], ["onnx", "packed"]])
def test_the_packed_size_is_that_of_the_packed_file_whichever_format_comes_first(tmp_path, formats):
    result, _ = compress(tmp_path / "run", mlp(), PRUNE, formats=formats)
    (packed,) = (file for file in result.report.files if file.format == "packed")
    assert result.report.size[1].packed_bytes == packed.bytes
