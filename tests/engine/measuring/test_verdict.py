"""What is said of a result: the worst first, and never a ruined model as a success."""

from dataclasses import replace

import pytest

from modelpress.jobs import MaxDrop, Targets
from modelpress.report import Agreement, Latency, Quality, Timing, Verdict
from workers.engine.measuring.verdict import Evidence, judge

NONE = Targets()


def latency(low, ratio, high, batch=1):
    timing = Timing(median_ms=1, p95_ms=2)
    return Latency(
        batch=batch, threads=1, original=timing, result=timing, ratio=ratio, ratio_low=low, ratio_high=high, pairs=50
    )


def quality(original, result, spread=0.002, metric="accuracy", n=10_000):
    change = result - original
    return Quality(
        metric=metric, n=n, original=original, result=result, change=change, low=change - spread, high=change + spread
    )


def agreement(top1=1.0, cosine=1.0, r2=None):
    return Agreement(output="y", n=500, top1=top1, cosine=cosine, snr_db=30, r2=r2, kl=0.0, max_abs=0.1)


GOOD = Evidence(
    size_ratio=3.7,
    packed_ratio=3.7,
    latency=(latency(1.4, 1.5, 1.6),),
    quality=quality(0.9229, 0.9225),
    agreement=agreement(0.99, 0.999),
    before=None,
    made_up=False,
    broken=0,
    answers="scores",
)


def test_a_good_result():
    judgement = judge(GOOD, NONE)
    assert judgement.verdict == Verdict.PASSED
    assert judgement.targets_met is None
    assert judgement.reasons == ("the file is 3.70 times smaller, 1.50 times as fast at batch 1",)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"quality": quality(0.92, 0.80)}, "accuracy fell from 0.92 to 0.8 "),
        ({"quality": quality(1.0, 1.2, metric="mse")}, "mse rose from 1 to 1.2 "),
        ({"broken": 3}, "NaN, infinity or another shape for 3 example"),
        ({"quality": None, "agreement": agreement(top1=0.9)}, "as the original does for only 90.0%"),
        ({"quality": None, "agreement": agreement(cosine=0.97)}, "mean cosine 0.9700"),
        ({"quality": None, "answers": "values", "agreement": agreement(r2=0.4)}, "squared error 0.6 of their variance"),
        ({"quality": None, "answers": "values", "made_up": True, "agreement": agreement(r2=0.4)}, "made-up inputs"),
        ({"quality": None, "answers": "choices", "made_up": True, "agreement": agreement(top1=0.9)}, "for only 90.0%"),
        ({"quality": None, "made_up": True, "agreement": agreement(top1=0.9, cosine=0.5)}, "made-up inputs"),
    ],
)
def test_a_ruined_model_is_degraded_and_says_so_first(change, sentence):
    judgement = judge(replace(GOOD, **change), NONE)
    assert judgement.verdict == Verdict.DEGRADED
    assert sentence in judgement.reasons[0]


@pytest.mark.parametrize(
    "change",
    [
        {"quality": quality(0.92, 0.90, spread=0.03, n=100)},  # may be chance
        {"quality": quality(0.92, 0.915)},  # less than a point
        {"quality": quality(0.9, 0.95)},  # better
        {"quality": quality(1.0, 0.9, metric="mse")},  # better
        {"agreement": agreement(top1=0.9)},  # labels know better
        {"quality": None, "answers": "choices", "agreement": agreement(cosine=0.5)},  # class numbers have no angle
        {"quality": None, "answers": "values", "agreement": agreement(top1=0.5)},
        {"quality": None, "made_up": True, "agreement": agreement(top1=0.9, cosine=0.99)},  # noise is no likeness
    ],
)
def test_what_does_not_degrade(change):
    assert judge(replace(GOOD, **change), NONE).verdict == Verdict.PASSED


@pytest.mark.parametrize(
    ("size", "speed", "verdict"),
    [
        (0.8, latency(0.99, 1.0, 1.01), Verdict.NO_GAIN),
        (1.0, latency(0.5, 0.6, 0.7), Verdict.NO_GAIN),
        (1.04, latency(1.0, 1.02, 1.03), Verdict.NO_GAIN),
        (1.0, latency(1.2, 1.3, 1.4), Verdict.PASSED),
        (2.0, latency(0.5, 0.6, 0.7), Verdict.PASSED),
    ],
)
def test_gain_is_a_smaller_file_or_a_faster_model(size, speed, verdict):
    assert judge(replace(GOOD, size_ratio=size, latency=(speed,)), NONE).verdict == verdict


def test_better_quality_is_a_gain_too():
    trained = replace(GOOD, size_ratio=1.0, latency=(), quality=quality(0.3, 0.9))
    assert judge(trained, NONE).verdict == Verdict.PASSED
    assert "accuracy rose from 0.3 to 0.9" in judge(trained, NONE).reasons[0]


def test_too_few_labels_leave_it_to_the_agreement():
    few = quality(0.9, 0.7, spread=0.25, n=20)
    alike = judge(replace(GOOD, quality=few), NONE)
    assert alike.verdict == Verdict.PASSED
    assert "may be chance" in alike.reasons[0]
    assert judge(replace(GOOD, quality=few, agreement=agreement(top1=0.7)), NONE).verdict == Verdict.DEGRADED


def test_a_slower_model_is_said_before_the_gain():
    judgement = judge(replace(GOOD, latency=(latency(0.5, 0.6, 0.7),)), NONE)
    assert "slower at batch 1" in judgement.reasons[0]


def test_a_grown_file_says_by_how_much():
    judgement = judge(replace(GOOD, size_ratio=0.5, latency=()), NONE)
    assert judgement.reasons[0].startswith("the file grew to 2.00 times its size, and the model is not faster")
    assert "after zstd it is 3.70 times smaller" in judgement.reasons[0]


def test_targets_are_listed_with_what_was_measured():
    targets = Targets(max_drop=MaxDrop(absolute=0.01), size_ratio=4, latency_ratio=1.2)
    judgement = judge(GOOD, targets)
    outcomes = {outcome.target: outcome for outcome in judgement.targets}
    assert outcomes["max_drop"].met
    assert outcomes["max_drop"].measured == pytest.approx(0.0004)
    assert not outcomes["size_ratio"].met
    assert outcomes["latency_ratio"].met
    assert judgement.targets_met is False
    assert "the target size_ratio 4 is not met: measured 3.7" in judgement.reasons


def test_the_allowed_drop_replaces_the_default_bound():
    wide, narrow = Targets(max_drop=MaxDrop(absolute=0.2)), Targets(max_drop=MaxDrop(absolute=0.001))
    assert judge(replace(GOOD, quality=quality(0.92, 0.8)), wide).verdict == Verdict.PASSED
    assert judge(replace(GOOD, quality=quality(0.92, 0.915)), narrow).verdict == Verdict.DEGRADED


def test_a_target_of_a_metric_that_was_not_measured_leaves_the_default_bound():
    targets = Targets(max_drop=MaxDrop(metric="mse", absolute=0.01))
    judgement = judge(replace(GOOD, quality=quality(0.92, 0.5)), targets)
    assert judgement.verdict == Verdict.DEGRADED
    assert judgement.targets[0].measured is None


def test_so_few_examples_decide_nothing():
    one = quality(0.01, 0.05, spread=0.0, metric="mse", n=1)
    judgement = judge(replace(GOOD, quality=one), NONE)
    assert judgement.verdict == Verdict.PASSED
    assert "may be chance" in judgement.reasons[0]
    assert judge(replace(GOOD, quality=replace_n(one, 20)), NONE).verdict == Verdict.DEGRADED


def replace_n(found, n):
    return found.model_copy(update={"n": n})


def test_a_drop_that_cannot_be_measured_is_not_met():
    judgement = judge(replace(GOOD, quality=None), Targets(max_drop=MaxDrop(absolute=0.01)))
    assert judgement.targets_met is False
    assert judgement.targets[0].measured is None
    assert any("could not be measured" in reason for reason in judgement.reasons)


@pytest.mark.parametrize(
    ("before", "after", "verdict"), [(0.3, 0.9, "passed"), (0.9, 0.9, "no_gain"), (0.95, 0.6, "degraded")]
)
def test_with_a_teacher_it_counts_whether_the_result_came_nearer_to_it(before, after, verdict):
    evidence = replace(
        GOOD,
        size_ratio=1.0,
        latency=(latency(0.98, 1.0, 1.02),),
        quality=None,
        agreement=agreement(after, after),
        before=agreement(before, before),
    )
    judgement = judge(evidence, NONE)
    assert judgement.verdict == verdict
    if verdict != "no_gain":
        assert f"the teacher does for {after:.1%}" in judgement.reasons[0]
        assert f"the original for {before:.1%}" in judgement.reasons[0]


def test_a_smaller_result_that_is_as_near_to_the_teacher_passes_however_far_that_is():
    evidence = replace(GOOD, quality=None, agreement=agreement(0.6, 0.6), before=agreement(0.6, 0.6))
    assert judge(evidence, NONE).verdict == Verdict.PASSED
