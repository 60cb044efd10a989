"""Writes the graph as an ONNX file: the ops that came in, the user's names outside, the same bytes every time."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from onnx import ModelProto, NodeProto, TensorProto, helper
from torch import Tensor, fx, nn

from modelpress.models import TensorSpec
from workers.engine.constraints import Constraint, constraints_of, raw_parameter
from workers.engine.dtypes import ONNX_OF_WORD
from workers.engine.encodings import Codebook, Encoding, HalfFloat, ScaledIntegers
from workers.engine.errors import UnsupportedModelError
from workers.engine.graph import PRODUCER, Graph
from workers.engine.onnx_names import free_name
from workers.engine.ops.base import op_of
from workers.engine.opsets import OLDEST_OPSET
from workers.engine.writers import writes
from workers.engine.writers.onnx_assembly import Assembly, Stored

UNIFORM_ELEMENTS = 64
"""A tensor of one value that has as many is not worth its bytes."""
LARGEST_FILE = 2**31 - 2**20
"""Protobuf messages end at 2 GiB."""
FOLDED = (type(None), HalfFloat, ScaledIntegers, Codebook)
"""Forms of weights that runtimes unfold when they load the file, a transposition behind them included."""


def write_onnx(graph: Graph) -> bytes:
    """The graph as one ONNX file. Raises UnsupportedModelError above 2 GiB."""
    assembly = _assemble(graph)
    if assembly.size > LARGEST_FILE:
        raise UnsupportedModelError(
            "the result is larger than 2 GiB, which one ONNX file cannot hold: write it to a file, beside which its "
            "weights can lie"
        )
    file = BytesIO()
    assembly.write(file)
    return file.getvalue()


@writes("onnx")
def write_onnx_file(graph: Graph, path: Path) -> None:
    """Above 2 GiB the weights lie in a second file beside it, whose name is that of the first and `.data`."""
    assembly = _assemble(graph)
    with path.open("wb") as file:
        if assembly.size <= LARGEST_FILE:
            assembly.write(file)
            return
        beside = path.with_name(f"{path.name}.data")
        with beside.open("wb") as data:
            assembly.write_with_data(file, data, beside.name)


def _assemble(graph: Graph) -> Assembly:
    onnx = OnnxBuilder(graph)
    for node in graph.module.graph.nodes:
        if node.op in ("call_module", "call_function") and node.target is not operator.getitem:
            op_of(node).write(node, onnx)
    return onnx.finish()


class OnnxBuilder:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._encoded: dict[tuple[str, str], tuple[Tensor, Encoding | None]] = {}
        self.opset = self._opset()
        self._nodes: list[Any] = []
        self._initializers: list[Stored] = []
        self._others: list[TensorProto] = []
        self._node_names: set[str] = set()
        """ONNX Runtime takes each name of a node once."""
        self._opsets: dict[str, int] = {}
        """Versions of the domains other than ONNX's own, where they are not 1."""
        self._taken = {spec.name for spec in (*graph.inputs, *graph.outputs)}
        self._names: dict[fx.Node, str] = {}
        self._stored: dict[tuple[int, tuple[int, ...], bytes], str] = {}
        self._weights: dict[tuple[str, str, bool], str] = {}
        self.integers: dict[fx.Node, str] = {}
        """The integers behind values that are on a grid, for ops that read them another way."""
        self._laid_out: dict[nn.Parameter, list[tuple[Tensor, type, bool, str]]] = {}
        """Values of parameters, their forms, and whether they are stored transposed: tied layers store one of both."""
        nodes = list(graph.module.graph.nodes)
        for node, spec in zip((n for n in nodes if n.op == "placeholder"), graph.inputs, strict=True):
            self._names[node] = spec.name
        self._results: tuple[fx.Node, ...] = nodes[-1].args[0]
        self._wanted: dict[fx.Node, str] = {}
        for node, spec in zip(self._results, graph.outputs, strict=True):
            if node.op in ("call_module", "call_function"):
                self._wanted.setdefault(node, spec.name)

    def module(self, node: fx.Node) -> nn.Module:
        return self.graph.module.get_submodule(str(node.target))

    def layer(self, node: fx.Node) -> str:
        return str(node.meta.get("layer", node.name))

    def value(self, argument: Any) -> str:
        """A value's name: a node's own, "" for None, texts as they are; Python numbers become constants."""
        if argument is None:
            return ""
        if isinstance(argument, str):
            return argument
        if not isinstance(argument, fx.Node):
            return self.initializer("literal", _tensor(argument))
        if argument not in self._names and argument.op == "get_attr":
            name = str(argument.meta.get("name", argument.name))
            self._names[argument] = self.initializer(name, self.stored(argument))
        return self._names[argument]

    def stored(self, argument: Any) -> Tensor:
        """The tensor behind a `get_attr` node."""
        value: Tensor = getattr(self.graph.module, str(argument.target))
        return value

    @staticmethod
    def tensor(value: Tensor) -> TensorProto:
        """A tensor as the attribute of a node."""
        return Stored.of("", value).proto()

    def emit(
        self,
        node: fx.Node,
        op_type: str,
        inputs: Sequence[Any],
        *,
        domain: str = "",
        outputs: int = 0,
        **attributes: Any,
    ) -> None:
        """Add the ONNX node that computes an fx node, and bind what it makes.

        Inputs are names, fx nodes, None or Python numbers. `outputs`: how many the op always has; others are left out
        where nobody uses them.
        """
        names = self._trimmed([self.value(argument) for argument in inputs])
        name = str(node.meta.get("node", self.layer(node)))
        self._add(op_type, names, self.outputs(node, outputs), name, domain, attributes)

    def node(
        self,
        op_type: str,
        inputs: Sequence[Any],
        name: str,
        *,
        label: str | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Add a node of one output; returns the output's name, which is `name` or the nearest free one.

        `label`: the node's own name, where it is another.
        """
        names = [self.value(argument) for argument in inputs]
        unique = self._unique(name)
        self._add(op_type, names, [unique], unique if label is None else label, domain, attributes)
        return unique

    def mean(self, value: Any, axes: Iterable[int], name: str) -> str:
        """A mean over axes that stay, of length 1; the axes were an attribute before opset 18."""
        if self.opset >= 18:
            return self.node("ReduceMean", [value, tuple(axes)], name)
        return self.node("ReduceMean", [value], name, axes=tuple(axes))

    def number(self, number: float, dtype: torch.dtype) -> str:
        """A constant of no dimension."""
        return self.initializer("literal", torch.tensor(number, dtype=dtype))

    def nodes(self, op_type: str, inputs: Sequence[str], name: str, outputs: int) -> list[str]:
        """Add a node of several outputs; returns their names."""
        unique = [self._unique(f"{name}_{index}") for index in range(outputs)]
        self._add(op_type, list(inputs), unique, unique[0], "", {})
        return unique

    def bind(self, node: fx.Node, name: str) -> None:
        """Say under which name the value of an fx node stands in the file already."""
        self._names[node] = name

    def outputs(self, node: fx.Node, least: int = 0) -> list[str]:
        """Names for the outputs of an fx node, bound to it: `least` so many, others only where somebody uses them."""
        parts = [user for user in node.users if user.target is operator.getitem]
        if parts:
            return self._bind_parts(node.name, parts, least)
        self._names[node] = self._wanted.get(node) or self._unique(_called(node))
        return [self._names[node]]

    def free(self, name: str) -> str:
        """The name or the nearest free one; nothing else gets it."""
        return self._unique(name)

    def splice(self, nodes: Sequence[NodeProto], opsets: Mapping[str, int]) -> None:
        """Add ONNX nodes that have their final names already; `opsets` are the versions of the domains in them."""
        for node in nodes:
            if node.name:
                node.name = free_name(node.name, self._node_names)
        self._nodes.extend(nodes)
        self._opsets |= {domain: version for domain, version in opsets.items() if domain}

    def keep(self, proto: TensorProto) -> str:
        """Store a tensor of any type as it is. Returns the name it is stored under."""
        kept = TensorProto()
        kept.CopyFrom(proto)
        kept.name = self._unique(proto.name)
        self._others.append(kept)
        return kept.name

    def initializer(self, name: str, tensor: Tensor) -> str:
        """Store a tensor; equal tensors are stored once. Returns the name it is stored under."""
        if _uniform(tensor):
            return self._filled(name, tensor)
        return self._put(Stored.of(name, tensor))

    def packed(self, name: str, kind: int, shape: tuple[int, ...], content: Tensor) -> str:
        """The same for a tensor of a type that torch does not have; `content` is its bytes."""
        return self._put(Stored(name, kind, shape, content))

    def _put(self, stored: Stored) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for piece in stored.content():
            digest.update(piece)
        key = (stored.kind, stored.dims, digest.digest())
        if key not in self._stored:
            self._stored[key] = self._unique(stored.name)
            self._initializers.append(replace(stored, name=self._stored[key]))
        return self._stored[key]

    def _filled(self, name: str, tensor: Tensor) -> str:
        """A tensor of one value as a node that runtimes fold when they load the file."""
        value = self.tensor(tensor.detach().flatten()[:1])
        key = (value.data_type, tuple(tensor.shape), value.raw_data)
        if key not in self._stored:
            self._stored[key] = self._unique(name)
            shape = self.initializer(f"{name}_shape", torch.tensor(tensor.shape))
            self._add("ConstantOfShape", [shape], [self._stored[key]], self._stored[key], "", {"value": value})
        return self._stored[key]

    def weight(self, node: fx.Node, name: str, *, transpose: bool = False) -> str:
        """A leaf's parameter as its constraints leave it, in their encoding; "" where the leaf has none."""
        path = str(node.target)
        if (path, name, transpose) not in self._weights:
            self._weights[path, name, transpose] = self._store(node, name, transpose)
        return self._weights[path, name, transpose]

    def encoding(self, node: fx.Node, name: str) -> Encoding | None:
        """How a leaf's parameter is stored; None for plain numbers."""
        return self._encoded.get((str(node.target), name), (None, None))[1]

    def finish(self) -> Assembly:
        for node, spec in zip(self._results, self.graph.outputs, strict=True):
            name = self.value(node)
            if name != spec.name:
                self._add("Identity", [name], [spec.name], spec.name, "", {})
        header = self.graph.header
        proto = helper.make_graph(
            self._nodes,
            header.name,
            [_info(spec) for spec in self.graph.inputs],
            [_info(spec) for spec in self.graph.outputs],
            doc_string=header.graph_description or None,
        )
        opsets = [helper.make_opsetid("", self.opset)]
        domains = dict.fromkeys((n.domain for n in self._nodes if n.domain), 1) | self._opsets
        opsets += [helper.make_opsetid(domain, version) for domain, version in sorted(domains.items())]
        model = ModelProto(
            ir_version=helper.find_min_ir_version_for(opsets, ignore_unknown=True),
            producer_name=PRODUCER,
            producer_version=header.producer or None,
            domain=header.domain or None,
            model_version=header.version or None,
            doc_string=header.description or None,
            graph=proto,
            opset_import=opsets,
        )
        helper.set_model_props(model, self.graph.metadata)
        return Assembly(model, self._initializers, self._others)

    def _opset(self) -> int:
        needed = [OLDEST_OPSET, self.graph.opset]
        for node in self.graph.module.graph.nodes:
            if node.op not in ("call_module", "call_function"):
                continue
            needed.append(op_of(node).opset_for(node))
            if node.op == "call_module":
                module = self.module(node)
                for name in getattr(module, "parametrizations", {}):
                    encoded = encode(module, name)
                    self._encoded[str(node.target), name] = encoded
                    needed.append(OLDEST_OPSET if encoded[1] is None else encoded[1].opset)
        return max(needed)

    def _store(self, node: fx.Node, name: str, transpose: bool) -> str:
        parameter = getattr(self.module(node), name)
        if parameter is None:
            return ""
        tensor, encoding = self._encoded.get((str(node.target), name), (parameter, None))
        label, form = f"{self.layer(node)}.{name}", type(encoding)
        known = self._laid_out.setdefault(raw_parameter(self.module(node), name), [])
        for value, other, turned, stored in known:
            if turned != transpose and form is other and form in FOLDED and torch.equal(value, tensor):
                return self.node("Transpose", [stored], f"{label}_transposed", perm=(1, 0))
        if encoding is not None:
            stored = (encoding.transposed() if transpose else encoding).write(self, label)
        else:
            own = node.meta.get("names", {}).get(name, label)
            stored = self.initializer(own, tensor.t() if transpose else tensor)
        known.append((tensor, form, transpose, stored))
        return stored

    def _bind_parts(self, name: str, parts: list[fx.Node], least: int) -> list[str]:
        """Names of a node's outputs; those that nobody asks for are left out."""
        wanted: dict[int, str] = {}
        for part in parts:
            if part in self._wanted:
                wanted.setdefault(int(part.args[1]), self._wanted[part])  # type: ignore[arg-type]
        count = max(least, *(int(part.args[1]) + 1 for part in parts))  # type: ignore[arg-type]
        called = {int(part.args[1]): part.meta.get("value") for part in parts}  # type: ignore[arg-type]
        outputs = [
            wanted.get(index)
            or (self._unique(called.get(index) or f"{name}_{index}") if index in called or index < least else "")
            for index in range(count)
        ]
        for part in parts:
            self._names[part] = outputs[int(part.args[1])]  # type: ignore[arg-type]
        return outputs

    def _add(
        self, op_type: str, inputs: list[str], outputs: list[str], name: str, domain: str, attributes: dict[str, Any]
    ) -> None:
        present = {key: value for key, value in attributes.items() if value is not None and value != ()}
        unique = free_name(name, self._node_names) if name else ""
        self._nodes.append(helper.make_node(op_type, inputs, outputs, name=unique, domain=domain, **present))

    def _unique(self, name: str) -> str:
        unique, number = name, 0
        while unique in self._taken:
            number += 1
            unique = f"{name}_{number}"
        self._taken.add(unique)
        return unique

    @staticmethod
    def _trimmed(names: list[str]) -> list[str]:
        while names and not names[-1]:
            names.pop()
        return names


def encode(module: nn.Module, name: str) -> tuple[Tensor, Encoding | None]:
    """The parameter after its constraints, and the encoding of the last that has one and still holds all values."""
    chain = constraints_of(module, name)
    encoding: Encoding | None = None
    encoder: Constraint | None = None
    with torch.no_grad():
        value: Tensor = module.parametrizations[name].original if chain else getattr(module, name)  # type: ignore[union-attr, index]
        for constraint in chain:
            constrained = constraint(value)
            own = constraint.encode(value)
            if own is not None:
                encoding, encoder = own, constraint
            elif encoder is not None and not torch.equal(constrained, value):
                holds = torch.equal(encoder(constrained), constrained)  # as a mask's zeros are on every grid
                encoding, encoder = (encoder.encode(constrained), encoder) if holds else (None, None)
            value = constrained
    return value, encoding


def _called(node: fx.Node) -> str:
    """The user's name of a value, ours where it has none."""
    return str(node.meta.get("value") or node.name)


def _tensor(literal: Any) -> Tensor:
    first = literal[0] if isinstance(literal, (tuple, list)) and literal else literal
    dtype = torch.float32 if isinstance(first, float) else torch.bool if isinstance(first, bool) else torch.int64
    return torch.tensor(literal, dtype=dtype)


def _uniform(tensor: Tensor) -> bool:
    if tensor.numel() < UNIFORM_ELEMENTS or tensor.dtype not in (torch.float32, torch.int64):
        return False
    values = tensor.detach().flatten()
    return bool(values[0] == values[-1]) and bool((values == values[0]).all())


def _info(spec: TensorSpec) -> Any:
    return helper.make_tensor_value_info(spec.name, ONNX_OF_WORD[spec.dtype], spec.shape)
