import numpy as np
import onnxruntime
import pytest
import torch

from tests.engine.quantization.nets import net
from tests.engine.steps.nets import (
    KINDS,
    apply,
    context_for,
    data_of,
    outputs,
    score,
    trained,
    weights,
    zeros,
)  # fmt: skip
from workers.engine.errors import StepError
from workers.engine.writers.onnx import write_onnx

DTYPES = ["float16", "bfloat16"]


def half(dtype="float16", **options):
    return {"step": "half_precision", "dtype": dtype} | options


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_stored_in_16_bits_and_answer_the_same(kind, dtype):
    file = write_onnx(apply(trained(kind), context_for(kind), half(dtype)))
    original = write_onnx(trained(kind))
    saved = 2 * sum(weight.numel() for weight in weights(trained(kind)).values())
    assert len(original) - len(file) == pytest.approx(saved, rel=0.15)
    assert score(file, kind) == pytest.approx(score(original, kind), abs=0.01)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_graph_answers_as_the_file_does(dtype):
    graph = apply(trained("attention"), context_for("attention"), half(dtype))
    x = data_of("attention", "test").inputs
    with torch.no_grad():
        np.testing.assert_allclose(outputs(write_onnx(graph), x), graph(x)[0].numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_runtime_folds_the_casts_when_it_loads_the_file(kind, dtype, tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    file = write_onnx(apply(trained(kind), context_for(kind), half(dtype)))
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    import onnx

    assert "Cast" in {node.op_type for node in onnx.load_from_string(file).graph.node}
    assert "Cast" not in {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}


def test_what_does_not_fit_stays_float_and_is_named():
    graph = trained("convolutional")
    stem, conv1 = [layer.module for layer in graph.layers()][:2]
    with torch.no_grad():
        stem.weight[0, 0, 0, 0] = 70000.0
        conv1.weight.mul_(1e-6)
    context = context_for("convolutional")
    apply(graph, context, half())
    assert set(context.untouched) == {"stem", "conv1"}
    assert "7e+04, does not fit" in context.untouched["stem"]
    assert "lose too much" in context.untouched["conv1"]
    apply(graph, context := context_for("convolutional"), half("bfloat16", layers={"include": ["stem", "conv1"]}))
    assert not context.untouched


def test_zeros_of_a_pruning_stay():
    context = context_for("recurrent")
    pruned = apply(trained("recurrent"), context, {"step": "magnitude_pruning", "sparsity": 0.6})
    places = zeros(pruned)
    graph = apply(pruned, context, half())
    assert all(torch.equal(zeros(graph)[name], zero) for name, zero in places.items())


def test_training_goes_on_through_the_rounding():
    context = context_for("convolutional")
    layers = {"include": ["conv*"]}
    graph = apply(
        trained("convolutional"), context, {"step": "magnitude_pruning", "sparsity": 0.8}, half(layers=layers)
    )
    before = weights(graph)
    graph = apply(graph, context, {"step": "fine_tuning", "epochs": 2, "learning_rate": 3e-3})
    for name, weight in weights(graph).items():
        assert not torch.equal(weight, before[name])
        if name.startswith("conv"):
            assert torch.equal(weight, weight.half().float())


def test_what_is_stored_in_fewer_bits_already_is_left_alone():
    context = context_for("attention")
    graph = apply(trained("attention"), context, {"step": "dynamic_quantization", "layers": {"include": ["block.*"]}})
    apply(graph, context := context_for("attention"), half())
    assert set(context.untouched.values()) == {"it is stored in 8 bits already"}
    assert {layer.name for layer in graph.layers()} - set(context.untouched) == {"embed", "head"}


def test_a_selection_of_nothing_names_the_layers_there_are():
    with pytest.raises(StepError, match="stem, conv1, conv2, head"):
        apply(trained("convolutional"), context_for("convolutional"), half(layers={"include": ["nothing"]}))


def test_nothing_to_store_is_refused_with_the_reasons():
    graph = apply(trained("attention"), context_for("attention"), half("bfloat16", layers={"include": ["e*", "head"]}))
    with pytest.raises(StepError, match=r"as float16 \(embed: it is stored in 16 bits already; head"):
        apply(graph, context_for("attention"), half(layers={"include": ["e*", "head"]}))


def test_tied_weights_are_told_once():
    context = context_for("attention")
    apply(net("tied"), context, half())
    assert context.notes == ["1248 weights are stored as float16 and used as float32"]


def test_a_layer_of_which_a_part_is_stored_is_not_said_to_be_left_alone():
    graph, context = trained("recurrent"), context_for("recurrent")
    with torch.no_grad():
        next(graph.layers()).module.weight_ih[0, 0, 0] = 70000.0
    apply(graph, context, half())
    assert not context.untouched
    assert any("weight_ih is left alone: its largest weight" in note for note in context.notes)
