"""Puts reports side by side, and finds who is on the Pareto front. Pure functions: nothing is measured here."""

from collections.abc import Callable, Sequence

from app.comparisons.schemas import Axis, Candidate
from modelpress.report import Report

ERRORS = frozenset({"mse", "mae"})
"""Metrics of which less is better."""


def with_front(candidates: Sequence[Candidate], baseline_bytes: int) -> tuple[list[Candidate], list[Axis]]:
    """The candidates, smallest first and marked, and the axes that all of them have."""
    axes = _shared_axes(candidates)
    points = {candidate.model_id: [AXES[axis](candidate) or 0.0 for axis in axes] for candidate in candidates}
    origin = {"size": -float(baseline_bytes), "latency": 1.0, "quality": 0.0, "agreement": 1.0}
    rivals = [*points.values(), [origin[axis] for axis in axes]]
    marked = [
        candidate.model_copy(
            update={"pareto_optimal": not any(_dominates(rival, points[candidate.model_id]) for rival in rivals)}
        )
        for candidate in candidates
    ]
    return sorted(marked, key=lambda candidate: candidate.size.bytes), axes


def notes(reports: Sequence[Report], evaluated_on: Sequence[str | None]) -> list[str]:
    found = []
    if len({report.environment.cpu for report in reports}) > 1:
        found.append("The latencies were measured on different CPUs: compare their ratios, not their times.")
    sized = {report.files[0].format if report.files else "onnx" for report in reports}
    if len(sized) > 1:
        found.append(f"The sizes are those of files in different formats: {', '.join(sorted(sized))}.")
    if len(set(evaluated_on)) > 1:
        found.append("Quality was measured on different datasets.")
    if len({report.agreement_data for report in reports}) > 1:
        found.append("Agreement was measured on different kinds of data.")
    return found


def _shared_axes(candidates: Sequence[Candidate]) -> list[Axis]:
    """Quality where all were measured by one metric, else agreement with the original."""
    axes = [axis for axis, value in AXES.items() if all(value(candidate) is not None for candidate in candidates)]
    metrics = {candidate.quality.metric for candidate in candidates if candidate.quality}
    superseded = "agreement" if "quality" in axes and len(metrics) == 1 else "quality"
    return [axis for axis in axes if axis != superseded]


def _latency_ratio(candidate: Candidate) -> float | None:
    return next((latency.ratio for latency in candidate.latency if latency.batch == 1), None)


def _quality(candidate: Candidate) -> float | None:
    quality = candidate.quality
    if quality is None:
        return None
    return -quality.change if quality.metric in ERRORS else quality.change


def _agreement(candidate: Candidate) -> float | None:
    agreement = candidate.agreement
    return None if agreement is None else agreement.cosine


AXES: dict[Axis, Callable[[Candidate], float | None]] = {
    "size": lambda candidate: -float(candidate.size.bytes),
    "latency": _latency_ratio,
    "quality": _quality,
    "agreement": _agreement,
}
"""More is better, on each."""


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)
