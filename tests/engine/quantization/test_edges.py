import io

import pytest
import torch
from torch import nn

from tests.engine.quantization.nets import net
from tests.engine.steps.nets import trained
from workers.engine.quantization.edges import edge_layers
from workers.engine.readers.onnx import read_onnx


@pytest.mark.parametrize(
    ("graph", "edges"),
    [
        (lambda: trained("convolutional"), {"stem", "head"}),
        (lambda: trained("recurrent"), {"encoder.0", "head"}),
        (lambda: net("residual"), {"stem", "head"}),
        (lambda: net("tokens"), {"table", "head"}),
        (lambda: net("perceptron"), {"first", "head"}),
    ],
)
def test_the_first_and_the_last_layer(graph, edges):
    found = edge_layers(graph())
    assert len(found) == 2
    assert {name.partition(".weight")[0] for name in found} == edges


class TwoInputs(nn.Module):
    """A second input, a mask, meets layers in the middle."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.norm = nn.LayerNorm(8)
        self.middle = nn.Linear(8, 8)
        self.left = nn.Linear(8, 3)
        self.right = nn.Linear(8, 2)

    def forward(self, x, mask):
        x = self.norm(self.first(x)) * mask
        x = torch.relu(self.middle(x))
        return torch.softmax(self.left(x), -1), self.right(x)


def test_a_mask_makes_no_layer_the_first_and_every_head_is_a_last_one():
    file = io.BytesIO()
    torch.onnx.export(TwoInputs().eval(), (torch.randn(2, 6), torch.ones(2, 8)), file, dynamo=False)
    assert {name.partition(".weight")[0] for name in edge_layers(read_onnx(file.getvalue()))} == {
        "first",
        "left",
        "right",
    }
