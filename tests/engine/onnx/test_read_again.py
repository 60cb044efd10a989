"""Weights that steps have stored in few values or few bits are read as what they are, and stored so again."""

import pytest
import torch

from tests.engine.steps.nets import apply, context_for, trained
from workers.engine.readers import read_model
from workers.engine.writers.onnx import write_onnx

FORMS = [
    {"step": "weight_clustering", "values": 16, "train": False},
    {"step": "binarization", "epochs": 1, "keep_edges": False},
    {"step": "ternarization", "epochs": 1, "keep_edges": False},
    {"step": "quantization_aware_training", "epochs": 1},
    {"step": "weight_only_quantization", "bits": 8},
    {"step": "weight_only_quantization", "bits": 4},
    {"step": "weight_only_quantization", "bits": 3},
    {"step": "weight_only_quantization", "bits": 2, "group_size": None},
    {"step": "weight_only_quantization", "bits": 4, "symmetric": True},
]


def named(step):
    return "-".join(str(value) for value in step.values())


@pytest.mark.parametrize("net", ["convolutional", "recurrent"])
@pytest.mark.parametrize("step", FORMS, ids=named)
def test_a_result_is_read_in_the_form_in_which_it_was_stored(tmp_path, net, step):
    graph = apply(trained(net), context_for(net, train="unlabelled"), step)
    content = write_onnx(graph)
    (tmp_path / "model").write_bytes(content)
    _, again = read_model(tmp_path / "model")
    bits = stored_bits(graph)
    assert min(bits.values()) < 10, "the step stored nothing smaller"
    assert stored_bits(again) == pytest.approx(bits)
    for before, after in zip(graph.layers(), again.layers(), strict=True):
        for name, weight in before.weights.items():
            assert torch.equal(after.weights[name], weight), before.name
    assert len(write_onnx(again)) < 1.06 * len(content)


def stored_bits(graph):
    """Of each weight of each layer."""
    return {
        f"{layer.name}.{name}": ([c.bits for c in layer.constraints(name) if c.bits < 32] or [32.0])[-1]
        for layer in graph.layers()
        for name in layer.weights
    }
