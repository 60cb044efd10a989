"""The ONNX project's own node tests, for every op of the table: read, run, write, run in ONNX Runtime."""

import warnings
from collections import defaultdict
from collections.abc import Iterator
from fnmatch import fnmatchcase

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper
from onnx.backend.test.case.test_case import TestCase as Case

from tests.engine.onnx.running import in_engine, in_runtime
from workers.engine.errors import EngineError
from workers.engine.ops.base import OPS
from workers.engine.readers.onnx import read_onnx
from workers.engine.writers.onnx import write_onnx

pytestmark = pytest.mark.slow

MISSES = {
    "*uint16*": "torch has no kernels for unsigned integers wider than 8 bits",
    "*uint32*": "torch has no kernels for unsigned integers wider than 8 bits",
    "*uint64*": "torch has no kernels for unsigned integers wider than 8 bits",
    "test_bitwise_not_3d": "unsigned 16-bit integers, as above",
    "*FLOAT8*": "8-bit floats are not read",
    "*FLOAT4*": "4-bit floats are not read",
    "*INT4*": "4-bit integers are not read as values",
    "*INT2*": "2-bit integers are not read as values",
    "test_equal_string*": "texts are not read",
    "test_identity_sequence": "sequences are not read",
    "test_identity_opt": "optional values are not read",
    "test_not_?d": "these files say opset 1",
    "test_batchnorm_*_training_mode": "a model in training mode is refused",
    "test_training_dropout*": "a model in training mode is refused",
    "test_dropout_default_mask*": "the mask of a dropout is not read",
    "test_layer_normalization_*": "mean and deviation as outputs are not read",
    "test_maxpool_with_argmax_*": "indices as outputs are not read",
    "test_spacetodepth_*_mode_example": "the mode attribute is newer than any runtime",
    "test_resize_downsample_scales_*_align_corners": "ONNX Runtime counts the last pixel otherwise, and so do we",
}
"""Name patterns of the node tests that do not pass, and why. A test that passes after all must leave this list."""

QUANTIZED = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv"}
QUANTIZED |= {"QLinearMatMul", "ConvInteger", "MatMulInteger"}
"""Models that are quantized already are refused as a whole, with advice."""

STORED = {"LSTM": (1, 2, 3, 7), "GRU": (1, 2, 3), "RNN": (1, 2, 3)}
"""Inputs that are weights where not all but the first are."""

DATA_TOO = {"Gather", "MatMul", "Gemm"}
"""Ops that are layers with a stored weight and functions without."""


@pytest.fixture(scope="module")
def cases() -> dict[str, list[Case]]:
    """By the op that they test; those of several nodes under the name of the whole."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the makers of the cases divide by zero on purpose
        from onnx.backend.test.case.node import collect_testcases

        found = collect_testcases(None)
    by_op = defaultdict(list)
    for case in found:
        nodes = {(node.domain, node.op_type) for node in case.model.graph.node}
        if nodes <= OPS.keys() and not {name for _, name in nodes} & QUANTIZED:
            by_op[case.model.graph.node[0].op_type if len(nodes) == 1 else "several"].append(case)
    return by_op


READ_OPS = sorted(name for domain, name in OPS if domain == "" and name not in QUANTIZED)
WITHOUT_CASES = {"GlobalLpPool", "Constant"}


@pytest.mark.parametrize("op", [*READ_OPS, "several"])
def test_every_node_test_of_an_op(op: str, cases: dict[str, list[Case]]) -> None:
    assert cases[op] or op in WITHOUT_CASES
    wrong = {case.name: problem for case in cases[op] for problem in problems(case)}
    unexplained = {name: problem for name, problem in wrong.items() if reason(name) is None}
    healed = [case.name for case in cases[op] if reason(case.name) is not None and case.name not in wrong]
    assert not unexplained
    assert not [name for name in healed if exact(name)]


def reason(name: str) -> str | None:
    return next((text for pattern, text in MISSES.items() if fnmatchcase(name, pattern)), None)


def exact(name: str) -> bool:
    """Patterns of types also match tests that pass; a full name never should."""
    return name in MISSES


def problems(case: Case) -> Iterator[str]:
    for raw_inputs, raw_outputs in case.data_sets:
        model, feeds = with_stored_weights(case.model, [plain(value) for value in raw_inputs])
        try:
            graph = read_onnx(model)
        except EngineError as error:
            yield str(error)
            return
        try:
            ours = in_engine(graph, feeds)
        except (RuntimeError, IndexError) as error:
            yield str(error)
            return
        yield from differences(ours, [plain(value) for value in raw_outputs], case)
        written = write_onnx(graph)
        onnx.checker.check_model(written, full_check=True)
        try:
            original = in_runtime(model, feeds)
        except Exception:  # noqa: BLE001 (ONNX Runtime has no kernel for the test itself; nothing to compare with)
            continue
        yield from differences(in_runtime(written, feeds), original, case)


def plain(value: object) -> np.ndarray:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def with_stored_weights(model: ModelProto, arrays: list[np.ndarray]) -> tuple[bytes, dict[str, np.ndarray]]:
    """The node tests feed weights as inputs; layers of this engine have theirs in the file."""
    model = ModelProto.FromString(model.SerializeToString())
    feeds = dict(zip((info.name for info in model.graph.input), arrays, strict=False))
    for node in model.graph.node:
        op = OPS[node.domain, node.op_type]
        if not op.modules or node.op_type in DATA_TOO:
            continue
        for position in STORED.get(node.op_type, range(1, len(node.input))):
            name = node.input[position] if position < len(node.input) else ""
            if name in feeds:
                model.graph.initializer.append(numpy_helper.from_array(feeds.pop(name), name))
    return model.SerializeToString(), feeds


def differences(ours: list[np.ndarray], theirs: list[np.ndarray], case: Case) -> Iterator[str]:
    for mine, expected in zip(ours, theirs, strict=True):
        if (mine.dtype, mine.shape) != (expected.dtype, expected.shape):
            yield f"{mine.dtype} {mine.shape} for {expected.dtype} {expected.shape}"
            continue
        half = expected.dtype.itemsize == 2 and expected.dtype.kind not in "iu"
        rtol, atol = (1e-2, 5e-3) if half else (case.rtol, max(case.atol, 1e-5))
        wide = (
            np.asarray(array, dtype=np.float64 if array.dtype.kind not in "iub" else None) for array in (mine, expected)
        )
        if not np.allclose(*wide, rtol=rtol, atol=atol, equal_nan=True):
            yield "values differ"
