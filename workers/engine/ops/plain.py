"""Ops that are one function: positional parameters are ONNX inputs, keyword-only ones are ONNX attributes.

A function's signature is all that the reader and the writer need, so most of the table is a function and a line.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, fx

from workers.engine.ops.base import Op, register

if TYPE_CHECKING:
    from workers.engine.builder import GraphBuilder, Value
    from workers.engine.readers.onnx_node import OnnxNode
    from workers.engine.writers.onnx import OnnxBuilder


LITERAL_ELEMENTS = 64
"""Longer constants stay tensors, so that generated code stays short."""


def attributes_of(node: fx.Node) -> dict[str, Any]:
    return dict(node.kwargs)


@cache
def attribute_defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """Keyword-only parameters of a function; torch's own functions stand for ops without attributes."""
    if not inspect.isfunction(function):
        return {}
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def as_literal(value: Value | None) -> Any:
    """A constant int64 or float32 tensor of at most one dimension as Python numbers; everything else as it is."""
    if (
        isinstance(value, Tensor)
        and value.dtype in (torch.int64, torch.float32)
        and value.dim() <= 1
        and value.numel() <= LITERAL_ELEMENTS
    ):
        numbers = value.tolist()
        return tuple(numbers) if isinstance(numbers, list) else numbers
    return value


# fmt: off
WORDS = frozenset((
    "none", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER", "LEFT", "RIGHT", "tanh", "constant", "reflect", "edge",
    "wrap", "DCR", "CRD", "add", "mul", "max", "min", "nearest", "linear", "cubic", "bilinear", "bicubic", "zeros",
    "border", "reflection", "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners",
    "asymmetric", "tf_crop_and_resize", "round_prefer_floor", "round_prefer_ceil", "floor", "ceil", "stretch",
    "not_larger", "not_smaller",
))
# fmt: on
"""Texts that attributes may have, beside an op's own `words`: others never come near generated code."""


def _fits(value: Any, default: Any, words: frozenset[str]) -> bool:
    """Whether a file's value for an attribute is of the kind that the function expects."""
    if value is None:
        return default is None
    if isinstance(value, str):
        return value in words
    if isinstance(value, tuple):
        return all(type(item) in (int, float) or item in words for item in value)
    expected = (int, float) if default in (None, inspect.Parameter.empty) else (type(default),)
    return type(value) in expected


class Plain(Op):
    literals: ClassVar[frozenset[int]] = frozenset()
    """Positions of inputs that are Python numbers in the graph where the file has them as constants."""
    attribute_before: ClassVar[dict[int, tuple[str, int]]] = {}
    """Inputs that were attributes once: position → (name of the attribute, first opset with the input)."""
    attribute_since: ClassVar[dict[str, int]] = {}
    """Attributes that older opsets do not know; there their default is how the op works."""
    results: ClassVar[int] = 1
    """Outputs that the function has."""
    required: ClassVar[int] = 0
    """Outputs that a file cannot leave out where nothing uses them; 0: all."""
    words: ClassVar[frozenset[str]] = frozenset()
    """Texts that its attributes may have, where no other op has them."""
    ignored: ClassVar[frozenset[str]] = frozenset()
    """Attributes that do not change what the op computes here."""

    def read(self, node: OnnxNode, graph: GraphBuilder) -> Value | tuple[Value, ...]:
        function = self.functions[0]
        attributes = self.read_attributes(node, function)
        inputs = self.read_inputs(node)
        if self.results == 1:
            return graph.call(function, *inputs, **attributes)
        return graph.call_each(self.results, function, *inputs, **attributes)

    def read_attributes(self, node: OnnxNode, function: Callable[..., Any]) -> dict[str, Any]:
        defaults = attribute_defaults(function)
        moved = {name for name, since in self.attribute_before.values() if node.opset < since}
        unknown = node.attributes.keys() - defaults.keys() - moved - self.ignored
        if unknown:
            raise node.refuse(f"attribute {min(unknown)!r} is not supported")
        attributes = {name: node.attributes.get(name, default) for name, default in defaults.items()}
        missing = [name for name, value in attributes.items() if value is inspect.Parameter.empty]
        if missing:
            raise node.invalid(f"attribute {missing[0]!r} is missing")
        for name, value in attributes.items():
            if not _fits(value, defaults[name], WORDS | self.words):
                raise node.invalid(f"attribute {name!r} has a value that it cannot have")
        return attributes

    def read_inputs(self, node: OnnxNode) -> list[Any]:
        inputs: list[Any] = [
            as_literal(value) if position in self.literals else value for position, value in enumerate(node.inputs)
        ]
        for position, (name, since) in self.attribute_before.items():
            if node.opset < since and name in node.attributes:
                inputs += [None] * (position + 1 - len(inputs))
                inputs[position] = node.attributes[name]
        return inputs

    def write(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        inputs = list(node.args)
        attributes = {
            name: value
            for name, value in attributes_of(node).items()
            if value is not None and onnx.opset >= self.attribute_since.get(name, 0)
        }
        for position, (name, since) in sorted(self.attribute_before.items(), reverse=True):
            if onnx.opset < since and position < len(inputs):
                value = inputs.pop(position)
                if value is not None:
                    attributes[name] = value
        onnx.emit(node, self.name, inputs, outputs=self.required or self.results, **attributes)


class Composite(Plain):
    """An op that older opsets have only in parts."""

    taken_apart = True

    def write(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        if onnx.opset >= self.opset:
            super().write(node, onnx)
        else:
            self.write_parts(node, onnx)

    def write_parts(self, node: fx.Node, onnx: OnnxBuilder) -> None:  # noqa: ARG002 (for subclasses)
        """As exporters write it, and runtimes know it again."""
        raise TypeError(self.name)


def plain(
    name: str,
    function: Callable[..., Any],
    *,
    base: type[Plain] = Plain,
    opset: int = 13,
    **declarations: Any,
) -> None:
    """Put an op into the table that is just this function."""
    members = {"name": name, "functions": (function,), "opset": opset, **declarations}
    register(type(name, (base,), members))
