"""The shapes of every value at two sizes of the inputs, which tell open dimensions from those that are fixed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from workers.engine.errors import InvalidModelError
from workers.engine.graph import Graph
from workers.engine.ops.shapes import shape, size
from workers.engine.shapes import FREE_SIZES, example_inputs

Shape = tuple[int, ...]


class _Recorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, counted: set[fx.Node]) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self.shapes: dict[fx.Node, Any] = {}
        self.numbers: dict[fx.Node, Tensor] = {}
        self._counted = counted

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.shapes[n] = _shape_of(result)
        if n in self._counted and isinstance(result, Tensor):
            self.numbers[n] = result.clone()
        return result


def _shape_of(result: Any) -> Any:
    return tuple(result.shape) if isinstance(result, Tensor) else tuple(_shape_of(part) for part in result)


class Sizes:
    """Raises InvalidModelError where the graph runs with no sizes that were tried."""

    def __init__(self, graph: Graph) -> None:
        self.counted = _counted(graph)
        runs = self._runs(graph)
        self._first, self._second = runs[0], runs[-1]

    def shape(self, node: fx.Node) -> Any:
        """Of a node's value, or of each part where it has several."""
        return self._first.shapes[node]

    def is_open(self, node: fx.Node, axis: int) -> bool:
        return bool(self._first.shapes[node][axis] != self._second.shapes[node][axis])

    def equal(self, node: fx.Node, axis: int, other: fx.Node, place: int) -> bool:
        """Whether two dimensions are equally long, whatever the sizes of the inputs."""
        return all(run.shapes[node][axis] == run.shapes[other][place] for run in (self._first, self._second))

    def numbers(self, node: fx.Node) -> Tensor | None:
        """Of a node that only counts sizes."""
        return self._first.numbers.get(node)

    def settled(self, node: fx.Node) -> Tensor | None:
        """The numbers of a node that only counts sizes, where they are the same whatever the inputs' sizes."""
        one, other = self._first.numbers.get(node), self._second.numbers.get(node)
        return one if one is not None and other is not None and torch.equal(one, other) else None

    def _runs(self, graph: Graph) -> list[_Recorder]:
        """Two runs that differ in every open size that may differ; the same run twice where only one goes through."""
        found: list[tuple[int, _Recorder]] = []
        failure: Exception | None = None
        for free in FREE_SIZES:
            try:
                found.append((free, self._run(graph, 2 + len(found), free)))
            except Exception as error:  # noqa: BLE001 (whatever torch raises at a size that a graph does not take)
                failure = error
            if len(found) == 2:
                return [recorder for _, recorder in found]
        if not found:
            raise InvalidModelError(
                f"the model runs with none of the sizes tried ({failure}): if it takes only those of its export, "
                "export it again with these as fixed dimensions"
            ) from failure
        free, first = found[0]
        try:
            return [first, self._run(graph, 3, free)]
        except Exception:  # noqa: BLE001 (a batch that a graph does not take is no open size)
            return [first]

    def _run(self, graph: Graph, batch: int, free: int) -> _Recorder:
        device = next((tensor.device for tensor in graph.module.state_dict().values()), torch.device("cpu"))
        recorder = _Recorder(graph.module, self.counted)
        with torch.no_grad():
            recorder.run(*(tensor.to(device) for tensor in example_inputs(graph, batch, free)))
        return recorder


def _counted(graph: Graph) -> set[fx.Node]:
    """Nodes whose value depends on the sizes of the inputs alone."""
    counted: set[fx.Node] = set()
    for node in graph.module.graph.nodes:
        if node.op != "call_function":
            continue
        inputs = [source for source in node.all_input_nodes if source.op != "get_attr"]
        if node.target in (shape, size) or (inputs and all(source in counted for source in inputs)):
            counted.add(node)
    return counted
