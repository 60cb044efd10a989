"""TorchScript that was traced: such files hold the shapes of their inputs, which any conversion needs.

Its code is TorchScript's own, not Python, and runs here only after every op in it is known to touch nothing but
tensors. The way leads through an ONNX export, with the batch left open where the module keeps to that.
"""

from __future__ import annotations

import io
import math
import pickle  # nothing is unpickled but by `_Shapes`
import re
import warnings
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from workers.engine.errors import InvalidModelError, UnsupportedModelError
from workers.engine.graph import Graph
from workers.engine.ops.base import MOST
from workers.engine.readers.onnx import read_onnx
from workers.engine.zip_errors import UNREADABLE

OPSET = 17
"""The newest that the exporter for TorchScript knows well."""
MAX_PICKLE = 1 << 20
DAMAGED_INPUTS: tuple[type[Exception], ...] = (
    *UNREADABLE, pickle.UnpicklingError, KeyError, IndexError, TypeError, AttributeError,
)  # fmt: skip
STORAGES = {
    "float": torch.float32, "double": torch.float64, "half": torch.float16, "bfloat16": torch.bfloat16,
    "long": torch.int64, "int": torch.int32, "short": torch.int16, "char": torch.int8, "byte": torch.uint8,
    "bool": torch.bool,
}  # fmt: skip
FORBIDDEN = re.compile(r"aten::(save|load|from_file|.*distributed.*)|prim::(PythonOp|CallRpc.*|rpc_.*)")
"""Ops that reach beyond tensors, to files and to other processes."""
KNOWN = re.compile(r"(aten|prim|quantized)::\w+")

HOW = (
    "export it where you have it, with an example input: torch.onnx.export(torch.jit.load(path), (example,), "
    "'model.onnx', dynamo=False, dynamic_axes={'input': {0: 'batch'}}, input_names=['input'])"
)


def read_torchscript(path: Path) -> Graph:
    """Raises InvalidModelError for damaged files, and UnsupportedModelError with what to do for what stays as it is."""
    examples = _traced_inputs(path)
    if examples is None:
        raise UnsupportedModelError(
            f"this is TorchScript that was scripted, not traced: it does not say what its inputs look like, so {HOW}"
        )
    try:
        module = torch.jit.load(path, map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        raise InvalidModelError(f"the TorchScript file is damaged ({_line(error)}): upload it again") from error
    _check_ops(module)
    if any(example.dim() and example.shape[0] < 2 for example in examples):
        examples = tuple(torch.cat([example, example]) if example.dim() else example for example in examples)
    try:
        open_graph = _converted(module, examples, dynamic=True)
        if _agree(open_graph, module, tuple(torch.cat([example, example[:1]]) for example in examples)):
            return open_graph
        fixed = _converted(module, examples, dynamic=False)
    except UnsupportedModelError:
        raise
    except Exception as error:  # the exporter raises of many kinds, and the module is the user's
        raise UnsupportedModelError(f"this TorchScript cannot be converted here ({_line(error)}): {HOW}") from error
    if not _agree(fixed, module, examples):
        raise UnsupportedModelError(f"converted, this TorchScript does not answer as it did: {HOW}")
    fixed.notes.append("the TorchScript works with the batch that it was traced with only, so the batch is fixed")
    return fixed


def _traced_inputs(path: Path) -> tuple[Tensor, ...] | None:
    """Made-up inputs like those of torch.jit.trace, which stores their shapes; None where it was not traced."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = f"{PurePosixPath(archive.namelist()[0]).parts[0]}/traced_inputs.pkl"
            if name not in archive.namelist():
                return None
            if archive.getinfo(name).file_size > MAX_PICKLE:
                raise InvalidModelError(f"{name!r} is too large")
            stored = _Shapes(io.BytesIO(archive.read(name))).load()
        inputs = tuple(stored["forward"])
    except DAMAGED_INPUTS as error:
        raise InvalidModelError(f"the traced inputs in the file cannot be read ({_line(error)})") from error
    if not inputs or not all(isinstance(value, Tensor) for value in inputs):
        raise UnsupportedModelError(f"this TorchScript takes more than tensors: {HOW}")
    return inputs


class _Shapes(pickle.Unpickler):
    """Builds tensors of the stored shapes; of all names in the pickle it knows four kinds, and imports nothing."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name.removesuffix("Storage").lower() in STORAGES:
            return STORAGES[name.removesuffix("Storage").lower()]
        known = {
            ("collections", "OrderedDict"): dict,
            ("torch._utils", "_rebuild_tensor_v2"): _made_up,
            ("torch.jit._pickle", "restore_type_tag"): lambda value, _: value,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return known[module, name]

    def persistent_load(self, pid: Any) -> Any:
        return pid[1]


def _made_up(dtype: torch.dtype, _offset: int, size: tuple[int, ...], *_: Any) -> Tensor:
    if math.prod(size) > MOST:
        raise pickle.UnpicklingError(f"an input has the shape {size}")
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(size, generator=generator).to(dtype) if dtype.is_floating_point else torch.zeros(size, dtype=dtype)
    )


def _check_ops(module: torch.jit.ScriptModule) -> None:
    for node in _nodes(module.inlined_graph):
        kind = node.kind()
        if not KNOWN.fullmatch(kind) or FORBIDDEN.fullmatch(kind):
            raise UnsupportedModelError(f"the TorchScript calls {kind!r}, which is not run here: {HOW}")


def _nodes(block: Any) -> Any:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)


def _converted(module: torch.jit.ScriptModule, examples: tuple[Tensor, ...], *, dynamic: bool) -> Graph:
    names = [f"input_{place}" if place else "input" for place in range(len(examples))]
    axes = {name: {0: "batch"} for name, example in zip(names, examples, strict=True) if example.dim()}
    written = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            examples,
            written,  # type: ignore[arg-type]  # this exporter writes into open files too
            dynamo=False,
            opset_version=OPSET,
            input_names=names,
            dynamic_axes=axes if dynamic else None,
        )
    graph = read_onnx(written.getvalue())
    graph.outputs = tuple(
        spec.model_copy(update={"name": f"output_{place}" if place else "output"})
        for place, spec in enumerate(graph.outputs)
    )
    return graph


def _agree(graph: Graph, module: torch.jit.ScriptModule, examples: tuple[Tensor, ...]) -> bool:
    """Whether both answer alike; outputs of an open batch get its name."""
    with torch.no_grad():
        try:
            own, wanted = graph(*examples), module(*examples)
        except RuntimeError:
            return False
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    return len(own) == len(wanted) and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(own, wanted, strict=True)
    )


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
