"""Find the weights that can be trained alone, by rounds of training, pruning and rewinding."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from modelpress.steps.lottery_ticket import LotteryTicket
from workers.engine.constraints import Mask
from workers.engine.context import Context
from workers.engine.graph import Graph
from workers.engine.initialization import draw_anew
from workers.engine.reach import Reach
from workers.engine.sparsity import prunable, sparsity, sparsity_below, staying
from workers.engine.steps import applies
from workers.engine.steps.distillation import distil
from workers.engine.training import Outcome

Weights = Mapping[str, Tensor]


@applies(LotteryTicket)
def lottery_ticket(step: LotteryTicket, graph: Graph, context: Context) -> Graph:
    weights = prunable(step.layers, graph, context, Reach(graph, context).why_not)
    start = sparsity_below(step.sparsity, weights)
    _warn_of_idle(step, context)
    if step.rewind != "uploaded":
        _begin_anew(graph, context)
    for weight in weights:
        weight.masks()  # before any training, which knows no weight that is replaced by another
    beginning = Beginning(graph, step.early if step.rewind == "early" else 0.0)
    shares = _shares(step, start)
    outcomes = [_train(step, graph, context, beginning, 0, len(shares))]
    _record(context, 1 - start, outcomes[0])
    for done, share in enumerate(shares, 1):
        for weight, keep in zip(weights, staying([w.magnitude() for w in weights], share, step.scope), strict=True):
            weight.keep(keep)
        beginning.restore()
        if done == len(shares):
            context.extras["ticket"] = graph.copy()
        outcomes.append(_train(step, graph, context, beginning, done, len(shares)))
        _record(context, 1 - share, outcomes[-1])
    context.figures |= {"sparsity": sparsity(weights), "rounds": len(shares)} | outcomes[-1].measured()
    total = sum(weight.value().numel() for weight in weights)
    context.notes += [
        f"the first training, of all weights: {_told(context, 0)}; the last, of the ticket: {_told(context, -1)}",
        f"{len(shares)} rounds left {sparsity(weights):.2%} of the {total} weights in {len(weights)} tensors zero",
        "the ticket itself, rewound and not trained, is a file of its own beside the result: its format is ticket",
    ]
    stopped = sum(outcome.out_of_time for outcome in outcomes)
    if stopped:
        context.notes.append(
            f"{stopped} of the {len(outcomes)} trainings were stopped by the time limit: a larger round_share, which "
            "takes fewer of them, gives each more"
        )
    return graph


class Beginning:
    """The weights that training goes back to, and, as its schedule, what takes them early in the first one.

    Masks are no part of it.
    """

    def __init__(self, graph: Graph, early: float) -> None:
        self._graph, self._early = graph, early
        self._weights: Weights = self._now()

    def advance(self, fraction: float) -> None:
        if self._early and fraction >= self._early:
            self._early = 0.0
            self._weights = self._now()

    def settled(self, fraction: float) -> bool:  # noqa: ARG002 (it changes nothing)
        return True

    def restore(self) -> None:
        self._early = 0.0
        self._graph.module.load_state_dict(self._weights, strict=False)

    def _now(self) -> Weights:
        masks = {f"{path}.keep" for path, part in self._graph.module.named_modules() if isinstance(part, Mask)}
        state = self._graph.module.state_dict()
        return {name: value.detach().clone() for name, value in state.items() if name not in masks}


def _shares(step: LotteryTicket, start: float) -> list[float]:
    """Of zeros, after each round; in as many rounds as come nearest to the share that goes in each."""
    left, wanted = 1 - start, 1 - step.sparsity
    rounds = max(1, round(math.log(wanted / left) / math.log(1 - step.round_share)))
    return [1 - left * (wanted / left) ** (done / rounds) for done in range(1, rounds + 1)]


def _train(
    step: LotteryTicket, graph: Graph, context: Context, beginning: Beginning, done: int, rounds: int
) -> Outcome:
    """One of the trainings, each with its share of the time that is left where that could run out."""
    began, left = time.monotonic(), rounds + 1 - done
    if step.seconds is not None:
        step = step.model_copy(update={"seconds": step.seconds / (rounds + 1)})
    elif context.deadline - began < left * context.figures.get("seconds_a_round", 0.0):
        step = step.model_copy(update={"seconds": (context.deadline - began) / left})
    # what an earlier attempt has left of the first training would come after its beginning
    kept = None if step.rewind == "early" and not done else context.checkpoints
    own = replace(context, progress=_part(context.progress, done, rounds), checkpoints=kept)
    outcome = distil(step, graph, own, beginning)
    context.figures["seconds_a_round"] = time.monotonic() - began
    return outcome


def _part(progress: Callable[[float, str], None], done: int, rounds: int) -> Callable[[float, str], None]:
    def tell(fraction: float, message: str) -> None:
        progress((done + fraction) / (rounds + 1), f"training {done + 1} of {rounds + 1}: {message}")

    return tell


def _record(context: Context, kept: float, outcome: Outcome) -> None:
    for name, value in {"kept": kept, "loss": outcome.loss, **outcome.figures}.items():
        context.series.setdefault(name, []).append(value)


def _told(context: Context, place: int) -> str:
    name = next((name for name in ("accuracy", "mae", "agreement") if name in context.series), "loss")
    return f"{name} {context.series[name][place]:.4g}"


def _warn_of_idle(step: LotteryTicket, context: Context) -> None:
    if step.rewind != "early" and "early" in step.changed():
        context.warnings.append(f"early had no effect: it is for rewind early, and this is {step.rewind}")


def _begin_anew(graph: Graph, context: Context) -> None:
    kept = draw_anew(graph, context.seed)
    if kept:
        context.notes.append(
            f"these began as they were uploaded, since nobody knows how they are drawn: {', '.join(kept[:10])}"
            + (f" and {len(kept) - 10} others" if len(kept) > 10 else "")
        )
