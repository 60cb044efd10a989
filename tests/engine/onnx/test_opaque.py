"""Parts that the op table does not reach stay what they are, and steps that only store weights work on theirs."""

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from tests.engine.onnx.odd_models import ODD, floats, made
from tests.engine.onnx.running import assert_same, in_engine, in_runtime, model_of
from workers.engine.constraints import Mask
from workers.engine.errors import InvalidModelError, UnsupportedModelError
from workers.engine.graph import Graph
from workers.engine.ops.opaque import Opaque
from workers.engine.readers.onnx import read_onnx
from workers.engine.shapes import stats
from workers.engine.writers.onnx import write_onnx

WEIGHTS = {
    "speech": ["W", "R", "W_1", "R_1", "head"],
    "loop": ["first", "cell", "head"],
    "optimised": ["qkv", "up", "down"],
    "forest": ["w"],
    "sequences": ["w", "v"],
    "texts": ["w"],
    "integers": ["v"],
}


def opaque(graph: Graph) -> list[str]:
    return [str(module) for module in graph.module.modules() if isinstance(module, Opaque)]


@pytest.mark.parametrize("name", ODD)
def test_they_are_read_and_written_unharmed(name: str) -> None:
    model, feeds = ODD[name]()
    graph = assert_same(model, feeds)
    assert opaque(graph)
    assert "out of reach" in graph.notes[0]
    assert [layer.name for layer in graph.layers()] == WEIGHTS[name]
    again = assert_same(write_onnx(graph), feeds)
    assert [layer.name for layer in again.layers()] == WEIGHTS[name]
    assert opaque(again) == opaque(graph)


@pytest.mark.parametrize("name", ODD)
def test_another_batch_size_runs(name: str) -> None:
    model, feeds = ODD[name]()
    larger = {key: np.concatenate([value, value[:1]]) if value.ndim else value for key, value in feeds.items()}
    assert_same(model, larger)


def test_figures_name_what_is_inside() -> None:
    counted = stats(read_onnx(ODD["speech"]()[0])).ops
    assert counted == {"Equal": 1, "If": 1, "MatMul": 1, "Squeeze": 1, "Transpose": 1, "Unsqueeze": 1}


def test_both_branches_are_kept() -> None:
    model, feeds = ODD["speech"]()
    graph = read_onnx(model)
    slow = feeds | {"rate": np.array(8000)}
    np.testing.assert_allclose(in_engine(graph, slow)[0], in_runtime(model, slow)[0], atol=1e-6)
    assert np.abs(in_engine(graph, slow)[0] - in_engine(graph, feeds)[0]).max() > 1e-2


def test_weights_inside_of_branches_are_pruned_there() -> None:
    model, feeds = ODD["speech"]()
    graph = read_onnx(model)
    for layer in graph.layers():
        for name, weight in layer.weights.items():
            layer.constrain(name, Mask(weight.abs() > weight.abs().median()))
    written = write_onnx(graph)
    for ours, theirs in zip(in_engine(graph, feeds), in_runtime(written, feeds), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    stored = [numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(written).graph.initializer]
    assert [(array == 0).mean() >= 0.5 for array in stored if array.ndim == 3] == [True] * 4


def test_copies_run_too_and_nothing_inside_takes_a_gradient() -> None:
    model, feeds = ODD["optimised"]()
    graph = read_onnx(model).copy()
    for parameter in graph.module.parameters():
        parameter.requires_grad_(True)
    (answer,) = graph(torch.from_numpy(feeds["x"]))
    assert not answer.requires_grad
    np.testing.assert_allclose(answer.numpy(), in_runtime(model, feeds)[0], atol=1e-5)


def test_what_comes_after_an_opaque_part_is_trained() -> None:
    graph = read_onnx(ODD["sequences"]()[0])
    answer, _ = graph(torch.from_numpy(floats(3, 24)))
    answer.sum().backward()
    gradients = {layer.name: layer.module.weight.grad for layer in graph.layers()}
    assert gradients["w"] is None
    assert gradients["v"] is not None


def test_names_of_a_branch_may_hide_those_outside() -> None:
    """Both branches and the graph call a value `a`, and a branch stores a matrix that has the name of one outside."""
    model = made(
        """hiding (float[N, 4] x, bool which) => (float[N, 4] y) {
            a = Relu(x)
            b = MatMul(a, w)
        }""",
        w=floats(4, 4),
    )
    then = onnx.parser.parse_graph("then () => (float[N, 4] out) { c = MatMul(b, m) out = Add(c, a) }")
    then.initializer.append(numpy_helper.from_array(floats(4, 4), "m"))
    other = onnx.parser.parse_graph("other () => (float[N, 4] out) { c = MatMul(b, m) out = Mul(c, x) }")
    other.initializer.append(numpy_helper.from_array(floats(4, 4), "m"))
    model.graph.node.append(helper.make_node("If", ["which"], ["y"], then_branch=then, else_branch=other))
    for which in (True, False):
        graph = assert_same(model.SerializeToString(), {"x": floats(3, 4), "which": np.array(which)})
    assert [layer.name for layer in graph.layers()] == ["w", "m", "m_1"]


def test_a_branch_that_answers_with_a_stored_tensor() -> None:
    model = made("m (float[3, 8] x, bool which) => (float[3, 8] y) { a = Relu(x) }")
    then = onnx.parser.parse_graph("then () => (float[3, 8] stored) { }")
    then.initializer.append(numpy_helper.from_array(floats(3, 8), "stored"))
    other = onnx.parser.parse_graph("other () => (float[3, 8] out) { out = Neg(a) }")
    model.graph.node.append(helper.make_node("If", ["which"], ["y"], then_branch=then, else_branch=other))
    for which in (True, False):
        graph = assert_same(model.SerializeToString(), {"x": floats(3, 8), "which": np.array(which)})
    assert [layer.name for layer in graph.layers()] == ["stored"]


def test_a_condition_that_never_changes_leaves_one_branch() -> None:
    model = made("m (float[N, 4] x) => (float[N, 4] y) { a = Relu(x) no = Not(yes) }", yes=np.array(True))
    then = onnx.parser.parse_graph("then () => (float[N, 4] out) { a2 = MatMul(a, w) out = Exp(a2) }")
    then.initializer.append(numpy_helper.from_array(floats(4, 4), "w"))
    other = onnx.parser.parse_graph("other () => (float[N, 4] out) { a2 = MatMul(a, w) out = Neg(a2) }")
    other.initializer.append(numpy_helper.from_array(floats(4, 4), "w"))
    model.graph.node.append(helper.make_node("If", ["no"], ["y"], then_branch=then, else_branch=other))
    graph = assert_same(model.SerializeToString(), {"x": floats(3, 4)})
    assert not opaque(graph)
    assert graph.notes == ["1 × If has a condition that never changes: the branch that runs is kept"]
    assert stats(graph).ops == {"MatMul": 1, "Neg": 1, "Relu": 1}


def test_regions_that_need_each_other_become_one() -> None:
    """Two sequences, each of which is made of something taken from the other."""
    model = made(
        """tangled (float[4, 8] x) => (float[4, 8] y) {
            p = SplitToSequence<axis = 0>(x)
            q = SplitToSequence<axis = 1>(x)
            p0 = SequenceAt(p, zero)
            q0 = SequenceAt(q, zero)
            hot = Exp(p0)
            cold = Neg(q0)
            q1 = SequenceInsert(q, cold)
            p1 = SequenceInsert(p, hot)
            a = ConcatFromSequence<axis = 0>(p1)
            b = ConcatFromSequence<axis = 1>(q1)
            row = Gather(a, zero)
            column = Gather<axis = 1>(b, zero)
            tall = Unsqueeze(column, one)
            both = Add(row, tall)
            y = Relu(both)
        }""",
        zero=np.int64(0), one=np.array([1]),
    )  # fmt: skip
    assert_same(model.SerializeToString(), {"x": floats(4, 8)})


def test_old_opsets_are_taken_along() -> None:
    """`Squeeze` took its axes as an attribute before opset 13, which is the oldest that is written."""
    body = onnx.parser.parse_graph(
        "body (int64 i, bool on, float[1, N, 4] h) => (bool go, float[1, N, 4] next) "
        "{ go = Identity(on) flat = Squeeze<axes = [0]>(h) t = Tanh(flat) next = Unsqueeze<axes = [0]>(t) }"
    )
    node = helper.make_node("Loop", ["n", "yes", "x"], ["y"], body=body)
    shape = [1, "N", 4]
    model = model_of([node], {"x": shape}, {"y": shape}, {"n": np.int64(3), "yes": np.array(True)}, opset=11)
    assert_same(model, {"x": floats(1, 3, 4)})


def test_outputs_that_are_no_tensors_of_numbers() -> None:
    model = made("m (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) s = SequenceConstruct(x, y) }")
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None))
    model.graph.output.append(helper.make_value_info("s", kind))
    with pytest.raises(UnsupportedModelError, match="output 's' is not a tensor"):
        read_onnx(model.SerializeToString())


def test_bfloat16_goes_in_and_out() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=onnx.TensorProto.BFLOAT16),
        helper.make_node("If", ["which"], ["c"], **{
            f"{name}_branch": onnx.parser.parse_graph(f"{name} () => (bfloat16[N, 4] out) {{ out = Identity(h) }}")
            for name in ("then", "else")
        }),
        helper.make_node("Cast", ["c"], ["y"], to=onnx.TensorProto.FLOAT),
    ]  # fmt: skip
    inputs = {"x": ["N", 4], "which": []}
    kinds = {"which": onnx.TensorProto.BOOL}
    model = model_of(nodes, inputs, {"y": ["N", 4]}, kinds=kinds)
    assert opaque(assert_same(model, {"x": floats(3, 4), "which": np.array(True)})) == ["If"]


def test_what_does_not_run_alone_takes_the_whole_model_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernel that wants its neighbours is in every ONNX Runtime, so that one is made to want them here."""
    load, model, x = Opaque.session, ODD["loop"]()[0], {"x": floats(4, 12)}

    def wanting(part: Opaque) -> object:
        if len(part.part.nodes) == 1:
            raise InvalidModelError("ONNX Runtime cannot load Loop: it wants its neighbours")
        return load(part)

    monkeypatch.setattr(Opaque, "session", wanting)
    graph = assert_same(model, x)
    assert opaque(graph) == ["2 × MatMul, Loop"]
    assert [layer.name for layer in graph.layers()] == ["first", "cell", "head"]
    assert "runs only with all the rest" in graph.notes[0]
