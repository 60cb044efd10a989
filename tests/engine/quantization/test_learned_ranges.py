import pytest
import torch

from workers.engine.quantization.fake_quantize import FakeQuantize
from workers.engine.quantization.learned_ranges import LearnedFakeQuantize

X = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)).mul(2).mul(100).round().add(0.3).div(100)
"""Near no border between two levels."""


@pytest.mark.parametrize(("scale", "zero_point", "gain"), [(0.02, 100, 1.0), (0.011, 0, 1.0), (0.03, 128, 0.25)])
def test_it_begins_and_ends_as_a_plain_fake_quantizer(scale, zero_point, gain):
    plain = FakeQuantize(scale, zero_point, gain)
    learned = LearnedFakeQuantize(plain)
    torch.testing.assert_close(learned(X), plain(X), atol=1e-6, rtol=0)
    with torch.no_grad():
        learned.growth.add_(0.3)
        if learned.shift is not None:
            learned.shift.sub_(0.1)
    settled = learned.settled()
    assert not isinstance(settled, LearnedFakeQuantize)
    assert not list(settled.parameters())
    assert settled.gain == gain
    assert int(settled.zero_point) == (round(zero_point - 25.5) if zero_point else 0)
    torch.testing.assert_close(settled(X), learned(X), atol=1e-5, rtol=0)


def test_the_gradients_are_those_of_rounding_and_of_the_bounds():
    plain = FakeQuantize(0.01, 100)
    learned = LearnedFakeQuantize(plain)
    x = X.clone().requires_grad_()
    weights = torch.randn(X.shape, generator=torch.Generator().manual_seed(1))
    (learned(x) * weights).sum().backward()
    scaled = X / 0.01
    low, high = scaled + 100 < 0, scaled + 100 > 255
    inside = ~(low | high)
    assert low.any()
    assert high.any()
    by_step = torch.where(inside, scaled.round() - scaled, torch.where(low, -100.0, 155.0))
    share = (255 * 30) ** -0.5
    torch.testing.assert_close(x.grad, weights * inside)
    torch.testing.assert_close(learned.growth.grad, (weights * by_step).sum() * share * 0.01, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(learned.shift.grad, -(weights * ~inside).sum() * share * 0.01 * 255)


def test_ranges_that_begin_at_zero_keep_that():
    learned = LearnedFakeQuantize(FakeQuantize(0.02, 0))
    assert learned.shift is None
    assert float(learned(-X.abs()).detach().abs().max()) == 0


def test_training_narrows_a_range_that_is_too_wide():
    learned = LearnedFakeQuantize(FakeQuantize(0.5, 128))
    optimizer = torch.optim.AdamW(learned.parameters(), 0.02)
    errors = []
    for _ in range(150):
        error = (learned(X) - X).square().mean()
        errors.append(float(error.detach()))
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    assert float(learned.step.detach()) < 0.2
    assert errors[-1] < errors[0] / 8
