"""Reads an ONNX file into the graph. The file is hostile: nothing in it is run, imported or pasted into code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx.inliner
import torch
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto
from torch import Tensor

from modelpress.models import Dim, TensorSpec
from workers.engine.builder import GraphBuilder, Value
from workers.engine.dtypes import TORCH_OF_ONNX, WORD_OF_TORCH
from workers.engine.errors import EngineError, InvalidModelError, UnsupportedModelError
from workers.engine.graph import Graph
from workers.engine.ops.base import OPS
from workers.engine.ops.softmax import coerced_softmax, settle_softmax
from workers.engine.readers.onnx_node import OnnxNode, shown
from workers.engine.readers.onnx_tensors import read_tensor
from workers.engine.shapes import propagate

NUMBERED = re.compile(r"val_\d+(_\d+)?")
OLDEST_OPSET = 7
OWN_DOMAIN = "modelpress"
"""Ops that only the engine makes; a file has none of them."""
STANDARD_DOMAINS = ("", "ai.onnx")


def read_onnx(source: bytes | Path) -> Graph:
    """The graph of an ONNX file, in eval mode. Raises InvalidModelError or UnsupportedModelError with the reason."""
    model = _parse(source if isinstance(source, bytes) else source.read_bytes())
    opsets = _opsets(model)
    graph = GraphBuilder()
    values = _Values(model.graph, graph)
    for info in model.graph.input:
        if info.name not in values.stored:
            values.define(info.name, graph.input(_spec(info, "input")))
    for proto in model.graph.node:
        _read_node(proto, opsets, values, graph)
    outputs = [(_spec(info, "output"), values[info.name]) for info in model.graph.output]
    if not outputs:
        raise InvalidModelError("the model has no outputs; export it again with those that you need")
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    _name_by_bias(graph)
    result = graph.finish(outputs, opset=opsets[""], metadata=metadata)
    _settle_old_softmax(result)
    shapeless = {info.name for info in model.graph.output if not info.type.tensor_type.HasField("shape")}
    return _with_ranks(result, shapeless) if shapeless else result


def _with_ranks(graph: Graph, shapeless: set[str]) -> Graph:
    """Outputs whose dimensions the file does not say get as many open ones as they turn out to have."""
    propagate(graph)
    results = next(iter(reversed(graph.module.graph.nodes))).args[0]
    ranks = {spec.name: len(node.meta["shape"]) for spec, node in zip(graph.outputs, results, strict=True)}
    outputs = (
        spec.model_copy(update={"shape": (None,) * ranks[spec.name]}) if spec.name in shapeless else spec
        for spec in graph.outputs
    )
    return replace(graph, outputs=tuple(outputs))


def _name_by_bias(graph: GraphBuilder) -> None:
    """torch's newer exporter transposes the weights of linear layers and loses their names; their biases keep them."""
    for node in graph.graph.nodes:
        if node.target is not torch.add:
            continue
        for product, bias in (node.args, node.args[::-1]):
            name = str(bias.meta.get("name", ""))
            if NUMBERED.fullmatch(product.meta.get("layer", "")) and name.endswith(".bias"):
                graph.rename(product, name.removesuffix(".bias"))


def _settle_old_softmax(graph: Graph) -> None:
    old = [node for node in graph.module.graph.nodes if node.target is coerced_softmax]
    if not old:
        return
    try:
        propagate(graph)
    except InvalidModelError:
        return
    for node in old:
        settle_softmax(node)
    graph.module.recompile()


def _parse(data: bytes) -> ModelProto:
    try:
        model = ModelProto.FromString(data)
    except DecodeError as error:
        raise InvalidModelError(
            "the file is not an ONNX model, or it is cut off: make it with torch.onnx.export and upload the whole file"
        ) from error
    if not model.HasField("graph") or not model.graph.node:
        raise InvalidModelError(
            "the file is not an ONNX model: it has no graph with nodes; make it with torch.onnx.export"
        )
    if model.functions:
        model = _inlined(model)
    _check_texts(model)
    if model.graph.sparse_initializer:
        raise UnsupportedModelError("the model has sparse initializers; store its weights as dense tensors")
    return model


def _inlined(model: ModelProto) -> ModelProto:
    try:
        return onnx.inliner.inline_local_functions(model)
    except (onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        raise InvalidModelError(f"the functions that the model defines cannot be put in place ({error})") from error


def _check_texts(model: ModelProto) -> None:
    """Names end up in reports and databases, which take neither broken UTF-8 nor NUL characters."""
    graph = model.graph
    for text in (
        *(tensor.name for tensor in graph.initializer),
        *(name for node in graph.node for name in (node.name, node.op_type, node.domain, *node.input, *node.output)),
        *(info.name for info in (*graph.input, *graph.output)),
        *(dim.dim_param for info in (*graph.input, *graph.output) for dim in info.type.tensor_type.shape.dim),
        *(text for entry in model.metadata_props for text in (entry.key, entry.value)),
    ):
        broken = isinstance(text, bytes)  # so protobuf hands over what it cannot decode
        if broken or "\0" in text:
            raise InvalidModelError(f"the name {str(text)[:80]!r} is not valid UTF-8 without NUL characters")


def _opsets(model: ModelProto) -> dict[str, int]:
    opsets = {"" if entry.domain in STANDARD_DOMAINS else entry.domain: entry.version for entry in model.opset_import}
    version = opsets.get("")
    if version is None:
        raise InvalidModelError("the model does not say which ONNX opset it uses; export it again")
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= version <= newest:
        raise UnsupportedModelError(
            f"the model uses opset {version}; {OLDEST_OPSET} to {newest} are supported "
            "(onnx.version_converter changes it)"
        )
    return opsets


class _Values:
    """Everything that has a name in the file. Stored tensors are decoded when they are first asked for."""

    def __init__(self, proto: GraphProto, graph: GraphBuilder) -> None:
        self.stored: dict[str, TensorProto] = {}
        for tensor in proto.initializer:
            if tensor.name in self.stored:
                raise InvalidModelError(f"two tensors of the model have the name {shown(tensor.name)}")
            self.stored[tensor.name] = tensor
        self._graph = graph
        self.missing: dict[str, UnsupportedModelError] = {}
        """Outputs that the engine does not compute: an error only where something uses them."""
        self._known: dict[str, Value] = {}

    def define(self, name: str, value: Value) -> None:
        if name in self._known or name in self.stored:
            raise InvalidModelError(f"two values of the model have the name {shown(name)}")
        self._known[name] = value

    def __getitem__(self, name: str) -> Value:
        if name not in self._known:
            if name in self.missing:
                raise self.missing[name]
            if name not in self.stored:
                raise InvalidModelError(f"value {shown(name)} is used, but nothing before that makes it")
            tensor = read_tensor(self.stored[name], name)
            if tensor.is_floating_point() and bool(tensor.isnan().any()):
                raise InvalidModelError(
                    f"tensor {shown(name)} has values that are not numbers (NaN); train or export the model again"
                )
            self._known[name] = self._graph.name(tensor, name)
        return self._known[name]


def _read_node(proto: NodeProto, opsets: dict[str, int], values: _Values, graph: GraphBuilder) -> None:
    domain = "" if proto.domain in STANDARD_DOMAINS else proto.domain
    op = OPS.get((domain, proto.op_type))
    if op is None or domain == OWN_DOMAIN:
        kind = f"{domain}.{proto.op_type}" if domain else proto.op_type
        raise UnsupportedModelError(
            f"the model uses the operator {shown(kind)}, which is not supported: export the model without it, or with "
            "another opset, in which the exporter writes it in other operators"
        )
    inputs = tuple(values[name] if name else None for name in proto.input)
    if op.modules:
        inputs = tuple(graph.known(value) for value in inputs)
    node = OnnxNode(
        op_type=proto.op_type,
        domain=domain,
        name=proto.name,
        opset=opsets.get(domain, 1),
        inputs=inputs,
        input_names=tuple(_origin(value, name, graph) for value, name in zip(inputs, proto.input, strict=True)),
        outputs=tuple(proto.output),
        attributes=dict(_attributes(proto)),
    )
    try:
        result = op.read(node, graph)
    except EngineError:
        raise
    except (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as error:
        raise node.invalid(f"cannot be read ({error})") from error
    results = result if isinstance(result, tuple) else (result,)
    for index, name in enumerate(node.outputs):
        if name and index < len(results):
            values.define(name, results[index])
        elif name:
            values.missing[name] = node.refuse(
                f"its output {index} is not supported: export the model without what uses it"
            )


def _origin(value: Value | None, name: str, graph: GraphBuilder) -> str:
    """The name of the stored tensor that a constant was made from, else its own."""
    return (graph.name_of(value) if isinstance(value, Tensor) else None) or name


def _attributes(proto: NodeProto) -> Iterator[tuple[str, Any]]:
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
            case AttributeProto.FLOATS:
                yield attribute.name, tuple(attribute.floats)
            case AttributeProto.INTS:
                yield attribute.name, tuple(attribute.ints)
            case AttributeProto.STRINGS:
                yield attribute.name, tuple(text.decode(errors="replace") for text in attribute.strings)
            case _:
                raise UnsupportedModelError(
                    f"{proto.op_type} node {shown(proto.name)}: attribute {shown(attribute.name)} is of a kind "
                    "that is not supported: export the model without such nodes, or with another opset"
                )


def _spec(info: ValueInfoProto, role: str) -> TensorSpec:
    if info.type.WhichOneof("value") != "tensor_type":
        raise UnsupportedModelError(
            f"{role} {shown(info.name)} is not a tensor: export the model with each tensor as an {role} of its own"
        )
    tensor = info.type.tensor_type
    dtype = TORCH_OF_ONNX.get(tensor.elem_type)
    if dtype is None:
        raise UnsupportedModelError(
            f"{role} {shown(info.name)} has an element type that is not supported: export the model with numbers or "
            "booleans there, and prepare texts outside of it"
        )
    if role == "input" and not tensor.HasField("shape"):
        raise UnsupportedModelError(f"{role} {shown(info.name)} has no shape; export the model with its dimensions")
    return TensorSpec(name=info.name, dtype=WORD_OF_TORCH[dtype], shape=tuple(_dim(dim) for dim in tensor.shape.dim))


def _dim(dim: Any) -> Dim:
    """Exporters write unknown dimensions as an empty name, as -1 or as 0."""
    if dim.HasField("dim_param"):
        return str(dim.dim_param) or None
    return dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None
