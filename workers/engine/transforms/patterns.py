"""A small language for patterns of nodes: written as the formula that they compute, matched from its last node.

    x, axes = Value("x"), Axes("axes")
    mean = Call(reduce_mean, x, axes)
    square = Call(reduce_mean, x * x | x**2, axes)

`+` and `*` match in either order, `|` tries one after the other, and a name that comes twice must be the same thing
twice. A pattern is data: it says nothing about what it is replaced by.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from workers.engine.ops.elementwise import divide, power

CLOSE = 1e-6
"""Relative difference of constants that mean the same, as 32-bit floats round them."""


@dataclass(frozen=True)
class Match:
    values: dict[str, Any] = field(default_factory=dict)
    """What the names stand for: nodes, numbers and tuples of axes."""
    nodes: frozenset[fx.Node] = frozenset()
    """What the pattern is made of, without its inputs and constants."""
    rank: int = 0
    """The most dimensions that a constant of one element has: with fewer the input would be broadcast."""

    def bind(self, name: str, value: Any) -> Match | None:
        """None where the name stands for something else already."""
        if name in self.values:
            return self if self.values[name] == value else None
        return replace(self, values={**self.values, name: value})

    @property
    def last(self) -> fx.Node:
        return max(self.nodes)

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def get(self, name: str) -> Any:
        return self.values.get(name)


class Pattern(ABC):
    @abstractmethod
    def match(self, value: Any, so_far: Match) -> Iterator[Match]:
        """Every way in which the argument of a node fits."""

    def __add__(self, other: Pattern | float) -> Pattern:
        return Call(torch.add, self, other, either_order=True)

    def __radd__(self, other: float) -> Pattern:
        return self + other

    def __sub__(self, other: Pattern | float) -> Pattern:
        return Call(torch.sub, self, other)

    def __mul__(self, other: Pattern | float) -> Pattern:
        return Call(torch.mul, self, other, either_order=True)

    def __rmul__(self, other: float) -> Pattern:
        return self * other

    def __truediv__(self, other: Pattern | float) -> Pattern:
        return Call(divide, self, other)

    def __rtruediv__(self, other: float) -> Pattern:
        return Call(divide, other, self)

    def __pow__(self, exponent: Pattern | float) -> Pattern:
        return Call(power, self, exponent)

    def __or__(self, other: Pattern) -> Pattern:
        return Either(self, other)


@dataclass(frozen=True)
class Value(Pattern):
    """Any value that is computed when the model runs."""

    name: str

    def match(self, value: Any, so_far: Match) -> Iterator[Match]:
        bound = so_far.bind(self.name, value) if isinstance(value, fx.Node) and value.op != "get_attr" else None
        if bound is not None:
            yield bound


@dataclass(frozen=True)
class Anything(Pattern):
    """A value that is computed, stored, or a literal."""

    name: str

    def match(self, value: Any, so_far: Match) -> Iterator[Match]:
        bound = so_far.bind(self.name, value)
        if bound is not None:
            yield bound


@dataclass(frozen=True)
class Stored(Pattern):
    """A stored float tensor of more than one element: a weight."""

    name: str

    def match(self, value: Any, so_far: Match) -> Iterator[Match]:
        tensor = stored(value)
        if tensor is not None and tensor.is_floating_point() and tensor.numel() > 1:
            bound = so_far.bind(self.name, value)
            if bound is not None:
                yield bound


@dataclass(frozen=True)
class Number(Pattern):
    """A constant of one element; `expected` is a number that it must be, or the name that it gets."""

    expected: float | str

    def match(self, value: Any, so_far: Match) -> Iterator[Match]:
        number = number_of(value)
        if number is None:
            return
        tensor = stored(value)
        ranked = so_far if tensor is None else replace(so_far, rank=max(so_far.rank, tensor.dim()))
        if isinstance(self.expected, str):
            bound = ranked.bind(self.expected, number)
            if bound is not None:
                yield bound
        elif math.isclose(number, self.expected, rel_tol=CLOSE):
            yield ranked


@dataclass(frozen=True)
class Axes(Pattern):
    """Literal axes."""

    name: str

    def match(self, value: Any, so_far: Match) -> Iterator[Match]:
        if isinstance(value, (tuple, list)) and all(isinstance(axis, int) for axis in value):
            bound = so_far.bind(self.name, tuple(value))
            if bound is not None:
                yield bound


class Call(Pattern):
    """A call of a function of the op table. Numbers among the arguments must be (nearly) those, and the options too.

    Options that are not named may be anything.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *arguments: Pattern | float,
        either_order: bool = False,
        **options: float | str,
    ) -> None:
        self.function = function
        self.arguments = tuple(part if isinstance(part, Pattern) else Number(part) for part in arguments)
        self.either_order = either_order
        self.options = options

    def match(self, value: Any, so_far: Match) -> Iterator[Match]:
        if not isinstance(value, fx.Node) or value.target is not self.function:
            return
        if len(value.args) != len(self.arguments) or not self._options_fit(value):
            return
        inside = replace(so_far, nodes=so_far.nodes | {value})
        for order in itertools.permutations(value.args) if self.either_order else (value.args,):
            yield from _all(self.arguments, order, inside)

    def _options_fit(self, node: fx.Node) -> bool:
        for name, expected in self.options.items():
            given = node.kwargs.get(name)
            if given != expected and not (
                isinstance(given, float)
                and isinstance(expected, float)
                and math.isclose(given, expected, rel_tol=CLOSE)
            ):
                return False
        return True


class Either(Pattern):
    def __init__(self, *choices: Pattern) -> None:
        self.choices = choices

    def match(self, value: Any, so_far: Match) -> Iterator[Match]:
        for choice in self.choices:
            yield from choice.match(value, so_far)


def product(first: Pattern | float, second: Pattern | float, third: Pattern | float) -> Pattern:
    """The product of three, however it is bracketed."""
    one, two, three = (part if isinstance(part, Pattern) else Number(part) for part in (first, second, third))
    return (one * two) * three | (one * three) * two | (two * three) * one


def find(pattern: Pattern, node: fx.Node) -> Match | None:
    """The first match that ends at the node and whose inner values nothing else reads."""
    for match in pattern.match(node, Match()):
        if all(user in match.nodes for inner in match.nodes if inner is not node for user in inner.users):
            return match
    return None


def stored(value: Any) -> Tensor | None:
    """The tensor behind a `get_attr` node."""
    if not isinstance(value, fx.Node) or value.op != "get_attr":
        return None
    found = getattr(value.graph.owning_module, str(value.target))
    return found if isinstance(found, Tensor) else None


def number_of(value: Any) -> float | None:
    """A literal, or a stored tensor of one element. Floats of other widths than 32 bits are no match."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    tensor = stored(value)
    if tensor is None or tensor.numel() != 1 or tensor.dtype not in (torch.float32, torch.int32, torch.int64):
        return None
    return float(tensor)


def _all(patterns: tuple[Pattern, ...], values: tuple[Any, ...], so_far: Match) -> Iterator[Match]:
    if not patterns:
        yield so_far
        return
    for match in patterns[0].match(values[0], so_far):
        yield from _all(patterns[1:], values[1:], match)
