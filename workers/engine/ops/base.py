"""The op table: one record an op holds all that the engine knows of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from torch import fx, nn

from workers.engine.opsets import OLDEST_OPSET

if TYPE_CHECKING:
    from workers.engine.builder import GraphBuilder, Value
    from workers.engine.readers.onnx_node import OnnxNode
    from workers.engine.structure.axes import Axes
    from workers.engine.writers.onnx import OnnxBuilder


@dataclass(frozen=True)
class Quantization:
    """How an op takes part in static int8 quantization.

    `inputs` are the positions of the activations that get a fake-quant node (None: every input); `weights` maps a
    parameter of the module to its output-channel axis (None: one scale for the whole tensor); `bias`: the parameter
    that is added to the integer accumulators; `output`: whether the result is quantized too, so that the runtime can
    compute in integers; `float_output`: it computes in integers even where the result leaves as float; `passes`: the
    op only moves values, so input and output share one scale; `fused`: an activation that the runtime folds into the
    op before it, so the range is taken after it; `rereads`: its results are the integers of its input, cut off and read
    with another scale and zero point. Ops without an integer kernel in ONNX Runtime have no trait.
    """

    inputs: tuple[int, ...] | None = (0,)
    weights: dict[str, int | None] | None = None
    bias: str | None = None
    output: bool = True
    float_output: bool = False
    passes: bool = False
    fused: bool = False
    rereads: bool = False


FEW = 1024
"""Shapes, axes and scalars: what is computed while reading."""
MOST = 1 << 28
"""What the engine makes up itself, inputs and constants, has no more elements: 1 GiB of float32."""
ANY = 1 << 40
"""Ops that only lay out their input anew do so for weights too."""


class Op:
    """A stateless record. Subclasses fill in what the op has; `register` makes one instance of each."""

    name: ClassVar[str]
    """ONNX op type, or a name of our own where ONNX has none."""
    domain: ClassVar[str] = ""
    modules: ClassVar[tuple[type[nn.Module], ...]] = ()
    """Leaves of the graph that are this op (ops with weights)."""
    functions: ClassVar[tuple[Callable[..., Any], ...]] = ()
    """Plain functions in the graph that are this op."""
    weights: ClassVar[dict[str, int]] = {}
    """Parameters that weight steps may constrain, and the axis of their output channels."""
    quantization: ClassVar[Quantization | None] = None
    folds: ClassVar[int] = FEW
    """Elements up to which constants are computed while reading; 0 where small inputs can make large outputs."""
    opset: ClassVar[int] = OLDEST_OPSET
    """First opset that knows the form that `write` writes."""
    taken_apart: ClassVar[bool] = False
    """For older opsets `write` writes the parts that exporters make of it there, 32-bit floats in between."""

    def read(self, node: OnnxNode, graph: GraphBuilder) -> Value | tuple[Value, ...]:  # noqa: ARG002 (for subclasses)
        """Add the ONNX node to the graph and return its outputs. Raises UnsupportedModelError with a reason."""
        raise TypeError(f"{self.name} is not read from ONNX")

    def write(self, node: fx.Node, onnx: OnnxBuilder) -> None:  # noqa: ARG002 (for subclasses)
        """Add the node to the ONNX file and bind its name."""
        raise TypeError(f"{self.name} is not written to ONNX")

    def channel_axis(self, module: nn.Module, weight: str) -> int:  # noqa: ARG002 (of a leaf that knows better)
        """The axis of a weight's output channels."""
        return self.weights[weight]

    def axes(self, node: fx.Node, axes: Axes) -> None:
        """Say which dimensions of inputs, weights and outputs are the same one; by default all that it touches stay."""
        axes.freeze(node, f"{self.name} has no rule for removing parts of its inputs")

    def opset_for(self, node: fx.Node) -> int:
        """First opset that the node can be written in: what was read in parts can always be written in parts."""
        return OLDEST_OPSET if self.taken_apart and node.meta.get("raised") else self.opset

    def counted(self, node: fx.Node) -> Iterable[str]:  # noqa: ARG002 (of a record that stands for several ops, or none)
        """What the node counts as in the model's figures."""
        return (self.name,)

    def macs(self, node: fx.Node) -> int:  # noqa: ARG002 (most ops have none)
        """Multiply-accumulates of one call; shapes are in `meta["shape"]` of the node and of its arguments."""
        return 0


OPS: dict[tuple[str, str], Op] = {}
_BY_MODULE: dict[type[nn.Module], Op] = {}
_BY_FUNCTION: dict[Callable[..., Any], Op] = {}


def register(cls: type[Op]) -> type[Op]:
    """Class decorator: put one instance into the table. Raises ValueError where two ops claim the same thing."""
    op = cls()
    claims: list[tuple[dict[Any, Op], Any]] = [(OPS, (op.domain, op.name))]
    claims += [(_BY_MODULE, module) for module in op.modules]
    claims += [(_BY_FUNCTION, function) for function in op.functions]
    for table, key in claims:
        if key in table:
            raise ValueError(f"{key} belongs to {table[key].name} already; {op.name} cannot have it")
        table[key] = op
    return cls


M = TypeVar("M", bound=nn.Module)


def leaf_of(node: fx.Node, kind: type[M]) -> M:
    """The module that a `call_module` node calls. Raises TypeError where it is of another kind."""
    owner = node.graph.owning_module
    module = owner.get_submodule(str(node.target)) if owner is not None else None
    if not isinstance(module, kind):
        raise TypeError(f"{node.target} is a {type(module).__name__}, not a {kind.__name__}")
    return module


def source_of(node: fx.Node, position: int = 0) -> fx.Node:
    """The node behind an argument. Raises TypeError where the argument is no node."""
    source = node.args[position]
    if not isinstance(source, fx.Node):
        raise TypeError(f"argument {position} of {node.name} is no node")
    return source


def op_of_module(module: nn.Module) -> Op | None:
    """The op of a leaf. A parametrized module is a subclass made by torch, so its bases are looked at too."""
    return next((_BY_MODULE[cls] for cls in type(module).__mro__ if cls in _BY_MODULE), None)


def op_of_function(function: Callable[..., Any]) -> Op | None:
    return _BY_FUNCTION.get(function)


def op_of(node: fx.Node) -> Op:
    """The op of a `call_module` or `call_function` node. Raises KeyError where the node is none of the table."""
    if node.op == "call_module":
        module = node.graph.owning_module.get_submodule(str(node.target))  # type: ignore[union-attr]
        op = op_of_module(module)
        if op is None:
            raise KeyError(type(module).__name__)
        return op
    if node.op == "call_function":
        return _BY_FUNCTION[node.target]  # type: ignore[index]
    raise KeyError(node.op)
