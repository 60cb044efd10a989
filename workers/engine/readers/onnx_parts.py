"""Makes one opaque leaf of ONNX nodes that are out of reach, with leaves of their own for the weights they use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from onnx import NodeProto, TensorProto
from torch import Tensor, fx

from workers.engine.builder import GraphBuilder, Value, is_trainable
from workers.engine.dtypes import NUMBERS, ONNX_OF_TORCH
from workers.engine.errors import EngineError
from workers.engine.naming import layer_of_weight
from workers.engine.onnx_names import Relabelling, free_name, outer_names, subgraphs
from workers.engine.ops.opaque import Opaque, Part, Stored
from workers.engine.readers.onnx_tensors import read_tensor

SMALLEST = 16
NARROWEST = 3
"""What has fewer values, or not two dimensions so long, is no weight that a step would treat: biases of both directions
of a recurrent layer are (2, 8 × hidden)."""
CHANNELS = {
    ("MatMul", 1): -1,
    ("Gemm", 1): -1,
    ("FusedMatMul", 1): -1,
    ("Attention", 1): -1,
    ("LSTM", 1): 1,
    ("LSTM", 2): 1,
    ("GRU", 1): 1,
    ("GRU", 2): 1,
    ("RNN", 1): 1,
    ("RNN", 2): 1,
    ("ConvTranspose", 1): 1,
}
"""Axis of the output channels of a weight, by the op and the position that takes it; of all others the first."""


class Parts:
    def __init__(self, graph: GraphBuilder, opsets: dict[str, int]) -> None:
        self._graph = graph
        self._opsets = opsets
        self._stored: dict[int, fx.Node] = {}
        self.leaves: list[Opaque] = []

    def add(
        self,
        nodes: Sequence[NodeProto],
        value: Callable[[str], Value | TensorProto],
        kinds: Mapping[str, int],
        outputs: Iterable[str],
    ) -> tuple[Value, ...]:
        """Call a new leaf that is these nodes, and return the values of `outputs`.

        `value` finds what has a name outside: something computed, a constant, or a stored tensor of a type that the
        engine does not know. `kinds`: element types of what is computed and of the outputs.
        """
        hoisted: dict[str, Tensor] = {}
        nodes = self._without_weights(nodes, hoisted)
        made = {name for node in nodes for name in node.output}
        arguments: list[fx.Node] = []
        inputs: dict[str, int] = {}
        constants: dict[str, Tensor] = {}
        tensors: list[TensorProto] = []
        for name in dict.fromkeys(name for node in nodes for name in outer_names(node) if name not in made):
            found = hoisted[name] if name in hoisted else value(name)
            if isinstance(found, TensorProto):
                tensors.append(found)
                continue
            if isinstance(found, Tensor):
                inputs[name] = ONNX_OF_TORCH[found.dtype]
                if is_weight(found):
                    arguments.append(self._weight(name, found, nodes))
                else:
                    constants[name] = found
                continue
            inputs[name] = kinds[name]
            arguments.append(found)
        part = Part(tuple(nodes), inputs, {name: kinds[name] for name in outputs}, tuple(tensors), self._opsets)
        leaf = Opaque(part, constants)
        self.leaves.append(leaf)
        node = self._graph.module(nodes[0].name or next(iter(part.outputs)), leaf, *arguments)
        return self._graph.unpack(node, len(part.outputs)) if len(part.outputs) > 1 else (node,)

    def _without_weights(self, nodes: Sequence[NodeProto], hoisted: dict[str, Tensor]) -> list[NodeProto]:
        """Copies whose subgraphs take their weights from outside, where each has a name of its own."""
        taken = {name for node in nodes for name in (*outer_names(node), *node.output)}

        def hoist(proto: TensorProto, name: str) -> str | None:
            if proto.data_type not in NUMBERS or len(proto.dims) < 2:
                return None
            try:
                tensor = read_tensor(proto, name)
            except EngineError:
                return None  # ONNX Runtime says what is wrong with it
            if not is_weight(tensor):
                return None
            outside = free_name(name, taken)
            hoisted[outside] = self._graph.name(tensor, outside)
            return outside

        relabelling = Relabelling(lambda name: free_name(name, taken), hoist)
        return [relabelling.node(node, {}) for node in nodes]

    def _weight(self, name: str, tensor: Tensor, nodes: Sequence[NodeProto]) -> fx.Node:
        if id(tensor) not in self._stored:
            label = self._graph.name_of(tensor) or name
            leaf = Stored(self._graph.parameter(tensor), _channel_axis(name, nodes) % tensor.dim())
            self._stored[id(tensor)] = self._graph.module(layer_of_weight(label) or label, leaf)
        return self._stored[id(tensor)]


def is_weight(tensor: Tensor) -> bool:
    """Whether a constant is one that steps may change."""
    broad = sum(size >= NARROWEST for size in tensor.shape) >= 2
    return broad and tensor.numel() >= SMALLEST and is_trainable(tensor)


def _channel_axis(name: str, nodes: Iterable[NodeProto]) -> int:
    for node in nodes:
        for position, used in enumerate(node.input):
            if used == name and (node.op_type, position) in CHANNELS:
                return CHANNELS[node.op_type, position]
        for graph in subgraphs(node):
            axis = _channel_axis(name, graph.node)
            if axis:
                return axis
    return 0
