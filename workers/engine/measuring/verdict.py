"""The verdict: whether the result is worth having, in sentences, the worst first."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from modelpress.jobs import Metric, Targets
from modelpress.report import Agreement, Latency, Quality, TargetOutcome, Traffic, Verdict
from workers.engine.measuring.metrics import METRICS

WORST_DROP = 0.01
"""Of accuracy, top-5 accuracy, F1, correlation or cosine, absolute; and only if the interval excludes no drop."""
WORST_RISE = 0.05
"""Of an error (mse, mae), relative to the original's."""
LEAST_TOP1 = 0.98
LEAST_COSINE = 0.99
"""Agreement counts where there are no labels, or no task."""
LEAST_R2 = 0.95
LEAST_R2_MADE_UP = 0.8
"""Errors count against how far the original's answers are from their mean: a cosine sees neither size nor offset."""
LEAST_COSINE_MADE_UP = 0.95
"""On made-up inputs, which are no likeness of real ones, agreement is only a hint."""
CLOSER = 0.01
"""Change of the agreement with an uploaded teacher, from the original to the result, that counts."""
FEWEST = 20
"""Examples from which an interval is believed: those of fewer are too narrow, and that of one has no width."""
NOISE = 0.03
"""A ratio of latencies nearer to 1 than this is no difference, however narrow its interval."""
LEAST_SMALLER = 1.05
"""Original bytes / result bytes from which the file counts as smaller."""

Answers = Literal["scores", "choices", "values"]
"""Class scores; whole numbers, such as the class itself; any other numbers."""


@dataclass(frozen=True)
class Evidence:
    size_ratio: float
    packed_ratio: float
    """Of the sizes after zstd."""
    latency: tuple[Latency, ...]
    quality: Quality | None
    agreement: Agreement | None
    """Of the judged output, with the original, or with the teacher where one was uploaded."""
    before: Agreement | None
    """Of the original with that teacher."""
    made_up: bool
    """Whether the agreement was measured on made-up inputs."""
    broken: int
    answers: Answers
    """What the judged output holds."""
    traffic: Traffic | None = None


@dataclass(frozen=True)
class Judgement:
    verdict: Verdict
    reasons: tuple[str, ...]
    targets: tuple[TargetOutcome, ...]

    @property
    def targets_met(self) -> bool | None:
        return all(target.met for target in self.targets) if self.targets else None


def judge(evidence: Evidence, targets: Targets) -> Judgement:
    outcomes = _targets(evidence, targets)
    perhaps = _perhaps(evidence, targets)
    unlike = _agreement(evidence) if evidence.quality is None or perhaps else []
    degraded = [*_broken(evidence), *_quality(evidence, targets), *unlike]
    no_gain = _no_gain(evidence)
    missed = [_missed(outcome) for outcome in outcomes if not outcome.met]
    if degraded:
        verdict = Verdict.DEGRADED
    elif no_gain:
        verdict = Verdict.NO_GAIN
    else:
        verdict = Verdict.PASSED
    gains = [] if no_gain else [_gain(evidence)]
    return Judgement(verdict, (*degraded, *perhaps, *no_gain, *missed, *_slower(evidence), *gains), outcomes)


def loss(metric: Metric, original: float, result: float) -> float:
    """How much worse the result is, positive for a loss, whichever way the metric goes."""
    return original - result if METRICS[metric].rises else result - original


def _broken(evidence: Evidence) -> list[str]:
    if not evidence.broken:
        return []
    return [f"the result answers NaN, infinity or another shape for {evidence.broken} example(s)"]


def _quality(evidence: Evidence, targets: Targets) -> list[str]:
    """Why the quality is too low, if it is."""
    quality, drop = evidence.quality, targets.max_drop
    if quality is None:
        return []
    if drop is not None and (measured := _drop(quality, drop.metric)) is not None:
        return [f"{_change(quality)}: more than the {drop.absolute:g} allowed"] if measured > drop.absolute else []
    return [_change(quality)] if _fell(quality) and _certain(quality) else []


def _perhaps(evidence: Evidence, targets: Targets) -> list[str]:
    """What the labels are too few to decide."""
    quality = evidence.quality
    if quality is None or not _fell(quality) or _certain(quality):
        return []
    if targets.max_drop is not None and _drop(quality, targets.max_drop.metric) is not None:
        return []
    return [f"{_change(quality)}: this may be chance, more labelled examples would tell"]


def _fell(quality: Quality) -> bool:
    allowed = WORST_DROP if METRICS[quality.metric].rises else WORST_RISE * abs(quality.original)
    return loss(quality.metric, quality.original, quality.result) > allowed


def _certain(quality: Quality) -> bool:
    return quality.n >= FEWEST and (quality.high < 0 if METRICS[quality.metric].rises else quality.low > 0)


def _surely_better(quality: Quality) -> bool:
    return quality.n >= FEWEST and (quality.low > 0 if METRICS[quality.metric].rises else quality.high < 0)


def _surely_faster(latency: Latency) -> bool:
    return latency.ratio_low > 1 + NOISE


def _change(quality: Quality) -> str:
    verb = "fell" if quality.change < 0 else "rose"
    return (
        f"{quality.metric} {verb} from {quality.original:.4g} to {quality.result:.4g} "
        f"(change {quality.change:+.4g}, 95 % interval {quality.low:+.4g} to {quality.high:+.4g}, n = {quality.n})"
    )


def _agreement(evidence: Evidence) -> list[str]:
    """Why the answers differ too much, if they do."""
    agreement = evidence.agreement
    if agreement is None:
        return []
    if evidence.before is not None:
        return [_beside_teacher(evidence)] if _closer(evidence) < -CLOSER else []
    where = f"{agreement.n} {'made-up inputs' if evidence.made_up else 'examples'}"
    telling = evidence.answers == "choices" or (evidence.answers == "scores" and not evidence.made_up)
    if telling and agreement.top1 is not None and agreement.top1 < LEAST_TOP1:
        return [f"the result answers as the original does for only {agreement.top1:.1%} of {where}"]
    if evidence.answers == "choices":
        return []
    if agreement.r2 is not None:
        unlike = agreement.r2 < (LEAST_R2_MADE_UP if evidence.made_up else LEAST_R2)
        said = f"squared error {1 - agreement.r2:.3g} of their variance"
    else:
        unlike = agreement.cosine < (LEAST_COSINE_MADE_UP if evidence.made_up else LEAST_COSINE)
        said = f"mean cosine {agreement.cosine:.4f}"
    return [f"the result's answers differ from the original's: {said} over {where}"] if unlike else []


def _likeness(agreement: Agreement) -> float:
    if agreement.top1 is not None:
        return agreement.top1
    return agreement.cosine if agreement.r2 is None else agreement.r2


def _closer(evidence: Evidence) -> float:
    """How much more the result is like the teacher than the original is; 0 without one, or where it may be chance."""
    after, before = evidence.agreement, evidence.before
    if after is None or before is None or after.n < FEWEST:
        return 0.0
    change = _likeness(after) - _likeness(before)
    if after.top1 is not None and before.top1 is not None:
        spread = sum(share * (1 - share) for share in (after.top1, before.top1)) / after.n
        return change if abs(change) > 2 * math.sqrt(spread) else 0.0
    return change


def _beside_teacher(evidence: Evidence) -> str:
    after, before = evidence.agreement, evidence.before
    if after is None or before is None:
        raise ValueError("there is no teacher")
    if after.top1 is not None and before.top1 is not None:
        shares = f"{after.top1:.1%} of {after.n} examples, the original for {before.top1:.1%}"
        return f"the result answers as the teacher does for {shares}"
    one, other = _likeness(after), _likeness(before)
    measure = "mean cosine" if after.r2 is None else "R²"
    return f"the result agrees with the teacher by {measure} {one:.4f}, the original by {other:.4f}"


def _no_gain(evidence: Evidence) -> list[str]:
    quality = evidence.quality
    if (quality is not None and _surely_better(quality)) or _closer(evidence) > CLOSER:
        return []
    if evidence.size_ratio >= LEAST_SMALLER or any(map(_surely_faster, evidence.latency)):
        return []
    if _lighter(evidence):
        return []
    size = evidence.size_ratio
    grown = (
        f"the file grew to {1 / size:.2f} times its size" if size < 1 else f"the file is only {size:.3f} times smaller"
    )
    zeros = (
        f" (after zstd it is {evidence.packed_ratio:.2f} times smaller)"
        if evidence.packed_ratio >= LEAST_SMALLER
        else ""
    )
    return [f"{grown}, and the model is not faster beyond noise{zeros}"]


def _lighter(evidence: Evidence) -> list[str]:
    """What takes fewer bytes on the wire."""
    if evidence.traffic is None:
        return []
    pairs = (("an example to send", evidence.traffic.sent_bytes), ("an answer", evidence.traffic.answered_bytes))
    ratios = [(what, before / max(1, after)) for what, (before, after) in pairs]
    return [f"{what} is {ratio:.2f} times smaller" for what, ratio in ratios if ratio >= LEAST_SMALLER]


def _slower(evidence: Evidence) -> list[str]:
    return [
        f"the result is slower at batch {latency.batch} with {latency.threads} thread(s): "
        f"{latency.result.median_ms:.3g} ms against {latency.original.median_ms:.3g} ms"
        for latency in evidence.latency
        if latency.ratio_high < 1 - NOISE
    ]


def _gain(evidence: Evidence) -> str:
    ratio, quality = evidence.size_ratio, evidence.quality
    first = next(filter(_surely_faster, evidence.latency), next(iter(evidence.latency), None))
    if ratio >= LEAST_SMALLER:
        said = [f"the file is {ratio:.2f} times smaller"]
    else:
        said = [
            "the file is as large as before"
            if ratio > 1 / LEAST_SMALLER
            else f"the file is {1 / ratio:.2f} times larger"
        ]
    if first is not None and abs(first.ratio - 1) >= NOISE:
        said.append(f"{first.ratio:.2f} times as fast at batch {first.batch}")
    elif first is not None:
        said.append("at the same speed")
    said += _lighter(evidence)
    if quality is not None and _surely_better(quality):
        said.append(_change(quality))
    if evidence.before is not None:
        said.append(_beside_teacher(evidence))
    return ", ".join(said)


def _targets(evidence: Evidence, targets: Targets) -> tuple[TargetOutcome, ...]:
    found = []
    if targets.max_drop is not None:
        measured = None if evidence.quality is None else _drop(evidence.quality, targets.max_drop.metric)
        met = measured is not None and measured <= targets.max_drop.absolute
        found.append(TargetOutcome(target="max_drop", wanted=targets.max_drop.absolute, measured=measured, met=met))
    if targets.size_ratio is not None:
        met = evidence.size_ratio >= targets.size_ratio
        found.append(
            TargetOutcome(target="size_ratio", wanted=targets.size_ratio, measured=evidence.size_ratio, met=met)
        )
    if targets.latency_ratio is not None:
        ratio = evidence.latency[0].ratio if evidence.latency else None
        met = ratio is not None and ratio >= targets.latency_ratio
        found.append(TargetOutcome(target="latency_ratio", wanted=targets.latency_ratio, measured=ratio, met=met))
    return tuple(found)


def _drop(quality: Quality, metric: Metric | None) -> float | None:
    """None where the metric that the target names was not measured."""
    if metric is None or metric == quality.metric:
        return loss(quality.metric, quality.original, quality.result)
    if metric not in quality.others:
        return None
    return loss(metric, *quality.others[metric])


def _missed(outcome: TargetOutcome) -> str:
    measured = "it could not be measured" if outcome.measured is None else f"measured {outcome.measured:.4g}"
    return f"the target {outcome.target} {outcome.wanted:g} is not met: {measured}"
