import onnx
import onnxruntime
import pytest
import torch

from tests.engine.quantization.nets import answers, inputs_of, net
from tests.engine.steps.nets import Examples, apply, context_for
from workers.engine.ops.base import op_of
from workers.engine.quantization.alignment import align_depthwise
from workers.engine.quantization.lowering import gate, lower
from workers.engine.quantization.nodes import module_of
from workers.engine.quantization.placement import place
from workers.engine.quantization.simulation import record
from workers.engine.writers.onnx import write_onnx

MOVED = ["Flatten", "MaxPool"]


def placed(kind, leave=()):
    graph = net(kind)
    lower(graph, record(graph, [inputs_of(kind, 4)]))
    layers = frozenset(layer.node for layer in graph.layers() if layer.name not in leave)
    return graph, place(graph.module.graph, layers)


def kinds(nodes):
    return sorted("Placeholder" if node.op == "placeholder" else op_of(node).name for node in nodes)


def test_ranges_are_taken_after_the_activations_that_are_folded_and_shared_by_what_only_moves_values():
    graph, placement = placed("uneven")
    assert kinds(placement.sources) == ["Placeholder", "Relu", "Relu", "Relu", "Relu"]
    moved = [value for value, point in placement.points.items() if point.source is not value]
    assert kinds(moved) == MOVED
    # the last layer answers in float, and nothing behind it is quantized
    assert not any(value in placement.points for value in graph.module.graph.output_node().all_input_nodes)


def test_additions_and_concatenations_join_where_all_they_read_is_in_integers():
    _, placement = placed("residual")
    assert {"Add", "Concat", "GlobalAveragePool"} <= {op_of(node).name for node in placement.integer}


def test_an_addition_stays_float_beside_a_float_layer():
    _, placement = placed("residual", leave=("one",))
    assert "Add" not in {op_of(node).name for node in placement.integer}


def test_a_value_from_a_float_op_is_quantized_only_for_the_integer_ones_that_read_it():
    graph, placement = placed("normalized")
    (norm,) = (point for point in placement.points.values() if len(point.value.users) == 2 and point.users)
    assert kinds(norm.users) == ["MatMul", "MatMul"]
    assert norm.users <= placement.integer
    assert graph.inputs[0].name


def integer_ops(graph, tmp_path):
    """The ops that ONNX Runtime makes of the file."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(write_onnx(graph), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]


def quantized(kind, **options):
    x = inputs_of(kind, 200)
    context = context_for("convolutional", train=None, calibrate=Examples(x), runtime="cpu-vnni")
    step = {"step": "static_quantization", "keep_float": 1, **options}
    return apply(net(kind), context, step), context


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("uneven", {"QLinearConv", "QGemm"}),
        ("residual", {"QLinearConv", "QLinearAdd", "QLinearConcat", "QLinearGlobalAveragePool"}),
        ("gated", {"QLinearConv", "QLinearMul", "QGemm"}),
        ("bounded", {"QLinearConv", "QGemm"}),
        ("perceptron", {"QGemm"}),
    ],
)
def test_the_runtime_computes_all_of_it_in_integers(kind, expected, tmp_path):
    graph, _ = quantized(kind)
    found = integer_ops(graph, tmp_path)
    assert expected <= set(found)
    assert not {"Conv", "FusedConv", "Gemm", "MatMul", "Relu", "Clip", "HardSigmoid", "HardSwish", "Add", "Mul"} & set(
        found
    )


def test_a_hard_swish_that_stays_float_is_one_op_as_before(tmp_path):
    graph, context = quantized("gated", layers={"exclude": ["stem", "gate"]})
    assert "HardSwish" in {op_of(n).name for n in graph.module.graph.nodes if n.op == "call_function"}
    assert context.untouched.keys() >= {"stem", "gate"}


def test_lowering_changes_no_answer():
    graph, x = net("gated"), inputs_of("gated")
    before = graph(x)[0].detach()
    lower(graph, record(graph, [x]))
    names = {op_of(n).name for n in graph.module.graph.nodes if n.op == "call_function"}
    assert not names & {"HardSwish", "ReduceMean"}
    assert torch.allclose(graph(x)[0].detach(), before, atol=1e-5)


def test_gates_are_other_readings_of_the_integers_before_them():
    graph, _ = quantized("gated")
    gates = [node for node in graph.module.graph.nodes if node.target is gate]
    assert len(gates) == 3
    for node in gates:
        grid = module_of(node.args[0])
        opens = -float(grid.scale) * float(grid.zero_point)
        assert opens == pytest.approx(-3, abs=1e-6)
        assert float(grid.scale) * (255 - float(grid.zero_point)) > 0.5


def test_ragged_depthwise_layers_become_a_multiple_of_16_wide_and_answer_as_before():
    graph, x = net("uneven"), inputs_of("uneven", 32)
    before = graph(x)[0].detach()
    assert align_depthwise(graph) == ["first"]
    assert {layer.name: tuple(layer.module.weight.shape[:2]) for layer in graph.layers()} == {
        "first": (16, 6), "depthwise": (16, 1), "second": (8, 16), "hidden": (16, 72), "head": (5, 16)
    }  # fmt: skip
    assert torch.allclose(graph(x)[0].detach(), before, atol=1e-5)
    ours, theirs = answers(graph, x)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert align_depthwise(graph) == []
    assert align_depthwise(net("residual")) == []
