"""Shapes and dtypes of every value, found by running the graph once on made-up inputs; and what they count up to."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from modelpress.models import ModelStats, TensorSpec
from workers.engine.constraints import raw_parameter
from workers.engine.dtypes import TORCH_OF_WORD
from workers.engine.errors import InvalidModelError
from workers.engine.graph import Graph
from workers.engine.ops.base import MOST, op_of

FREE_SIZES = (16, 32, 64, 224, 1)
"""Tried in turn for dimensions that the model leaves open, such as height, width and time."""


def batch_symbols(graph: Graph) -> set[str]:
    """Names of the dimension that counts examples: the first one of an input, where it is open."""
    return {str(spec.shape[0]) for spec in graph.inputs if spec.shape and isinstance(spec.shape[0], str)}


def example_inputs(graph: Graph, batch: int, free: int) -> tuple[Tensor, ...]:
    """Inputs that fit the signature: normal floats, zeros for integers; open dimensions are `batch` or `free` long.

    Raises InvalidModelError where they would fill the memory.
    """
    generator = torch.Generator().manual_seed(0)
    symbols = batch_symbols(graph)
    return tuple(_example(spec, _shape(spec, symbols, batch, free), generator) for spec in graph.inputs)


def check_declared(graph: Graph) -> None:
    """Raises InvalidModelError where an input is too large for the memory even with open dimensions of 1."""
    for spec in graph.inputs:
        _bounded(spec, _shape(spec, set(), 1, 1))


def _bounded(spec: TensorSpec, shape: tuple[int, ...]) -> None:
    if math.prod(shape) > MOST:
        raise InvalidModelError(
            f"the input {spec.name!r} of shape {list(shape)} is too large: {MOST:,} elements are the most; "
            "export the model with the sizes that it is used with"
        )


def _shape(spec: TensorSpec, symbols: set[str], batch: int, free: int) -> tuple[int, ...]:
    def size(axis: int) -> int:
        dim = spec.shape[axis]
        if isinstance(dim, int):
            return dim
        return batch if dim in symbols or axis == 0 else free

    return tuple(size(axis) for axis in range(len(spec.shape)))


def _example(spec: TensorSpec, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    _bounded(spec, shape)
    dtype = TORCH_OF_WORD[spec.dtype]
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.zeros(shape, dtype=dtype)


class _Recorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.extra_traceback = False

    def run_node(self, n: fx.Node) -> Any:
        try:
            result = super().run_node(n)
        except Exception as error:  # whatever a hostile graph can make torch raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InvalidModelError(f"{n.meta.get('layer', n.name)}: {reason}") from error
        if n.op != "output":
            n.meta["shape"], n.meta["dtype"] = _of(result, "shape"), _of(result, "dtype")
        return result


def _of(result: Any, what: str) -> Any:
    if isinstance(result, Tensor):
        return tuple(result.shape) if what == "shape" else result.dtype
    return tuple(_of(part, what) for part in result)


def propagate(graph: Graph, batch: int = 2, free: int | None = None) -> int:
    """Fill `meta["shape"]` and `meta["dtype"]` of every node (a tuple of each where it has several outputs).

    Returns the size that dimensions left open other than the batch had. Raises InvalidModelError where the model runs
    with none of the sizes tried.
    """
    failures: list[InvalidModelError] = []
    for size in FREE_SIZES if free is None else (free,):
        try:
            propagate_inputs(graph, example_inputs(graph, batch, size))
        except InvalidModelError as error:
            failures.append(error)
        else:
            return size
        if all(isinstance(dim, int) for spec in graph.inputs for dim in spec.shape[1:]):
            break
    raise failures[0]


def propagate_inputs(graph: Graph, inputs: Sequence[Tensor]) -> None:
    """The same with these inputs. Raises InvalidModelError, naming the layer, where they do not go through."""
    device = next((tensor.device for tensor in graph.module.state_dict().values()), torch.device("cpu"))
    with torch.no_grad():
        _Recorder(graph.module).run(*(tensor.to(device) for tensor in inputs))


def stats(graph: Graph) -> ModelStats:
    """Counts of a model, tied weights once, MACs for one example.

    MACs are None where the graph does not run with made-up inputs.
    """
    used: dict[Tensor, Tensor] = {parameter: parameter for parameter in graph.module.parameters()}
    for layer in graph.layers():
        used.update((raw_parameter(layer.module, name), weight) for name, weight in layer.weights.items())
    tensors = used.values()
    nodes = [node for node in graph.module.graph.nodes if node.op in ("call_module", "call_function")]
    ops = Counter(name for node in nodes for name in op_of(node).counted(node))
    return ModelStats(
        parameters=sum(tensor.numel() for tensor in tensors),
        nonzeros=sum(int(torch.count_nonzero(tensor)) for tensor in tensors),
        macs=_macs(graph, nodes),
        layers=sum(1 for _ in graph.layers()),
        opset=graph.opset,
        ops=dict(sorted(ops.items())),
    )


def _macs(graph: Graph, nodes: list[fx.Node]) -> int | None:
    for free in (1, *FREE_SIZES):
        try:
            propagate(graph, batch=1, free=free)
        except InvalidModelError:
            continue
        return sum(op_of(node).macs(node) for node in nodes)
    return None
