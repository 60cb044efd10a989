"""Remove the least important channels, neurons, heads and hidden units."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase

from torch import Tensor

from modelpress.models import ModelStats
from modelpress.steps.channel_pruning import HALF, ChannelPruning
from workers.engine.context import Context
from workers.engine.data import SyntheticBatches
from workers.engine.errors import StepError
from workers.engine.graph import Graph
from workers.engine.importance import importance_of
from workers.engine.importance.ranking import Candidate, least_important, step_of, uniform
from workers.engine.importance.units import Units
from workers.engine.selection import selected
from workers.engine.shapes import stats
from workers.engine.steps import applies
from workers.engine.structure.groups import Group, find_groups, remove_units
from workers.engine.structure.refitting import refitted

TRIALS = 12
"""Halvings of the interval in which the share is looked for that reaches a target."""
COARSE = 0.1
"""So much less than a target may be left without a word: widths are whole numbers."""

Choose = Callable[[float], dict[str, Tensor]]
"""From the share that goes to the units that stay, for every group that loses some."""


@applies(ChannelPruning)
def channel_pruning(step: ChannelPruning, graph: Graph, context: Context) -> Graph:
    selected(step.layers, graph)  # refuses a selection of nothing
    name = _importance(step, context)
    candidates = _candidates(step, name, graph, context)
    before = stats(graph)

    def choose(share: float) -> dict[str, Tensor]:
        if step.scope == "uniform":
            return uniform(candidates, share)
        return least_important(candidates, share, comparable=importance_of(name).comparable)

    keep = choose(step.ratio or HALF)
    if step.macs_left is not None:
        keep = _reach("macs_left", step.macs_left, _macs(before), lambda it: _macs(stats(it)), choose, graph, context)
    if step.parameters_left is not None:
        keep = _reach(
            "parameters_left", step.parameters_left, before.parameters,
            lambda it: stats(it).parameters, choose, graph, context,
        )  # fmt: skip
    if not keep:
        raise StepError(
            f"nothing would be removed: {step.ratio or HALF:.0%} of the units of each layer are less than half of "
            f"{step.round_to}, to which widths are rounded; raise ratio, or set round_to to 1"
        )
    whole = graph.copy()
    remove_units(graph, keep)
    after = stats(graph)
    _tell(context, candidates, keep, before, after)
    if step.macs_left is not None:
        _warn_of_coarse("macs_left", step.macs_left, _macs(after) / _macs(before), step, context)
    if step.parameters_left is not None:
        _warn_of_coarse("parameters_left", step.parameters_left, after.parameters / before.parameters, step, context)
    if step.refit and _has_data(context):
        context.progress(0.8, "fitting the layers behind")
        return refitted(whole, graph, keep, context)
    return graph


def _has_data(context: Context) -> bool:
    return context.calibrate is not None and not isinstance(context.calibrate, SyntheticBatches)


def _importance(step: ChannelPruning, context: Context) -> str:
    if step.importance != "auto":
        return step.importance
    return "taylor" if _has_data(context) else "l2"


def _candidates(step: ChannelPruning, name: str, graph: Graph, context: Context) -> list[Candidate]:
    """The groups that may lose units, with their scores. Raises StepError, with all reasons, where there is none."""
    _warn_of_idle(step, graph, context)
    groups = find_groups(graph)
    reasons = {group.name: _why_not(step, group) for group in groups}
    for group in groups:
        reason = reasons[group.name]
        if reason:
            for layer in group.layers:
                context.untouched.setdefault(layer, f"its {group.kind} stay: {reason}")
    chosen = [group for group in groups if not reasons[group.name]]
    if not chosen:
        told = "; ".join(f"{group.name}: {reasons[group.name]}" for group in groups) or "it has no layers with units"
        raise StepError(f"nothing can be removed from this model ({told})")
    scores = importance_of(name).score([Units(group, graph) for group in chosen], context)
    return [
        Candidate(group, found, step.round_to, _fixed(step, group)) for group, found in zip(chosen, scores, strict=True)
    ]


def _why_not(step: ChannelPruning, group: Group) -> str | None:
    if group.frozen:
        return group.frozen
    if group.kind.replace(" ", "_") not in step.kinds:
        return f"{group.kind} are not among the kinds to remove"
    others = [layer for layer in group.layers if not step.layers.selects(layer)]
    if others:
        return "not selected" if len(others) == len(group.layers) else f"shared with {others[0]}, which is not selected"
    if _fixed(step, group) == 0:
        return "layer_ratios keeps them all"
    if step_of(group, step.round_to) == group.units:
        return f"there are {group.units}, no more than one multiple of {step.round_to}"
    return None


def _fixed(step: ChannelPruning, group: Group) -> float | None:
    """The share of the first pattern that matches one of the layers that make the units."""
    for pattern, share in step.layer_ratios.items():
        if any(fnmatchcase(layer, pattern) for layer in group.layers):
            return share
    return None


def _warn_of_idle(step: ChannelPruning, graph: Graph, context: Context) -> None:
    names = [layer.name for layer in graph.layers()]
    for pattern in step.layer_ratios:
        if not any(fnmatchcase(name, pattern) for name in names):
            context.warnings.append(f"the pattern {pattern!r} of layer_ratios matches the name of no layer")


def _warn_of_coarse(option: str, target: float, left: float, step: ChannelPruning, context: Context) -> None:
    """Where much more went than was asked for, because no widths lie in between."""
    if left < target - COARSE:
        closer = f"; round_to {step.round_to} allows no more, a smaller one may" if step.round_to > 1 else ""
        context.warnings.append(f"{option} {target:g} was asked for, and {left:.3g} is left{closer}")


def _macs(found: ModelStats) -> int:
    if not found.macs:
        raise StepError("macs_left: this model's operations cannot be counted without real inputs; give ratio instead")
    return found.macs


def _reach(
    option: str, target: float, whole: int, cost: Callable[[Graph], int], choose: Choose, graph: Graph, context: Context
) -> dict[str, Tensor]:
    """The smallest share, halved down to, that brings a pruned copy's cost to the target. Raises StepError."""

    def left(keep: Mapping[str, Tensor]) -> float:
        trial = graph.copy()
        remove_units(trial, keep)
        return cost(trial) / whole

    low, high = 0.0, 1.0
    keep = choose(high)
    least = left(keep) if keep else 1.0
    if least > target:
        raise StepError(
            f"{option} {target:g} is out of reach: with all removed that may be, {least:.3g} is left; "
            "raise it (or what a recipe by auto made it from, the targets), or let more layers and kinds be pruned"
        )
    for trial in range(TRIALS):
        context.progress(trial / TRIALS, f"looking for {option} {target:g}")
        middle = (low + high) / 2
        found = choose(middle)
        if found and left(found) <= target:
            high, keep = middle, found
        else:
            low = middle
    return keep


def _tell(
    context: Context, candidates: list[Candidate], keep: Mapping[str, Tensor], before: ModelStats, after: ModelStats
) -> None:
    by_kind: dict[str, dict[tuple[int, int], list[str]]] = defaultdict(lambda: defaultdict(list))
    units = left = 0
    for candidate in candidates:
        group = candidate.group
        stay = int(keep[group.name].sum()) if group.name in keep else group.units
        units, left = units + group.units, left + stay
        if stay < group.units:
            by_kind[group.kind][group.units, stay].append(group.name)
        else:
            for layer in group.layers:
                context.untouched.setdefault(
                    layer, f"its {group.kind} stay: rounded to {candidate.step}, none would go"
                )
    for kind, changes in by_kind.items():
        told = "; ".join(f"{was} → {now}: {', '.join(names)}" for (was, now), names in changes.items())
        context.notes.append(f"{kind}: {told}")
    context.notes.append(
        f"{before.parameters:,} → {after.parameters:,} parameters ({after.parameters / before.parameters:.1%} left)"
        + (
            f", {before.macs:,} → {after.macs:,} MACs ({after.macs / before.macs:.1%} left)"
            if before.macs and after.macs
            else ""
        )
    )
    context.figures |= {
        "units_before": units,
        "units_after": left,
        "parameters_before": before.parameters,
        "parameters_after": after.parameters,
    }
    if before.macs and after.macs:
        context.figures |= {"macs_before": before.macs, "macs_after": after.macs}
