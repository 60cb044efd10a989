import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from workers.engine.constraints import Mask, constrain, raw_parameter
from workers.engine.quantization.grid import BiasGrid, IntegerGrid, grid_of

WEIGHTS = st.lists(st.floats(-1e4, 1e4, width=32), min_size=12, max_size=12)


@given(values=WEIGHTS, axes=st.sampled_from([(), (0,), (1,), (0, 1)]), width=st.sampled_from([7, 8]))
def test_a_weight_moves_by_half_a_step_at_most_and_zero_does_not_move(values, axes, width):
    weight = torch.tensor(values).view(3, 4)
    grid = IntegerGrid.fit(weight, axes, width)
    rounded = grid(weight)
    assert bool(((rounded - weight).abs() <= grid.scale * 0.5001).all())
    assert bool((rounded[weight == 0] == 0).all())
    assert torch.equal(grid(rounded), rounded)
    integers = grid.integers(weight)
    assert float(integers.abs().max()) <= 2 ** (width - 1) - 1
    assert torch.equal(integers, integers.round())


@given(values=WEIGHTS, axes=st.sampled_from([(), (0,), (1,)]))
def test_what_is_stored_is_what_is_used(values, axes):
    weight = torch.tensor(values).view(3, 4)
    grid = IntegerGrid.fit(weight, axes)
    stored = grid.encode(weight)
    assert stored.values.dtype == torch.int8
    scale = stored.scale if stored.axis is None else stored.scale.view([-1 if a == stored.axis else 1 for a in (0, 1)])
    assert torch.equal(stored.values * scale, grid(weight))


def test_seven_bits_leave_room_for_two_products_in_sixteen():
    grid = IntegerGrid.fit(torch.randn(64, 64) * 3, (0,), 7)
    assert 2 * 255 * grid.limit <= 2**15
    assert IntegerGrid.fit(torch.randn(4, 4), (0,), 8).limit == 127


def test_gradients_pass_straight_through_and_training_stays_on_the_grid():
    layer = nn.Linear(6, 4, bias=False)
    constrain(layer, "weight", IntegerGrid.fit(layer.weight, (0,)))
    before = layer.weight.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), 0.5)
    layer(torch.ones(3, 6)).sum().backward()
    assert torch.equal(raw_parameter(layer, "weight").grad, torch.full((4, 6), 3.0))
    optimizer.step()
    grid = grid_of(layer, "weight")
    assert not torch.equal(layer.weight, before)
    assert torch.equal(grid(layer.weight), layer.weight)


def test_zeros_of_a_mask_survive_the_grid():
    layer = nn.Linear(8, 8)
    keep = torch.rand(8, 8, generator=torch.Generator().manual_seed(0)) > 0.6
    constrain(layer, "weight", Mask(keep))
    constrain(layer, "weight", IntegerGrid.fit(layer.weight, (0,)))
    assert torch.equal(layer.weight == 0, ~keep)


def test_a_dead_channel_is_no_division_by_zero():
    weight = torch.randn(3, 4)
    weight[1] = 0
    rounded = IntegerGrid.fit(weight, (0,))(weight)
    assert bool(torch.isfinite(rounded).all())
    assert bool((rounded[1] == 0).all())


@pytest.mark.parametrize("size", [1e-8, 1.0, 1e4])
def test_biases_keep_the_precision_of_the_accumulators(size):
    bias = torch.randn(16, generator=torch.Generator().manual_seed(0)) * size
    grid = BiasGrid(bias.abs() * 1e-6)
    assert torch.allclose(grid(bias), bias, rtol=2e-6)
    assert grid.encode(bias).values.dtype == torch.int32
