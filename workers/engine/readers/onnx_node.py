"""An ONNX node as the op table reads it: inputs are values already, attributes are Python values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from workers.engine.builder import Value
from workers.engine.errors import InvalidModelError, UnsupportedModelError
from workers.engine.naming import layer_of_weight, scope_of

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

    def stores(self, *indices: int) -> bool:
        """Whether these inputs, as far as the node has them, are stored in the file and not computed."""
        return not any(isinstance(self.optional(index), fx.Node) for index in indices)

    def optional_weight(self, index: int) -> Tensor | None:
        return None if self.optional(index) is None else self.weight(index)

    def layer(self, weight: int) -> str:
        """The user's name of the layer: from the name of its weight, else from the name of the node."""
        name = self.input_names[weight]
        of_layer = layer_of_weight(name)
        if of_layer:
            return of_layer
        if name and not name.startswith("onnx::") and not self.name.startswith("/"):
            return name
        return scope_of(self.name, self.op_type) or name or self.outputs[0]
