import numpy as np
import pytest

from workers.engine.losses import Scores
from workers.engine.measuring.agreement import AgreementMeter

SCORES = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)


def agreement(before, after, classes=None, scores=None):
    meter = AgreementMeter("out", classes=classes, scores=scores)
    for start in range(0, len(before), 7):
        meter.add(before[start : start + 7], after[start : start + 7])
    return meter.result()


def test_the_same_answers():
    same = agreement(SCORES, SCORES, classes=1)
    assert (same.n, same.top1, same.cosine, same.snr_db, same.kl, same.max_abs) == (20, 1.0, 1.0, None, 0.0, 0.0)


def test_noise_of_a_known_size():
    noisy = SCORES.copy()
    noisy[:, 0] += 0.25
    found = agreement(SCORES, noisy)
    signal, noise = np.square(SCORES.astype(np.float64)).sum(), 20 * 0.25**2
    assert found.snr_db == pytest.approx(10 * np.log10(signal / noise), abs=1e-4)
    assert found.max_abs == pytest.approx(0.25, abs=1e-6)
    assert found.top1 is None
    assert 0.9 < found.cosine < 1


def test_kl_and_top1_of_class_scores():
    before, after = np.log([[0.5, 0.5], [0.9, 0.1]]), np.log([[0.25, 0.75], [0.9, 0.1]])
    found = agreement(before, after, classes=1)
    assert found.kl == pytest.approx((0.5 * np.log(2) + 0.5 * np.log(2 / 3)) / 2)
    assert found.top1 == 0.5


def test_probabilities_are_not_softmaxed_again():
    before, after = np.array([[0.5, 0.5]]), np.array([[0.25, 0.75]])
    found = agreement(before, after, classes=1, scores=Scores.PROBABILITIES)
    assert found.kl == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3))


def test_classes_on_the_second_axis():
    before = np.zeros((1, 3, 2, 2))
    before[0, 1] = 1
    after = before.copy()
    after[0, 2, 0, 0] = 2
    assert agreement(before, after, classes=1).top1 == 0.75


def test_answers_that_broke_are_counted():
    meter = AgreementMeter("out", classes=1)
    broken = SCORES.copy()
    broken[3] = np.nan
    meter.add(SCORES, broken)
    assert meter.broken == 1
    assert meter.result().top1 == 0.95
    assert meter.result().cosine == pytest.approx(0.95)

    meter.add(SCORES, SCORES[:, :4])
    assert meter.broken == 21


def test_an_original_that_answers_nan_says_nothing():
    meter = AgreementMeter("out")
    meter.add(np.full((4, 2), np.nan), np.zeros((4, 2)))
    assert meter.result() is None
    assert meter.broken == 0


def test_masked_scores_of_minus_infinity_agree_with_themselves():
    masked = SCORES.copy()
    masked[:, 2] = -np.inf
    found = agreement(masked, masked, classes=1)
    assert (found.top1, found.snr_db, found.kl) == (1.0, None, 0.0)


def test_whole_numbers_are_compared_one_by_one():
    found = agreement(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 0]))
    assert (found.top1, found.kl, found.max_abs) == (0.75, None, 4)


def test_the_explained_variance_does_not_take_a_constant_for_likeness():
    prices = 50 + np.random.default_rng(1).normal(size=(40, 1))
    constant = np.full_like(prices, prices.mean())
    assert agreement(prices, constant).cosine == 1
    assert agreement(prices, constant).r2 == pytest.approx(0, abs=1e-9)
    assert agreement(prices, prices + 0.1).r2 == pytest.approx(1 - 0.01 / prices.var())


def test_the_explained_variance_is_that_of_all_batches_together():
    generator = np.random.default_rng(2)
    before = generator.normal(size=(50, 3)) + [0, 10, 100] + np.arange(50)[:, None]
    after = before + generator.normal(size=before.shape)
    noise, spread = np.square(before - after).sum(), np.square(before - before.mean(0)).sum()
    assert agreement(before, after).r2 == pytest.approx(1 - noise / spread)


def test_answers_that_never_differ_explain_nothing():
    assert agreement(np.ones((8, 3)), np.ones((8, 3)) * 1.01).r2 is None


@pytest.mark.parametrize(
    ("scores", "threshold"), [(Scores.LOGITS, 0.0), (Scores.SIGMOIDS, 0.5)], ids=["logits", "probabilities"]
)
def test_a_single_score_agrees_where_it_decides_alike(scores, threshold):
    before = threshold + np.array([[-0.3], [0.2], [0.1], [-0.1]])
    after = threshold + np.array([[-0.1], [0.1], [-0.1], [-0.4]])
    assert agreement(before, after, scores=scores).top1 == 0.75
