import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from tests.engine.quantization.nets import inputs_of, net
from tests.engine.steps.nets import (
    KINDS,
    Examples,
    accuracy,
    apply,
    context_for,
    data_of,
    outputs,
    share_of_zeros,
    trained,
    weights,
    zeros,
)
from workers.engine.constraints import constraints_of
from workers.engine.errors import StepError
from workers.engine.quantization.few_bits import constrain_all, weights_for
from workers.engine.quantization.grid import BiasGrid, IntegerGrid
from workers.engine.quantization.insertion import input_scale
from workers.engine.quantization.learned_ranges import LearnedFakeQuantize, LearnedIntegers
from workers.engine.quantization.learned_steps import LearnedGrid
from workers.engine.transforms.fold_batch_norm import fold_batch_norm
from workers.engine.writers.onnx import write_onnx

QAT = {"step": "quantization_aware_training", "keep_edges": False}
QUICK = QAT | {"epochs": 4, "learning_rate": 1e-3}
IN_INTEGERS = QUICK | {"weight_bits": 8, "activation_bits": 8}


def unlabelled(kind):
    return context_for(kind, train="unlabelled")


def answers(graph, kind):
    (answer,) = graph(data_of(kind, "test").inputs)
    return answer.detach()


def error(graph, kind):
    wanted = answers(trained(kind), kind)
    return float((answers(graph, kind) - wanted).norm() / wanted.norm())


def levels(graph):
    """The most values that a channel of a weight has, by layer and parameter, of those that are constrained."""
    found = {}
    for layer in graph.layers():
        for name, weight in layer.weights.items():
            for constraint in layer.constraints(name):
                if isinstance(constraint, LearnedGrid):
                    rows = (weight / constraint.scale).detach().flatten(0, len(constraint.axes) - 1).flatten(1)
                    found[f"{layer.name}.{name}"] = max(len(row.round().unique()) for row in rows)
                    torch.testing.assert_close(rows, rows.round(), rtol=0, atol=1e-4)
    return found


def initializers(graph):
    return {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in onnx.load_from_string(write_onnx(graph)).graph.initializer
    }


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_have_so_few_values_and_the_file_answers_as_the_graph(kind, bits):
    graph = apply(trained(kind), unlabelled(kind), QUICK | {"weight_bits": bits})
    found = levels(graph)
    assert len(found) >= 2
    assert all(count <= 2**bits for count in found.values())
    file = write_onnx(graph)
    np.testing.assert_allclose(
        outputs(file, data_of(kind, "test").inputs), answers(graph, kind).numpy(), rtol=1e-4, atol=1e-4
    )
    assert len(file) < 0.6 * len(write_onnx(trained(kind)))


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_training_wins_back_most_of_what_rounding_alone_loses(kind, bits):
    rounded = trained(kind)
    fold_batch_norm(rounded)
    chosen = weights_for(rounded.layers(), rounded, unlabelled(kind), lambda _: bits)
    constrain_all(chosen, lambda weight: LearnedGrid.fit(weight.value, weight.axes, bits))
    trained_on_it = apply(trained(kind), unlabelled(kind), QUICK | {"weight_bits": bits, "epochs": 10})
    assert levels(trained_on_it).keys() == levels(rounded).keys()
    assert error(trained_on_it, kind) < 0.6 * error(rounded, kind)


def test_batch_norms_are_folded_first():
    context = unlabelled("convolutional")
    graph = apply(trained("convolutional"), context, QUICK)
    assert "2 batch norms are folded into the layers before them" in context.notes
    assert not any(isinstance(module, nn.BatchNorm2d) for module in graph.module.modules())


def test_the_first_and_the_last_layer_keep_eight_bits_unless_they_shall_not():
    def bits(step):
        examples = Examples(inputs_of("perceptron", 300))
        context = context_for("attention", train=examples, teacher=net("perceptron"), task="regression")
        graph = apply(net("perceptron"), context, step | {"weight_bits": 2, "epochs": 1})
        return [layer.constraints("weight")[0].bits for layer in graph.layers()]

    assert bits(QAT | {"keep_edges": True}) == [8, 2, 8]
    assert bits(QAT) == [2, 2, 2]


def test_it_is_said_when_all_layers_are_first_or_last():
    context = unlabelled("recurrent")
    apply(trained("recurrent"), context, QUICK | {"keep_edges": True, "epochs": 1})
    assert any("weight_bits had no effect" in warning for warning in context.warnings)
    assert "unfolding" in context.untouched["head"]


@pytest.mark.parametrize("kind", KINDS)
def test_activations_are_on_integers_that_have_learned(kind):
    context = unlabelled(kind)
    graph = apply(trained(kind), context, IN_INTEGERS)
    file = write_onnx(graph)
    kinds = [node.op_type for node in onnx.load_from_string(file).graph.node]
    assert kinds.count("QuantizeLinear") >= (1 if kind == "recurrent" else 3)
    assert not any(isinstance(module, (LearnedFakeQuantize, LearnedIntegers)) for module in graph.module.modules())
    expected = answers(graph, kind)
    difference = torch.from_numpy(outputs(file, data_of(kind, "test").inputs)) - expected
    assert float(difference.norm() / expected.norm()) < 0.02
    assert accuracy(graph, kind) > accuracy(trained(kind), kind) - 0.02
    assert context.figures["error_before_training"] < 0.1
    assert error(graph, kind) < 0.05


def test_biases_follow_the_scales_that_were_learned():
    graph = apply(trained("convolutional"), unlabelled("convolutional"), IN_INTEGERS | {"learning_rate": 1e-2})
    followed = 0
    for layer in graph.layers():
        for constraint in constraints_of(layer.module, "bias"):
            (grid,) = (found for found in layer.constraints("weight") if isinstance(found, IntegerGrid))
            assert isinstance(constraint, BiasGrid)
            torch.testing.assert_close(constraint.scale, input_scale(layer.node) * grid.scale.flatten())
            followed += 1
    assert followed == 3


def test_few_bits_in_bytes_lose_less_than_the_same_without_training():
    step = IN_INTEGERS | {"weight_bits": 3}
    context = unlabelled("convolutional")
    graph = apply(trained("convolutional"), context, step | {"epochs": 10})
    kernels = [v for v in initializers(graph).values() if v.dtype == np.int8 and v.ndim > 1]
    assert sum(np.abs(values).max() <= 3 for values in kernels) >= 3
    start = apply(trained("convolutional"), unlabelled("convolutional"), step | {"epochs": 1, "learning_rate": 1e-9})
    assert error(graph, "convolutional") < 0.6 * error(start, "convolutional")
    assert any("7 of the values of a byte" in note for note in context.notes)


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_of_earlier_steps_stay_and_later_training_keeps_the_grid(kind):
    steps = {"step": "magnitude_pruning", "sparsity": 0.6}, QUICK | {"weight_bits": 3}
    graph = apply(trained(kind), unlabelled(kind), *steps)
    assert share_of_zeros(graph) >= 0.6
    before, places = weights(graph), zeros(graph)
    graph = apply(graph.copy(), unlabelled(kind), {"step": "distillation", "epochs": 2, "learning_rate": 3e-3})
    assert any(not torch.equal(weights(graph)[name], before[name]) for name in before)
    assert all(count <= 8 for count in levels(graph).values())
    pruned = apply(trained(kind), unlabelled(kind), steps[0])
    assert all((places[name] | ~zero).all() for name, zero in zeros(pruned).items())


def test_layers_that_share_a_weight_share_its_grid():
    examples = Examples(inputs_of("tied", 300))
    context = context_for("attention", train=examples, teacher=net("tied"), task="regression")
    graph = apply(net("tied"), context, QUICK | {"weight_bits": 2})
    found = [constraint for layer in graph.layers() for constraint in layer.constraints("weight")]
    assert len(found) == len(set(found)) + 1
    first, second = [layer.module.weight for layer in graph.layers()][1:3]
    assert torch.equal(first, second)
    x = inputs_of("tied")
    np.testing.assert_allclose(outputs(write_onnx(graph), x), graph(x)[0].detach().numpy(), rtol=1e-4, atol=1e-4)


def test_what_has_fewer_bits_is_left_alone():
    context = unlabelled("convolutional")
    graph = apply(trained("convolutional"), context, {"step": "ternarization", "keep_edges": False, "epochs": 1})
    with pytest.raises(StepError, match="stored in 2 bits already"):
        apply(graph, context, QUICK | {"weight_bits": 2})


def test_a_selection_of_layers():
    context = unlabelled("convolutional")
    graph = apply(trained("convolutional"), context, QUICK | {"layers": {"include": ["conv*"], "exclude": ["conv2"]}})
    assert list(levels(graph)) == ["conv1.weight"]
