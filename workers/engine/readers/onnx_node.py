"""An ONNX node as the op table reads it: inputs are values already, attributes are Python values."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from workers.engine.builder import Value
from workers.engine.errors import InvalidModelError, UnsupportedModelError

WEIGHT = re.compile(r"(.+)\.weight(_ih)?(_quantized|_half)?", re.DOTALL)
"""torch's names for weights, ours for recurrent ones, and those of their stored forms."""

SHOWN_NAME = 80
"""Characters of a user's name that are repeated in a message."""


def shown(name: str) -> str:
    return repr(name if len(name) <= SHOWN_NAME else name[:SHOWN_NAME] + "…")


@dataclass(frozen=True)
class OnnxNode:
    op_type: str
    domain: str
    name: str
    opset: int
    """Of the node's own domain."""
    inputs: tuple[Value | None, ...]
    input_names: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.op_type} node {shown(self.name or ', '.join(self.outputs))}"

    def refuse(self, reason: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"{self}: {reason}")

    def invalid(self, reason: str) -> InvalidModelError:
        return InvalidModelError(f"{self}: {reason}")

    def attribute(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)

    def optional(self, index: int) -> Value | None:
        return self.inputs[index] if index < len(self.inputs) else None

    def input(self, index: int) -> Value:
        """Raises InvalidModelError where the input is missing."""
        value = self.optional(index)
        if value is None:
            raise self.invalid(f"input {index} is missing")
        return value

    def weight(self, index: int) -> Tensor:
        """Raises UnsupportedModelError where the weight is computed, InvalidModelError for NaN and infinity."""
        value = self.input(index)
        if isinstance(value, fx.Node):
            raise self.refuse("its weights are computed while the model runs; store them in the file as initializers")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise InvalidModelError(
                f"weight {shown(self.input_names[index])} of {self} has values that are not finite (NaN or infinity); "
                "train or export the model again"
            )
        return value

    def optional_weight(self, index: int) -> Tensor | None:
        return None if self.optional(index) is None else self.weight(index)

    def layer(self, weight: int) -> str:
        """The user's name of the layer: from the name of its weight, else from the name of the node."""
        name = self.input_names[weight]
        of_layer = WEIGHT.fullmatch(name)
        if of_layer:
            return of_layer[1]
        if name and not name.startswith("onnx::") and not self.name.startswith("/"):
            return name
        return _scope(self.name, self.op_type) or name or self.outputs[0]


def _scope(name: str, op_type: str) -> str:
    """`/stem/stem.0/Conv` is how torch's exporter writes the layer `stem.0`."""
    parts: list[str] = []
    for part in name.strip("/").split("/"):
        if parts and part.startswith(f"{parts[-1]}."):
            parts[-1] = part
        else:
            parts.append(part)
    if len(parts) > 1 and parts[-1] == op_type:
        parts.pop()
    return ".".join(parts)
