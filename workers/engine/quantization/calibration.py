"""Calibration data in batches, and the ranges that inner results took on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from workers.engine.batching import batch_taken, whole
from workers.engine.context import Batches, Context
from workers.engine.errors import StepError
from workers.engine.graph import Graph
from workers.engine.quantization.lowering import anchored
from workers.engine.quantization.nodes import layer_name
from workers.engine.quantization.placement import Placement
from workers.engine.quantization.ranges import RANGES, Histogram, Range
from workers.engine.quantization.simulation import Simulation

MOST_EXAMPLES = 1024
"""Ranges settle long before more examples than this."""
BATCH = 64
SAME = 0.01
"""Ranges whose bounds differ by less than this share of their width are not told apart."""


class Calibration:
    """An even sample of the calibration examples, on the device where the graph is.

    `batch` is the batch size that the graph is bound to, None where any will do. Raises StepError where there is no
    batch of that size.
    """

    def __init__(self, source: Batches, device: torch.device, seed: int, batch: int | None = None) -> None:
        if batch and source.examples < batch:
            raise StepError(
                f"the model takes {batch} examples at a time and the calibration data has {source.examples}: "
                f"send {batch} or more"
            )
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(source.examples, generator=generator)[: max(MOST_EXAMPLES, batch or 0)]
        self._indices = whole(order, batch or 1).sort().values
        self._source = source
        self._batch = batch
        self._device = device

    @classmethod
    def of(cls, graph: Graph, context: Context) -> Calibration:
        """Raises StepError where there is nothing to calibrate on."""
        if context.calibrate is None or context.calibrate.examples < 1:
            raise StepError("there is no calibration data, and inputs for this model cannot be made up: send some")
        size = batch_taken(graph, context.calibrate, context.device)
        return cls(context.calibrate, context.device, context.seed, size)

    @property
    def examples(self) -> int:
        return len(self._indices)

    def batches(self) -> Iterator[tuple[Tensor, ...]]:
        for indices in self._indices.split(self._batch or BATCH):
            yield self._take(indices)

    def some(self, count: int) -> list[tuple[Tensor, ...]]:
        """Inputs of `count` examples, or of all where there are fewer, in one batch.

        Where the graph is bound to a batch size: in as many of those as go into the count, one at least.
        """
        size = self._batch or min(count, self.examples)
        count = min(max(count // size, 1) * size, self.examples)
        spread = torch.linspace(0, self.examples - 1, count).round().long()
        return [self._take(indices) for indices in self._indices[spread].split(size)]

    def _take(self, indices: Tensor) -> tuple[Tensor, ...]:
        inputs, _ = self._source.take(indices)
        return tuple(value.to(self._device) for value in inputs)


class _Observer(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, watch: Callable[[fx.Node, Tensor], None], watched: set[fx.Node]) -> None:
        super().__init__(module)
        self._watch = watch
        self._watched = watched

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n in self._watched:
            self._watch(n, result)
        return result


def observe(
    graph: Graph, values: Sequence[fx.Node], calibration: Calibration, *, count: bool
) -> dict[fx.Node, Histogram]:
    """Bounds of these values over all calibration batches and, where asked for, how often each value occurs."""
    histograms = {value: Histogram() for value in values}

    def see(node: fx.Node, value: Tensor) -> None:
        try:
            histograms[node].see(value)
        except ValueError as error:
            raise StepError(
                f"the results of {layer_name(node)!r} are not finite on the calibration data; check its values"
            ) from error
        if count:
            histograms[node].count(value)

    with torch.no_grad():
        observer = _Observer(graph.module, see, set(values))
        for inputs in calibration.batches():
            observer.run(*inputs)
    return histograms


def choose_ranges(
    method: str, histograms: Mapping[fx.Node, Histogram], placement: Placement, simulation: Simulation
) -> tuple[dict[fx.Node, Range], dict[str, int]]:
    """The range of each value, and how often each method was taken.

    `auto` tries what the methods find on all that reads a value, and takes what moves that least.
    """
    ranges: dict[fx.Node, Range] = {}
    taken = dict.fromkeys(RANGES, 0)
    for value, histogram in histograms.items():
        names = list(RANGES) if method == "auto" else [method]
        found = {name: anchored(value, RANGES[name](histogram), placement.integer) for name in names}
        distinct: dict[str, Range] = {}
        for name, bounds in found.items():
            if not any(_same(bounds, other) for other in distinct.values()):
                distinct[name] = bounds
        best = next(iter(distinct))
        if len(distinct) > 1:
            best = min(distinct, key=lambda name: simulation.error_behind(value, distinct[name]))
        ranges[value] = distinct[best]
        taken[best] += 1
    return ranges, {name: times for name, times in taken.items() if times}


def _same(one: Range, other: Range) -> bool:
    width = max(one.high - one.low, other.high - other.low)
    return abs(one.low - other.low) <= SAME * width and abs(one.high - other.high) <= SAME * width


def find_ranges(
    graph: Graph, placement: Placement, method: str, calibration: Calibration, simulation: Simulation
) -> tuple[dict[fx.Node, Range], dict[str, int]]:
    """Ranges for every source of the placement."""
    histograms = observe(graph, placement.sources, calibration, count=method != "min_max")
    return choose_ranges(method, histograms, placement, simulation)
