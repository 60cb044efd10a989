import pytest
import torch

from workers.engine.quantization.fake_quantize import FakeQuantize
from workers.engine.quantization.ranges import BINS, RANGES, Histogram, Range

DISTRIBUTIONS = {
    "normal": lambda generator: torch.randn(200_000, generator=generator),
    "half": lambda generator: torch.randn(200_000, generator=generator).relu(),
    "negative": lambda generator: -torch.rand(200_000, generator=generator),
    "heavy": lambda generator: torch.randn(200_000, generator=generator) ** 3,
}


def values_of(kind):
    return DISTRIBUTIONS[kind](torch.Generator().manual_seed(0))


def histogram_of(values, parts=7):
    histogram = Histogram()
    for part in values.chunk(parts):
        histogram.see(part)
    for part in values.chunk(parts):
        histogram.count(part)
    return histogram


def error(values, bounds):
    return float((FakeQuantize.of(bounds)(values) - values).square().mean())


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
@pytest.mark.parametrize("method", RANGES)
def test_every_method_finds_bounds_within_what_occurred_and_around_zero(kind, method):
    values = values_of(kind)
    bounds = RANGES[method](histogram_of(values))
    assert min(float(values.min()), 0) - 1e-6 <= bounds.low <= 0 <= bounds.high <= max(float(values.max()), 0) + 1e-6
    assert bounds.high - bounds.low > 0


@pytest.mark.parametrize("method", ["percentile", "mse", "entropy"])
def test_on_a_heavy_tail_every_method_rounds_the_bulk_better_than_the_whole_range_does(method):
    values = values_of("heavy")
    histogram = histogram_of(values)
    bulk = values[values.abs() < values.abs().quantile(0.9)]
    assert error(bulk, RANGES[method](histogram)) < 0.9 * error(bulk, RANGES["min_max"](histogram))


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_mse_is_what_it_says(kind):
    values = values_of(kind)
    histogram = histogram_of(values)
    others = min(error(values, RANGES[name](histogram)) for name in RANGES if name != "mse")
    assert error(values, RANGES["mse"](histogram)) <= 1.05 * others


def test_the_order_and_the_size_of_batches_do_not_matter():
    values = values_of("normal")
    whole, parts = histogram_of(values, 1), histogram_of(values.flip(0), 13)
    assert torch.equal(whole.counts, parts.counts)
    assert whole.counts.sum() == len(values)
    assert len(whole.counts) == BINS


def test_zero_is_on_every_grid():
    for low, high in [(-1.0, 2.7), (0.0, 3.3), (-4.1, 0.0), (-1e-3, 900.0)]:
        leaf = FakeQuantize.of(Range(low, high))
        assert float(leaf(torch.zeros(1))) == 0


def test_a_value_that_never_changes_is_quantized_to_itself():
    assert Range(0.0, 0.0).grid == (1.0, 0)
    assert float(FakeQuantize.of(RANGES["mse"](histogram_of(torch.zeros(100))))(torch.zeros(1))) == 0


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="finite"):
        Histogram().see(torch.tensor([1.0, float("nan")]))


def test_the_gradient_passes_inside_the_range_only():
    leaf = FakeQuantize.of(Range(0.0, 1.0))
    x = torch.tensor([-0.5, 0.4, 1.5], requires_grad=True)
    leaf(x).sum().backward()
    assert x.grad.tolist() == [0, 1, 0]
