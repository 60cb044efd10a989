"""Reads a `.pt2` file (an exported program) into a graph, through the aten column of the op table."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from modelpress.models import Dim, TensorSpec
from workers.engine.builder import GraphBuilder, Value
from workers.engine.errors import InvalidModelError, UnsupportedModelError
from workers.engine.graph import Graph
from workers.engine.ops.aten import ATEN
from workers.engine.ops.elementwise import divide
from workers.engine.readers.aten import AtenNode, Symbol
from workers.engine.readers.fitting import fit
from workers.engine.readers.fixed_batch import open_batch
from workers.engine.readers.pt2_archive import DTYPES, Archive
from workers.engine.readers.pt2_code import refuse_code
from workers.engine.readers.pt2_outputs import output_names
from workers.engine.readers.pt2_uses import Uses

SCHEMA = 8
WRITTEN_OPSET = 18
"""A program has no opset; this is the one that PyTorch's own exporter writes."""
PLAIN_SYMBOL = re.compile(r"(?:Symbol\(')?([a-z]+\d+)(?:',[^()']*\))?")


Sizes = tuple[int | str, ...]


@dataclass(frozen=True)
class Words:
    """The user's words for what a program has only numbers for, in the order of its inputs and outputs."""

    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    dims: tuple[Mapping[int, str], ...] = ()
    """For each input: the names of its dynamic axes."""
    prefix: str = ""
    """Of the module paths: a wrapper's, which is not the user's."""


NO_WORDS = Words()


def _arithmetic(function: Callable[..., Any]) -> Callable[[AtenNode, GraphBuilder], Value]:
    """PyTorch computes sizes with Python's operators; here they are 0-d tensors."""

    def read(node: AtenNode, graph: GraphBuilder) -> Value:
        operands = [node.plain(value) for value in node.arguments.values()]
        tensors = [graph.keep(torch.tensor(value)) if isinstance(value, int) else value for value in operands]
        return graph.call(function, *tensors)

    return read


def _assertion(node: AtenNode, graph: GraphBuilder) -> tuple[Value, ...]:  # noqa: ARG001 (nothing is added)
    return (graph.keep(torch.tensor(True)),)


SCALAR_READERS: dict[str, Callable[[AtenNode, GraphBuilder], Value | tuple[Value, ...]]] = {
    "_operator.add": _arithmetic(torch.add),
    "_operator.sub": _arithmetic(torch.sub),
    "_operator.mul": _arithmetic(torch.mul),
    "_operator.floordiv": _arithmetic(divide),
    "_operator.ge": _assertion,
    "_operator.le": _assertion,
    "_operator.gt": _assertion,
    "_operator.lt": _assertion,
    "_operator.eq": _assertion,
    "_operator.ne": _assertion,
}
"""Arithmetic on sizes; comparisons only feed assertions, which the reader leaves out."""


def read_pt2(path: Path, weights: Mapping[str, Tensor] | None = None) -> Graph:
    """The graph of the one program in the archive, with these weights where they are given.

    Raises InvalidModelError where the file is damaged or would run code if PyTorch loaded it, and
    UnsupportedModelError where the program uses an op or a construct that the engine does not know.
    """
    archive = Archive(path)
    model = archive.model_name()
    archive.refuse_code(model)
    document = archive.json(f"models/{model}.json")
    try:
        stored = archive.tensors("weights", f"{model}_weights_config.json")
        constants = archive.tensors("constants", f"{model}_constants_config.json")
        if weights is not None:
            stored = _replaced(stored, weights)
        graph = read_program(document, {**constants, **stored})
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, RecursionError) as error:
        raise InvalidModelError(
            f"The program in the archive is not as PyTorch writes it ({type(error).__name__}: {str(error)[:120]}). "
            "Make the file with torch.export.save(program, path) of PyTorch 2.9 or later."
        ) from error
    return open_batch(graph)


def _replaced(stored: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Raises InvalidModelError that lists what does not fit."""
    names: dict[int, list[str]] = {}
    for name, tensor in stored.items():
        names.setdefault(id(tensor), []).append(name)
    tied = [frozenset(group) for group in names.values() if len(group) > 1]
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    fitting = fit(weights, shapes, where="the .pt2 program", tied=tied)
    return {name: fitting[name].to(tensor.dtype) if name in fitting else tensor for name, tensor in stored.items()}


def read_program(document: dict[str, Any], tensors: Mapping[str, Tensor], words: Words = NO_WORDS) -> Graph:
    """The graph of a serialized program with these weights and constants, which are one object where they are tied.

    Raises UnsupportedModelError, InvalidModelError, or KeyError and its like where the document is not a program.
    """
    return _Program(document, tensors, words).read()


class _Program:
    def __init__(self, document: dict[str, Any], tensors: Mapping[str, Tensor], words: Words) -> None:
        version = document["schema_version"]["major"]
        if version != SCHEMA:
            raise InvalidModelError(
                f"The program has schema version {version!r}; version {SCHEMA} is read. "
                "Save it again with PyTorch 2.9 or later: torch.export.save(program, path)."
            )
        self.module = document["graph_module"]
        self.graph = self.module["graph"]
        refuse_code(document)
        self.words = words
        self.tensors = tensors
        self.aliases: dict[int, list[str]] = {}
        for users_name, tensor in tensors.items():
            self.aliases.setdefault(id(tensor), []).append(users_name.removeprefix(words.prefix))
        self.symbols: dict[str, str] = {}
        self.values: dict[str, Value | Symbol] = {}
        self.weight_names: dict[str, tuple[str, ...]] = {}
        self.builder = GraphBuilder()
        self.uses = Uses(self.graph)

    def read(self) -> Graph:
        for spec in self.module["signature"]["input_specs"]:
            self._input(spec)
        mutated = [kind for spec in self.module["signature"]["output_specs"] for kind in spec if kind != "user_output"]
        if mutated:
            raise UnsupportedModelError(
                f"The program also writes {Counter(mutated).most_common(1)[0][0].replace('_', ' ')}s. "
                "Call model.eval() before torch.export.export, so that it only computes its outputs."
            )
        for place, node in enumerate(self.graph["nodes"]):
            self.uses.check_in_place(place, node)
            self._node(node)
        outputs = list(self._outputs())
        if not outputs:
            raise UnsupportedModelError("No output of the program is a tensor. Return at least one.")
        return self.builder.finish(outputs, opset=WRITTEN_OPSET)

    def _outputs(self) -> Iterator[tuple[TensorSpec, Value]]:
        """Tensors, and sizes as tensors of one number; constants and None, which say nothing, are left out."""
        specs = self.module["signature"]["output_specs"]
        names = self.words.outputs or output_names(self.module["module_call_graph"], len(specs))
        for users_name, spec in zip(names, specs, strict=True):
            argument = spec["user_output"]["arg"]
            if "as_tensor" in argument:
                name = argument["as_tensor"]["name"]
                yield self._tensor_spec(users_name, name), AtenNode.plain_value(self.values[name])
            elif "as_name" in argument.get("as_sym_int", {}):
                value = AtenNode.plain_value(self.values[argument["as_sym_int"]["as_name"]])
                yield TensorSpec(name=users_name, dtype="int64", shape=()), value
            else:
                self.builder.notes.append(f"the output {users_name!r} is no tensor and was left out")

    def _input(self, spec: dict[str, Any]) -> None:
        ((kind, content),) = spec.items()
        if kind == "constant_input":
            self.builder.notes.append(
                f"the input {str(content['name'])[:80]!r} is no tensor: it stays what the program was exported with"
            )
            return
        if kind == "user_input":
            argument = content["arg"]
            if "as_tensor" not in argument:
                raise UnsupportedModelError(
                    f"An input of the program is no tensor ({next(iter(argument))}). Export it with tensors only."
                )
            name = _identifier(argument["as_tensor"]["name"], "input")
            position = len(self.builder.graph.find_nodes(op="placeholder"))
            users_name = self.words.inputs[position] if self.words.inputs else name
            if self.words.dims:
                for axis, word in self.words.dims[position].items():
                    size = self.graph["tensor_values"][name]["sizes"][axis]
                    symbol = _plain_symbol(size) if "as_expr" in size else None
                    if symbol is not None:
                        self.symbols.setdefault(symbol, word)
            given = self.builder.input(self._tensor_spec(users_name, name))
            given.meta["sizes"] = self._sizes(name)
            given.meta["dtype"] = DTYPES.get(self.graph["tensor_values"][name]["dtype"])
            self.values[name] = given
            return
        stored = {"parameter": "parameter_name", "buffer": "buffer_name", "tensor_constant": "tensor_constant_name"}
        if kind not in stored:
            raise UnsupportedModelError(
                f"The program takes a {kind.replace('_', ' ')}. Export the model with tensors only."
            )
        name, users = content["arg"]["name"], content[stored[kind]]
        if users not in self.tensors:
            raise InvalidModelError(f"The archive lacks the tensor {users!r}. The file is damaged: upload it again.")
        tensor = self.tensors[users]
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InvalidModelError(f"The tensor {users!r} holds NaN or infinity. Train the model again, or repair it.")
        own = users.removeprefix(self.words.prefix)
        self.values[name] = self.builder.name(tensor, own)
        self.weight_names[name] = (own, *(alias for alias in self.aliases[id(tensor)] if alias != own))

    def _tensor_spec(self, users_name: str, name: str) -> TensorSpec:
        meta = self.graph["tensor_values"][name]
        dtype = DTYPES.get(meta["dtype"])
        if dtype is None:
            raise UnsupportedModelError(f"{users_name!r} has a dtype that is not supported (code {meta['dtype']}).")
        shape = tuple(self._dim(axis, size) for axis, size in enumerate(meta["sizes"]))
        return TensorSpec(name=users_name, dtype=str(dtype).removeprefix("torch."), shape=shape)

    def _dim(self, axis: int, size: dict[str, Any]) -> Dim:
        """PyTorch forgets the users' names of dynamic dims: the first axis is called batch, others by their symbol."""
        if "as_int" in size:
            return int(size["as_int"])
        symbol = _plain_symbol(size)
        if symbol is None:
            return None
        return self.symbols.get(symbol) or ("batch" if axis == 0 else symbol)

    def _node(self, node: dict[str, Any]) -> None:
        target = str(node["target"])
        name = _identifier(node.get("name") or "node", "node")
        arguments: dict[str, Any] = {}
        names: dict[str, tuple[str, ...]] = {}
        sizes: dict[str, Sizes] = {}
        dtypes: dict[str, torch.dtype | None] = {}
        items: dict[str, tuple[torch.dtype | None, ...]] = {}
        for entry in node["inputs"]:
            key = _identifier(entry["name"], "argument") if entry["name"] else f"argument_{len(arguments)}"
            arguments[key] = self._argument(target, entry["arg"])
            tensors = _tensor_names(entry["arg"])
            names[key] = tuple(alias for tensor in tensors for alias in self.weight_names.get(tensor, ()))
            items[key] = tuple(DTYPES.get(self.graph["tensor_values"][tensor]["dtype"]) for tensor in tensors)
            if "as_tensor" in entry["arg"]:
                sizes[key] = self._sizes(tensors[0])
                dtypes[key] = DTYPES.get(self.graph["tensor_values"][tensors[0]]["dtype"])
        outputs = [output for argument in node["outputs"] for output in _output_names(argument)]
        aten = AtenNode(
            target=target.removeprefix("torch.ops.aten."),
            name=name,
            scope=_scope(node.get("metadata", {}).get("nn_module_stack", "")).removeprefix(self.words.prefix),
            arguments=arguments,
            names=names,
            sizes=sizes,
            dtypes=dtypes,
            item_dtypes=items,
            known=self.builder.known,
            output_sizes=tuple(self._sizes(output) for output in outputs if output in self.graph["tensor_values"]),
            output_dtypes=tuple(
                DTYPES.get(self.graph["tensor_values"][output]["dtype"])
                for output in outputs
                if output in self.graph["tensor_values"]
            ),
        )
        read = SCALAR_READERS.get(target) or ATEN.get(aten.target)
        if read is None:
            raise UnsupportedModelError(
                f"The program calls {target[:120]!r}, which is not in the op table. Upload the model as ONNX instead, "
                "or export it without that call."
            )
        result = read(aten, self.builder)
        results = result if isinstance(result, tuple) else (result,)
        used = [output for output in outputs if output in self.uses.last]
        if any(output in used for output in outputs[len(results) :]):
            raise aten.unsupported(f"it has {len(used)} results, of which {len(results)} are known")
        for output, value in zip(outputs, results, strict=False):
            symbol = self.graph.get("sym_int_values", {}).get(output)
            if symbol is not None and isinstance(value, fx.Node):
                value.meta.update(sizes=(), dtype=torch.int64)
            self.values[output] = value if symbol is None else _symbol(symbol, value)
            if isinstance(value, fx.Node) and output in self.graph["tensor_values"]:
                value.meta.setdefault("sizes", self._sizes(output))
                value.meta.setdefault("dtype", DTYPES.get(self.graph["tensor_values"][output]["dtype"]))

    def _sizes(self, tensor: str) -> Sizes:
        return tuple(
            size["as_int"] if "as_int" in size else str(size["as_expr"]["expr_str"])
            for size in self.graph["tensor_values"][tensor]["sizes"]
        )

    def _argument(self, target: str, argument: dict[str, Any]) -> Any:
        ((kind, content),) = argument.items()
        if kind == "as_tensor":
            return self.values[content["name"]]
        if kind == "as_tensors":
            return [self.values[entry["name"]] for entry in content]
        if kind == "as_optional_tensors":
            return [None if "as_none" in entry else self.values[entry["as_tensor"]["name"]] for entry in content]
        if kind == "as_optional_tensor":
            return None if "as_none" in content else self.values[content["as_tensor"]["name"]]
        if kind in {"as_sym_int", "as_sym_float", "as_sym_bool"}:
            return self._scalar(content)
        if kind in {"as_sym_ints", "as_sym_floats", "as_sym_bools"}:
            return [self._scalar(entry) for entry in content]
        if kind == "as_scalar_type":
            return DTYPES.get(content)
        if kind in {"as_none", "as_memory_format", "as_layout", "as_device"}:
            return None
        if kind in {"as_int", "as_bool", "as_string"}:
            return content
        if kind == "as_float":
            return _float(content)
        if kind in {"as_ints", "as_bools", "as_strings"}:
            return list(content)
        if kind == "as_floats":
            return [_float(entry) for entry in content]
        raise UnsupportedModelError(
            f"The program passes a {kind.removeprefix('as_').replace('_', ' ')} to {target[:120]!r}. Export the model "
            "without control flow and custom objects, or upload it as ONNX."
        )

    def _scalar(self, content: dict[str, Any]) -> Any:
        if "as_name" in content:
            return self.values[content["as_name"]]
        return next(iter(content.values()))


def _plain_symbol(size: dict[str, Any]) -> str | None:
    found = PLAIN_SYMBOL.fullmatch(str(size["as_expr"]["expr_str"]))
    return found and found[1]


def _tensor_names(argument: dict[str, Any]) -> list[str]:
    if "as_tensor" in argument:
        return [argument["as_tensor"]["name"]]
    some = [entry["as_tensor"] for entry in argument.get("as_optional_tensors", []) if "as_tensor" in entry]
    return [entry["name"] for entry in (*argument.get("as_tensors", []), *some)]


def _output_names(argument: dict[str, Any]) -> list[str]:
    ((kind, content),) = argument.items()
    if kind == "as_tensors":
        return [entry["name"] for entry in content]
    if kind == "as_none":
        return [""]
    return [content["name"] if "name" in content else content["as_name"]]


def _symbol(meta: dict[str, Any], value: Value) -> Symbol:
    return Symbol(str(meta["as_expr"]["expr_str"]) if "as_expr" in meta else str(meta["as_int"]), value)


def _float(value: Any) -> float:
    return {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}.get(value) or float(value)


def _scope(stack: str) -> str:
    """Innermost module path of `nn_module_stack`: entries `key,path,class` joined by semicolons."""
    return stack.rpartition(";")[2].split(",")[1] if stack.count(",") >= 2 else ""


def _identifier(name: Any, what: str) -> str:
    if not isinstance(name, str) or not name.isidentifier() or len(name) > 500:
        raise InvalidModelError(
            f"The {what} name {str(name)[:80]!r} is not one that PyTorch writes. Do not load this file anywhere; "
            "make it again with torch.export.save(program, path)."
        )
    return name
