"""ONNX Runtime as the judge: sessions with fixed options, fed from tensors, read as arrays."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor

from modelpress.jobs import Runtime
from workers.engine.errors import InvalidModelError, UnsupportedModelError

Arrays = Sequence[NDArray]

PATHS = re.compile(r"/[\w./+-]*/(?=[\w.+-])")


@dataclass(frozen=True)
class Session:
    """A loaded ONNX file with the batch size that it takes (None: any)."""

    session: ort.InferenceSession
    inputs: tuple[str, ...]
    batch: int | None

    def run(self, inputs: Arrays) -> list[NDArray]:
        """All outputs for inputs in the file's order. Raises InvalidModelError with ONNX Runtime's reason."""
        try:
            return self.session.run(None, dict(zip(self.inputs, inputs, strict=True)))
        except Exception as error:  # its exceptions have no common base but this one
            raise InvalidModelError(f"ONNX Runtime cannot run this model: {reason(error)}") from error

    def run_all(self, inputs: Arrays) -> list[NDArray]:
        """As `run`, for any number of examples: in pieces, the last one filled up, where the batch size is fixed.

        An output that has no row an example is stacked: one for each piece.
        """
        examples = max((len(array) for array in inputs if array.ndim), default=1)
        if self.batch is None or self.batch == examples:
            return self.run(inputs)
        pieces = [self.run(piece) for piece in _pieces(inputs, examples, self.batch)]
        return [
            np.concatenate(parts)[:examples] if parts[0].shape[:1] == (self.batch,) else np.stack(parts)
            for parts in zip(*pieces, strict=True)
        ]


def open_session(model: Path | bytes, threads: int, runtime: Runtime = "auto", *, exact: bool = False) -> Session:
    """Load a file with every optimization, no spinning threads and repeatable results.

    `exact`: products with stored integers are computed in floats. By default ONNX Runtime quantizes what they are
    multiplied with too, half a percent off for one layer: how the file runs, but not what it says.

    Raises InvalidModelError with ONNX Runtime's reason.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if exact:
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    try:
        session = ort.InferenceSession(
            model if isinstance(model, bytes) else str(model), options, providers=_providers(runtime)
        )
    except Exception as error:  # as above
        raise InvalidModelError(f"ONNX Runtime cannot load this model: {reason(error)}") from error
    inputs = session.get_inputs()
    return Session(session, tuple(value.name for value in inputs), _fixed_batch([value.shape for value in inputs]))


def arrays(tensors: Sequence[Tensor]) -> list[NDArray]:
    """Raises UnsupportedModelError for bfloat16, which numpy does not have."""
    if any(tensor.dtype == torch.bfloat16 for tensor in tensors):
        raise UnsupportedModelError(
            "inputs and outputs of bfloat16 cannot be measured: cast them to float32 in the model"
        )
    return [tensor.detach().cpu().contiguous().numpy() for tensor in tensors]


def reason(error: Exception) -> str:
    """The runtime's message without codes and without names of our folders."""
    text = str(error).split(" : ", 2)[-1] if str(error).startswith("[ONNXRuntimeError]") else str(error)
    return PATHS.sub("", text).strip()[:500]


def _providers(runtime: Runtime) -> list[str]:
    wanted = ["CUDAExecutionProvider"] if runtime == "cuda" else []
    return [*(name for name in wanted if name in ort.get_available_providers()), "CPUExecutionProvider"]


def _fixed_batch(shapes: Sequence[Sequence[int | str | None]]) -> int | None:
    first = next((shape[0] for shape in shapes if shape), None)
    return first if isinstance(first, int) and first > 0 else None


def _pieces(inputs: Arrays, examples: int, batch: int) -> Iterator[list[NDArray]]:
    for start in range(0, examples, batch):
        rows = np.minimum(np.arange(start, start + batch), examples - 1)
        yield [array[rows] if array.ndim else array for array in inputs]
