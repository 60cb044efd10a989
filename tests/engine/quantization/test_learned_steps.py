import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from workers.engine.constraints import Mask, constrain, raw_parameter
from workers.engine.quantization.learned_steps import LearnedGrid, calmed, on_grid

WEIGHTS = st.lists(st.floats(-1e3, 1e3, width=32), min_size=12, max_size=12)
WIDTHS = [2, 3, 4, 8]


def as_in_the_paper(value, step, low, high, share):
    """LSQ by straight-through detours alone (Esser et al., appendix), for autograd to differentiate."""
    step = (step * share) + (step - step * share).detach()
    inside = (value / step).clamp(low, high)
    return (inside + (inside.round() - inside).detach()) * step


@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (5, 7)])
def test_the_gradients_are_those_of_the_paper(shape):
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(5, 7, generator=generator) * 3
    step = torch.rand(shape, generator=generator) + 0.4
    weights = torch.randn(5, 7, generator=generator)
    values = 35 // step.numel()
    ours, theirs = [], []
    for found, function in (
        (ours, lambda value, step: on_grid(value, calmed(step, values, 3), -4, 3)),
        (theirs, lambda value, step: as_in_the_paper(value, step, -4, 3, (values * 3) ** -0.5)),
    ):
        given = value.clone().requires_grad_(), step.clone().requires_grad_()
        result = function(*given)
        (result * weights).sum().backward()
        found += [result, *(tensor.grad for tensor in given)]
    torch.testing.assert_close(ours, theirs)
    assert (ours[1] == 0).any(), "something lies outside of the grid"


@given(
    values=WEIGHTS, axes=st.sampled_from([(), (0,), (1,), (0, 1)]), width=st.sampled_from(WIDTHS), even=st.booleans()
)
def test_weights_are_whole_steps_and_zero_stays_zero(values, axes, width, even):
    weight = torch.tensor(values).view(3, 4)
    grid = LearnedGrid.fit(weight, axes, width, even=even)
    placed = grid(weight)
    integers = grid.integers(weight)
    assert torch.equal(integers * grid.scale, placed)
    assert len(integers.unique()) <= 2**width
    assert bool((placed[weight == 0] == 0).all())
    assert torch.equal(grid(placed), placed)
    assert bool((grid.scale > 0).all()) or not even


def test_the_odd_integer_goes_to_the_side_of_the_large_weights():
    weight = torch.tensor([[-1.0, 0, 1, 2], [1, 0, -1, -2]])
    grid = LearnedGrid.fit(weight, (0,), 2)
    assert torch.equal(grid.scale.sign(), torch.tensor([[-1.0], [1.0]]))
    torch.testing.assert_close(grid(weight), weight, atol=0.1, rtol=0)


@pytest.mark.parametrize("width", [2, 3, 4])
def test_the_fit_is_nearer_than_the_grid_that_holds_the_largest_weight(width):
    weight = torch.randn(8, 200, generator=torch.Generator().manual_seed(1))
    fitted = LearnedGrid.fit(weight, (0,), width, even=True)
    widest = LearnedGrid(weight.abs().amax(1, keepdim=True) / (2 ** (width - 1) - 1), (0,), width, even=True)
    near, far = ((grid(weight) - weight).detach().square().sum(1) for grid in (fitted, widest))
    assert bool((near <= far).all())
    assert float(near.sum()) < float(far.sum())


def test_a_channel_of_zeros_can_still_learn():
    weight = torch.randn(4, 30, generator=torch.Generator().manual_seed(2))
    weight[2] = 0
    grid = LearnedGrid.fit(weight, (0,), 4)
    assert float(grid.scale.detach()[2]) == pytest.approx(float(grid.scale.detach()[[0, 1, 3]].abs().mean()))


def test_training_moves_the_steps_and_keeps_the_grid():
    torch.manual_seed(0)
    layer = nn.Linear(20, 6, bias=False)
    constrain(layer, "weight", LearnedGrid.fit(layer.weight, (0,), 2))
    (grid,) = layer.parametrizations["weight"]
    before = grid.scale.detach().clone()
    x, wanted = torch.randn(64, 20), torch.randn(64, 6)
    optimizer = torch.optim.AdamW(layer.parameters(), 0.02)
    losses = []
    for _ in range(40):
        loss = (layer(x) - wanted).square().mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert bool((grid.scale != before).all())
    assert torch.equal(grid.scale.sign(), before.sign())
    assert all(len(row.unique()) <= 4 for row in layer.weight)


def test_a_copy_learns_by_itself():
    layer = nn.Linear(8, 4)
    constrain(layer, "weight", LearnedGrid.fit(layer.weight, (0,), 3))
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.parametrizations["weight"][0].growth.add_(1)
    assert bool((layer.parametrizations["weight"][0].growth == 0).all())
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.weight, layer.weight)


def test_zeros_of_a_mask_survive_and_channels_can_go():
    layer = nn.Linear(8, 6, bias=False)
    keep = torch.rand(6, 8, generator=torch.Generator().manual_seed(0)) > 0.5
    constrain(layer, "weight", Mask(keep))
    constrain(layer, "weight", LearnedGrid.fit(layer.weight, (0,), 4))
    assert bool((layer.weight[~keep] == 0).all())
    kept = torch.tensor([0, 2, 5])
    mask, grid = layer.parametrizations["weight"]
    wanted = layer.weight[kept]
    for constraint in (mask, grid):
        constraint.narrow(0, kept)
    assert torch.equal(grid(mask(raw_parameter(layer, "weight")[kept])), wanted)
