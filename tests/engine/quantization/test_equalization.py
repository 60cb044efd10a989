import pytest
import torch
from torch import nn

from tests.engine.quantization.nets import Uneven, inputs_of, net
from tests.engine.steps.nets import exported
from workers.engine.constraints import Mask
from workers.engine.quantization.equalization import equalize, is_layer
from workers.engine.quantization.grid import IntegerGrid
from workers.engine.quantization.simulation import record
from workers.engine.quantization.smoothing import STRENGTHS, Smoothed, smooth


def equalized(graph, x):
    return equalize(graph, record(graph, [x[:8]]))


def smoothed_by(graph, values, *strengths):
    return smooth(
        graph, values, strengths, frozenset(layer.node for layer in graph.layers() if is_layer(layer.node)), 8
    )


def unevenness(layer):
    largest = layer.module.weight.detach().abs().flatten(1).amax(1)
    return float(largest.max() / largest.min())


def layers(graph):
    return {layer.name: layer for layer in graph.layers()}


@pytest.mark.parametrize("kind", ["uneven", "residual", "gated", "perceptron", "tied"])
def test_outputs_stay_as_they_were(kind):
    graph, x = net(kind), inputs_of(kind)
    before = graph(x)[0].detach()
    equalized(graph, x)
    assert torch.allclose(graph(x)[0].detach(), before, rtol=1e-4, atol=1e-5 * float(before.abs().max()))


def test_channels_come_to_have_similar_ranges_through_depthwise_pooling_and_flattening():
    graph, x = net("uneven"), inputs_of("uneven")
    before = unevenness(layers(graph)["first"])
    outcome = equalized(graph, x)
    assert outcome.pairs == 4
    assert unevenness(layers(graph)["first"]) < before / 3


def test_a_leaky_relu_scales_and_a_sigmoid_does_not():
    for activation, pairs in [(nn.LeakyReLU, 4), (nn.Sigmoid, 0), (nn.Hardswish, 0)]:
        torch.manual_seed(0)
        graph = exported(Uneven(activation), inputs_of("uneven", 2))
        outcome = equalized(graph, inputs_of("uneven"))
        assert outcome.pairs == pairs
        assert outcome.skipped == 5 - pairs


def test_values_that_several_read_are_left_alone():
    outcome = equalized(net("residual"), inputs_of("residual"))
    assert outcome.pairs == 0


def test_masks_are_kept_and_grids_are_not_touched():
    graph = net("perceptron")
    named = layers(graph)
    keep = torch.rand(200, 24, generator=torch.Generator().manual_seed(0)) > 0.5
    named["first"].constrain("weight", Mask(keep))
    named["head"].constrain("weight", IntegerGrid.fit(named["head"].module.weight, (0,)))
    gridded = named["head"].module.weight.clone()
    before = named["first"].module.weight.clone()
    assert equalized(graph, inputs_of("perceptron")).pairs == 1
    assert torch.equal(named["head"].module.weight, gridded)
    assert not torch.equal(named["first"].module.weight, before)
    assert torch.equal(named["first"].module.weight == 0, before == 0)


def test_smoothing_takes_outliers_out_of_a_layer_norm_and_keeps_the_outputs():
    graph, x = net("normalized"), inputs_of("normalized")
    values = record(graph, [x])
    before = graph(x)[0].detach()
    norm = next(node for node in graph.module.graph.nodes if len(node.users) == 2 and node.op == "call_module")
    outliers = values[norm].abs().flatten(0, -2).amax(0)
    assert smoothed_by(graph, [values], 0.5) == Smoothed(absorbed=1)
    assert torch.allclose(graph(x)[0].detach(), before, rtol=1e-4, atol=1e-5)
    smoothed = record(graph, [x])[norm].abs().flatten(0, -2).amax(0)
    assert smoothed.max() / smoothed.min() < 0.3 * outliers.max() / outliers.min()


def test_weights_that_several_layers_share_are_left_as_they_are():
    graph, x = net("tied"), inputs_of("tied")
    before = {name: layer.module.weight.detach().clone() for name, layer in layers(graph).items()}
    assert equalized(graph, x).pairs == 0
    assert smoothed_by(graph, [record(graph, [x])], 0.5) == Smoothed(left=4)
    assert all(torch.equal(layer.module.weight, before[name]) for name, layer in layers(graph).items())


class Block(nn.Module):
    """As in BERT: a residual reads what the first layer reads, and a GELU stands before the second."""

    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(24), nn.Linear(24, 48), nn.Linear(48, 24)
        with torch.no_grad():
            self.norm.weight[::6] *= 40
            self.up.weight[::5] *= 10

    def forward(self, x):
        x = self.norm(x)
        return x + self.down(nn.functional.gelu(self.up(x)))


def test_where_the_producer_cannot_take_the_scales_up_a_product_does_and_no_more_strength_than_helps_is_taken():
    torch.manual_seed(0)
    x = inputs_of("normalized")
    graph = exported(Block(), x)
    before = graph(x)[0].detach()
    assert smoothed_by(graph, [record(graph, [x])], *STRENGTHS) == Smoothed(multiplied=2)
    assert torch.allclose(graph(x)[0].detach(), before, rtol=1e-4, atol=1e-4)
    even = exported(nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 8), nn.GELU(), nn.Linear(8, 3)), x)
    assert smoothed_by(even, [record(even, [x])], *STRENGTHS).multiplied == 0
