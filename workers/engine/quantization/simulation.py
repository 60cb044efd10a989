"""What a graph answers when some of it computes on integer grids, followed from the first change on only."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from workers.engine.graph import Graph
from workers.engine.quantization.fake_quantize import FakeQuantize
from workers.engine.quantization.grid import fitted, grid_of
from workers.engine.quantization.leaves import without_constraints
from workers.engine.quantization.placement import Placement, trait_of
from workers.engine.quantization.ranges import Range

NOTHING = Placement(frozenset(), {})
MOST_BYTES = 1 << 29
"""Inner results that are kept in memory at a time."""


def relative_error(outputs: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """The largest ‖output - reference‖ / ‖reference‖ of all floating-point outputs."""
    worst = 0.0
    for output, wanted in zip(outputs, reference, strict=True):
        if wanted.is_floating_point():
            norm = float(wanted.double().norm())
            error = float((output.double() - wanted.double()).norm())
            worst = max(worst, error / norm if norm > 0 else error)
    return worst if math.isfinite(worst) else math.inf


def join(parts: Sequence[Any]) -> Any:
    """One value of several batches as a value of them all, as the leaves take it: of its example where it is (C,)."""
    if len(parts) == 1 or not isinstance(parts[0], Tensor):
        return parts[0]
    return torch.cat(list(parts)) if parts[0].dim() > 1 else torch.stack(list(parts))


class Simulation:
    """A float graph with every inner result for a few examples. The graph must not change while this is in use.

    All errors are against what `reference` answers: the graph itself, or what it was before it was prepared.
    """

    def __init__(
        self,
        graph: Graph,
        batches: Sequence[Sequence[Tensor]],
        reference: Callable[..., Sequence[Tensor]] | None = None,
    ) -> None:
        self._batches = batches
        self._module = graph.module
        self._values = [record(graph, inputs) for inputs in batches]
        self._reference = _answers(reference or graph, batches)
        self._rounded: dict[tuple[fx.Node, int], nn.Module] = {}

    def error_of(self, graph: Callable[..., Sequence[Tensor]]) -> float:
        """The relative error of what a graph answers."""
        return relative_error(_answers(graph, self._batches), self._reference)

    def error(self, placement: Placement, ranges: Mapping[fx.Node, Range], widths: Mapping[fx.Node, int]) -> float:
        """The relative error of the outputs with these values, and the weights of these layers, on integer grids.

        `widths`: bits of the weights of each layer.
        """
        points = {node: FakeQuantize.of(ranges[point.source]) for node, point in placement.points.items()}
        leaves = {node: self._leaf(node, width) for node, width in widths.items()}
        return self._error(placement, points, leaves)

    @torch.no_grad()
    def error_behind(self, value: fx.Node, bounds: Range) -> float:
        """The squared relative errors of all that reads this one value, added up, when it alone is on a grid.

        Ops that only move values are looked through. Cheap beside the outputs' error, and as good a judge of bounds.
        """
        return sum(self._error_behind(values, value, bounds) for values in self._values)

    def _error_behind(self, values: Mapping[fx.Node, Any], value: fx.Node, bounds: Range) -> float:
        changed = {value: FakeQuantize.of(bounds).to(_device(values[value]))(values[value])}
        waiting, total = [value], 0.0
        interpreter = fx.Interpreter(self._module)
        while waiting:
            moved = waiting.pop()
            for user in moved.users:
                if user.op == "output":
                    total += relative_error((changed[moved],), (values[moved],)) ** 2
                    continue
                args, kwargs = fx.node.map_arg((user.args, user.kwargs), lambda n: changed.get(n, values[n]))
                result = getattr(interpreter, user.op)(user.target, args, kwargs)
                trait = trait_of(user)
                if trait is not None and trait.passes:
                    changed[user] = result
                    waiting.append(user)
                else:
                    total += relative_error(_tuple(result), _tuple(values[user])) ** 2
        return total

    def error_of_leaves(self, leaves: Mapping[fx.Node, nn.Module]) -> float:
        """The relative error of the outputs when other leaves stand at these nodes."""
        return self._error(NOTHING, {}, leaves)

    def _error(
        self, placement: Placement, points: Mapping[fx.Node, FakeQuantize], leaves: Mapping[fx.Node, nn.Module]
    ) -> float:
        answers = [self._follow(values, placement, points, leaves) for values in self._values]
        return relative_error(_together(answers), self._reference)

    @torch.no_grad()
    def _follow(
        self,
        values: Mapping[fx.Node, Any],
        placement: Placement,
        points: Mapping[fx.Node, FakeQuantize],
        leaves: Mapping[fx.Node, nn.Module],
    ) -> Sequence[Tensor]:
        """Run again what depends on a point or on another leaf; all else is as it was recorded for this batch."""
        changed: dict[fx.Node, Any] = {}
        gridded: dict[fx.Node, Any] = {}
        interpreter = fx.Interpreter(self._module)

        def read(value: fx.Node, user: fx.Node) -> Any:
            point = placement.points.get(value)
            if value in gridded and (point is None or point.users is None or user in point.users):
                return gridded[value]
            return changed.get(value, values[value])

        for node in self._module.graph.nodes:
            if node in leaves or any(source in changed or source in gridded for source in node.all_input_nodes):
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), partial(read, user=node))
                if node in leaves:
                    changed[node] = leaves[node](*args, **kwargs)
                elif node.op == "output":
                    return _tuple(args[0])
                else:
                    changed[node] = getattr(interpreter, node.op)(node.target, args, kwargs)
            if node in points:
                gridded[node] = points[node].to(_device(values[node]))(changed.get(node, values[node]))
        return _tuple(values[next(iter(reversed(self._module.graph.nodes)))])

    def _leaf(self, node: fx.Node, width: int) -> nn.Module:
        if (node, width) not in self._rounded:
            module = self._module.get_submodule(str(node.target))
            self._rounded[node, width] = with_grids(module, node, width)
        return self._rounded[node, width]


def with_grids(module: nn.Module, node: fx.Node, width: int) -> nn.Module:
    """A copy of a layer whose weights are rounded to their grids."""
    trait = trait_of(node)
    rounded = without_constraints(module)
    for name, axis in (trait.weights if trait and trait.weights else {}).items():
        weight = getattr(module, name)
        grid = grid_of(module, name) or fitted(module, name, () if axis is None else (axis,), width)
        rounded.register_parameter(name, nn.Parameter(grid(weight).detach(), requires_grad=False))
    return rounded


class _Recorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)

    @torch.no_grad()
    def record(self, inputs: Sequence[Tensor]) -> dict[fx.Node, Any]:
        self.run(*inputs)
        return dict(self.env)

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.env[n] = result
        return result


def record(graph: Graph, inputs: Sequence[Tensor]) -> dict[fx.Node, Any]:
    """The result of every node on these inputs."""
    return _Recorder(graph.module).record(inputs)


def bytes_per_example(graph: Graph, inputs: Sequence[Tensor]) -> int:
    """Memory that the inner results of one example take, by running these."""
    values = record(graph, inputs)
    total = sum(value.nbytes for value in values.values() if isinstance(value, Tensor))
    return max(1, total // max(1, inputs[0].shape[0] if inputs[0].dim() else 1))


@torch.no_grad()
def _answers(graph: Callable[..., Sequence[Tensor]], batches: Sequence[Sequence[Tensor]]) -> Sequence[Tensor]:
    return _together([graph(*inputs) for inputs in batches])


def _together(answers: Sequence[Sequence[Tensor]]) -> Sequence[Tensor]:
    """Every output with the values of all batches, flat."""
    return [torch.cat([part.flatten() for part in output]) for output in zip(*answers, strict=True)]


def _device(value: Any) -> torch.device:
    return value.device if isinstance(value, Tensor) else torch.device("cpu")


def _tuple(value: Any) -> tuple[Tensor, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)
