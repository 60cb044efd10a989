"""Runs a graph for torch.export: sizes are numbers here, so that the trace keeps them symbolic.

In the graph, as in ONNX, sizes are int64 tensors. Tensors of a trace have no values to look at, so whatever is computed
from shapes and stored integers is computed with Python's numbers, which torch.export follows, until a tensor is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from workers.engine.dtypes import TORCH_OF_ONNX
from workers.engine.ops import constants, elementwise, indexing, reductions, shapes
from workers.engine.ops.casting import cast

LONGEST = 64
"""Stored integers of more elements are tables to look up in, not sizes."""


@dataclass(frozen=True)
class Sizes:
    """Integers, known or symbolic: an int64 tensor of at most one dimension."""

    numbers: tuple[Any, ...]
    scalar: bool = False

    def tensor(self) -> Tensor:
        if all(isinstance(number, (int, bool)) for number in self.numbers):
            whole = torch.tensor(self.numbers)
            return whole.reshape(()) if self.scalar else whole
        parts = [torch.scalar_tensor(number, dtype=torch.int64) for number in self.numbers]
        return parts[0] if self.scalar else torch.stack(parts)

    def like(self, numbers: Sequence[Any]) -> Sizes:
        return Sizes(tuple(numbers), self.scalar)


class Run(fx.Interpreter):
    """Of a graph whose small stored integers were found by `stored_sizes` before the trace began."""

    def __init__(self, module: nn.Module, graph: fx.Graph, stored: dict[str, Sizes]) -> None:
        super().__init__(module, graph=graph)
        self.stored = stored
        self.extra_traceback = False

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "get_attr" and str(n.target) in self.stored:
            return self.stored[str(n.target)]
        return super().run_node(n)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        rule = RULES.get(target)
        if rule is not None:
            made = rule(*args, **kwargs)
            if made is not None:
                return made
        takes_numbers = target in TAKES_SIZES
        return super().call_function(target, _plain(args, numbers=takes_numbers), kwargs)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return super().call_module(target, _plain(args, numbers=False), kwargs)

    def output(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return super().output(target, _plain(args, numbers=False), kwargs)


def stored_sizes(module: fx.GraphModule) -> dict[str, Sizes]:
    """Small stored integers, by path."""
    found = {}
    for node in module.graph.find_nodes(op="get_attr"):
        owner, _, name = str(node.target).rpartition(".")
        tensor = getattr(module.get_submodule(owner), name)
        if tensor.dtype is torch.int64 and tensor.dim() <= 1 and tensor.numel() <= LONGEST:
            found[str(node.target)] = Sizes(tuple(tensor.reshape(-1).tolist()), tensor.dim() == 0)
    return found


TAKES_SIZES = {
    shapes.reshape, shapes.expand, shapes.tile, shapes.split, shapes.squeeze, shapes.unsqueeze, indexing.slice_,
    constants.constant_of_shape, reductions.top_k,
}  # fmt: skip
"""Functions with numbers in place of the tensors that say how."""


def _plain(value: Any, *, numbers: bool) -> Any:
    """Sizes as the tensors that they stand for, or as lists of numbers for functions that want these."""
    if isinstance(value, Sizes):
        return list(value.numbers) if numbers else value.tensor()
    if isinstance(value, (tuple, list)):
        return type(value)(_plain(item, numbers=numbers) for item in value)
    return value


Rule = Callable[..., Sizes | Tensor | None]


def _numbers(value: Any) -> tuple[Any, ...] | None:
    if isinstance(value, Sizes):
        return value.numbers
    if isinstance(value, (tuple, list)) and all(isinstance(item, (int, torch.SymInt)) for item in value):
        return tuple(value)
    return (value,) if isinstance(value, (int, torch.SymInt)) else None


def _shape(x: Any, *, start: int = 0, end: int | None = None) -> Sizes | None:
    sizes = (len(x.numbers),) if isinstance(x, Sizes) and not x.scalar else () if isinstance(x, Sizes) else x.shape
    return Sizes(tuple(sizes[start:end]))


def _size(x: Any) -> Sizes | None:
    return Sizes((x.numel(),), scalar=True) if isinstance(x, Tensor) else None


def _gather(x: Any, indices: Any, *, axis: int = 0) -> Sizes | None:  # noqa: ARG001 (there is only one)
    places = _numbers(indices)
    if not isinstance(x, Sizes) or places is None or not all(isinstance(place, int) for place in places):
        return None
    scalar = isinstance(indices, int) or (isinstance(indices, Sizes) and indices.scalar)
    return Sizes(tuple(x.numbers[place] for place in places), scalar)


def _slice(x: Any, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Sizes | None:
    bounds = [_numbers(value) for value in (starts, ends, (1,) if steps is None else steps)]
    if not isinstance(x, Sizes) or any(bound is None or not isinstance(bound[0], int) for bound in bounds):
        return None
    del axes  # there is only one
    (start, *_), (end, *_), (step, *_) = bounds  # type: ignore[misc]  # None was turned away
    return Sizes(x.numbers[start:end:step])


def _concat(*parts: Any, axis: int) -> Sizes | None:  # noqa: ARG001 (there is only one)
    if not all(isinstance(part, Sizes) for part in parts):
        return None
    return Sizes(tuple(number for part in parts for number in part.numbers))


def _squeeze(x: Any, axes: Any = None) -> Sizes | None:  # noqa: ARG001 (there is only one)
    return Sizes(x.numbers, scalar=True) if isinstance(x, Sizes) and len(x.numbers) == 1 else None


def _unsqueeze(x: Any, axes: Any) -> Sizes | None:  # noqa: ARG001 (there is only one)
    return Sizes(x.numbers) if isinstance(x, Sizes) and x.scalar else None


def _reshape(x: Any, shape: Any, *, allowzero: int = 0) -> Sizes | None:  # noqa: ARG001 (says nothing here)
    wanted = _numbers(shape)
    if not isinstance(x, Sizes) or wanted is None or len(wanted) > 1:
        return None
    return Sizes(x.numbers, scalar=not wanted)


def _cast(x: Any, *, to: int, saturate: int = 1) -> Sizes | None:  # noqa: ARG001 (matters for 8-bit floats only)
    whole = isinstance(x, Sizes) and TORCH_OF_ONNX[to] in (torch.int64, torch.int32)
    return x if whole else None


def _product(x: Any, axes: Any = None, *, keepdims: int = 1, **_: Any) -> Sizes | None:  # noqa: ARG001 (only one)
    return Sizes((math.prod(x.numbers),), scalar=not keepdims) if isinstance(x, Sizes) else None


def _range(start: Any, limit: Any, delta: Any) -> Tensor | None:
    if not all(isinstance(value, Sizes) for value in (start, limit, delta)):
        return None
    return torch.arange(start.numbers[0], limit.numbers[0], delta.numbers[0])


def _filled(shape: Any, value: Any) -> Sizes | Tensor | None:
    """A vector of a known length stays numbers where its number is stored."""
    sizes = _numbers(shape)
    if sizes is None:
        return None
    if isinstance(value, Sizes) and len(sizes) <= 1 and all(isinstance(size, int) for size in sizes):
        return Sizes(value.numbers * (sizes[0] if sizes else 1), scalar=not sizes)
    one = value.tensor() if isinstance(value, Sizes) else value
    filled: Tensor = one.reshape(()).expand(sizes).clone()
    return filled


def _each(compute: Callable[..., Any]) -> Rule:
    def rule(*operands: Any) -> Sizes | None:
        if not all(isinstance(operand, Sizes) for operand in operands):
            return None
        length = max(len(operand.numbers) for operand in operands)
        rows = [operand.numbers * (length if len(operand.numbers) == 1 else 1) for operand in operands]
        if any(len(row) != length for row in rows):
            return None
        numbers = tuple(compute(*column) for column in zip(*rows, strict=True))
        return Sizes(numbers, scalar=all(operand.scalar for operand in operands))

    return rule


RULES: dict[Any, Rule] = {
    shapes.shape: _shape,
    shapes.size: _size,
    shapes.squeeze: _squeeze,
    shapes.unsqueeze: _unsqueeze,
    shapes.reshape: _reshape,
    shapes.concat: _concat,
    indexing.gather: _gather,
    indexing.slice_: _slice,
    cast: _cast,
    constants.number_range: _range,
    constants.constant_of_shape: _filled,
    reductions.reduce_prod: _product,
    torch.add: _each(lambda a, b: a + b),
    torch.sub: _each(lambda a, b: a - b),
    torch.mul: _each(lambda a, b: a * b),
    torch.neg: _each(lambda a: -a),
    elementwise.divide: _each(lambda a, b: a // b),
    elementwise.modulo: _each(lambda a, b: a % b),
    elementwise.maximum: _each(torch.sym_max),
    elementwise.minimum: _each(torch.sym_min),
    torch.eq: _each(lambda a, b: bool(a == b)),
    torch.where: _each(lambda condition, a, b: a if condition else b),
}
"""What each function makes of sizes; None where a tensor has to be made."""
