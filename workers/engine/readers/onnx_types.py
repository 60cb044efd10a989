"""Element types of the values of an ONNX file, as ONNX Runtime finds them: it knows every op that it runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import onnxruntime as ort
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto

from workers.engine.dtypes import NUMBERS
from workers.engine.errors import UnsupportedModelError
from workers.engine.ops.base import FEW
from workers.engine.readers.onnx_external import ExternalFiles
from workers.engine.runtime import reason

_WORDS = {
    "float": TensorProto.FLOAT,
    "double": TensorProto.DOUBLE,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "int8": TensorProto.INT8,
    "int16": TensorProto.INT16,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "uint8": TensorProto.UINT8,
    "uint16": TensorProto.UINT16,
    "uint32": TensorProto.UINT32,
    "uint64": TensorProto.UINT64,
    "bool": TensorProto.BOOL,
}
_KINDS = {f"tensor({word})": kind for word, kind in _WORDS.items()}


def value_types(model: ModelProto, nodes: Sequence[NodeProto], external: ExternalFiles) -> dict[str, int | None]:
    """Element type of all that these nodes make; None for what is no tensor of numbers: texts, sequences, maps.

    Large weights are not handed over where ONNX Runtime knows the types without them. Raises UnsupportedModelError with
    its message where it cannot load the model.
    """
    made = [name for node in nodes for name in node.output if name]
    try:
        session = _load(_with_outputs(model, nodes, made, external, light=True), folding=False)
    except Exception:  # noqa: BLE001 (some of its kernels want their weights at once; it says what is wrong below)
        whole = _with_outputs(model, nodes, made, external, light=False)  # says itself which data file is not there
        try:
            session = _load(whole, folding=True)
        except Exception as error:  # its exceptions have no common base but this one
            raise UnsupportedModelError(
                f"the model has operators that are not supported here, and ONNX Runtime cannot load it: {reason(error)}"
            ) from error
    return {info.name: _KINDS.get(info.type) for info in session.get_outputs()}


def _load(model: ModelProto, *, folding: bool) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_BASIC if folding else levels.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _with_outputs(
    model: ModelProto, nodes: Sequence[NodeProto], names: Iterable[str], external: ExternalFiles, *, light: bool
) -> ModelProto:
    graph = GraphProto(name="types", node=nodes, sparse_initializer=model.graph.sparse_initializer)
    given = {info.name for info in model.graph.input}
    graph.input.extend(model.graph.input)
    for tensor in model.graph.initializer:
        if light and tensor.data_type in NUMBERS and math.prod(tensor.dims) > FEW:
            if tensor.name not in given:
                graph.input.append(_declared(tensor))
        else:
            graph.initializer.append(external.taken_in(tensor))
    graph.output.extend(ValueInfoProto(name=name) for name in names)
    return ModelProto(ir_version=max(model.ir_version, 4), graph=graph, opset_import=model.opset_import)


def _declared(tensor: TensorProto) -> ValueInfoProto:
    kind = TypeProto.Tensor(elem_type=tensor.data_type)
    for size in tensor.dims:
        kind.shape.dim.add(dim_value=size)
    return ValueInfoProto(name=tensor.name, type=TypeProto(tensor_type=kind))
