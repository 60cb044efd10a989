import numpy as np
import onnx
import pytest
import torch

from modelpress.steps import Binarization, MagnitudePruning, why_not_after
from tests.engine.pipeline.models import compress, convolutional, images
from tests.engine.quantization.nets import inputs_of, net
from tests.engine.steps.nets import KINDS, Examples, accuracy, apply, context_for, data_of, outputs, trained, weights
from workers.engine.errors import StepError
from workers.engine.quantization.few_values import Binary
from workers.engine.quantization.ranges import Histogram
from workers.engine.quantization.two_levels import TwoLevels
from workers.engine.writers.onnx import write_onnx

BINARY = {"step": "binarization", "keep_edges": False, "epochs": 6}


def unlabelled(kind):
    return context_for(kind, train="unlabelled")


def binary_weights(graph):
    """Those of one bit, with the axes along which each place has a scale."""
    return [
        (layer.weights[name].detach(), constraint.axes)
        for layer in graph.layers()
        for name in layer.weights
        for constraint in layer.constraints(name)
        if isinstance(constraint, Binary)
    ]


def assert_two_values(graph):
    found = binary_weights(graph)
    assert len(found) >= 2
    for weight, axes in found:
        magnitudes = weight.abs().flatten(0, len(axes) - 1).flatten(1)
        assert bool((magnitudes == magnitudes[:, :1]).all())


@pytest.mark.parametrize("kind", KINDS)
def test_weights_have_two_values_in_one_bit_and_the_file_answers_as_the_graph(kind):
    graph = apply(trained(kind), unlabelled(kind), BINARY)
    assert_two_values(graph)
    file = write_onnx(graph)
    x = data_of(kind, "test").inputs
    np.testing.assert_allclose(outputs(file, x), graph(x)[0].detach().numpy(), rtol=1e-4, atol=1e-4)
    stored = {tensor.name: len(tensor.raw_data) for tensor in onnx.load_from_string(file).graph.initializer}
    packed = sum(size for name, size in stored.items() if "packed" in name)
    assert packed == sum(-(-weight.numel() // 8) for weight, _ in binary_weights(graph))
    assert accuracy(graph, kind) > accuracy(trained(kind), kind) - 0.1


def test_the_first_and_the_last_layer_stay_as_they_are():
    context = context_for("attention", train=Examples(inputs_of("perceptron", 300)), teacher=net("perceptron"))
    graph = apply(net("perceptron"), context, BINARY | {"keep_edges": True, "epochs": 1})
    assert [bool(layer.constraints("weight")) for layer in graph.layers()] == [False, True, False]
    assert sum("keep_edges" in reason for reason in context.untouched.values()) == 2


def test_a_model_of_first_and_last_layers_is_told_what_to_do():
    with pytest.raises(StepError, match="keep_edges: false"):
        apply(trained("recurrent"), unlabelled("recurrent"), BINARY | {"keep_edges": True})


@pytest.mark.parametrize("kind", ["attention", "convolutional"])
def test_what_the_layers_read_can_have_two_values_too(kind):
    context = unlabelled(kind)
    graph = apply(trained(kind), context, BINARY | {"activations": True})
    leaves = [module for module in graph.module.modules() if isinstance(module, TwoLevels)]
    assert len(leaves) >= 2
    assert_two_values(graph)
    file = write_onnx(graph)
    x = data_of(kind, "test").inputs
    np.testing.assert_allclose(outputs(file, x), graph(x)[0].detach().numpy(), rtol=1e-3, atol=1e-3)
    assert [node.op_type for node in onnx.load_from_string(file).graph.node].count("Where") == len(leaves)
    assert any("no binary kernels" in note for note in context.notes)
    assert accuracy(graph, kind) > 0.75


def test_a_recurrent_layer_reads_what_it_read():
    context = unlabelled("recurrent")
    apply(trained("recurrent"), context, BINARY | {"activations": True, "epochs": 1})
    assert any("activations had no effect" in warning for warning in context.warnings)


def test_answers_of_yes_and_no(tmp_path):
    step = {"step": "binarization", "outputs": True, "epochs": 2, "keep_edges": False}
    data = {"train": images(300, 3)[0], "evaluate": images(300, 2)}
    result, _ = compress(tmp_path / "run", convolutional(), [step], data=data)
    assert result.error is None, result.error
    session = onnx.load(tmp_path / "run" / result.files[0].path)
    answered = outputs(session.SerializeToString(), torch.from_numpy(images(50, 5)[0]))
    assert set(np.unique(answered)) == {0, 1}


def test_the_two_levels_of_an_activation_are_those_that_move_it_least():
    values = torch.cat([torch.randn(4000, generator=torch.Generator().manual_seed(0)) * 0.1, torch.full((1000,), 3.0)])
    histogram = Histogram()
    histogram.see(values)
    histogram.count(values)
    levels = TwoLevels.of(histogram)
    assert float(levels.low.detach()) == pytest.approx(0, abs=0.02)
    assert float(levels.high.detach()) == pytest.approx(3, abs=0.02)
    assert 0.3 < float(levels.threshold.detach()) < 3
    x = torch.tensor([-1.0, 2.9, 3.1, 9.0], requires_grad=True)
    levels.train()(x).sum().backward()
    reach = (levels.high - levels.low).detach() / 2
    assert torch.equal(x.grad != 0, (x.detach() - levels.threshold.detach()).abs() <= reach)
    assert torch.equal(levels.eval()(x), levels.train()(x))


def test_a_value_that_never_varies_learns_two_levels_that_are_one():
    histogram = Histogram()
    histogram.see(torch.zeros(100))
    histogram.count(torch.zeros(100))
    levels, x = TwoLevels.of(histogram).train(), torch.zeros(4, requires_grad=True)
    levels(x).sum().backward()
    assert torch.equal(levels(x), torch.zeros(4))
    assert all(part.grad.isfinite().all() for part in (x, levels.low, levels.high))


def test_later_training_keeps_the_two_values():
    graph = apply(trained("convolutional"), unlabelled("convolutional"), BINARY | {"epochs": 2})
    before = weights(graph)
    graph = apply(graph.copy(), unlabelled("convolutional"), {"step": "distillation", "epochs": 2})
    assert any(not torch.equal(weights(graph)[name], before[name]) for name in before)
    assert_two_values(graph)


def test_zeros_have_no_place_in_two_values():
    assert "ternarization" in (why_not_after(Binarization, MagnitudePruning) or "")
