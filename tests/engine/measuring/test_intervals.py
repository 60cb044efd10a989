"""An interval that says 95 % holds the truth about 95 times in a hundred, and is not wider than it need be."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpress.matching import METRICS as KNOWN
from modelpress.matching import Form
from workers.engine.measuring.latency import median_interval
from workers.engine.measuring.metrics import METRICS
from workers.engine.measuring.quality import change_interval, paired_proportions
from workers.engine.measuring.reading import Reading


@pytest.mark.parametrize(("lost", "gained"), [(0.02, 0.01), (0.0, 0.0), (0.1, 0.0)])
def test_coverage_of_the_change_in_accuracy(lost, gained):
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        kind = generator.choice(3, size=500, p=[lost, gained, 1 - lost - gained])
        before, after = (kind != 1).astype(float), (kind != 0).astype(float)
        low, high = paired_proportions(before, after)
        held += low <= gained - lost <= high
    assert held / 400 >= 0.93


def test_pairing_makes_the_interval_narrow():
    """Two models that err on the same examples differ surely, although their accuracies alone would not say so."""
    before = np.arange(1000) < 900
    after = np.arange(1000) < 890
    low, high = paired_proportions(before.astype(float), after.astype(float))
    assert -0.02 < low < -0.01 < high < 0


def test_models_that_agree_on_everything_have_a_narrow_interval_around_zero():
    low, high = paired_proportions(np.ones(1000), np.ones(1000))
    assert -0.003 < low < 0 < high < 0.003


@given(st.integers(7, 400))
def test_the_interval_of_a_median_is_symmetric_and_inside(n):
    low, high = median_interval(n)
    assert 0 <= low < high == n - 1 - low


def test_coverage_of_the_median():
    generator = np.random.default_rng(1)
    for n in (7, 40, 150):
        low, high = median_interval(n)
        samples = np.sort(generator.exponential(size=(4000, n)), axis=1)
        held = ((samples[:, low] <= np.log(2)) & (np.log(2) <= samples[:, high])).mean()
        assert 0.945 <= held <= 0.99


@pytest.mark.parametrize("metric", [METRICS[name] for name in KNOWN["regression"]], ids=lambda m: m.name)
def test_coverage_of_the_bootstrap(metric):
    generator = np.random.default_rng(2)

    def answers(n):
        labels = generator.normal(size=(n, 4))
        before = labels + 0.5 * generator.normal(size=labels.shape)
        after = before + 0.3 * generator.normal(size=labels.shape)
        return tuple(metric.statistics(Reading(Form.VALUES)(answers, labels)) for answers in (before, after))

    many = answers(200_000)
    truth = metric.value(many[1]) - metric.value(many[0])
    held = 0
    for seed in range(40):
        low, high = change_interval(metric, *answers(100), seed)
        held += low <= truth <= high
    assert held >= 33


def test_f1_has_an_interval_around_its_change():
    generator = np.random.default_rng(3)
    metric = METRICS["f1"]
    labels = generator.integers(0, 5, 400)
    good, bad = np.eye(5)[labels], np.eye(5)[np.where(generator.random(400) < 0.2, (labels + 1) % 5, labels)]
    before, after = (metric.statistics(Reading(Form.CLASSES, 1)(scores, labels)) for scores in (good, bad))
    low, high = change_interval(metric, before, after, 0)
    assert low < metric.value(after) - metric.value(before) < high < 0
