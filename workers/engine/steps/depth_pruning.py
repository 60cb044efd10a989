"""Drop whole residual blocks, those first that matter least."""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx

from modelpress.steps.depth_pruning import QUARTER, DepthPruning
from workers.engine.batching import answers, batch_of, batch_taken, on_device, whole
from workers.engine.context import Context
from workers.engine.data import SyntheticBatches
from workers.engine.errors import StepError
from workers.engine.graph import Graph
from workers.engine.losses import spread_of
from workers.engine.selection import selected
from workers.engine.shapes import stats
from workers.engine.steps import applies
from workers.engine.structure.blocks import Block, drop, find_blocks, without

EXAMPLES = 64
"""On which effects are measured."""
AT_ONCE = 16


@applies(DepthPruning)
def depth_pruning(step: DepthPruning, graph: Graph, context: Context) -> Graph:
    selected(step.layers, graph)  # refuses a selection of nothing
    before = stats(graph)
    blocks = _selected(step, graph, context)
    most = _how_many(step, len(blocks))
    with on_device(graph, context.device):
        effects = Effects(graph, context)
        gone = _drop(step, graph, blocks, context, effects, most)
    if not gone:
        least = min(effects.known)
        raise StepError(
            f"no block can go: the one that matters least moves the outputs by {least:.2%}; raise max_effect"
        )
    after = stats(graph)
    left = [block.name for block in blocks if block.name not in gone]
    context.notes.append(
        f"{len(gone)} of {len(blocks)} residual blocks dropped, the outputs moved by {effects.of_graph():.2%}; "
        f"left: {', '.join(left) or 'none'}"
    )
    context.notes.append(f"{before.parameters:,} → {after.parameters:,} parameters")
    context.figures |= {
        "blocks_before": len(blocks),
        "blocks_dropped": len(gone),
        "effect": effects.of_graph(),
        "parameters_before": before.parameters,
        "parameters_after": after.parameters,
    }
    if before.macs and after.macs:
        context.figures |= {"macs_before": before.macs, "macs_after": after.macs}
    return graph


class Effects:
    """How far the outputs move from those that the graph gives now: relative error, mean over the outputs.

    Of an output of whole numbers, the share that becomes another one.
    """

    def __init__(self, graph: Graph, context: Context) -> None:
        data = context.calibrate
        if data is None:
            raise StepError("the blocks' effects are measured on inputs: send some as data.calibrate")
        if isinstance(data, SyntheticBatches):
            context.notes.append("effects are measured on made-up inputs; on real ones other blocks may matter less")
        self.graph = graph
        self.known: list[float] = []
        self._size = batch_taken(graph, data, context.device)
        order = torch.randperm(data.examples, generator=torch.Generator().manual_seed(context.seed))[:EXAMPLES]
        order = whole(order, self._size) if self._size else order
        self._inputs = [batch_of(data, part, context.device).inputs for part in order.split(self._size or AT_ONCE)]
        self._wanted = self._answers()

    def of(self, block: Block) -> float:
        """Measured now, with this block gone too."""
        with without(self.graph, block):
            self.known.append(self.of_graph())
        return self.known[-1]

    @torch.no_grad()
    def of_graph(self) -> float:
        effects = [_moved(mine, wanted) for mine, wanted in zip(self._answers(), self._wanted, strict=True)]
        return sum(effects) / len(effects)

    @torch.no_grad()
    def _answers(self) -> list[Tensor]:
        asked = [answers(self.graph, inputs, self._size) for inputs in self._inputs]
        return [torch.cat([part.flatten() for part in parts]) for parts in zip(*asked, strict=True)]


def _moved(mine: Tensor, wanted: Tensor) -> float:
    if not wanted.is_floating_point():
        return float((mine != wanted).float().mean())
    error = math.sqrt(float((mine - wanted).float().square().mean()) / spread_of(wanted.float()))
    return error if math.isfinite(error) else math.inf


def _selected(step: DepthPruning, graph: Graph, context: Context) -> list[Block]:
    blocks = find_blocks(graph)
    inside = {layer for block in blocks for layer in block.layers}
    for layer in graph.layers():
        if layer.name not in inside:
            context.untouched[layer.name] = "it is in no residual block"
    free = [block for block in blocks if all(map(step.layers.selects, block.layers))]
    for block in blocks:
        if block not in free:
            kept = next(layer for layer in block.layers if not step.layers.selects(layer))
            context.untouched |= dict.fromkeys(block.layers, f"its block holds {kept}, which is not selected")
    if not free:
        reason = "every one of them holds a layer that is not selected" if blocks else "it has none"
        raise StepError(f"no residual block (x + f(x) with layers in f) can be dropped from this model: {reason}")
    return free


def _how_many(step: DepthPruning, there: int) -> int:
    if step.max_effect is not None:
        return there
    if step.blocks is None:
        return max(1, round((step.ratio or QUARTER) * there))
    if step.blocks > there:
        raise StepError(f"{step.blocks} blocks cannot go: there are {there} that may")
    return step.blocks


def _drop(
    step: DepthPruning, graph: Graph, blocks: list[Block], context: Context, effects: Effects, most: int
) -> list[str]:
    """Drop up to so many blocks, the least effect first; says each one's effect and returns their names.

    Effects grow with every block that is gone. So after each, blocks are measured anew in the order of their last
    effects, and only until the least new one is below all the old ones.
    """
    gone: list[str] = []
    names = {block.sum: block.name for block in blocks}
    last = dict.fromkeys(names, 0.0)
    alone: dict[str, float] = {}
    while len(gone) < most:
        context.progress(len(gone) / most, "measuring the effect of each block")
        there = {block.sum: block for block in find_blocks(graph) if block.sum in names}
        found: dict[fx.Node, float] = {}
        for node in sorted(there, key=last.__getitem__):
            if found and min(found.values()) <= last[node]:
                break
            last[node] = found[node] = effects.of(there[node])
            alone.setdefault(names[node], found[node])
        if not found or (step.max_effect is not None and min(found.values()) > step.max_effect):
            break
        least = min(found, key=found.__getitem__)
        drop(graph, there[least])
        name = names[least]
        gone.append(name)
        context.notes.append(
            f"dropped {name}: alone it moves the outputs by {alone[name]:.2%}, with those before by {found[least]:.2%}"
        )
    kept = ", ".join(f"{name} {effect:.2%}" for name, effect in alone.items() if name not in gone)
    if kept:
        context.notes.append(f"effects of the others, alone: {kept}")
    return gone
