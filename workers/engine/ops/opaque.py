"""Parts of an ONNX file that the op table does not reach: ONNX Runtime computes them, the writer gives them back.

A part is one node, or several between which other things pass than tensors of numbers. Its large weights are leaves of
their own, so that steps which only change how weights are stored work on them too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnxruntime as ort
import torch
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper
from torch import Tensor, fx, nn

from workers.engine.dtypes import ONNX_OF_TORCH, TORCH_OF_ONNX
from workers.engine.errors import InvalidModelError
from workers.engine.onnx_names import Relabelling, op_name
from workers.engine.onnx_upgrade import upgraded
from workers.engine.ops.base import Op, leaf_of, register
from workers.engine.runtime import reason

if TYPE_CHECKING:
    from workers.engine.structure.axes import Axes
    from workers.engine.writers.onnx import OnnxBuilder

NEWEST_IR = 10
"""Format version of parts that run by themselves; it knows every element type."""


class Stored(nn.Module):
    """A weight that an opaque part takes as an argument. `axis`: the one of its output channels."""

    def __init__(self, weight: nn.Parameter, axis: int) -> None:
        super().__init__()
        self.weight = weight
        self.axis = axis

    def forward(self) -> Tensor:
        return self.weight


@dataclass(frozen=True)
class Part:
    """ONNX nodes as they stand in the file, in order, under the names that they have there."""

    nodes: tuple[NodeProto, ...]
    inputs: dict[str, int]
    """What they take from outside, for their subgraphs too, without `tensors`: name → element type."""
    outputs: dict[str, int]
    """What is taken from them: name → element type."""
    tensors: tuple[TensorProto, ...]
    """Stored values of types that the engine does not know, such as texts."""
    opsets: dict[str, int]

    @property
    def ops(self) -> Counter[str]:
        return Counter(map(op_name, self.nodes))


class Opaque(nn.Module):
    """A part, run by ONNX Runtime on the CPU. Its answers carry no gradient.

    `constants`: inputs of the part that never change; the others are the arguments, in order.
    """

    def __init__(self, part: Part, constants: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.part = part
        self.arguments = tuple(name for name in part.inputs if name not in constants)
        self._buffers_of = {name: f"constant_{index}" for index, name in enumerate(constants)}
        for name, buffer in self._buffers_of.items():
            self.register_buffer(buffer, constants[name])
        self._loaded: ort.InferenceSession | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies load the part again: sessions cannot be copied."""
        return {**self.__dict__, "_loaded": None}

    def __str__(self) -> str:
        return ", ".join(f"{count} × {op}" if count > 1 else op for op, count in self.part.ops.items())

    @property
    def constants(self) -> dict[str, Tensor]:
        return {name: self.get_buffer(buffer) for name, buffer in self._buffers_of.items()}

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """One tensor, or a tuple where the part has several outputs. Raises InvalidModelError with the reason."""
        session = self.session()
        feeds = {info.name: _array(value) for info, value in zip(session.get_inputs(), inputs, strict=True)}
        try:
            answers = session.run(None, feeds)
        except Exception as error:  # its exceptions have no common base but this one
            raise InvalidModelError(f"ONNX Runtime cannot run {self}: {reason(error)}") from error
        device = inputs[0].device if inputs else torch.device("cpu")
        results = tuple(
            torch.from_numpy(np.asarray(answer)).to(device, TORCH_OF_ONNX[kind])
            for answer, kind in zip(answers, self.part.outputs.values(), strict=True)
        )
        return results if len(results) > 1 else results[0]

    def nodes_in(self, opset: int) -> list[NodeProto]:
        """The nodes as a newer opset has them. Raises UnsupportedModelError where that cannot be said there."""
        return upgraded(self._model(), self.part.nodes, opset)

    def session(self) -> ort.InferenceSession:
        """The part, loaded once. Raises InvalidModelError with ONNX Runtime's reason."""
        if self._loaded is None:
            options = ort.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            options.inter_op_num_threads = 1
            options.log_severity_level = 4
            options.use_deterministic_compute = True
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            try:
                self._loaded = ort.InferenceSession(
                    self._runnable().SerializeToString(), options, providers=["CPUExecutionProvider"]
                )
            except Exception as error:  # as above
                raise InvalidModelError(f"ONNX Runtime cannot load {self}: {reason(error)}") from error
        return self._loaded

    def _model(self) -> ModelProto:
        graph = GraphProto(name="part", node=self.part.nodes, initializer=self.part.tensors)
        graph.initializer.extend(_proto(name, tensor) for name, tensor in self.constants.items())
        for name in self.arguments:
            graph.input.append(helper.make_tensor_value_info(name, self.part.inputs[name], None))
        graph.output.extend(ValueInfoProto(name=name) for name in self.part.outputs)
        opsets = [helper.make_opsetid(domain, version) for domain, version in self.part.opsets.items()]
        return ModelProto(ir_version=NEWEST_IR, graph=graph, opset_import=opsets)

    def _runnable(self) -> ModelProto:
        """bfloat16, which numpy does not have, goes in and out as float32, which holds it exactly."""
        model = self._model()
        for info in model.graph.input:
            if self.part.inputs[info.name] == TensorProto.BFLOAT16:
                name, outside = info.name, f"{info.name} as float32"
                model.graph.node.insert(0, helper.make_node("Cast", [outside], [name], to=TensorProto.BFLOAT16))
                info.CopyFrom(helper.make_tensor_value_info(outside, TensorProto.FLOAT, None))
        for info in model.graph.output:
            if self.part.outputs[info.name] == TensorProto.BFLOAT16:
                name, info.name = info.name, f"{info.name} as float32"
                model.graph.node.append(helper.make_node("Cast", [name], [info.name], to=TensorProto.FLOAT))
        return model


def _array(value: Tensor) -> Any:
    plain = value.detach().cpu().contiguous()
    return (plain.float() if plain.dtype is torch.bfloat16 else plain).numpy()


def _proto(name: str, tensor: Tensor) -> TensorProto:
    plain = tensor.detach().cpu().contiguous()
    raw = (plain.view(torch.int16) if plain.dtype is torch.bfloat16 else plain).numpy().tobytes()
    return TensorProto(name=name, data_type=ONNX_OF_TORCH[tensor.dtype], dims=tensor.shape, raw_data=raw)


@register
class StoredOp(Op):
    """Written as nothing but the stored weight."""

    name = "Stored"
    domain = "modelpress"
    modules = (Stored,)
    weights: ClassVar[dict[str, int]] = {"weight": 0}

    def channel_axis(self, module: nn.Module, weight: str) -> int:
        return module.axis if isinstance(module, Stored) else super().channel_axis(module, weight)

    def axes(self, node: fx.Node, axes: Axes) -> None:
        axes.freeze(node, "a part that is out of reach uses it")

    def counted(self, node: fx.Node) -> tuple[str, ...]:  # noqa: ARG002 (of the base)
        return ()

    def write(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        onnx.bind(node, onnx.weight(node, "weight"))


@register
class OpaqueOp(Op):
    """Written as the nodes that it was, under the names that values have in the new file."""

    name = "Opaque"
    domain = "modelpress"
    modules = (Opaque,)

    def axes(self, node: fx.Node, axes: Axes) -> None:
        axes.freeze(node, f"it meets {leaf_of(node, Opaque)}, which is out of reach")

    def counted(self, node: fx.Node) -> Iterable[str]:
        return leaf_of(node, Opaque).part.ops.elements()

    def write(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        leaf = leaf_of(node, Opaque)
        nodes = leaf.nodes_in(onnx.opset)
        names = dict(zip(leaf.arguments, map(onnx.value, node.args), strict=True))
        names |= {name: onnx.initializer(name, tensor) for name, tensor in leaf.constants.items()}
        names |= {tensor.name: onnx.keep(tensor) for tensor in leaf.part.tensors}
        names |= dict(zip(leaf.part.outputs, onnx.outputs(node, len(leaf.part.outputs)), strict=True))
        for part in nodes:
            names |= {name: onnx.free(name) for name in part.output if name and name not in names}
        relabelling = Relabelling(onnx.free)
        onnx.splice([relabelling.node(part, names) for part in nodes], leaf.part.opsets)
