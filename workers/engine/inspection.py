"""What is known of a model or a dataset once it has been read, and whether it can be worked with at all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modelpress.models import DatasetSpec, ModelSpec, Signature
from modelpress.run import ModelFile
from workers.engine.data import read_dataset
from workers.engine.errors import InvalidModelError
from workers.engine.graph import Graph
from workers.engine.ops.constants import check_size, constant_of_shape
from workers.engine.originals import open_model, runnable
from workers.engine.runtime import Session, arrays, open_session
from workers.engine.shapes import FREE_SIZES, check_declared, example_inputs, stats

EXAMPLES = 2
"""Two, so that a batch size that was fixed by mistake shows."""
TOLERANCE = 1e-2
"""Relative error up to which two runtimes agree: int8 values may round to the other side."""


@dataclass(frozen=True)
class Checked:
    """Inputs that the model takes, what ONNX Runtime answers to them, and how long open dimensions were."""

    inputs: tuple[Tensor, ...]
    answers: list[NDArray]
    free: int


def inspect_dataset(path: Path, scratch: Path) -> DatasetSpec:
    """Raises InvalidDataError."""
    return read_dataset(path, scratch).spec


def inspect_model(model: ModelFile, run_dir: Path, threads: int) -> ModelSpec:
    """Read the file, look at its values, and run it once in both runtimes.

    Raises InvalidModelError or UnsupportedModelError with what is wrong and what to do.
    """
    format_, graph = open_model(model, run_dir)
    check_values(graph)
    notes = list(graph.notes)
    checked = check_reading(graph, open_session(runnable(graph, format_, model, run_dir), threads, exact=True))
    if checked is None:
        notes.append("made-up inputs do not run through this model, so that its reading could not be checked")
    elif not all(np.isfinite(output).all() for output in checked.answers if output.dtype.kind == "f"):
        notes.append("on made-up inputs the model answers NaN or infinity; that may be right for inputs it never sees")
    return ModelSpec(format=format_, signature=signature(graph), stats=stats(graph), notes=tuple(notes))


def signature(graph: Graph) -> Signature:
    return Signature(inputs=graph.inputs, outputs=graph.outputs)


def check_values(graph: Graph) -> None:
    """Raises InvalidModelError where a layer's weight is not finite, or any other number of the model is NaN.

    Constants that the graph makes are bounded here, before a runtime makes them while it loads the file.
    """
    for node in graph.module.graph.nodes:
        if node.target is constant_of_shape and isinstance(node.args[0], tuple):
            check_size(node.args[0])
    for layer in graph.layers():
        for name, weight in layer.weights.items():
            if weight.is_floating_point() and not torch.isfinite(weight).all():
                found = "NaN" if torch.isnan(weight).any() else "infinite values"
                raise InvalidModelError(
                    f"the weight {name!r} of the layer {layer.name!r} holds {found}: the training has probably "
                    "diverged; upload an earlier checkpoint"
                )
    for name, tensor in graph.module.state_dict().items():
        if tensor.is_floating_point() and torch.isnan(tensor).any():
            raise InvalidModelError(f"the model's tensor {name!r} holds NaN: the training has probably diverged")


def check_reading(graph: Graph, session: Session) -> Checked | None:
    """Run made-up inputs, with open dimensions of several lengths, until ONNX Runtime takes one; None if it takes none.

    Raises InvalidModelError where a declared input is too large, or our graph does not answer as ONNX Runtime does.
    """
    check_declared(graph)
    fixed = all(isinstance(dim, int) for spec in graph.inputs for dim in spec.shape[1:])
    for free in FREE_SIZES[:1] if fixed else FREE_SIZES:
        try:
            inputs = example_inputs(graph, session.batch or EXAMPLES, free)
            answers = session.run(arrays(inputs))
        except InvalidModelError:
            continue
        for name, error in differences(graph, inputs, answers).items():
            if error > TOLERANCE:
                raise InvalidModelError(
                    f"the output {name!r} differs from ONNX Runtime's ({_percent(error)}): this model is read wrongly "
                    "here, so that figures measured on it would be wrong too; please report it"
                )
        return Checked(inputs, answers, free)
    return None


@torch.inference_mode()
def differences(graph: Graph, inputs: tuple[Tensor, ...], expected: list[NDArray]) -> dict[str, float]:
    """Relative error of each output by name; infinite where it has another shape."""
    answers = zip(graph.outputs, arrays(graph(*inputs)), expected, strict=True)
    return {spec.name: relative_error(own, other) for spec, own, other in answers}


def relative_error(own: NDArray, other: NDArray) -> float:
    """|own - other| / |other|; places where both are the same, NaN and infinity included, count as no difference."""
    if own.shape != other.shape:
        return float("inf")
    if other.dtype.kind != "f":
        return float(np.mean(own != other)) if other.size else 0.0
    own, other = own.astype(np.float64), other.astype(np.float64)
    same = (own == other) | (np.isnan(own) & np.isnan(other))
    if same.all():
        return 0.0
    with np.errstate(invalid="ignore"):
        noise = np.linalg.norm(np.where(same, 0, own - other))
    error = noise / max(float(np.linalg.norm(np.nan_to_num(other, posinf=0, neginf=0))), 1e-12)
    return float(error) if np.isfinite(error) else float("inf")


def _percent(error: float) -> str:
    return f"by {error:.1%}" if np.isfinite(error) else "in its shape"
