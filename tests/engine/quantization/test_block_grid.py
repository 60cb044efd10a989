"""Weights cut into blocks, each on a grid of its own."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workers.engine.errors import StepError
from workers.engine.quantization.block_grid import BlockGrid, block_length
from workers.engine.quantization.blocks import Blocks
from workers.engine.quantization.fitting import POWER, Kind, fit, nearest

BITS = st.sampled_from([8, 4, 3, 2])
SHAPES = st.lists(st.integers(1, 7), min_size=2, max_size=4)


def gridded(weight, axes, bits, group, *, symmetric=False, exact=True):
    inside = weight.numel() // max(1, torch.tensor([weight.shape[a] for a in axes]).prod().item())
    blocks = Blocks(axes, block_length(inside, group, bits, product=False))
    return BlockGrid(blocks, bits, *fit(blocks.split(weight), Kind(bits, symmetric, exact)))


@given(shape=SHAPES, length=st.integers(1, 9), data=st.data())
def test_blocks_join_to_what_was_split(shape, length, data):
    axes = data.draw(st.sampled_from([(), (0,), (1,), (0, 1)]))
    weight = torch.randn(shape)
    blocks = Blocks(axes, length).split(weight)
    assert blocks.shape[2] == length
    assert torch.equal(Blocks(axes, length).join(blocks, weight.shape), weight)


@given(bits=BITS, group=st.sampled_from([None, 16, 32]), symmetric=st.booleans(), inside=st.integers(1, 90))
def test_zero_stays_zero_and_no_block_has_more_values_than_its_bits_tell_apart(bits, group, symmetric, inside):
    weight = torch.randn(5, inside) * torch.logspace(-3, 2, 5)[:, None]
    weight[:, ::3] = 0
    grid = gridded(weight, (0,), bits, group, symmetric=symmetric)
    used = grid(weight)
    assert not used[:, ::3].any()
    assert torch.equal(grid(used), used)
    for block in grid.blocks.split(used).flatten(0, 1):
        assert len(block.unique()) <= 2**bits


@given(bits=BITS, symmetric=st.booleans(), exact=st.booleans(), seed=st.integers(0, 1000))
def test_fitted_grids_are_no_worse_than_those_that_hold_the_largest(bits, symmetric, exact, seed):
    weight = torch.randn(6, 1, 48, generator=torch.Generator().manual_seed(seed)) ** 3
    scale, zero = fit(weight, Kind(bits, symmetric, exact))
    error = (nearest(weight, scale, zero, bits) - weight).square().sum(-1)
    if symmetric:
        widest = weight.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
        plain = (weight / widest).round() * widest
    else:
        low, high = weight.amin(-1, keepdim=True).clamp_max(0), weight.amax(-1, keepdim=True).clamp_min(0)
        widest = (high - low) / (2**bits - 1)
        middle = (-low / widest).round()
        plain = ((weight / widest + middle).round().clamp(0, 2**bits - 1) - middle) * widest
    # scales are stored with 8 bits of precision, which moves the largest weights by up to 0.2 %
    assert (error <= (plain - weight).square().sum(-1) + 5e-3 * weight.square().sum(-1)).all()
    assert torch.equal(scale, scale.bfloat16().float())
    if zero is not None and exact:
        assert torch.equal(zero, zero.round())


@given(bits=BITS, symmetric=st.booleans(), seed=st.integers(0, 1000))
def test_the_half_quadratic_solver_leaves_fewer_large_errors(bits, symmetric, seed):
    weight = torch.randn(6, 2, 40, generator=torch.Generator().manual_seed(seed)) ** 3
    kind = Kind(bits, symmetric, exact=False)
    losses = [
        (nearest(weight, *fit(weight, kind, half_quadratic=solver), bits) - weight).abs().pow(POWER).sum(-1)
        for solver in (False, True)
    ]
    assert (losses[1] <= losses[0] + 1e-5).all()


@torch.no_grad()
def test_weights_that_matter_more_are_hit_better():
    weight, importance = torch.randn(8, 1, 64), torch.ones(1, 1, 64)
    importance[..., :8] = 1000
    kind = Kind(3, symmetric=False, exact=True)
    errors = [
        (nearest(weight, *fit(weight, kind, given), 3) - weight)[..., :8].square().sum() for given in (None, importance)
    ]
    assert errors[1] < 0.8 * errors[0]


def test_gradients_pass_straight_through_and_copies_share_nothing():
    grid = gridded(torch.randn(4, 40), (0,), 4, 16)
    raw = torch.randn(4, 40, requires_grad=True)
    grid(raw).sum().backward()
    assert torch.equal(raw.grad, torch.ones(4, 40))
    other = copy.deepcopy(grid)
    other.scale.mul_(2)
    assert not torch.equal(other(raw), grid(raw))
    assert set(grid.state_dict()) == {"scale", "zero"}


def test_rows_go_with_their_grids():
    weight = torch.randn(6, 40)
    grid, keep = gridded(weight, (0,), 4, 16), torch.tensor([0, 2, 5])
    wanted = grid(weight)[keep]
    grid.narrow(0, keep)
    assert torch.equal(grid(weight[keep]), wanted)
    with pytest.raises(StepError, match="remove channels first"):
        grid.narrow(1, keep)


@pytest.mark.parametrize(
    ("inside", "group", "bits", "product", "length"),
    [(144, 64, 4, False, 48), (144, 64, 4, True, 64), (384, 64, 4, False, 64), (9, 64, 4, False, 10),
     (9, 64, 3, False, 16), (27, None, 8, False, 27), (100, 32, 2, False, 28), (40, None, 4, True, 40)],
)  # fmt: skip
def test_blocks_fill_up_little_where_kernels_do_not_want_powers_of_two(inside, group, bits, product, length):
    assert block_length(inside, group, bits, product=product) == length
