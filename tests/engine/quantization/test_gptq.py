"""GPTQ on real layers, and what it takes from their inputs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.engine.quantization.nets import inputs_of, net
from tests.engine.steps.nets import data_of, trained
from workers.engine.ops.convolution import Conv
from workers.engine.ops.linear import Linear
from workers.engine.ops.recurrent_cells import GRU, LSTM, Recurrent
from workers.engine.quantization import gptq, hessians
from workers.engine.quantization.fitting import Kind, fit, nearest
from workers.engine.quantization.simulation import record


def layer_with_inputs(kind, name):
    """A layer of a trained net, and what it reads of the net's own data."""
    graph = trained(kind)
    layer = next(layer for layer in graph.layers() if layer.name == name)
    values = record(graph, (data_of(kind).inputs[:200],))
    return layer.module, values[layer.node.args[0]]


@torch.no_grad()
def error(module, x, weight):
    """Relative, of what a layer gives with another weight."""
    wanted = module(x)
    module.weight.copy_(weight)
    return float((module(x) - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("bits", [4, 3, 2])
@pytest.mark.parametrize(
    ("kind", "name"), [("convolutional", "conv1"), ("convolutional", "conv2"), ("attention", "block.linear1")]
)
def test_it_moves_what_a_real_layer_gives_less_than_rounding_does(kind, name, bits):
    module, x = layer_with_inputs(kind, name)
    weight = module.weight.detach().clone()
    rows = weight.flatten(1)
    scale, zero = fit(rows.unsqueeze(1), Kind(bits, symmetric=False, exact=True))
    rounded = nearest(rows.unsqueeze(1), scale, zero, bits).squeeze(1)
    spread = [numbers.squeeze(2).expand_as(rows).unsqueeze(0) for numbers in (scale, zero)]
    hessian = hessians.of_inputs(module, [x])
    compensated = gptq.rounded(rows.unsqueeze(0), hessian, *spread, bits)

    by_itself = error(module, x, rounded.view_as(weight))
    with torch.no_grad():
        module.weight.copy_(weight)
    together = error(module, x, compensated.view_as(weight))

    assert together < 0.85 * by_itself, (together, by_itself)
    again = nearest(compensated.view(len(rows), 1, -1), scale, zero, bits)
    torch.testing.assert_close(again.flatten(), compensated.flatten())


@torch.no_grad()
def test_inputs_that_have_nothing_in_common_leave_each_weight_to_itself():
    rows = torch.randn(1, 6, 20)
    scale = torch.full_like(rows, 0.3)
    rounded = gptq.rounded(rows, torch.eye(20).unsqueeze(0), scale, None, 4)
    torch.testing.assert_close(rounded, nearest(rows.unsqueeze(2), scale.unsqueeze(2)[..., :1], None, 4).squeeze(2))


@torch.no_grad()
def test_zeros_stay_and_the_others_make_up_for_all():
    rows, x = torch.randn(1, 6, 20), torch.randn(300, 20) @ torch.randn(20, 20)
    keep = torch.rand_like(rows) > 0.5
    rows = rows * keep
    hessian = (x.T @ x).unsqueeze(0)
    scale = torch.full_like(rows, 0.4)
    rounded = gptq.rounded(rows, hessian, scale, None, 4, keep)
    assert not rounded[~keep].any()
    by_itself = nearest(rows.unsqueeze(3), scale.unsqueeze(3), None, 4).squeeze(3)
    assert ((rounded - rows)[0] @ x.T).norm() < ((by_itself - rows)[0] @ x.T).norm()


@pytest.mark.parametrize("rank", [0, 1, 19])
@torch.no_grad()
def test_inputs_that_say_little_do_no_harm(rank):
    """Dead inputs, all the same, fewer than there are weights."""
    rows, x = torch.randn(1, 6, 20), torch.randn(rank, 20)
    rounded = gptq.rounded(rows, (x.T @ x).unsqueeze(0), torch.full_like(rows, 0.3), None, 4)
    assert rounded.isfinite().all()
    assert (rounded - rows).abs().max() < 3


@given(
    rank=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 4]),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    pads=st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER"]),
)
@settings(max_examples=40, deadline=None)
@torch.no_grad()
def test_the_products_of_a_convolution_are_those_of_its_outputs(rank, groups, kernel, stride, dilation, pads):
    """‖W x‖² = Σ w H w, whatever the window."""
    weight = torch.randn(groups * 3, 2, *[kernel] * rank)
    conv = Conv(
        nn.Parameter(weight), None, stride=(stride,) * rank, pads=(1, *[0] * (rank - 1), *[1] * rank),
        dilation=(dilation,) * rank, groups=groups, auto_pad=pads,
    )  # fmt: skip
    x = torch.randn(3, groups * 2, *[6] * rank)
    rows = weight.flatten(1).unflatten(0, (groups, -1))
    found = torch.einsum("gri,gij,grj->", rows, hessians.of_inputs(conv, [x[:2], x[2:]]), rows)
    torch.testing.assert_close(found, conv(x).square().sum(), rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_the_products_of_a_linear_layer_count_every_position():
    linear, x = Linear(nn.Parameter(torch.randn(4, 6)), None), torch.randn(5, 7, 6)
    found = torch.einsum("ri,ij,rj->", linear.weight, hessians.of_inputs(linear, [x])[0], linear.weight)
    torch.testing.assert_close(found, linear(x).square().sum(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("kind", [LSTM, GRU])
@torch.no_grad()
def test_states_are_those_that_each_direction_reads_at_each_step(kind, layout):
    options = {"linear_before_reset": 1} if kind is GRU else {}
    rows = kind.gates * 5
    weights = [nn.Parameter(torch.randn(shape)) for shape in ((2, rows, 3), (2, rows, 5), (2, 2 * rows))]
    layer = kind(*weights, direction="bidirectional", layout=layout, **options)
    read = [[], []]
    plain_cell = layer.cell

    def cell(x, states, own, direction):
        read[direction].append(states[0])
        return plain_cell(x, states, own, direction)

    layer.cell = cell
    x = torch.randn(2, 4, 3) if layout else torch.randn(4, 2, 3)
    output, *_ = layer(x, torch.full((2,), 4))  # lengths, so that each step is one call

    for direction, found in enumerate(hessians.of_states(layer, [output])):
        states = torch.cat(read[direction])
        torch.testing.assert_close(found, states.T @ states)


def test_every_recurrent_weight_is_reached():
    graph = net("lstm")
    layer = next(layer for layer in graph.layers() if isinstance(layer.module, Recurrent))
    assert all(hessians.has_hessian(layer.module, name) for name in layer.weights)
    inputs = record(graph, (inputs_of("lstm", 8),))[layer.node.args[0]]
    assert hessians.of_inputs(layer.module, [inputs]).shape == (1, 6, 6)
