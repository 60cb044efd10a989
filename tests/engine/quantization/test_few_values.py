import pytest
import torch
from torch import nn

from workers.engine.constraints import Mask, constrain, raw_parameter
from workers.engine.quantization.few_values import WINDOW, Binary, Ternary

WEIGHT = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))


def test_a_binary_weight_is_its_sign_times_the_mean_magnitude_of_its_channel():
    binary = Binary.fit(WEIGHT, (0,))
    torch.testing.assert_close(binary(WEIGHT), WEIGHT.sign() * WEIGHT.abs().mean(1, keepdim=True))
    assert all(len(row.unique()) == 2 for row in binary(WEIGHT))


def test_a_ternary_weight_is_zero_below_the_threshold_and_else_the_mean_of_the_rest():
    ternary = Ternary.fit(WEIGHT, (0,))
    large = WEIGHT.abs() > 0.7 * WEIGHT.abs().mean(1, keepdim=True)
    rest = (WEIGHT.abs() * large).sum(1, keepdim=True) / large.sum(1, keepdim=True)
    torch.testing.assert_close(ternary(WEIGHT), WEIGHT.sign() * large * rest)
    assert all(len(row.unique()) == 3 for row in ternary(WEIGHT))


@pytest.mark.parametrize("kind", [Binary, Ternary])
@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_no_other_scale_moves_the_weights_less(kind, factor):
    fitted = kind.fit(WEIGHT, (0,))
    signs = fitted.signs(WEIGHT)
    error = (fitted.scale * signs - WEIGHT).square().sum(1)
    assert bool((error < (factor * fitted.scale * signs - WEIGHT).square().sum(1)).all())


@pytest.mark.parametrize("kind", [Binary, Ternary])
def test_gradients_pass_straight_through_until_far_outside(kind):
    weight = WEIGHT.clone()
    constraint = kind.fit(weight, (0,))
    scale = constraint.scale.detach()
    weight[0, 0], weight[1, 0] = 1.01 * WINDOW * scale[0, 0], 0.99 * WINDOW * scale[1, 0]
    weight.requires_grad_()
    weights = torch.randn(WEIGHT.shape, generator=torch.Generator().manual_seed(1))
    (constraint(weight) * weights).sum().backward()
    assert weight.grad[0, 0] == 0
    assert weight.grad[1, 0] == weights[1, 0]
    signs = constraint.signs(weight.detach())
    torch.testing.assert_close(constraint.growth.grad, (signs * weights).sum(1, keepdim=True) * scale)


@pytest.mark.parametrize("kind", [Binary, Ternary])
def test_what_is_stored_is_what_is_used(kind):
    constraint = kind.fit(WEIGHT, (0,))
    stored = constraint.encode(WEIGHT)
    assert torch.equal(stored.values[stored.indices.long()] * stored.scale, constraint(WEIGHT))
    assert stored.bits == kind.bits
    assert torch.equal(constraint(constraint(WEIGHT)), constraint(WEIGHT))


def test_zeros_of_a_mask_stay_zero_in_three_values():
    layer = nn.Linear(50, 6, bias=False)
    keep = torch.rand(6, 50, generator=torch.Generator().manual_seed(0)) > 0.8
    constrain(layer, "weight", Mask(keep))
    constrain(layer, "weight", Ternary.fit(layer.weight, (0,)))
    assert bool((layer.weight[~keep] == 0).all())
    assert bool((layer.weight[keep] != 0).any())


def test_a_channel_of_zeros_is_no_channel_of_noise():
    weight = WEIGHT.clone()
    weight[3] = 0
    assert bool((Ternary.fit(weight, (0,))(weight)[3] == 0).all())
    assert float(Binary.fit(weight, (0,))(weight)[3].detach().abs().max()) < 1e-20


def test_channels_can_go():
    constraint = Binary.fit(WEIGHT, (0,))
    wanted, kept = constraint(WEIGHT)[[1, 4]], torch.tensor([1, 4])
    constraint.narrow(0, kept)
    constraint.narrow(1, torch.arange(50))
    assert torch.equal(constraint(WEIGHT[kept]), wanted)


@pytest.mark.parametrize("kind", [Binary, Ternary])
def test_training_keeps_the_values(kind):
    torch.manual_seed(0)
    layer = nn.Linear(20, 6, bias=False)
    constrain(layer, "weight", kind.fit(layer.weight, (0,)))
    x, wanted = torch.randn(64, 20), torch.randn(64, 6)
    optimizer = torch.optim.AdamW(layer.parameters(), 0.02)
    signs, losses = raw_parameter(layer, "weight").sign().clone(), []
    for _ in range(60):
        loss = (layer(x) - wanted).square().mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert bool((raw_parameter(layer, "weight").sign() != signs).any()), "signs are learned"
    assert all(len(row.unique()) <= len(kind.values) for row in layer.weight)
