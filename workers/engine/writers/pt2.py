"""A `.pt2` file: the graph as torch.export has it, with the user's names of inputs and layers and open dimensions."""

from __future__ import annotations

import inspect
import keyword
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from modelpress.models import TensorSpec
from workers.engine.errors import UnsupportedModelError
from workers.engine.graph import Graph
from workers.engine.ops.opaque import Opaque, Stored
from workers.engine.ops.recurrent_cells import Recurrent
from workers.engine.quantization.fake_quantize import FakeQuantize
from workers.engine.shapes import example_inputs, propagate
from workers.engine.weights import DOTTED
from workers.engine.writers import writes
from workers.engine.writers.torch_layers import fused_layer
from workers.engine.writers.tracing import Run, stored_sizes

EXAMPLES = 3
"""Of the traced batch: torch.export takes 1 for a size that stays."""
MACHINE = ("stack_trace", "from_node", "source_fn_stack", "torch_fn")
"""What torch notes of the machine and the code that exported a program."""


@writes("pt2")
def write_pt2(graph: Graph, path: Path) -> None:
    """Raises UnsupportedModelError where a program cannot hold the graph."""
    for module in graph.module.modules():
        if isinstance(module, FakeQuantize):
            raise UnsupportedModelError(
                "the model's activations are quantized to integers, which a .pt2 program would only imitate in floats, "
                "slower than before: take the result as onnx"
            )
        if isinstance(module, (Opaque, Stored)):
            raise UnsupportedModelError(
                "parts of this model are kept as ONNX nodes, which PyTorch cannot run: take the result as onnx"
            )
    program = _export(graph)
    for node in program.graph.nodes:
        for entry in MACHINE:
            node.meta.pop(entry, None)
    program.example_inputs = None
    with path.open("wb") as file:
        torch.export.save(program, file)


def _export(graph: Graph) -> torch.export.ExportedProgram:
    plain = graph.copy()
    free = propagate(plain, batch=EXAMPLES)
    examples = example_inputs(plain, EXAMPLES, free)
    model = _model(plain)
    failure: Exception | None = None
    for kind in (torch.export.Dim.DYNAMIC, torch.export.Dim.AUTO):
        shapes = tuple(_open(spec, kind) for spec in graph.inputs)
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # torch warns of its own recurrent layers
                program = torch.export.export(model, examples, dynamic_shapes=shapes)
        except Exception as error:  # noqa: BLE001  # torch.export raises of many kinds
            failure = failure or error
            continue
        _check_open(graph, program)
        return program
    raise UnsupportedModelError(
        f"torch.export cannot follow this graph ({_line(failure)}): take the result as onnx"
    ) from failure


def _open(spec: TensorSpec, kind: Any) -> dict[int, Any]:
    return {axis: kind for axis, size in enumerate(spec.shape) if not isinstance(size, int)}


def _check_open(graph: Graph, program: torch.export.ExportedProgram) -> None:
    """Raises UnsupportedModelError where a dimension that is open in the graph came out fixed."""
    names = program.graph_signature.user_inputs
    given = [node for node in program.graph.find_nodes(op="placeholder") if node.name in names]
    for spec, node in zip(graph.inputs, given, strict=True):
        for axis, size in enumerate(spec.shape):
            if not isinstance(size, int) and str(node.meta["val"].shape[axis]).isdigit():
                raise UnsupportedModelError(
                    f"torch.export would fix the dimension {size!r} of the input {spec.name!r}, as it does with the "
                    "time of recurrent layers: take the result as onnx"
                )


def _model(graph: Graph) -> nn.Module:
    """A module that runs the graph, with the graph's leaves in it under the users' names."""
    for module in list(graph.module.modules()):
        if parametrize.is_parametrized(module):
            _settle(module)
    root = _root([spec.name for spec in graph.inputs], [spec.name for spec in graph.outputs])
    stored = stored_sizes(graph.module)
    places: dict[str, str] = {}
    nodes = [node for node in graph.module.graph.nodes if node.op in ("call_module", "get_attr")]
    for node in sorted(nodes, key=lambda node: _wanted(node).count(".")):
        target = str(node.target)
        if target in stored:
            continue
        if target not in places:
            owner, _, name = target.rpartition(".")
            thing = _leaf(node, graph.module) if node.op == "call_module" else _attribute(graph.module, owner, name)
            places[target] = _put(root, _wanted(node), thing)
        node.target = places[target]
    root.run = Run(root, graph.module.graph, {str(path): sizes for path, sizes in stored.items()}).run
    return root.eval()


def _settle(module: nn.Module) -> None:
    """The weights as they are used, without their constraints.

    `remove_parametrizations` would take the property from the class, which the graph that this one is a copy of shares.
    """
    names = list(module.parametrizations)  # type: ignore[arg-type]  # a ModuleDict
    values = {name: getattr(module, name).detach().clone() for name in names}
    del module.parametrizations
    module.__class__ = module.__class__.__bases__[0]
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value, requires_grad=False))


def _leaf(node: fx.Node, owner: nn.Module) -> nn.Module:
    leaf = owner.get_submodule(str(node.target))
    if isinstance(leaf, Recurrent) and (len(node.args) < 2 or node.args[1] is None):
        return fused_layer(leaf) or leaf
    return leaf


def _attribute(module: nn.Module, owner: str, name: str) -> Tensor:
    value: Tensor = getattr(module.get_submodule(owner), name)
    return value


def _wanted(node: fx.Node) -> str:
    """The user's name of a layer or a tensor, our own where it has none."""
    key = "layer" if node.op == "call_module" else "name"
    return str(node.meta.get(key, node.target))


def _root(names: list[str], outputs: list[str]) -> Any:
    """An empty module whose forward has the users' names for its inputs, as far as Python allows them.

    It answers one tensor, or several: in a dict by name, in a tuple where they have no names but numbers.
    """
    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    taken: set[str] = {"self"}
    for place, name in enumerate(names):
        word = re.sub(r"\W", "_", name)
        if not word.isidentifier() or keyword.iskeyword(word) or word in taken:
            word = f"input_{place}"
        taken.add(word)
        parameters.append(inspect.Parameter(word, inspect.Parameter.POSITIONAL_OR_KEYWORD))

    numbered = all(re.fullmatch(r"output(_\d+)?", name) for name in outputs)

    def forward(self: Any, *inputs: Tensor) -> Any:
        results = self.run(*inputs)
        if len(results) == 1:
            return results[0]
        return results if numbered else dict(zip(outputs, results, strict=True))

    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what torch.export asks for names
    return type("Model", (nn.Module,), {"forward": forward})()


def _put(root: nn.Module, wanted: str, thing: nn.Module | Tensor) -> str:
    """Put a leaf or a tensor under a name with dots, or the nearest free one. Returns the name."""
    parts = [re.sub(r"\W", "_", part) for part in wanted.strip("/").replace("/", ".").split(".") if part] or ["layer"]
    parent, path = root, []
    for part in parts[:-1]:
        inside = dict(parent.named_children())
        name = part if part in inside else _free(parent, part)
        if name not in inside:
            parent.add_module(name, nn.Module())
        parent = parent.get_submodule(name)
        path.append(name)
    last = _free(parent, parts[-1])
    if isinstance(thing, nn.Module):
        parent.add_module(last, thing)
    elif isinstance(thing, nn.Parameter):
        parent.register_parameter(last, thing)
    else:
        parent.register_buffer(last, thing, persistent=DOTTED.fullmatch(wanted) is not None)
    return ".".join([*path, last])


def _free(parent: nn.Module, name: str) -> str:
    unique, number = name, 1
    while hasattr(parent, unique):
        number += 1
        unique = f"{name}_{number}"
    return unique


def _line(error: BaseException | None) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
