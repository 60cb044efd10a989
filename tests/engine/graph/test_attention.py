"""Attention is found in the parts that exporters make of it, and its masked scores are kept from the integer grid."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor, nn

from tests.engine.onnx.nets import export
from workers.engine.ops.linear import Projection
from workers.engine.quantization.placement import place
from workers.engine.readers.onnx import read_onnx
from workers.engine.transforms.attention import find_attention

MASK = torch.full((6, 6), -1e9).triu(1)


class Attending(nn.Module):
    """Two heads, in several spellings."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling = spelling
        self.query, self.key, self.value, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.register_buffer("mask", MASK)

    def forward(self, x: Tensor) -> Tensor:
        layers = (self.query, self.key, self.value)
        query, key, value = (layer(x).reshape(-1, 6, 2, 8).transpose(1, 2) for layer in layers)
        scores = query @ key.transpose(-1, -2)
        match self.spelling:
            case "plain":
                attended = torch.softmax(scores, -1) @ value
            case "divided":
                attended = torch.softmax(scores / 8**0.5 + self.mask, -1) @ value
            case "filled":
                attended = torch.softmax((scores * 8**-0.5).masked_fill(self.mask < -1, -3e38), -1) @ value
            case "torch":
                attended = F.scaled_dot_product_attention(query, key, value, attn_mask=self.mask)
            case "no attention":
                attended = torch.softmax(value, -1)
        return self.out(attended.transpose(1, 2).reshape(-1, 6, 16))


@pytest.mark.parametrize("exporter", ["torchscript-17", "torchscript-14", "dynamo"])
@pytest.mark.parametrize("spelling", ["plain", "divided", "filled", "torch"])
def test_attention_is_found_in_its_parts(spelling: str, exporter: str) -> None:
    torch.manual_seed(0)
    graph = read_onnx(export(Attending(spelling).eval(), torch.randn(2, 6, 16), exporter))
    (attention,) = find_attention(graph.module.graph)
    assert attention.output.target is torch.matmul
    seen = {}
    hook = torch.fx.Interpreter(graph.module)
    run_node = hook.run_node
    hook.run_node = lambda node: seen.setdefault(node, run_node(node))
    hook.run(torch.randn(2, 6, 16))
    weights = seen[attention.weights]
    np.testing.assert_allclose(weights.detach().sum(-1), 1, rtol=1e-5)
    torch.testing.assert_close(weights @ seen[attention.values], seen[attention.output])
    assert seen[attention.queries].shape[-1] == 8


def test_other_softmaxes_are_none() -> None:
    graph = read_onnx(export(Attending("no attention").eval(), torch.randn(2, 6, 16), "torchscript-17"))
    assert not find_attention(graph.module.graph)


@pytest.mark.parametrize("spelling", ["plain", "divided"])
def test_masked_scores_stay_float(spelling: str) -> None:
    graph = read_onnx(export(Attending(spelling).eval(), torch.randn(2, 6, 16), "torchscript-17"))
    nodes = graph.module.graph
    layers = [n for n in nodes.nodes if n.op == "call_module"]
    assert all(isinstance(graph.module.get_submodule(str(layer.target)), Projection) for layer in layers)
    integer = place(nodes, frozenset(layers)).integer
    (attention,) = find_attention(nodes)
    held = {node for node in attention.scores if node in integer}
    assert {node.target for node in held} == {torch.matmul}
