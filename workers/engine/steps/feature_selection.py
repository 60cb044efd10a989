"""Drop input features that do not matter, and cut the model at a layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from modelpress.steps.feature_selection import QUARTER, FeatureSelection
from workers.engine.batching import on_device
from workers.engine.context import Context
from workers.engine.data import SyntheticBatches
from workers.engine.errors import StepError
from workers.engine.graph import Graph
from workers.engine.interface.cutting import cut_at
from workers.engine.interface.exposing import inputs_sent
from workers.engine.interface.features import Features, find_features, settle
from workers.engine.interface.sizes import bytes_of
from workers.engine.interface.worth import Batches, permuted, weighed
from workers.engine.ops.convolution import Conv
from workers.engine.ops.linear import Linear
from workers.engine.quantization.calibration import Calibration
from workers.engine.quantization.simulation import relative_error
from workers.engine.shapes import stats
from workers.engine.steps import applies
from workers.engine.structure.groups import remove_units
from workers.engine.structure.refitting import refitted

EXAMPLES = 256
"""On which effects are measured."""

Keep = Mapping[str, Tensor]
"""Group name → which of its features stay, bool."""


@applies(FeatureSelection)
def feature_selection(step: FeatureSelection, graph: Graph, context: Context) -> Graph:
    before, sent = stats(graph), bytes_of(inputs_sent(graph))
    if step.cut is not None:
        _cut(step.cut, graph, context)
    if step.selects:
        graph = _select(step, graph, context)
    after = stats(graph)
    context.notes.append(f"{before.parameters:,} → {after.parameters:,} parameters")
    context.figures |= {"parameters_before": before.parameters, "parameters_after": after.parameters}
    if before.macs and after.macs:
        context.figures |= {"macs_before": before.macs, "macs_after": after.macs}
    context.figures |= {"bytes_sent_before": sent, "bytes_sent_after": bytes_of(inputs_sent(graph))}
    return graph


def _cut(name: str, graph: Graph, context: Context) -> None:
    if graph.cut is not None:
        raise StepError(f"the model is cut at {graph.cut!r} already: one cut is enough")
    cut_at(graph, name)
    (spec,) = graph.outputs
    if isinstance(context.original, Graph):
        original = context.original.copy()
        cut_at(original, name)
        if original.outputs[0].shape[1:] != spec.shape[1:]:
            raise StepError(
                f"{name!r} gives {list(spec.shape)} and gave {list(original.outputs[0].shape)} in the original: steps "
                "before have changed its width; put feature_selection before them"
            )
    size = math.prod(dim for dim in spec.shape[1:] if isinstance(dim, int))
    context.figures["embedding_size"] = size
    context.notes.append(
        f"cut at {name}: its result {list(spec.shape)} is the only output, {size:,} numbers an example (open "
        "dimensions count 1); labels say nothing of it: agreement with the original's own result there is measured"
    )


def _select(step: FeatureSelection, graph: Graph, context: Context) -> Graph:
    features = find_features(graph, step.inputs)
    selection = Selection(step, graph.copy(), features, context)
    keep = selection.within(step.max_effect) if step.max_effect is not None else selection.by_count()
    result = selection.without(keep, graph)
    effect = selection.effect(result)
    settle(result, features)
    for one in features:
        kept = keep.get(one.group.name, torch.ones(len(one.positions), dtype=torch.bool))
        gone = one.positions[~kept].flatten().sort().values.tolist()
        context.notes.append(
            f"{one.input}: {int(kept.sum())} of {len(kept)} features along axis {one.axis} stay; "
            f"gone: {', '.join(map(str, gone)) or 'none'}"
        )
    context.notes.append(f"without them the outputs moved by {effect:.2%}")
    context.figures |= {"features_before": selection.there, "features_after": selection.there - _gone(keep)}
    context.figures["effect"] = effect
    return result


class Selection:
    """Which features go, the least worth first."""

    def __init__(self, step: FeatureSelection, whole: Graph, features: Sequence[Features], context: Context) -> None:
        self.step, self.whole, self.features, self.context = step, whole, features, context
        self.there = sum(len(one.positions) for one in features)
        self.real = context.calibrate is not None and not isinstance(context.calibrate, SyntheticBatches)
        with on_device(whole, context.device):
            self.batches: Batches = Calibration.of(whole, context).some(EXAMPLES)
            if step.importance == "permutation":
                worth = permuted(whole, features, self.batches, context)
            else:
                worth = weighed(whole, features, self.batches if self.real else ())
        if not self.real:
            context.notes.append("what features are worth was measured on made-up inputs: real ones may say otherwise")
        pairs = [(float(score), place, unit) for place, scores in enumerate(worth) for unit, score in enumerate(scores)]
        self.order = [(place, unit) for _, place, unit in sorted(pairs)]
        """Of all features, the least worth first: which of `features`, and which unit of it."""
        context.series["worth"] = [score for score, _, _ in sorted(pairs)]

    def by_count(self) -> Keep:
        """Raises StepError where that leaves none, or takes none."""
        step = self.step
        going = self.there - step.keep if step.keep is not None else round((step.ratio or QUARTER) * self.there)
        if going <= 0:
            asked = f"keep is {step.keep}" if step.keep is not None else f"{step.ratio or QUARTER:.0%} of them are none"
            raise StepError(f"no feature goes: there are {self.there} that may, and {asked}")
        return self._least(going)

    def within(self, bound: float) -> Keep:
        """As many as can go within the bound. Raises StepError where not even one can."""
        best: Keep = {}
        low, high, least = 0, self.there, math.inf
        while high - low > 1:
            middle = (low + high) // 2
            keep = self._least(middle)
            effect = self.effect(self.without(keep, self.whole.copy(), quiet=True))
            least = min(least, effect)
            low, high, best = (middle, high, keep) if effect <= bound else (low, middle, best)
        if not best:
            raise StepError(
                f"no feature can go: without the one that matters least the outputs move by {least:.2%}; "
                "raise max_effect"
            )
        return best

    def without(self, keep: Keep, graph: Graph, *, quiet: bool = False) -> Graph:
        """The graph, which is a copy of the whole, with these features only."""
        remove_units(graph, keep)
        if not (self.step.refit and self.real and self._fittable(graph)):
            return graph
        context = replace(self.context, notes=[], figures={}) if quiet else self.context
        return refitted(self.whole, graph, keep, context)

    def _fittable(self, graph: Graph) -> bool:
        """Whether a layer reads the features of which least squares can make what it gave before."""
        readers = {slot.owner for one in self.features for slot in one.group.slots if slot.role == "takes"}
        return any(isinstance(graph.module.get_submodule(reader), (Conv, Linear)) for reader in readers)

    @torch.no_grad()
    def effect(self, graph: Graph) -> float:
        """The relative error of the outputs, in which what the whole graph answers is right."""
        with on_device(self.whole, self.context.device), on_device(graph, self.context.device):
            return max(relative_error(graph(*batch), self.whole(*batch)) for batch in self.batches)

    def _least(self, going: int) -> Keep:
        """Masks without the so many of least worth; every input keeps one feature."""
        left = [torch.ones(len(one.positions), dtype=torch.bool) for one in self.features]
        for place, unit in self.order:
            if not going:
                break
            if int(left[place].sum()) > 1:
                left[place][unit] = False
                going -= 1
        pairs = zip(self.features, left, strict=True)
        return {one.group.name: mask for one, mask in pairs if not bool(mask.all())}


def _gone(keep: Keep) -> int:
    return sum(int((~mask).sum()) for mask in keep.values())
