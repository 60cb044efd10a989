"""Inputs and outputs as an ONNX file declares them, and what it leaves open there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from onnx import ValueInfoProto
from torch import fx

from modelpress.models import Dim, TensorSpec
from workers.engine.dtypes import WORD_OF_ONNX
from workers.engine.errors import InvalidModelError, UnsupportedModelError
from workers.engine.graph import Graph
from workers.engine.ops.convolution import Conv
from workers.engine.ops.linear import Linear
from workers.engine.ops.recurrent_cells import Recurrent
from workers.engine.readers.onnx_node import shown
from workers.engine.shapes import propagate

RANKS: tuple[tuple[Dim, ...], ...] = tuple((None,) * rank for rank in (2, 4, 3, 1, 5, 0))
"""Tried in turn for inputs whose number of dimensions the file does not say."""


def spec_of(info: ValueInfoProto, role: str, kind: int = 0) -> TensorSpec:
    """`kind`: the element type where the file says nothing. Raises UnsupportedModelError for other than numbers."""
    tensor = info.type.tensor_type
    if info.type.WhichOneof("value") not in ("tensor_type", None):
        raise UnsupportedModelError(
            f"{role} {shown(info.name)} is not a tensor: export the model with each tensor as an {role} of its own"
        )
    word = WORD_OF_ONNX.get(tensor.elem_type or kind)
    if word is None:
        raise UnsupportedModelError(
            f"{role} {shown(info.name)} has an element type that is not supported: export the model with numbers or "
            "booleans there, and prepare texts outside of it"
        )
    return TensorSpec(name=info.name, dtype=word, shape=tuple(_dim(dim) for dim in tensor.shape.dim))


def shapeless(info: ValueInfoProto) -> bool:
    return not info.type.tensor_type.HasField("shape")


def with_input_ranks(graph: Graph, names: set[str]) -> Graph:
    """Inputs whose dimensions the file does not say get those that the first layer they reach takes, others open.

    Raises UnsupportedModelError where the model runs with none of those tried.
    """
    placeholders = [node for node in graph.module.graph.nodes if node.op == "placeholder"]
    hints = {spec.name: _hint(graph, node) for spec, node in zip(graph.inputs, placeholders, strict=True)}
    for ranks in (None, *RANKS):
        inputs = tuple(
            spec.model_copy(update={"shape": hints[spec.name] if ranks is None else ranks})
            if spec.name in names
            else spec
            for spec in graph.inputs
        )
        guess = replace(graph, inputs=inputs)
        try:
            propagate(guess)
        except InvalidModelError:
            continue
        return guess
    raise UnsupportedModelError(
        f"input {shown(min(names))} has no shape, and none that was tried goes through the model; export it with its "
        "dimensions"
    )


def _hint(graph: Graph, value: fx.Node) -> tuple[Dim, ...]:
    """The shape that the first layer takes which a value reaches; a matrix where it reaches none."""
    pending, seen = [value], {value}
    while pending:
        node = pending.pop(0)
        leaf = graph.module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(leaf, Conv):
            return (None, leaf.weight.shape[1] * leaf.groups, *(None,) * (leaf.weight.dim() - 2))
        if isinstance(leaf, Linear):
            return (None, leaf.weight.shape[1])
        if isinstance(leaf, Recurrent):
            return (None, None, leaf.weight_ih.shape[-1])
        pending += [user for user in node.users if user not in seen]
        seen.update(node.users)
    return (None, None)


def with_output_ranks(graph: Graph, names: set[str]) -> Graph:
    """The same for outputs, which have as many as they turn out to have."""
    propagate(graph)
    results = next(iter(reversed(graph.module.graph.nodes))).args[0]
    ranks = {spec.name: len(node.meta["shape"]) for spec, node in zip(graph.outputs, results, strict=True)}
    outputs = tuple(
        spec.model_copy(update={"shape": (None,) * ranks[spec.name]}) if spec.name in names else spec
        for spec in graph.outputs
    )
    return replace(graph, outputs=outputs)


def _dim(dim: Any) -> Dim:
    """Exporters write unknown dimensions as an empty name, as -1 or as 0."""
    if dim.HasField("dim_param"):
        return str(dim.dim_param) or None
    return dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None
