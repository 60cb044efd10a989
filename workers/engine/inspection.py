"""What is known of a model or a dataset once it has been read, and whether it can be worked with at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from operator import getitem
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modelpress.models import DatasetSpec, ModelSpec, ModelStats, Signature
from workers.engine.data import SyntheticBatches, read_dataset
from workers.engine.errors import InvalidModelError
from workers.engine.graph import Graph
from workers.engine.ops.base import op_of
from workers.engine.readers import read_model
from workers.engine.runtime import Session, arrays, open_session
from workers.engine.writers.onnx import write_onnx

EXAMPLES = 2
"""Two, so that a batch size that was fixed by mistake shows."""
TOLERANCE = 1e-2
"""Relative error up to which two runtimes agree: int8 values may round to the other side."""


def inspect_dataset(path: Path, scratch: Path) -> DatasetSpec:
    """Raises InvalidDataError."""
    return read_dataset(path, scratch).spec


def inspect_model(path: Path, threads: int) -> ModelSpec:
    """Read the file, look at its values, and run it once in both runtimes.

    Raises InvalidModelError or UnsupportedModelError with what is wrong and what to do.
    """
    format_, graph = read_model(path)
    check_values(graph)
    notes = list(graph.notes)
    session = open_session(path if format_ == "onnx" else write_onnx(graph), threads)
    inputs = example_inputs(graph, session)
    answered = session.run(arrays(inputs))
    if not all(np.isfinite(output).all() for output in answered if output.dtype.kind == "f"):
        notes.append("on made-up inputs the model answers NaN or infinity; that may be right for inputs it never sees")
    check_agreement(graph, inputs, answered)
    return ModelSpec(format=format_, signature=signature(graph), stats=statistics(graph), notes=tuple(notes))


def signature(graph: Graph) -> Signature:
    return Signature(inputs=graph.inputs, outputs=graph.outputs)


def example_inputs(graph: Graph, session: Session) -> tuple[Tensor, ...]:
    """Made-up inputs of two examples, or of as many as the file is fixed to."""
    size = session.batch or EXAMPLES
    inputs, _ = SyntheticBatches(signature(graph), 0, size).take(torch.arange(size))
    return inputs


def check_values(graph: Graph) -> None:
    """Raises InvalidModelError where a weight is NaN, or a layer's weight infinite."""
    for layer in graph.layers():
        for name, weight in layer.weights.items():
            if weight.is_floating_point() and not torch.isfinite(weight).all():
                found = "NaN" if torch.isnan(weight).any() else "infinite values"
                raise InvalidModelError(
                    f"the weight {name!r} of the layer {layer.name!r} holds {found}: the training has probably "
                    "diverged; upload an earlier checkpoint"
                )
    for name, tensor in tensors(graph):
        if tensor.is_floating_point() and torch.isnan(tensor).any():
            raise InvalidModelError(f"the model's tensor {name!r} holds NaN: the training has probably diverged")


@torch.inference_mode()
def check_agreement(graph: Graph, inputs: tuple[Tensor, ...], expected: list[NDArray]) -> None:
    """Raises InvalidModelError unless our graph answers as ONNX Runtime does."""
    for spec, own, other in zip(graph.outputs, arrays(graph(*inputs)), expected, strict=True):
        if own.shape != other.shape:
            raise InvalidModelError(
                f"the output {spec.name!r} has shape {own.shape} here and {other.shape} in ONNX Runtime: this model is "
                "read wrongly, so that figures measured on it would be wrong too"
            )
        error = relative_error(own, other)
        if error > TOLERANCE:
            raise InvalidModelError(
                f"the output {spec.name!r} differs from ONNX Runtime's by {error:.1%}: this model is read wrongly, so "
                "that figures measured on it would be wrong too"
            )


def relative_error(own: NDArray, other: NDArray) -> float:
    """|own - other| / |other|; places where both are the same, NaN and infinity included, count as no difference."""
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


@torch.no_grad()
def statistics(graph: Graph) -> ModelStats:
    held = [tensor for _, tensor in tensors(graph)]
    called = [node for node in graph.module.graph.nodes if node.op.startswith("call_") and node.target is not getitem]
    return ModelStats(
        parameters=sum(tensor.numel() for tensor in held),
        nonzeros=sum(int(torch.count_nonzero(tensor)) for tensor in held),
        macs=sum(op_of(node).macs(node) for node in called),
        layers=sum(1 for _ in graph.layers()),
        opset=graph.opset,
        ops=dict(sorted(Counter(op_of(node).name for node in called).items())),
    )


def tensors(graph: Graph) -> Iterator[tuple[str, Tensor]]:
    """Every float parameter and buffer once, weights as the layers use them."""
    seen: set[int] = set()
    for name, module in graph.module.named_modules():
        if "parametrizations" in name.split("."):
            continue
        parametrized = getattr(module, "parametrizations", {})
        plain = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for key, tensor in [*plain, *((key, getattr(module, key)) for key in parametrized)]:
            if tensor.is_floating_point() and id(tensor) not in seen:
                seen.add(id(tensor))
                yield f"{name}.{key}".lstrip("."), tensor
