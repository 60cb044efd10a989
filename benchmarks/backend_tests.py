"""The op table against the ONNX project's own node tests, in both directions.

    python -m benchmarks.backend_tests [--only OP ...]

Each test is a model, its inputs and its outputs. *Read*: the engine reads it, runs its own graph and answers the same. *Write*:
what the engine writes of it is valid and answers the same in ONNX Runtime, or, for ops that this runtime has no kernel
for, in ONNX's reference implementation. A test counts for every op that is in its model, once in the totals; the
tests whose name ends in `_expanded` are ops written out in smaller ones, and count for those. Outside of the table are
tests that need an op which it does not have, whatever else they use. Ends with 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import torch
from onnx import ModelProto, numpy_helper
from onnx.backend.test.case.test_case import TestCase as Case
from onnx.reference import ReferenceEvaluator
from rich.console import Console
from rich.table import Table

from workers.engine.dtypes import TORCH_OF_WORD, WORD_OF_TORCH
from workers.engine.errors import EngineError
from workers.engine.graph import Graph
from workers.engine.ops.base import OPS
from workers.engine.readers.onnx import read_onnx
from workers.engine.writers.onnx import write_onnx

LEAST_OPS, LEAST_SHARE = 130, 0.95

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Outcome:
    """What came of one test: None where a direction passed, else what is wrong."""

    case: str
    ops: frozenset[str]
    read: str | None
    write: str | None
    by_reference: bool = False
    """Whether what was written ran in the reference implementation, as the runtime does not run the test itself."""

    @property
    def passed(self) -> bool:
        return self.read is None and self.write is None


def node_tests() -> list[Case]:
    """Every node test that the installed onnx has."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the makers of the tests divide by zero on purpose
        from onnx.backend.test.case.node import collect_testcases  # noqa: PLC0415 (importing it makes 1,900 tests)

        return list(collect_testcases(None))


def ops_of(case: Case) -> frozenset[str]:
    return frozenset(f"{node.domain}.{node.op_type}".lstrip(".") for node in case.model.graph.node)


def table_ops() -> frozenset[str]:
    """The ops of ONNX that the table reads, in the words of `ops_of`."""
    return frozenset(name for domain, name in OPS if domain == "" and name not in REFUSED)


def check(case: Case) -> Outcome:
    read, write, by_reference = None, None, False
    for raw_inputs, raw_outputs in case.data_sets:
        feeds = dict(zip((info.name for info in case.model.graph.input), map(_array, raw_inputs), strict=False))
        expected = [_array(value) for value in raw_outputs]
        try:
            graph = read_onnx(case.model.SerializeToString())
            read = read or _difference(run_graph(graph, feeds), expected, case)
        except (EngineError, RuntimeError, IndexError, ValueError, TypeError) as error:
            return Outcome(case.name, ops_of(case), _line(error), "it was not read")
        try:
            written = write_onnx(graph)
            onnx.checker.check_model(written, full_check=True)
            original = _run_file(case.model.SerializeToString(), feeds)
            by_reference = by_reference or original is None
            found = _run_reference(written, feeds) if original is None else _run_file(written, feeds)
            wrong = "the runtime does not run it" if found is None else _difference(found, expected, case)
            if wrong and found is not None and original is not None:
                wrong = _difference(found, original, case)  # the runtime itself may differ from the reference
            write = write or wrong
        except Exception as error:  # noqa: BLE001 (whatever is wrong with what was written is the finding)
            write = write or _line(error)
    return Outcome(case.name, ops_of(case), read, write, by_reference)


def run_graph(graph: Graph, feeds: Arrays) -> list[np.ndarray]:
    with torch.no_grad():
        results = graph(*(to_tensor(feeds[spec.name], spec.dtype) for spec in graph.inputs))
        return [to_array(tensor, spec.dtype) for tensor, spec in zip(results, graph.outputs, strict=True)]


def _run_file(model: bytes, feeds: Arrays) -> list[np.ndarray] | None:
    """None where the runtime has no kernel for the model."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return session.run(None, feeds)
    except Exception:  # noqa: BLE001 (the runtime's exceptions have no common base)
        return None


def _run_reference(model: bytes, feeds: Arrays) -> list[np.ndarray]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ReferenceEvaluator(ModelProto.FromString(model)).run(None, feeds)


def _array(value: object) -> np.ndarray:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def to_tensor(array: np.ndarray, word: str) -> torch.Tensor:
    dtype = TORCH_OF_WORD[word]
    if not hasattr(np, word):
        held = {1: np.uint8, 2: np.int16}[dtype.itemsize]
        integers = array.view(held) if word in WORD_OF_TORCH.values() else array.astype(held)
        return torch.from_numpy(np.array(integers)).view(dtype)
    return torch.from_numpy(np.array(array))


def to_array(tensor: torch.Tensor, word: str) -> np.ndarray:
    if hasattr(np, word) or tensor.dtype != TORCH_OF_WORD[word]:
        return tensor.detach().numpy()
    held = tensor.view({1: torch.uint8, 2: torch.int16}[tensor.dtype.itemsize]).numpy()
    kind = getattr(ml_dtypes, word)
    return held.view(kind) if word in WORD_OF_TORCH.values() else tensor.numpy().astype(kind)


def _difference(found: Sequence[np.ndarray], expected: Sequence[np.ndarray], case: Case) -> str | None:
    if len(found) != len(expected):
        return f"{len(found)} outputs for {len(expected)}"
    for ours, theirs in zip(found, expected, strict=True):
        if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
            return f"{ours.dtype} {ours.shape} for {theirs.dtype} {theirs.shape}"
        half = theirs.dtype.itemsize <= 2 and theirs.dtype.kind not in "iub"
        rtol, atol = (1e-2, 5e-3) if half else (case.rtol, max(case.atol, 1e-5))
        wide = (np.asarray(a, dtype=np.float64 if a.dtype.kind not in "iub" else None) for a in (ours, theirs))
        if not np.allclose(*wide, rtol=rtol, atol=atol, equal_nan=True):
            return "values differ"
    return None


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
