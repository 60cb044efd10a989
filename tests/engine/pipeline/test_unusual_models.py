"""Models that are not one float image in and one row of scores out go through inspection and a job as well."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from tests.engine.pipeline.models import compress, inspect_model

RANDOM = np.random.default_rng(0)


def model(text, **weights):
    """An ONNX model from its textual form; `weights` become initializers."""
    proto = parser.parse_model('<ir_version: 9, opset_import: ["" : 17]>\n' + text)
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(w), name) for name, w in weights.items())
    onnx.checker.check_model(proto)
    return proto.SerializeToString()


def floats(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


TOKENS = model(
    """words (int64[batch, time] ids) => (float[batch, 5] logits) {
        vectors = Gather(table, ids)
        mean = ReduceMean<axes = [1], keepdims = 0>(vectors)
        logits = Gemm(mean, weight, bias)
    }""",
    table=floats(200, 64), weight=floats(64, 5), bias=floats(5),
)  # fmt: skip
TWO_IN_TWO_OUT = model(
    """two (float[N, 40] a, float[N, 24] b) => (float[N, 48] y, float[N, 32] z) {
        both = Concat<axis = 1>(a, b)
        hidden = MatMul(both, v)
        y = Relu(hidden)
        z = MatMul(hidden, w)
    }""",
    v=floats(64, 48), w=floats(48, 32),
)  # fmt: skip
ANY_SIZE = model(
    """image (float[N, 3, H, W] image) => (float[N, 32, H2, W2] map) {
        map = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(image, weight, bias)
    }""",
    weight=floats(32, 3, 3, 3), bias=floats(32),
)  # fmt: skip
PIXELS = model(
    """pixels (float[N, 8, 16, 16] image) => (float[N, 40, 16, 16] map) {
        map = Conv<pads = [1, 1, 1, 1]>(image, weight, bias)
    }""",
    weight=floats(40, 8, 3, 3), bias=floats(40),
)  # fmt: skip
DECIDES = model(
    """decides (float[N, 30] x) => (int64[N] choice) {
        scores = MatMul(x, w)
        choice = ArgMax<axis = 1, keepdims = 0>(scores)
    }""",
    w=floats(30, 50),
)  # fmt: skip
BINARY = model(
    """binary (float[N, 60] x) => (float[N, 1] probability) {
        hidden = MatMul(x, v)
        score = MatMul(hidden, w)
        probability = Sigmoid(score)
    }""",
    v=floats(60, 30) / 8, w=floats(30, 1),
)  # fmt: skip
SCALED = model(
    """scaled (float[N, 40] x, float s) => (float[N, 40] y) {
        hidden = MatMul(x, w)
        y = Mul(hidden, s)
    }""",
    w=floats(40, 40),
)  # fmt: skip
MASKED = model(
    """masked (float[N, 40] x, bool[N, 40] keep) => (float[N, 40] y) {
        kept = Where(keep, x, zero)
        y = MatMul(kept, w)
    }""",
    zero=np.float32(0), w=floats(40, 40),
)  # fmt: skip


@pytest.mark.parametrize(
    ("content", "data", "metric", "batches"),
    [
        (TOKENS, {"ids": RANDOM.integers(0, 200, (40, 7)), "labels": RANDOM.integers(0, 5, 40)}, "accuracy", [1, 32]),
        (TOKENS, {"ids": RANDOM.integers(0, 200, (40, 7)).astype(np.int32)}, None, [1, 32]),
        (TWO_IN_TWO_OUT, {"b": floats(20, 24), "a": floats(20, 40)}, None, [1, 32]),
        (ANY_SIZE, {"image": floats(10, 3, 40, 32)}, None, [1, 32]),
        (ANY_SIZE, None, None, [1, 32]),
        (PIXELS, {"image": floats(6, 8, 16, 16), "y": RANDOM.integers(0, 40, (6, 16, 16))}, "accuracy", [1, 32]),
        (DECIDES, {"x": floats(50, 30)}, None, [1, 32]),
        (BINARY, {"x": floats(50, 60), "y": RANDOM.integers(0, 2, 50)}, "accuracy", [1, 32]),
        (SCALED, None, None, [1, 32]),
        (MASKED, {"x": floats(20, 40), "keep": RANDOM.integers(0, 2, (20, 40)).astype(bool)}, None, [1, 32]),
    ],
    ids=["labelled tokens", "int32 tokens", "two", "sizes", "free", "pixels", "choices", "binary", "scalar", "mask"],
)
def test_they_go_through(tmp_path, content, data, metric, batches):
    assert inspect_model(tmp_path / "a", content).error is None

    result, _ = compress(
        tmp_path / "b", content, [{"step": "half_precision"}], data=None if data is None else {"evaluate": data}
    )

    assert result.error is None, result.error
    report = result.report
    assert [latency.batch for latency in report.latency] == batches
    assert len(report.agreement) == len(result.model.signature.outputs)
    assert all(found.cosine > 0.999 or found.top1 > 0.9 for found in report.agreement)
    assert (report.quality.metric if report.quality else None) == metric
    assert report.size_ratio > 1.3


def test_what_is_in_no_table_is_kept_as_it_is(tmp_path):
    content = model("m (float[N, 8, 8] x) => (float[N] y) { a = Relu (x) y = Det(a) }")
    found = inspect_model(tmp_path / "a", content)
    assert found.error is None
    assert found.model.stats.ops == {"Relu": 1, "Det": 1}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (lambda: model("m (string[N] x) => (string[N] y) { y = Identity(x) }"), "'x' has an element type"),
        (lambda: model("m () => (float[2] y) { y = Constant<value_floats = [1.0, 2.0]>() }"), "no inputs"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, content, sentence):
    error = inspect_model(tmp_path / "a", content()).error
    assert error.code == "unsupported_model"
    assert sentence in error.message
    assert "export the model" in error.message or "no inputs" in error.message


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("m (float[2, 2147483648] x) => (float[2, 2147483648] y) { y = Relu(x) }", "the input 'x' of shape"),
        (
            "m (float[N, 4] x) => (float[N, 4] y, float[M] z) { y = Relu(x) z = ConstantOfShape(n) }",
            "a constant of shape",
        ),
    ],
)
def test_what_would_fill_the_memory_is_refused_at_once(tmp_path, text, sentence):
    weights = {"n": np.array([2**31])} if "ConstantOfShape" in text else {}
    error = inspect_model(tmp_path / "a", model(text, **weights)).error
    assert error.code == "invalid_model"
    assert sentence in error.message


def test_answers_that_are_nan_on_made_up_inputs_are_only_noted(tmp_path):
    logarithm = model("m (float[N, 40] x) => (float[N, 40] y) { z = Log(x) y = MatMul(z, w) }", w=floats(40, 40))
    inspected = inspect_model(tmp_path / "a", logarithm)
    assert inspected.error is None
    assert "NaN" in inspected.model.notes[0]

    result, _ = compress(tmp_path / "b", logarithm, [{"step": "half_precision"}])
    assert result.error is None
    assert any("could not be compared" in warning for warning in result.report.warnings)
