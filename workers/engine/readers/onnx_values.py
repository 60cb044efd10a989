"""Everything that has a name in an ONNX file: what it stores, and what is known or computed so far."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from onnx import AttributeProto, GraphProto, NodeProto, SparseTensorProto, TensorProto

from workers.engine.builder import GraphBuilder, Value
from workers.engine.dtypes import NUMBERS, WORD_OF_ONNX
from workers.engine.errors import InvalidModelError, UnsupportedModelError
from workers.engine.readers.onnx_external import ExternalFiles
from workers.engine.readers.onnx_node import shown
from workers.engine.readers.onnx_tensors import read_sparse, read_tensor

Held = dict[str, TensorProto | SparseTensorProto]


def stored_in(graph: GraphProto) -> Held:
    """The initializers by name. Raises InvalidModelError where two have the same."""
    held: Held = {}
    for name, tensor in (
        *((tensor.name, tensor) for tensor in graph.initializer),
        *((tensor.values.name, tensor) for tensor in graph.sparse_initializer),
    ):
        if name in held:
            raise InvalidModelError(f"two tensors of the model have the name {shown(name)}")
        held[name] = tensor
    return held


class Values:
    """Stored tensors are decoded when they are first asked for."""

    def __init__(self, held: Held, graph: GraphBuilder, external: ExternalFiles) -> None:
        self._held = held
        self._graph = graph
        self._external = external
        self._known: dict[str, Value] = {}

    def define(self, name: str, value: Value) -> None:
        if name in self._known or name in self._held:
            raise InvalidModelError(f"two values of the model have the name {shown(name)}")
        self._known[name] = value

    def __getitem__(self, name: str) -> Value:
        """Raises InvalidModelError for what nothing made, UnsupportedModelError for stored texts and the like."""
        if name not in self._known:
            if name not in self._held:
                raise InvalidModelError(f"value {shown(name)} is used, but nothing before that makes it")
            proto = self._held[name]
            if isinstance(proto, SparseTensorProto):
                tensor = read_sparse(proto, name)
            else:
                tensor = self._graph.hold(read_tensor(proto, name, self._external), WORD_OF_ONNX[proto.data_type])
            if tensor.is_floating_point() and bool(tensor.isnan().any()):
                raise InvalidModelError(
                    f"tensor {shown(name)} has values that are not numbers (NaN); train or export the model again"
                )
            self._known[name] = self._graph.name(tensor, name)
        return self._known[name]

    def foreign(self, name: str) -> TensorProto | None:
        """A stored tensor of a type that the engine does not compute with."""
        proto = self._held.get(name)
        if isinstance(proto, TensorProto) and proto.data_type not in NUMBERS:
            return self._external.taken_in(proto)
        return None


def attributes_of(proto: NodeProto) -> Iterator[tuple[str, Any]]:
    """Names and Python values. Raises UnsupportedModelError for graphs and types."""
    for attribute in proto.attribute:
        match attribute.type:
            case AttributeProto.FLOAT:
                yield attribute.name, attribute.f
            case AttributeProto.INT:
                yield attribute.name, attribute.i
            case AttributeProto.STRING:
                yield attribute.name, attribute.s.decode(errors="replace")
            case AttributeProto.TENSOR:
                yield attribute.name, read_tensor(attribute.t, f"{proto.name}.{attribute.name}")
            case AttributeProto.SPARSE_TENSOR:
                yield attribute.name, read_sparse(attribute.sparse_tensor, f"{proto.name}.{attribute.name}")
            case AttributeProto.FLOATS:
                yield attribute.name, tuple(attribute.floats)
            case AttributeProto.INTS:
                yield attribute.name, tuple(attribute.ints)
            case AttributeProto.STRINGS:
                yield attribute.name, tuple(text.decode(errors="replace") for text in attribute.strings)
            case _:
                raise UnsupportedModelError(f"attribute {shown(attribute.name)} is of a kind that is not supported")
