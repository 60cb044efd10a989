"""Split layers into thinner ones, where that makes them cheaper and faster."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from torch import Tensor

from modelpress.models import ModelStats
from modelpress.steps.low_rank_factorization import LowRankFactorization
from workers.engine.batching import on_device
from workers.engine.context import Context
from workers.engine.data import SyntheticBatches
from workers.engine.errors import InvalidModelError, StepError
from workers.engine.factorization.candidates import find_splits
from workers.engine.factorization.choosing import Choice
from workers.engine.factorization.plan import Plan
from workers.engine.factorization.splitting import split
from workers.engine.factorization.timing import Stopwatch
from workers.engine.graph import Graph
from workers.engine.ops.base import op_of
from workers.engine.quantization.calibration import BATCH, Calibration
from workers.engine.quantization.simulation import MOST_BYTES, Simulation, bytes_per_example
from workers.engine.selection import selected
from workers.engine.shapes import propagate, propagate_inputs, stats
from workers.engine.steps import applies
from workers.engine.structure.refit import fit_layers
from workers.engine.structure.refitting import fitted_where_it_helps

EXAMPLES = 256
"""By which it is judged what counts in a layer."""
JUDGED = 64
"""By which errors of the outputs are measured."""
COARSE = 0.02
"""So much more than a target may be left without a word."""


@applies(LowRankFactorization)
def low_rank_factorization(step: LowRankFactorization, graph: Graph, context: Context) -> Graph:
    selected(step.layers, graph)  # refuses a selection of nothing
    calibration = None if context.calibrate is None else Calibration.of(graph, context)
    real = not isinstance(context.calibrate, SyntheticBatches)
    whole, before = graph.copy(), stats(graph)
    with on_device(graph, context.device):
        counted = _counted(graph, before, calibration)
        batches = list(islice(calibration.batches(), EXAMPLES // BATCH)) if calibration and real else []
        splits = find_splits(step, graph, context, batches)
        simulation = _simulation(step, graph, context, calibration if real or step.max_error else None)
        plan = Plan(step, splits, context, Stopwatch(context, graph.opset), simulation, counted)
        choice = plan.chosen()
        if not choice:
            told = "; ".join(f"{name}: {why}" for name, why in context.untouched.items())
            raise StepError(f"no layer of this model is worth splitting ({told})")
        _tell(plan, choice, context)
        ends = {split(graph, part.layer, plan.leaves(part, ranks))[-1].name for part, ranks in choice.items()}
    _compare(step, before, stats(graph), context)
    if not (step.refit and batches):
        return graph
    context.progress(0.8, "fitting the last parts")

    def fit(other: Graph, used: Sequence[Sequence[Tensor]]) -> int:
        return fit_layers(whole, other, lambda node: node.name in ends, used)

    return fitted_where_it_helps(whole, graph, fit, context)


def _counted(graph: Graph, before: ModelStats, calibration: Calibration | None) -> ModelStats:
    """Multiply-accumulates of one example of the data, whose shapes the nodes have afterwards."""
    try:
        if calibration is None:
            propagate(graph, batch=1)
        else:
            propagate_inputs(graph, calibration.some(1)[0])
    except InvalidModelError as error:
        raise StepError(
            f"what layers cost is counted on an example, and this model does not run with one that is made up "
            f"({error}): send some inputs as data.calibrate"
        ) from error
    nodes = (node for node in graph.module.graph.nodes if node.op in ("call_module", "call_function"))
    return before.model_copy(update={"macs": sum(op_of(node).macs(node) for node in nodes)})


def _simulation(
    step: LowRankFactorization, graph: Graph, context: Context, calibration: Calibration | None
) -> Simulation | None:
    """By which errors are measured, where there is data, or made-up inputs have to stand in for it."""
    if calibration is None:
        if step.max_error is not None:
            raise StepError("max_error is measured on inputs, and none can be made up: send some as data.calibrate")
        return None
    if isinstance(context.calibrate, SyntheticBatches):
        context.notes.append("errors are measured on made-up inputs; on real ones other ranks may be better")
    room = MOST_BYTES // bytes_per_example(graph, calibration.some(2)[0])
    return Simulation(graph, calibration.some(max(1, min(JUDGED, room))))


def _tell(plan: Plan, choice: Choice, context: Context) -> None:
    for part, ranks in choice.items():
        ratio = plan.ratio(part, ranks)
        faster = "" if ratio is None else f", {ratio:.2f} times as fast"
        left = f"{ranks.macs / part.macs:.0%} of its multiply-accumulates" if part.macs else "smaller"
        context.notes.append(f"{part.layer.name}: {ranks}, {left}, {ranks.lost:.1%} of its energy lost{faster}")
    error = plan.error(choice)
    context.figures |= {"layers_split": len(choice)} | ({} if error is None else {"error": error})


def _compare(step: LowRankFactorization, before: ModelStats, after: ModelStats, context: Context) -> None:
    """Say what is left, and warn where that is more than was asked for."""
    figures = {"parameters": (before.parameters, after.parameters), "macs": (before.macs or 0, after.macs or 0)}
    for name, (was, now) in figures.items():
        if was and now:
            context.notes.append(f"{was:,} → {now:,} {name.replace('macs', 'multiply-accumulates')}")
            context.figures |= {f"{name}_before": was, f"{name}_after": now}
    for name, share in (("parameters", step.parameters_left), ("macs", step.macs_left)):
        was, now = figures[name]
        if share is not None and was and now / was > share + COARSE:
            context.warnings.append(
                f"{name}_left {share:g} was asked for, and {now / was:.3g} is left: no other layer is faster in parts"
            )
