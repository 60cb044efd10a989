"""Builds a graph for the readers, node by node; what is constant and small is computed on the way.

Users' names never become names inside fx, where they would reach generated code: paths here are made of class names
and numbers, and the user's name of a layer stands in `meta["layer"]`.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from modelpress.models import TensorSpec
from workers.engine.dtypes import WORD_OF_TORCH
from workers.engine.errors import InvalidModelError
from workers.engine.graph import Graph, Header
from workers.engine.naming import unfolded_weight
from workers.engine.ops.base import ANY, FEW, op_of_function
from workers.engine.stored_forms import StoredForms
from workers.engine.transforms.raising import raise_patterns

Value = fx.Node | Tensor
"""A value while reading: computed when the model runs, or known already."""

T = TypeVar("T", bound=Tensor)

MASK_MAGNITUDE = 1e30
"""Constants this large are attention masks, not something to train."""


class GraphBuilder:
    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.notes: list[str] = []
        self._inputs: list[TensorSpec] = []
        self._paths: Counter[str] = Counter()
        self._layer_names: set[str] = set()
        self._names: dict[int, str] = {}
        self._words: dict[int, str] = {}
        self._constants: dict[int, fx.Node] = {}
        self._parameters: dict[int, nn.Parameter] = {}
        self._transposed: dict[int, Tensor] = {}
        self._alive: list[Tensor] = []
        self._claimed: set[int] = set()
        self.forms = StoredForms()
        self._constant: set[fx.Node] = set()
        """Nodes that compute what they give from constants alone."""
        self._tensors: dict[fx.Node, Any] = {}
        """What those are that were asked for."""

    def input(self, spec: TensorSpec) -> fx.Node:
        node = self.graph.placeholder(f"in_{len(self._inputs)}")
        node.meta["word"] = spec.dtype
        self._inputs.append(spec)
        return node

    def name(self, tensor: Tensor, name: str) -> Tensor:
        """Remember the user's name of a constant, for the writers."""
        self._alive.append(tensor)
        self._names[id(tensor)] = name
        return tensor

    def parameter(self, tensor: Tensor) -> nn.Parameter:
        """A trainable tensor. Matrices that the file uses twice are tied and stay so; vectors are only stored once."""
        if tensor.dim() < 2:
            return self._known_like(tensor, nn.Parameter(tensor.clone()))
        if id(tensor) not in self._parameters:
            self._alive.append(tensor)
            self._parameters[id(tensor)] = self._known_like(tensor, nn.Parameter(self._own(tensor)))
        return self._parameters[id(tensor)]

    def transposed_parameter(self, tensor: Tensor) -> nn.Parameter:
        """The parameter of a transposed matrix: the very one of its source where the file transposes it itself."""
        source = self._transposed.get(id(tensor))
        if source is None:
            turned = self.keep(tensor.t().contiguous())
            source = self._transposed[id(tensor)] = self._known_like(tensor, turned, transposed=True)
        return self.parameter(source)

    def word_of(self, value: Value) -> str | None:
        """The element type that the file gives an input or a stored tensor; None for what is computed."""
        if isinstance(value, fx.Node):
            return value.meta.get("word")
        return self._words.get(id(value), WORD_OF_TORCH[value.dtype])

    def hold(self, tensor: Tensor, word: str) -> Tensor:
        """Remember that a tensor stands for one of a narrower type."""
        self._words[id(tensor)] = word
        return self.keep(tensor)

    def name_of(self, tensor: Tensor) -> str | None:
        return self._names.get(id(tensor))

    def module(self, layer: str, module: nn.Module, *args: Value | None) -> fx.Node:
        """Call a new leaf. `layer` is the user's name for it; a number is added where another layer has it already."""
        path = self._path(type(module).__name__.lower())
        self.root.add_module(path, module)
        node = self.graph.call_module(path, tuple(self._argument(argument) for argument in args))
        node.meta["layer"] = self._layer_name(layer)
        held = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        node.meta["names"] = {name: self._names[id(tensor)] for name, tensor in held if id(tensor) in self._names}
        return node

    def label(self, value: Value, name: str, node: str) -> None:
        """Remember the user's names of a value and of the node that makes it, for the writers."""
        if isinstance(value, fx.Node) and "value" not in value.meta:
            value.meta["value"] = name
            maker = value.args[0] if value.target is operator.getitem else value
            if isinstance(maker, fx.Node):
                maker.meta.setdefault("node", node)
        elif isinstance(value, Tensor) and self.forms.unfolds(value):
            self.name(value, unfolded_weight(name))

    def rename(self, node: fx.Node, layer: str) -> None:
        self._layer_names.discard(node.meta["layer"])
        node.meta["layer"] = self._layer_name(layer)

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Value:
        """Call a function of the op table; at once where everything it needs is constant and small."""
        if self._folds(function, args):
            with torch.no_grad():
                result = function(*args, **kwargs)
            if isinstance(result, Tensor):
                return self._folded(function, args, self.keep(result))
        node = self.graph.call_function(function, tuple(self._argument(argument) for argument in args), kwargs)
        if all(source in self._constant for source in node.all_input_nodes):
            self._constant.add(node)
        return node

    def known(self, value: Value | None) -> Value | None:
        """The tensor that a node computes from nothing but constants: exporters slice, join and fill weights so.

        It keeps the name of the first stored tensor that it is made of, else its own. Other values stay what they are.
        """
        if not isinstance(value, fx.Node) or value not in self._constant:
            return value
        pending = [value]
        while pending:
            node = pending[-1]
            missing = [source for source in node.all_input_nodes if source not in self._tensors]
            pending.extend(missing)
            if not missing:
                self._compute(pending.pop())
        return self._tensors[value]

    def _compute(self, node: fx.Node) -> None:
        if node in self._tensors:
            return
        function: Callable[..., Any] = node.target  # type: ignore[assignment]
        arguments = fx.map_arg(node.args, self._tensors.__getitem__)
        try:
            with torch.no_grad():
                result = self.keep(function(*arguments, **node.kwargs))
        except (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as error:
            called = node.meta.get("node") or node.meta.get("value") or node.name
            raise InvalidModelError(
                f"{called!r} cannot be computed from the constants that it is given ({error}): the file is damaged, or "
                "its exporter made a mistake; export the model again"
            ) from error
        if isinstance(result, Tensor):
            self.forms.computed(function, arguments, result)
            self._tie(function, arguments, result)
        self._tensors[node] = result
        names = (self.name_of(self._tensors[source]) for source in node.all_input_nodes)
        name = next(filter(None, names), None) or node.meta.get("value")
        if "value" in node.meta and isinstance(result, Tensor) and self.forms.unfolds(result):
            name = unfolded_weight(node.meta["value"])
        if name is not None:
            self._names[id(result)] = name

    def call_each(self, count: int, function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Value, ...]:
        """Call a function that returns a tuple of `count` tensors."""
        node = self.graph.call_function(function, tuple(self._argument(argument) for argument in args), kwargs)
        parts = self.unpack(node, count)
        if all(source in self._constant for source in node.all_input_nodes):
            self._constant.update((node, *parts))
        return parts

    def unpack(self, node: fx.Node, count: int) -> tuple[fx.Node, ...]:
        return tuple(self.graph.call_function(operator.getitem, (node, index)) for index in range(count))

    def keep(self, tensor: T) -> T:
        """Constants are told apart by identity, so they must outlive the reading."""
        self._alive.append(tensor)
        return tensor

    def constant(self, tensor: Tensor, name: str | None = None) -> fx.Node:
        """A constant as a node: trainable where it can be a weight, such as the bias of an `Add`."""
        if id(tensor) in self._constants:
            return self._constants[id(tensor)]
        self._alive.append(tensor)
        path = self._path("constant")
        if is_trainable(tensor):
            self.root.register_parameter(path, nn.Parameter(self._own(tensor)))
        else:
            self.root.register_buffer(path, self._own(tensor))
        node = self.graph.get_attr(path)
        node.meta["name"] = name or self._names.get(id(tensor), path)
        self._constants[id(tensor)] = node
        self._constant.add(node)
        self._tensors[node] = tensor
        return node

    def finish(
        self,
        outputs: Sequence[tuple[TensorSpec, Value]],
        *,
        opset: int,
        metadata: dict[str, str] | None = None,
        header: Header | None = None,
    ) -> Graph:
        """Close the graph: nodes that no output needs go, patterns are raised, and the module is in eval mode."""
        self.graph.output(tuple(self._argument(value) for _, value in outputs))
        for node in reversed(self.graph.nodes):
            if not node.users and node.op not in ("placeholder", "output"):
                self.graph.erase_node(node)
        graph = Graph(
            module=fx.GraphModule(self.root, self.graph).eval(),
            inputs=tuple(self._inputs),
            outputs=tuple(spec for spec, _ in outputs),
            opset=opset,
            metadata=metadata or {},
            header=header or Header(),
            notes=self.notes,
        )
        raise_patterns(graph)
        self.forms.constrain(graph)
        return graph

    def _own(self, tensor: Tensor) -> Tensor:
        """The tensor itself for the first that wants its memory, a copy for others and of parts of something larger."""
        storage = tensor.untyped_storage()
        if storage.nbytes() > tensor.nbytes or storage.data_ptr() in self._claimed:
            return tensor.clone()
        self._claimed.add(storage.data_ptr())
        return tensor

    def _known_like(self, tensor: Tensor, other: T, *, transposed: bool = False) -> T:
        """The other, with the user's name for the tensor, and stored as it is stored."""
        if id(tensor) in self._names:
            self.name(other, self._names[id(tensor)])
        self.forms.copied(tensor, other, transposed=transposed)
        return other

    def _folded(self, function: Callable[..., Any], args: tuple[Any, ...], result: Tensor) -> Tensor:
        """A weight that was only laid out anew keeps its name, and a transposed one stays tied to its source."""
        unfolded, anew = self.forms.computed(function, args, result), _lays_out(function)
        if (unfolded or anew) and id(args[0]) in self._names and not self.forms.unfolds(result):
            self._names[id(result)] = self._names[id(args[0])]
            self._tie(function, args, result)
        return result

    def _tie(self, function: Callable[..., Any], args: Sequence[Any], result: Tensor) -> None:
        """Remember of which matrix this is the transposed one, if it is one."""
        source = args[0] if args and _lays_out(function) else None
        if not isinstance(source, Tensor) or result.dim() != 2 or result.shape != source.shape[::-1]:
            return
        if torch.equal(result, source.t()):
            self._transposed[id(result)] = source

    def _argument(self, value: Any) -> Any:
        return self.constant(value) if isinstance(value, Tensor) else value

    @staticmethod
    def _folds(function: Callable[..., Any], args: tuple[Any, ...]) -> bool:
        op = op_of_function(function)
        most = FEW if op is None else op.folds
        tensors = [argument for argument in args if isinstance(argument, Tensor)]
        nodes = [argument for argument in args if isinstance(argument, fx.Node)]
        return bool(tensors) and not nodes and all(tensor.numel() <= most for tensor in tensors)

    def _path(self, stem: str) -> str:
        self._paths[stem] += 1
        return f"{stem}_{self._paths[stem] - 1}"

    def _layer_name(self, name: str) -> str:
        unique, number = name, 1
        while unique in self._layer_names:
            number += 1
            unique = f"{name}_{number}"
        self._layer_names.add(unique)
        return unique


def is_trainable(tensor: Tensor) -> bool:
    """Whether a constant can be a weight: floats, more than one, none of which masks anything."""
    if not tensor.is_floating_point() or tensor.dtype.itemsize == 1 or tensor.dim() == 0 or tensor.numel() < 2:
        return False
    return bool((tensor.abs() < MASK_MAGNITUDE).all())


def _lays_out(function: Callable[..., Any]) -> bool:
    """Whether a function only lays a tensor out anew."""
    op = op_of_function(function)
    return op is not None and op.folds == ANY
