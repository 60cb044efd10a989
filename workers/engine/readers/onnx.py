"""Reads an ONNX file into the graph. The file is hostile: nothing in it is imported or pasted into code.

Nodes are lifted one by one through the op table. What it does not reach stays as it is, in an opaque leaf that ONNX
Runtime computes; only then it is asked for the types of values.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NoReturn

import torch
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, defs, helper
from torch import Tensor

from workers.engine.builder import GraphBuilder, Value
from workers.engine.errors import InvalidModelError, UnsupportedModelError
from workers.engine.graph import Graph
from workers.engine.onnx_names import Relabelling, free_name, outer_names, subgraphs
from workers.engine.ops.base import OPS
from workers.engine.ops.softmax import coerced_softmax, settle_softmax
from workers.engine.opsets import OLDEST_OPSET
from workers.engine.readers.onnx_external import ExternalFiles
from workers.engine.readers.onnx_file import header_of, open_model, opsets_of
from workers.engine.readers.onnx_node import OnnxNode, shown
from workers.engine.readers.onnx_parts import Parts
from workers.engine.readers.onnx_reach import CONTROL_FLOW, TOGETHER, UNKNOWN, WHOLE, OutOfReach
from workers.engine.readers.onnx_regions import Wiring
from workers.engine.readers.onnx_signature import shapeless, spec_of, with_input_ranks, with_output_ranks
from workers.engine.readers.onnx_types import value_types
from workers.engine.readers.onnx_values import Values, attributes_of, stored_in
from workers.engine.shapes import propagate

NUMBERED = re.compile(r"val_\d+(_\d+)?")
OWN_DOMAIN = "modelpress"
"""Ops that only the engine makes; a file has none of them."""


def read_onnx(source: bytes | Path) -> Graph:
    """The graph of an ONNX file, in eval mode. Data files of a path lie in its folder.

    Raises InvalidModelError or UnsupportedModelError with the reason.
    """
    reading = _Reading(*open_model(source))
    while True:
        try:
            return reading.attempt()
        except _OtherPlanError:  # each time a branch is in its place, or more nodes stay together
            continue


class _OtherPlanError(Exception):
    """What was found out about the file means that reading it must start again."""


class _Reading:
    """The nodes of a file, and what attempts to read them have found out."""

    def __init__(self, model: ModelProto, external: ExternalFiles) -> None:
        if not model.graph.output:
            raise InvalidModelError("the model has no outputs; export it again with those that you need")
        self._model = model
        self._external = external
        self._opsets = opsets_of(model)
        self._nodes = list(model.graph.node)
        self._held = stored_in(model.graph)
        self._regions: list[frozenset[int]] = []
        self._whole = False
        self._known_types: dict[str, int | None] = {}
        self._known_wiring: Wiring | None = None
        self._specialised = 0
        """How many `If` have given way to one of their branches."""
        self._begin()

    def _begin(self) -> None:
        self._graph = GraphBuilder()
        self._values = Values(self._held, self._graph, self._external)
        self._parts = Parts(self._graph, self._opsets)
        self._out_of_reach = OutOfReach()

    def attempt(self) -> Graph:
        """Raises _OtherPlanError where the next attempt will know better."""
        self._begin()
        proto = self._model.graph
        open_inputs = set()
        for info in proto.input:
            if info.name not in self._held:
                self._values.define(info.name, self._graph.input(spec_of(info, "input")))
                if shapeless(info):
                    open_inputs.add(info.name)
        outputs = [spec_of(info, "output", self._kind_of(info)) for info in proto.output]
        self._read_nodes()
        results = [(spec, self._values[spec.name]) for spec in outputs]
        self._check_parts()
        self._graph.notes += self._out_of_reach.told(self._specialised)
        _name_by_bias(self._graph)
        metadata = {entry.key: entry.value for entry in self._model.metadata_props}
        opset, header = self._opsets[""], header_of(self._model)
        graph = self._graph.finish(results, opset=opset, metadata=metadata, header=header)
        if open_inputs:
            graph = with_input_ranks(graph, open_inputs)
        _settle_old_softmax(graph)
        open_outputs = {info.name for info in proto.output if shapeless(info)}
        return with_output_ranks(graph, open_outputs) if open_outputs else graph

    def _read_nodes(self) -> None:
        if self._regions:
            for group in self._wiring.order(self._regions):
                if group in self._regions:
                    self._keep(sorted(group), WHOLE if self._whole else TOGETHER)
                elif self._specialise(min(group)):
                    self._keep_together()
                else:
                    self._read(min(group))
            return
        index = 0
        while index < len(self._nodes):
            if not self._specialise(index):
                self._read(index)
                index += 1

    def _read(self, index: int) -> None:
        """Lift a node, or keep it where that cannot be done."""
        proto = self._nodes[index]
        try:
            results = self._lift(proto)
        except UnsupportedModelError as refusal:
            self._keep([index], str(refusal))
            return
        if any(self._is_used(name, {index}) for name in proto.output[len(results) :] if name):
            self._keep([index], f"no more than {len(results)} of its outputs are known here")
            return
        for name, value in zip(proto.output, results, strict=False):
            if name:
                self._values.define(name, value)
                self._graph.label(value, name, proto.name)

    def _lift(self, proto: NodeProto) -> tuple[Value, ...]:
        op = OPS.get((proto.domain, proto.op_type))
        if op is None or proto.domain == OWN_DOMAIN:
            raise UnsupportedModelError(CONTROL_FLOW if any(subgraphs(proto)) else UNKNOWN)
        inputs = tuple(self._values[name] if name else None for name in proto.input)
        if op.modules:
            inputs = tuple(self._graph.known(value) for value in inputs)
        node = OnnxNode(
            op_type=proto.op_type,
            domain=proto.domain,
            name=proto.name,
            opset=self._opsets.get(proto.domain, 1),
            inputs=inputs,
            input_names=tuple(map(self._origin, inputs, proto.input)),
            outputs=tuple(proto.output),
            attributes=dict(attributes_of(proto)),
        )
        if len(inputs) < _fewest_inputs(node.op_type, node.opset, node.domain):
            raise node.invalid(f"input {len(inputs)} is missing; export the model again")
        try:
            result = op.read(node, self._graph)
        except UnsupportedModelError as refusal:
            raise UnsupportedModelError(str(refusal).removeprefix(f"{node}: ")) from refusal
        except (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as error:
            # ONNX Runtime judges whether this is a mistake of the file
            raise UnsupportedModelError(f"cannot be read ({error})") from error
        return result if isinstance(result, tuple) else (result,)

    def _origin(self, value: Value | None, name: str) -> str:
        """The name of the stored tensor that a constant was made from, else its own."""
        return (self._graph.name_of(value) if isinstance(value, Tensor) else None) or name

    def _specialise(self, index: int) -> bool:
        """Put the branch of an `If` in its place where it is known which one runs."""
        proto = self._nodes[index]
        if proto.op_type != "If" or proto.domain or not proto.input:
            return False
        condition = self._values[proto.input[0]]
        branches = {attribute.name: attribute.g for attribute in proto.attribute}
        if not isinstance(condition, Tensor) or condition.numel() != 1:
            return False
        chosen = branches.get("then_branch" if bool(condition) else "else_branch")
        if chosen is None or len(chosen.output) != len(proto.output):
            return False
        taken = {name for node in self._nodes for name in node.output} | set(self._held)
        taken.update(info.name for info in self._model.graph.input)
        branch = Relabelling(lambda name: free_name(name, taken)).branch(chosen)
        self._model.graph.initializer.extend(branch.initializer)
        self._model.graph.sparse_initializer.extend(branch.sparse_initializer)
        self._held |= stored_in(branch)
        results = zip(branch.output, proto.output, strict=True)
        through = [helper.make_node("Identity", [made.name], [name]) for made, name in results if name]
        self._nodes[index : index + 1] = [*branch.node, *through]
        self._known_wiring = None
        self._specialised += 1
        return True

    def _keep(self, members: list[int], why: str) -> None:
        """Make an opaque leaf of these nodes."""
        nodes = [self._nodes[index] for index in members]
        outputs = [name for node in nodes for name in node.output if name and self._is_used(name, set(members))]
        self._out_of_reach.add(nodes, why)
        if not outputs:
            return
        used = [name for node in nodes for name in outer_names(node) if name in self._wiring.maker]
        types = self._types([*outputs, *used])
        if any(types[name] is None for name in outputs):
            self._keep_together()
        kinds = {name: kind for name, kind in types.items() if kind is not None}
        results = self._parts.add(nodes, self._outside, kinds, outputs)
        for name, value in zip(outputs, results, strict=True):
            self._values.define(name, value)
            self._graph.label(value, name, nodes[0].name)

    def _keep_together(self) -> NoReturn:
        """Begin again, with those nodes in one part that pass other things than tensors of numbers."""
        made = list(self._wiring.maker)
        foreign = [name for name, kind in self._types(made).items() if kind is None]
        for info in self._model.graph.output:
            if info.name in foreign:
                raise UnsupportedModelError(f"output {shown(info.name)} is not a tensor of numbers: export without it")
        self._regions = self._wiring.regions(foreign)
        raise _OtherPlanError

    def _check_parts(self) -> None:
        """What does not run by itself may do so with all that is around it: the whole model becomes one part then."""
        for leaf in self._parts.leaves:
            try:
                leaf.session()
                leaf.nodes_in(max(OLDEST_OPSET, self._opsets[""]))
            except InvalidModelError as refusal:
                if self._whole:
                    raise UnsupportedModelError(str(refusal)) from refusal
                self._whole = True
                self._regions = [frozenset(range(len(self._nodes)))]
                raise _OtherPlanError from refusal

    def _kind_of(self, info: ValueInfoProto) -> int:
        """The element type of an output that the file does not declare."""
        return 0 if info.type.WhichOneof("value") else self._types([info.name]).get(info.name) or 0

    def _outside(self, name: str) -> Value | TensorProto:
        foreign = self._values.foreign(name)
        if foreign is not None:
            return foreign
        value = self._values[name]
        known = self._graph.known(value)
        return value if known is None else known

    def _is_used(self, name: str, inside: set[int]) -> bool:
        """Whether anything but these nodes takes a value."""
        return not self._wiring.takers.get(name, set()) <= inside or any(
            info.name == name for info in self._model.graph.output
        )

    @property
    def _wiring(self) -> Wiring:
        if self._known_wiring is None:
            self._known_wiring = Wiring(self._nodes)
        return self._known_wiring

    def _types(self, names: Sequence[str]) -> dict[str, int | None]:
        """Element types of inputs and of what nodes make, these names among it; None where it is no tensor of numbers.

        ONNX Runtime is asked again only where a branch in its place has brought new names.
        """
        if any(name not in self._known_types for name in names):
            given = {info.name: info.type.tensor_type.elem_type for info in self._model.graph.input}
            self._known_types = given | value_types(self._model, self._nodes, self._external)
        return self._known_types


@cache
def _fewest_inputs(op_type: str, opset: int, domain: str) -> int:
    """That ONNX wants of a node; 0 where it says nothing."""
    try:
        return int(defs.get_schema(op_type, opset, domain).min_input)
    except defs.SchemaError:
        return 0


def _name_by_bias(graph: GraphBuilder) -> None:
    """torch's newer exporter transposes the weights of linear layers and loses their names; their biases keep them."""
    for node in graph.graph.nodes:
        if node.target is not torch.add or len(node.all_input_nodes) != 2:
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
