"""The op table against the ONNX project's own node tests, in both directions.

    python -m benchmarks.backend_tests [--only OP ...]

Each test is a model, its inputs and its outputs. *Read*: the engine reads it, runs its own graph and gives the same
outputs. *Write*: what the engine writes of it is valid and gives the same in ONNX Runtime; where that has no kernel for
the test itself, in ONNX's reference implementation, and those are counted apart. The tests feed weights as inputs;
each must also pass with all inputs but the first stored in the file.

The tests of the table are those of models that consist of its ops; each counts for all ops in it and once in the
totals. So the tests whose name ends in `_expanded` are tests of the smaller ops in which they write a larger one out.
What ONNX Runtime computes for the engine (`ops/opaque.py`) is never a pass. Ends with 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import io
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stderr
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
from workers.engine.ops.opaque import Opaque
from workers.engine.readers.onnx import read_onnx
from workers.engine.writers.onnx import write_onnx

LEAST_OPS, LEAST_SHARE = 130, 0.95

OUTSIDE = frozenset({"DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"})
"""What computes in integers is left to ONNX Runtime on purpose."""

MISSES: dict[str, tuple[str, ...]] = {
    "PyTorch has no arithmetic on unsigned integers wider than 8 bits": (
        *(f"test_{op}_uint{bits}" for op in ("add", "sub", "div", "mod", "max", "min") for bits in (16, 32, 64)),
        *(f"test_{op}_uint{bits}" for op in ("less", "less_equal") for bits in (16, 32, 64)),
        *(f"test_{op}_uint{bits}" for op in ("greater", "greater_equal") for bits in (16, 32, 64)),
        *(f"test_{op}_equal_uint{bits}_expanded" for op in ("less", "greater") for bits in (16, 32, 64)),
        *(f"test_bitshift_{way}_uint{bits}" for way in ("left", "right") for bits in (16, 32, 64)),
        "test_bitwise_not_3d", "test_top_k_uint64",
    ),
    "a weight that is no number (NaN) is refused on purpose": ("test_mod_float_edge_cases_fmod_0_float*",),
    "values of 4 and 2 bits are held as bytes: stored weights become floats, but nothing is quantized to them": (
        "test_quantizelinear_int[24]", "test_quantizelinear_uint[24]", "test_quantizelinear_float4*",
        "test_dequantizelinear_int[24]", "test_dequantizelinear_uint[24]", "test_dequantizelinear_float4*",
    ),
    "dropout in training mode is random: ONNX Runtime computes it, and a test cannot compare it": (
        "test_training_dropout*",
    ),
    "a batch normalization in training mode is left to ONNX Runtime": ("test_batchnorm_*_training_mode",),
    "texts, sequences and optional values are left to ONNX Runtime": (
        "test_equal_string*", "test_identity_sequence", "test_identity_opt",
    ),
    "the files say opset 1, and the oldest that is read is 7": ("test_not_2d", "test_not_3d", "test_not_4d"),
    "ONNX Runtime counts the last pixel otherwise than the specification, and so does the engine": (
        "test_resize_downsample_scales_linear_align_corners", "test_resize_downsample_scales_cubic_align_corners",
    ),
}  # fmt: skip
"""Why some tests do not pass: reason → names, each of which must fail. A test that starts to pass leaves the list."""

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
    return frozenset(name for domain, name in OPS if domain == "" and name not in OUTSIDE)


def check(case: Case) -> Outcome:
    """Both ways, once with all inputs as the test has them, and once with all but the first stored in the file."""
    read, write, by_reference = None, None, False
    for raw_inputs, raw_outputs in case.data_sets:
        feeds = dict(zip((info.name for info in case.model.graph.input), map(_array, raw_inputs), strict=False))
        expected = [_array(value) for value in raw_outputs]
        for model, fed in (case.model.SerializeToString(), feeds), *_stored(case.model, feeds):
            try:
                graph = read_onnx(model)
                read = read or _opaque(graph) or _difference(run_graph(graph, fed), expected, case)
            except (EngineError, RuntimeError, IndexError, ValueError, TypeError) as error:
                return Outcome(case.name, ops_of(case), _line(error), "it was not read")
            original = _run_file(model, fed)
            by_reference = by_reference or original is None
            write = write or _written(graph, fed, expected, original, case)
    return Outcome(case.name, ops_of(case), read, write, by_reference)


def _stored(model: ModelProto, feeds: Arrays) -> Iterator[tuple[bytes, Arrays]]:
    """The model with all inputs but the first as initializers, where it has more than one."""
    if len(feeds) < 2 or not all(isinstance(value, np.ndarray) for value in feeds.values()):
        return
    stored = ModelProto.FromString(model.SerializeToString())
    first, *others = feeds
    stored.graph.initializer.extend(numpy_helper.from_array(feeds[name], name) for name in others)
    kept = [info for info in stored.graph.input if info.name not in others]
    del stored.graph.input[:]
    stored.graph.input.extend(kept)
    yield stored.SerializeToString(), {first: feeds[first]}


def _written(
    graph: Graph, feeds: Arrays, expected: Sequence[np.ndarray], original: list[np.ndarray] | None, case: Case
) -> str | None:
    """What is wrong with the file that the engine writes. `original`: the runtime's own answers, if it has any."""
    try:
        written = write_onnx(graph)
        onnx.checker.check_model(written, full_check=True)
        found = _run_reference(written, feeds) if original is None else _run_file(written, feeds)
    except Exception as error:  # noqa: BLE001 (whatever is wrong with what was written is the finding)
        return _line(error)
    if found is None:
        return "the runtime does not run it"
    wrong = _difference(found, expected, case)
    # the runtime itself may answer otherwise than the specification
    return _difference(found, original, case) if wrong and original is not None else wrong


def _opaque(graph: Graph) -> str | None:
    parts = [module for module in graph.module.modules() if isinstance(module, Opaque)]
    return f"only as a part that ONNX Runtime computes: {parts[0]}" if parts else None


def reason(case: str) -> str | None:
    """Why the test is known not to pass."""
    found = (text for text, names in MISSES.items() if any(fnmatchcase(case, name) for name in names))
    return next(found, None)


def run_graph(graph: Graph, feeds: Arrays) -> list[np.ndarray]:
    with torch.no_grad(), redirect_stderr(io.StringIO()):  # generated code prints where it fails
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
    if word == "float4_e2m1fn":
        return torch.from_numpy(array.astype(np.float32)).to(dtype)
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
    if word in WORD_OF_TORCH.values():
        return held.view(kind)
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy().astype(kind)


def _difference(found: Sequence[np.ndarray], expected: Sequence[np.ndarray], case: Case) -> str | None:
    if len(found) != len(expected):
        return f"{len(found)} outputs for {len(expected)}"
    for ours, theirs in zip(found, expected, strict=True):
        if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
            return f"{ours.dtype} {ours.shape} for {theirs.dtype} {theirs.shape}"
        half = theirs.dtype.itemsize <= 2 and theirs.dtype.kind not in "iub"
        rtol, atol = (1e-2, 5e-3) if half else (case.rtol, max(case.atol, 1e-5))
        with np.errstate(invalid="ignore"):
            wide = [np.asarray(a, dtype=np.float64 if a.dtype.kind not in "iub" else None) for a in (ours, theirs)]
        if not np.allclose(*wide, rtol=rtol, atol=atol, equal_nan=True):
            return "values differ"
    return None


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="OP", help="only the tests of these ops")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table, tests = table_ops(), node_tests()
    ours = [case for case in tests if ops_of(case) <= table]
    if arguments.only:
        ours = [case for case in ours if ops_of(case) & set(arguments.only)]
    outcomes = [check(case) for case in ours]
    console = Console()
    console.print(_by_op(outcomes, sorted(table if not arguments.only else arguments.only)))
    console.print(_missed(outcomes))
    passed = sum(outcome.passed for outcome in outcomes)
    share = passed / max(len(outcomes), 1)
    read, written = (sum(getattr(outcome, way) is None for outcome in outcomes) for way in ("read", "write"))
    console.print(
        f"{len(table)} ops of ONNX in the table (at least {LEAST_OPS}); "
        f"{passed} of {len(outcomes)} tests pass both ways: {share:.1%} "
        f"(at least {LEAST_SHARE:.0%}).\nRead: {read}. Written: {written}, of which the reference "
        f"implementation ran {sum(outcome.by_reference for outcome in outcomes)}.\n"
        f"Tests with ops outside of the table: {len(tests) - len(ours)}."
    )
    unexplained = [outcome.case for outcome in outcomes if outcome.passed == (reason(outcome.case) is not None)]
    if unexplained:
        console.print(f"These do not stand in the list of misses as they should: {', '.join(unexplained)}")
    return int(len(table) < LEAST_OPS or share < LEAST_SHARE or bool(unexplained))


def _by_op(outcomes: Sequence[Outcome], ops: Iterable[str]) -> Table:
    table = Table("op", "tests", "read", "written", "missed")
    for op in ops:
        own = [outcome for outcome in outcomes if op in outcome.ops]
        missed = [outcome.case.removeprefix("test_") for outcome in own if not outcome.passed]
        shown = ", ".join(missed[:4]) + (f" and {len(missed) - 4} more" if len(missed) > 4 else "")
        read, written = (sum(getattr(outcome, way) is None for outcome in own) for way in ("read", "write"))
        table.add_row(op, str(len(own)), str(read), str(written), shown)
    return table


def _missed(outcomes: Iterable[Outcome]) -> Table:
    by_reason = Counter(
        reason(outcome.case) or f"{outcome.case}: {outcome.read or outcome.write}"
        for outcome in outcomes
        if not outcome.passed
    )
    table = Table("missed because", "tests")
    for text, count in by_reason.most_common():
        table.add_row(text, str(count))
    return table


if __name__ == "__main__":
    sys.exit(main())
