"""Random attributes and shapes: the engine answers as ONNX Runtime does, and so does the file that it writes."""

import numpy as np
import onnx
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import helper

from tests.engine.onnx.running import assert_same, model_of

SETTINGS = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.filter_too_much]
)
RANDOM = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def open_batch(array: np.ndarray) -> list[int | str]:
    return ["batch", *array.shape[1:]]


def check(op: str, x: np.ndarray, *weights: np.ndarray, opset: int = 18, **attributes) -> None:
    """One node on x, whose other inputs are stored."""
    names = [f"w{index}" for index in range(len(weights))]
    node = helper.make_node(op, ["x", *names], ["y"], **attributes)
    model = model_of([node], {"x": open_batch(x)}, {"y": []}, dict(zip(names, weights, strict=True)), opset=opset)
    assert_same(with_inferred_output(model), {"x": x})


def with_inferred_output(model: bytes) -> bytes:
    """Type and shape of the output as ONNX has them, so that no test has to compute them."""
    proto = onnx.load_from_string(model)
    proto.graph.output[0].ClearField("type")
    return onnx.shape_inference.infer_shapes(proto).SerializeToString()


@st.composite
def windows(draw, kernel: list[int]) -> dict:
    """ONNX Runtime itself has no SAME padding with dilation, or with strides beyond the kernel."""
    rank = len(kernel)
    auto_pad = draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    window = {
        "strides": draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank)),
        "dilations": draw(st.lists(st.integers(1, 2), min_size=rank, max_size=rank)),
        "auto_pad": auto_pad,
    }
    if auto_pad.startswith("SAME"):
        window["dilations"] = [1] * rank
        window["strides"] = [min(pair) for pair in zip(window["strides"], kernel, strict=True)]
    if auto_pad == "NOTSET":
        window["pads"] = draw(st.lists(st.integers(0, 2), min_size=2 * rank, max_size=2 * rank))
    return window


@SETTINGS
@given(data=st.data(), rank=st.integers(1, 3), groups=st.integers(1, 3), bias=st.booleans())
def test_convolutions(data: st.DataObject, rank: int, groups: int, bias: bool) -> None:
    kernel = data.draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))
    window = data.draw(windows(kernel))
    weight = normal(2 * groups, 2, *kernel)
    x = normal(2, 2 * groups, *[7 + axis for axis in range(rank)])
    check("Conv", x, weight, *([normal(2 * groups)] if bias else []), group=groups, **window)


@SETTINGS
@given(data=st.data(), rank=st.integers(1, 2), groups=st.integers(1, 2))
def test_transposed_convolutions(data: st.DataObject, rank: int, groups: int) -> None:
    kernel = data.draw(st.lists(st.integers(2, 3), min_size=rank, max_size=rank))
    strides = data.draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))
    pads = data.draw(st.lists(st.integers(0, 1), min_size=2 * rank, max_size=2 * rank))
    extra = [data.draw(st.integers(0, stride - 1)) for stride in strides]
    x = normal(2, 2 * groups, *[5 + axis for axis in range(rank)])
    options = {"strides": strides, "pads": pads, "output_padding": extra, "group": groups}
    check("ConvTranspose", x, normal(2 * groups, 2, *kernel), normal(2 * groups), **options)


@SETTINGS
@given(data=st.data(), rank=st.integers(1, 3), op=st.sampled_from(["MaxPool", "AveragePool"]), ceil=st.booleans())
def test_pooling(data: st.DataObject, rank: int, op: str, ceil: bool) -> None:
    kernel = data.draw(st.lists(st.integers(2, 3), min_size=rank, max_size=rank))
    window = data.draw(windows(kernel))
    if op == "AveragePool":
        del window["dilations"]
        window["count_include_pad"] = data.draw(st.integers(0, 1))
    pads = window.get("pads", [0] * 2 * rank)
    assume(all(pad < size for pad, size in zip(pads, kernel * 2, strict=True)))
    assume(not (ceil and window["auto_pad"] != "NOTSET"))
    check(op, normal(2, 3, *[8 + axis for axis in range(rank)]), kernel_shape=kernel, ceil_mode=int(ceil), **window)


@SETTINGS
@given(data=st.data(), alpha=st.sampled_from([1.0, 0.5]), beta=st.sampled_from([1.0, 2.0]), turned=st.booleans())
def test_gemm(data: st.DataObject, alpha: float, beta: float, turned: bool) -> None:
    weight = normal(3, 4) if turned else normal(4, 3)
    bias = data.draw(st.sampled_from([(), (1,), (3,), (1, 3)]))
    check("Gemm", normal(5, 4), weight, normal(*bias), alpha=alpha, beta=beta, transB=int(turned))


@SETTINGS
@given(
    op=st.sampled_from(["Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSumExp"]),
    axes=st.sets(st.integers(-3, 2), min_size=1, max_size=2),
    keep=st.integers(0, 1),
    opset=st.sampled_from([13, 18]),
)
def test_reductions(op: str, axes: set[int], keep: int, opset: int) -> None:
    assume(len({axis % 3 for axis in axes}) == len(axes))
    x = normal(3, 4, 5)
    if opset == 18 or op == "Sum":
        check(f"Reduce{op}", x, np.array(sorted(axes), np.int64), keepdims=keep, opset=opset)
    else:
        check(f"Reduce{op}", x, axes=sorted(axes), keepdims=keep, opset=opset)


@SETTINGS
@given(data=st.data(), count=st.integers(1, 3))
def test_slices(data: st.DataObject, count: int) -> None:
    def numbers(low: int, high: int) -> np.ndarray:
        return np.array(data.draw(st.lists(st.integers(low, high), min_size=count, max_size=count)), np.int64)

    axes = np.array(data.draw(st.permutations([1, 2, 3]))[:count], np.int64)
    steps = numbers(-3, 3)
    assume(0 not in steps)
    check("Slice", normal(2, 5, 6, 7), numbers(-9, 9), numbers(-9, 9), axes, steps)


@SETTINGS
@given(
    mode=st.sampled_from(["nearest", "linear", "cubic"]),
    counting=st.sampled_from(["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"]),
    rounding=st.sampled_from(["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"]),
    sizes=st.tuples(st.integers(2, 12), st.integers(2, 12)),
)
def test_resizing(mode: str, counting: str, rounding: str, sizes: tuple[int, int]) -> None:
    x = normal(2, 3, 6, 5)
    nothing = np.array([], np.float32)
    options = {"mode": mode, "coordinate_transformation_mode": counting, "nearest_mode": rounding}
    check("Resize", x, nothing, nothing, np.array([2, 3, *sizes], np.int64), **options)


@SETTINGS
@given(data=st.data(), mode=st.sampled_from(["constant", "edge", "reflect"]), opset=st.sampled_from([11, 18]))
def test_padding(data: st.DataObject, mode: str, opset: int) -> None:
    pads = data.draw(st.lists(st.integers(0, 3), min_size=4, max_size=4))
    full = np.array([0, 0, *pads[:2], 0, 0, *pads[2:]], np.int64)
    value = [np.array(1.5, np.float32)] if mode == "constant" else []
    check("Pad", normal(2, 3, 5, 6), full, *value, mode=mode, opset=opset)


@SETTINGS
@given(
    direction=st.sampled_from(["forward", "reverse", "bidirectional"]),
    kind=st.sampled_from([("LSTM", 4), ("GRU", 3), ("RNN", 1)]),
    biased=st.booleans(),
    before=st.integers(0, 1),
)
def test_recurrent_layers(direction: str, kind: tuple[str, int], biased: bool, before: int) -> None:
    op, gates = kind
    directions, hidden = 2 if direction == "bidirectional" else 1, 3
    weights = [normal(directions, gates * hidden, 4), normal(directions, gates * hidden, hidden)]
    if biased:
        weights.append(normal(directions, 2 * gates * hidden))
    extra = {"linear_before_reset": before} if op == "GRU" else {}
    check(op, normal(6, 2, 4), *weights, hidden_size=hidden, direction=direction, **extra)


@SETTINGS
@given(
    op=st.sampled_from(["Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Split", "Gather", "ArgMax"]),
    axis=st.integers(0, 2),
)
def test_layouts_and_indices(op: str, axis: int) -> None:
    x = normal(4, 1, 6)
    match op:
        case "Reshape":
            check(op, x, np.array([[0, -1], [-1, 3], [2, 2, 6]][axis], np.int64))
        case "Flatten":
            check(op, x, axis=axis)
        case "Transpose":
            check(op, x, perm=[(axis + offset) % 3 for offset in range(3)])
        case "Squeeze":
            check(op, x, np.array([1 if axis else -2], np.int64))
        case "Unsqueeze":
            check(op, x, np.array([axis, -1], np.int64))
        case "Split":
            check(op, x, np.array([x.shape[axis]], np.int64), axis=axis)
        case "Gather":
            check(op, x, np.array([[0, -1]], np.int64), axis=axis)
        case "ArgMax":
            check(op, x, axis=axis)


def test_a_backward_slice_from_before_the_start_has_the_first_element() -> None:
    numbers = [np.array([number], np.int64) for number in (-9, -9, 1, -1)]
    check("Slice", normal(2, 5), *numbers)


def test_rows_that_a_transposed_convolution_adds_have_the_bias() -> None:
    options = {"strides": [2, 1], "pads": [0, 0, 0, 1], "output_padding": [1, 0]}
    check("ConvTranspose", normal(2, 2, 5, 6), normal(2, 2, 2, 2), normal(2), **options)
