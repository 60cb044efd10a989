"""The one representation: an fx graph whose nodes all belong to the op table.

Readers make it, steps take and return it, writers start from it. Leaves with weights are `nn.Module`s, all else is
plain functions. Users' names stand in `inputs`, `outputs` and `Layer.name`; names inside fx are ours.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from modelpress.models import TensorSpec
from modelpress.steps import LayerSelection
from workers.engine.constraints import Constraint, constrain, constraints_of
from workers.engine.ops.base import Op, op_of

PRODUCER = "modelpress"
"""Who wrote a file, as the file says."""
EVERY_LAYER = LayerSelection()


@dataclass(frozen=True)
class Layer:
    """A leaf with weights, under the user's name for it, and the first node that calls it."""

    name: str
    module: nn.Module
    op: Op
    node: fx.Node

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights as the layer uses them, constraints applied, by parameter name."""
        found = {name: getattr(self.module, name, None) for name in self.op.weights}
        return {name: weight for name, weight in found.items() if weight is not None}

    def channel_axis(self, weight: str) -> int:
        return self.op.channel_axis(self.module, weight)

    def constrain(self, weight: str, constraint: Constraint) -> None:
        constrain(self.module, weight, constraint)

    def constraints(self, weight: str) -> list[Constraint]:
        return constraints_of(self.module, weight)


@dataclass(frozen=True)
class Origin:
    """The Hugging Face folder that a graph was read from: what the graph itself does not hold."""

    config: dict[str, Any]
    names: dict[str, str]
    """Names of the weights in the model's state dict, and those that the folder has for them."""
    tied: dict[str, str]
    """Names in the state dict for a weight that has another name too, which is the one in `names`."""
    transposed: frozenset[str]
    """Weights that the folder keeps the other way around, by their names in the state dict."""
    unused: dict[str, Tensor]
    """Weights that no output depends on, by the same names."""
    lost: tuple[str, ...]
    """Weights that were computed with while reading, so that they cannot be given back."""
    dtype: torch.dtype
    """That the folder's weights are stored in."""
    files: dict[str, bytes]
    """The small files beside the weights, such as the tokenizer's."""


@dataclass(frozen=True)
class Header:
    """What an ONNX file says of itself beside its metadata."""

    name: str = "main"
    description: str = ""
    graph_description: str = ""
    producer: str = ""
    domain: str = ""
    version: int = 0


@dataclass
class Graph:
    module: fx.GraphModule
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int
    metadata: dict[str, str] = field(default_factory=dict)
    """The file's own metadata, kept and written back."""
    header: Header = Header()
    notes: list[str] = field(default_factory=list)
    """What was assumed or left out of reach; goes into the report."""
    origin: Origin | None = None
    """Of graphs from Hugging Face folders; for writing one again."""
    cut: str | None = None
    """The layer whose result is the only output, where that is no longer what the original answers."""

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Inputs and outputs in the order of `inputs` and `outputs`."""
        result = self.module(*inputs)
        return result if isinstance(result, tuple) else (result,)

    def copy(self) -> Graph:
        """A deep copy that shares no storage with this one."""
        return replace(self, module=copy.deepcopy(self.module), metadata=dict(self.metadata), notes=list(self.notes))

    def layers(self, selection: LayerSelection = EVERY_LAYER) -> Iterator[Layer]:
        """Every leaf with weights once, in the order of execution, under the user's name (`meta["layer"]`)."""
        seen: set[str] = set()
        for node in self.module.graph.nodes:
            if node.op != "call_module" or str(node.target) in seen:
                continue
            op = op_of(node)
            name = str(node.meta.get("layer", node.target))
            if op.weights and selection.selects(name):
                seen.add(str(node.target))
                yield Layer(name, self.module.get_submodule(str(node.target)), op, node)
