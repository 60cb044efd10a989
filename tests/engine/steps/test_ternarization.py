import numpy as np
import pytest
import torch

from tests.engine.steps.nets import KINDS, accuracy, apply, context_for, data_of, outputs, trained, zeros
from workers.engine.quantization.few_values import Ternary
from workers.engine.writers.onnx import write_onnx

TERNARY = {"step": "ternarization", "keep_edges": False, "epochs": 5}
PRUNE = {"step": "magnitude_pruning", "sparsity": 0.6}


def unlabelled(kind):
    return context_for(kind, train="unlabelled")


def assert_three_values(graph):
    found = 0
    for layer in graph.layers():
        for name, weight in layer.weights.items():
            for constraint in layer.constraints(name):
                if isinstance(constraint, Ternary):
                    signs = weight / constraint.scale
                    assert set(signs.detach().round(decimals=4).unique().tolist()) <= {-1, 0, 1}
                    found += 1
    assert found >= 2


@pytest.mark.parametrize("kind", KINDS)
def test_weights_have_three_values_and_the_file_answers_as_the_graph(kind):
    context = unlabelled(kind)
    graph = apply(trained(kind), context, TERNARY)
    assert_three_values(graph)
    file = write_onnx(graph)
    x = data_of(kind, "test").inputs
    np.testing.assert_allclose(outputs(file, x), graph(x)[0].detach().numpy(), rtol=1e-4, atol=1e-4)
    assert len(file) < 0.6 * len(write_onnx(trained(kind)))
    assert accuracy(graph, kind) > accuracy(trained(kind), kind) - 0.05
    assert 0.2 < context.figures["sparsity"] < 0.7


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_of_a_mask_stay_zero_and_later_training_keeps_the_values(kind):
    pruned = apply(trained(kind), unlabelled(kind), PRUNE)
    places = zeros(pruned)
    graph = apply(pruned, unlabelled(kind), TERNARY | {"epochs": 2}, {"step": "distillation", "epochs": 2})
    assert_three_values(graph)
    assert all((zero | ~places[name]).all() for name, zero in zeros(graph).items())


def test_a_layer_can_stay_as_it_is():
    context = unlabelled("convolutional")
    graph = apply(trained("convolutional"), context, TERNARY | {"epochs": 1, "layers": {"include": ["conv1"]}})
    constrained = [layer.name for layer in graph.layers() if layer.constraints("weight")]
    assert constrained == ["conv1"]
    assert torch.equal(*[next(iter(g.layers())).module.weight == 0 for g in (graph, trained("convolutional"))])
