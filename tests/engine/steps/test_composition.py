"""What one step did, the next ones keep."""

import itertools

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from tests.engine.steps.nets import KINDS, accuracy, apply, context_for, share_of_zeros, trained, zeros
from workers.engine.writers.onnx import write_onnx

PRUNE = {"step": "magnitude_pruning", "sparsity": 0.6}
DISTIL = {"step": "distillation", "epochs": 3, "learning_rate": 3e-3}
STATIC = {"step": "static_quantization", "keep_float": 1.0}
DYNAMIC = {"step": "dynamic_quantization"}
HALF = {"step": "half_precision"}


@pytest.mark.parametrize("last", [STATIC, DYNAMIC, HALF], ids=lambda step: step["step"])
@pytest.mark.parametrize("kind", KINDS)
def test_zeros_survive_distillation_and_every_number_format(kind, last):
    if kind == "convolutional" and last is DYNAMIC:
        last = last | {"layers": {"include": ["head"]}}
    context = context_for(kind, train="unlabelled")
    graph = apply(trained(kind), context, PRUNE, DISTIL)
    places = zeros(graph)
    graph = apply(graph, context, last)
    assert share_of_zeros(graph) >= 0.6
    for name, zero in zeros(graph).items():
        assert (zero | ~places[name]).all(), name
    assert accuracy(graph, kind) > 0.8


def test_zeros_are_zeros_in_the_file():
    context = context_for("convolutional", train="unlabelled")
    graph = apply(trained("convolutional"), context, PRUNE, DISTIL, STATIC)
    stored = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in onnx.load_from_string(write_onnx(graph)).graph.initializer
    }
    kernels = [values for values in stored.values() if values.ndim > 1 and values.dtype == np.int8]
    assert len(kernels) == 4
    assert np.mean(np.concatenate([values.ravel() == 0 for values in kernels])) >= 0.6


@pytest.mark.parametrize("kind", KINDS)
def test_quantized_weights_stay_on_their_grid_while_they_are_trained(kind):
    context = context_for(kind, train="unlabelled")
    graph = apply(trained(kind), context, PRUNE, STATIC, DISTIL)
    assert share_of_zeros(graph) >= 0.6
    grids = 0
    for layer, name in itertools.chain.from_iterable(itertools.product([la], la.weights) for la in graph.layers()):
        for constraint in layer.constraints(name):
            if hasattr(constraint, "integers"):
                grids += 1
                whole = layer.weights[name] / constraint.scale
                torch.testing.assert_close(whole, whole.round(), rtol=0, atol=1e-4)
    assert grids
    assert accuracy(graph, kind) > 0.8


def test_a_copy_of_a_constrained_graph_shares_nothing_with_it():
    context = context_for("recurrent")
    pruned = apply(trained("recurrent"), context, PRUNE)
    copy = pruned.copy()
    before = zeros(copy)
    apply(pruned, context, PRUNE | {"sparsity": 0.9}, {"step": "fine_tuning", "epochs": 1})
    assert all(torch.equal(zeros(copy)[name], zero) for name, zero in before.items())
