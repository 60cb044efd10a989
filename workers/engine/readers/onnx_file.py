"""An ONNX file as protobuf, checked and put into its plainest form. Nothing in it is run or believed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx.inliner
from google.protobuf.message import DecodeError
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from workers.engine.errors import InvalidModelError, UnsupportedModelError
from workers.engine.graph import PRODUCER, Header
from workers.engine.onnx_names import every_graph
from workers.engine.ops.base import MOST
from workers.engine.readers.onnx_external import ExternalFiles
from workers.engine.readers.onnx_node import shown

OLDEST_OPSET = 7
USUAL_OPSET = 17
"""Of a model without a single op of ONNX's own domain."""
STANDARD_DOMAINS = ("", "ai.onnx")
MOST_NODES = 1_000_000
"""Functions that call functions can stand for any number of nodes."""

DEEPEST = 100
"""Functions inside of functions."""


def open_model(source: bytes | Path) -> tuple[ModelProto, ExternalFiles]:
    """The model without local functions, with names that databases take, and the data files beside it.

    Raises InvalidModelError or UnsupportedModelError.
    """
    external = ExternalFiles(source)
    model = _parse(external.without_weights())
    if model.functions:
        model = _inlined(model)
    for graph in every_graph(model.graph):
        _check_texts(graph)
        _plain_domains(graph)
    _check_words(text for entry in model.metadata_props for text in (entry.key, entry.value))
    _check_words((model.doc_string, model.producer_name, model.producer_version, model.domain))
    _check_words((model.graph.name, model.graph.doc_string))
    _take_in(model.graph, external)
    return model, external


def opsets_of(model: ModelProto) -> dict[str, int]:
    """Version by domain; ONNX's own is "". Raises UnsupportedModelError where it is too old or too new."""
    opsets = {"" if entry.domain in STANDARD_DOMAINS else entry.domain: entry.version for entry in model.opset_import}
    if "" not in opsets and all(node.domain for node in model.graph.node):
        opsets[""] = USUAL_OPSET
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


def header_of(model: ModelProto) -> Header:
    """Of a file that this engine wrote, the producer is that of the file before."""
    ours = model.producer_name == PRODUCER
    producer = (model.producer_version,) if ours else (model.producer_name, model.producer_version)
    return Header(
        name=model.graph.name or Header.name,
        description=model.doc_string,
        graph_description=model.graph.doc_string,
        producer=" ".join(filter(None, producer)),
        domain=model.domain,
        version=model.model_version,
    )


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
    return model


def _inlined(model: ModelProto) -> ModelProto:
    """Every call of a function that the model defines is replaced by its nodes."""
    functions = {(function.domain, function.name): function for function in model.functions}
    sizes: dict[tuple[str, str], int] = {}
    if sum(_size(node, functions, sizes, ()) for graph in every_graph(model.graph) for node in graph.node) > MOST_NODES:
        raise InvalidModelError(f"the functions that the model defines stand for more than {MOST_NODES:,} nodes")
    try:
        return onnx.inliner.inline_local_functions(model)
    except (onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        raise InvalidModelError(f"the functions that the model defines cannot be put in place ({error})") from error


def _size(
    node: NodeProto,
    functions: dict[tuple[str, str], FunctionProto],
    sizes: dict[tuple[str, str], int],
    inside: tuple[tuple[str, str], ...],
) -> int:
    """Nodes that a node stands for. Raises InvalidModelError for functions that call themselves."""
    key = (node.domain, node.op_type)
    if key in functions and key not in sizes:
        if key in inside or len(inside) == DEEPEST:
            raise InvalidModelError(
                f"the function {shown(node.op_type)} of the model calls itself, or nests too deeply"
            )
        body = GraphProto(node=functions[key].node)
        inner = (part for graph in every_graph(body) for part in graph.node)
        sizes[key] = sum(_size(part, functions, sizes, (*inside, key)) for part in inner)
    return sizes.get(key, 1)


def _check_texts(graph: GraphProto) -> None:
    """Names end up in reports and databases, which take neither broken UTF-8 nor NUL characters."""
    for node in graph.node:
        _check_words((node.name, node.op_type, node.domain, *node.input, *node.output))
        _check_words(attribute.name for attribute in node.attribute)
    _check_words(tensor.name for tensor in graph.initializer)
    _check_words(tensor.values.name for tensor in graph.sparse_initializer)
    _check_words(info.name for info in (*graph.input, *graph.output))
    _check_words(dim.dim_param for info in (*graph.input, *graph.output) for dim in info.type.tensor_type.shape.dim)


def _check_words(texts: Iterator[str] | tuple[str, ...]) -> None:
    for text in texts:
        broken = isinstance(text, bytes)  # so protobuf hands over what it cannot decode
        if broken or "\0" in text:
            raise InvalidModelError(f"the name {str(text)[:80]!r} is not valid UTF-8 without NUL characters")


def _plain_domains(graph: GraphProto) -> None:
    for node in graph.node:
        if node.domain in STANDARD_DOMAINS:
            node.ClearField("domain")


def _take_in(graph: GraphProto, external: ExternalFiles) -> None:
    """Tensors of attributes and subgraphs come into the model from data files; those of the graph itself wait."""
    size = 0
    for tensor in _inner_tensors(graph):
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.CopyFrom(external.taken_in(tensor))
            size += len(tensor.raw_data)
            if size > MOST:
                raise InvalidModelError("the data files of tensors inside of control flow are too large")


def _inner_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    for inner in every_graph(graph):
        for sparse in inner.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        if inner is not graph:
            yield from inner.initializer
        for attribute in (attribute for node in inner.node for attribute in node.attribute):
            match attribute.type:
                case AttributeProto.TENSOR:
                    yield attribute.t
                case AttributeProto.TENSORS:
                    yield from attribute.tensors
                case AttributeProto.SPARSE_TENSOR:
                    yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
                case AttributeProto.SPARSE_TENSORS:
                    for sparse in attribute.sparse_tensors:
                        yield from (sparse.values, sparse.indices)
