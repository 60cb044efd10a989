import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from tests.engine.onnx.odd_models import ODD
from tests.engine.onnx.running import assert_same, in_engine, in_runtime
from tests.engine.pipeline.models import compress, convolutional, images
from tests.engine.quantization.nets import answers, inputs_of, net, relative
from tests.engine.steps.nets import (
    Examples,
    accuracy,
    apply,
    context_for,
    data_of,
    exported,
    trained,
    weights,
    zeros,
)
from workers.engine.constraints import constraints_of
from workers.engine.errors import StepError
from workers.engine.quantization.block_grid import BlockGrid
from workers.engine.quantization.block_products import BlockLinear
from workers.engine.readers.onnx import read_onnx
from workers.engine.writers.onnx import write_onnx

STEP = {"step": "weight_only_quantization"}
KINDS = ["uneven", "residual", "perceptron", "tied", "tokens", "lstm", "gru"]


def context_of(kind, **fields):
    return context_for("convolutional", train=None, **{"calibrate": Examples(inputs_of(kind, 64)), **fields})


def grids(graph):
    """By layer and parameter."""
    return {
        f"{layer.name}.{name}": constraint
        for layer in graph.layers()
        for name in layer.weights
        for constraint in layer.constraints(name)
        if isinstance(constraint, BlockGrid)
    }


def ops(graph):
    return [node.op_type for node in onnx.load_from_string(write_onnx(graph)).graph.node]


def stored_bytes(graph):
    return sum(len(tensor.raw_data) for tensor in onnx.load_from_string(write_onnx(graph)).graph.initializer)


@pytest.mark.parametrize("group", [None, 16])
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_the_file_answers_as_the_graph_does_and_reads_as_the_same(kind, bits, group):
    x = inputs_of(kind, 40, seed=9)
    graph = apply(net(kind), context_of(kind), {**STEP, "bits": bits, "group_size": group, "symmetric": bits == 3})
    ours, theirs = answers(graph, x)
    assert relative(theirs, ours) < 1e-5
    (again,) = in_engine(read_onnx(write_onnx(graph)), {graph.inputs[0].name: x.numpy()})
    assert relative(torch.from_numpy(again), ours) < 1e-5
    assert {grid.width for grid in grids(graph).values()} == {bits}


@pytest.mark.parametrize("method", ["rtn", "hqq", "gptq"])
@pytest.mark.parametrize("kind", ["convolutional", "attention", "recurrent"])
def test_trained_nets_keep_their_accuracy_in_four_bits(kind, method):
    context = context_for(kind)
    graph = apply(trained(kind), context, {**STEP, "method": method})
    assert accuracy(graph, kind) >= accuracy(trained(kind), kind) - 0.02
    assert context.figures["error"] < 0.2


@pytest.mark.parametrize("kind", ["convolutional", "attention", "recurrent"])
def test_gptq_moves_the_answers_less_than_rounding(kind):
    x = data_of(kind, "test").inputs
    with torch.no_grad():
        (wanted,) = trained(kind)(x)
        errors = [
            relative(apply(trained(kind), context_for(kind), {**STEP, "bits": 3, "method": method})(x)[0], wanted)
            for method in ("rtn", "gptq")
        ]
    assert errors[1] < 0.8 * errors[0], errors


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("group", [None, 16, 32])
def test_a_file_holds_the_bits_that_the_report_names(bits, group):
    before, graph = net("lstm"), net("lstm")
    chosen = {"layers": {"include": ["encoder*"]}}
    graph = apply(graph, context_of("lstm"), {**STEP, "bits": bits, "group_size": group, **chosen})
    named = {name: grid.bits for name, grid in grids(graph).items()}
    sizes = {name: weights(graph)[name].numel() for name in named}
    assert len(named) == 2
    saved = sum(sizes[name] * (32 - named[name]) / 8 for name in named)
    shapes_and_limits = 400  # what the nodes that unfold them count by
    assert stored_bytes(before) - stored_bytes(graph) == pytest.approx(saved, abs=shapes_and_limits)


def test_the_report_names_them(tmp_path):
    options = {**STEP, "bits": 2, "group_size": 16}
    result, _ = compress(tmp_path, convolutional(), [options], data={"evaluate": images(200, 2)})
    assert result.error is None, result.error
    bits = [layer.bits for layer in result.report.layers]
    assert bits[0] == 32  # a kernel of 144 weights is left alone
    assert all(3 < found < 4.5 for found in bits[1:])
    assert "too few" in result.report.layers[0].note


@pytest.mark.parametrize("method", ["rtn", "hqq", "gptq"])
@pytest.mark.parametrize("kind", ["perceptron", "lstm", "uneven"])
def test_zeros_of_pruning_survive(kind, method):
    prune = {"step": "magnitude_pruning", "sparsity": 0.6}
    pruned = zeros(apply(net(kind), context_of(kind), prune))
    for bits in (4, 2):
        after = zeros(apply(net(kind), context_of(kind), prune, {**STEP, "bits": bits, "method": method}))
        assert all(bool((after[name] | ~zero).all()) for name, zero in pruned.items())


@pytest.mark.parametrize("kind", ["perceptron", "gru"])
def test_training_afterwards_keeps_the_grids(kind):
    x = inputs_of(kind, 256)
    context = context_for("convolutional", train=Examples(x), teacher=net(kind), original=net(kind))
    graph = apply(net(kind), context, {**STEP, "bits": 2, "method": "rtn"})
    with torch.no_grad():
        for parameter in graph.module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    before, were = weights(graph), {name: grid.scale.clone() for name, grid in grids(graph).items()}
    graph = apply(graph, context, {"step": "distillation", "epochs": 2})
    after = weights(graph)
    assert any(not torch.equal(after[name], before[name]) for name in after)
    for name, grid in grids(graph).items():
        assert torch.equal(grid.scale, were[name])
        assert torch.equal(grid(after[name]), after[name])
    ours, theirs = answers(graph, inputs_of(kind, 16, seed=9))
    assert relative(theirs, ours) < 1e-5


class Wide(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(24, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 4))


def wide():
    torch.manual_seed(0)
    x = torch.randn(64, 24)
    return exported(Wide(), x[:2]), x


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [8, 4])
def test_large_matrices_are_multiplied_as_they_are_stored(bits, symmetric):
    graph, x = wide()
    context = context_of("perceptron", calibrate=Examples(x))
    graph = apply(graph, context, {**STEP, "bits": bits, "symmetric": symmetric, "group_size": 128})
    assert ops(graph).count("MatMulNBits") == 1
    assert [isinstance(layer.module, BlockLinear) for layer in graph.layers()] == [False, True, False]
    ours, theirs = answers(graph, x)
    assert relative(theirs, ours) < 1e-5, "the graph rounds what is multiplied as the kernel does"
    assert any("multiplied as they are stored" in note for note in context.notes)
    copied = graph.copy()
    assert torch.equal(copied(x)[0], graph(x)[0])


@pytest.mark.parametrize(("options", "runtime"), [({"products": "float"}, "cpu-vnni"), ({}, "cuda")])
def test_nothing_is_rounded_where_that_is_not_wanted_or_not_faster(options, runtime):
    graph, x = wide()
    context = context_of("perceptron", calibrate=Examples(x), runtime=runtime)
    graph = apply(graph, context, {**STEP, **options})
    assert "MatMulNBits" not in ops(graph)
    ours, theirs = answers(graph, x)
    assert relative(theirs, ours) < 1e-6


def test_a_matrix_that_two_layers_share_is_rounded_and_stored_once():
    graph = apply(net("tied"), context_of("tied"), STEP)
    shared = [layer for layer in graph.layers() if layer.name.startswith("shared")]
    assert len(shared) == 2
    first, second = (layer.weights["weight"] for layer in shared)
    assert torch.equal(first, second)
    packed = [
        tensor
        for tensor in onnx.load_from_string(write_onnx(graph)).graph.initializer
        if "shared" in tensor.name and numpy_helper.to_array(tensor).size == 24 * 24 // 2
    ]
    assert len(packed) == 1


class Words(nn.Module):
    """The table of words is the matrix of the head too."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(1200, 128)
        self.head = nn.Linear(128, 1200, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x):
        return self.head(self.table(x))


def test_a_table_that_is_looked_up_and_multiplied_lies_in_the_file_once():
    torch.manual_seed(0)
    x = torch.randint(1200, (40, 5))
    graph = apply(exported(Words(), x[:2]), context_of("tokens", calibrate=Examples(x)), {**STEP, "group_size": 128})
    assert ops(graph).count("MatMulNBits") == 1
    assert stored_bytes(graph) < 1.1 * 1200 * 128 / 2
    ours, theirs = answers(graph, x)
    # what is multiplied is on a grid itself, so that much of it lies halfway between two levels of the kernel's
    assert relative(theirs, ours) < 5e-3


def test_layers_that_hurt_are_stored_in_eight_bits():
    context = context_of("perceptron")
    graph = apply(net("perceptron"), context, {**STEP, "bits": 2, "largest_error": 0.3})
    widths = {name: grid.width for name, grid in grids(graph).items()}
    assert set(widths.values()) == {2, 8}
    assert context.figures["error"] <= 0.3
    assert any("hurt most" in note for note in context.notes)
    ours, theirs = answers(graph, inputs_of("perceptron"))
    assert relative(theirs, ours) < 1e-5


def test_without_inputs_the_bound_is_said_to_have_had_no_effect():
    context = context_of("perceptron", calibrate=None)
    graph = apply(net("perceptron"), context, {**STEP, "largest_error": 0.1})
    assert context.warnings == ["largest_error had no effect: there are no inputs to measure errors on"]
    assert "few large errors" in context.notes[0]
    assert grids(graph)
    with pytest.raises(StepError, match="gptq needs inputs"):
        apply(net("perceptron"), context, {**STEP, "method": "gptq"})


@pytest.mark.parametrize("later", ["dynamic_quantization", "static_quantization", "half_precision", STEP["step"]])
def test_later_steps_say_that_a_layer_is_in_few_bits_already(later):
    context = context_of("perceptron")
    graph = apply(net("perceptron"), context, {**STEP, "layers": {"include": ["second"]}})
    again = context_of("perceptron")
    graph = apply(graph, again, {"step": later})
    assert "4.4 bits already" in again.untouched["second"]
    assert set(again.untouched) & {"first", "head"} == set()
    ours, theirs = answers(graph, inputs_of("perceptron"))
    assert relative(theirs, ours) < 2e-2


@pytest.mark.parametrize("earlier", ["weight_clustering", "ternarization"])
def test_what_has_few_values_keeps_them(earlier):
    first = {"step": earlier, "layers": {"include": ["second"]}, "epochs": 1}
    context = context_for("convolutional", train=Examples(inputs_of("perceptron", 80)), teacher=net("perceptron"))
    graph = apply(net("perceptron"), context, first)
    before = weights(graph)["second.weight"]
    graph = apply(graph, context, STEP)
    assert torch.equal(weights(graph)["second.weight"], before)
    assert "bits already" in context.untouched["second"]
    assert set(grids(graph)) == {"first.weight", "head.weight"}


def test_where_nothing_is_left_to_do_all_reasons_are_named():
    graph = apply(net("perceptron"), context_of("perceptron"), STEP)
    with pytest.raises(StepError, match=r"no weight can be stored in 4 bits .*second: it is stored in 4\.4 bits"):
        apply(graph, context_of("perceptron"), STEP)
    graph = net("perceptron")
    graph.module.half()
    with pytest.raises(StepError, match="export the model in float32"):
        apply(graph, context_of("perceptron"), STEP)


@pytest.mark.parametrize("name", ["speech", "loop", "optimised", "sequences"])
def test_weights_of_parts_that_are_out_of_reach(name):
    content, feeds = ODD[name]()
    graph = read_onnx(content)
    plain = len(write_onnx(graph))
    graph = apply(graph, context_of("perceptron", calibrate=None), STEP)
    file = write_onnx(graph)
    assert len(file) < plain
    for ours, theirs in zip(in_engine(graph, feeds), in_runtime(file, feeds), strict=True):
        assert relative(torch.from_numpy(theirs).double(), torch.from_numpy(ours).double()) < 1e-3
    assert_same(file, feeds)


def test_a_model_that_takes_four_examples_at_a_time():
    context = context_of("grouped", calibrate=Examples(inputs_of("grouped", 40)))
    graph = apply(net("grouped", 4), context, {**STEP, "method": "gptq"})
    ours, theirs = answers(graph, inputs_of("grouped", 4))
    assert relative(theirs, ours) < 1e-5


def test_the_same_job_gives_the_same_bytes():
    first, second = (write_onnx(apply(net("lstm"), context_of("lstm"), STEP)) for _ in range(2))
    assert first == second


def test_constraints_are_the_last_of_their_chain():
    graph = apply(net("perceptron"), context_of("perceptron"), {"step": "magnitude_pruning"}, STEP)
    (second,) = (layer for layer in graph.layers() if layer.name == "second")
    assert [type(found).__name__ for found in constraints_of(second.module, "weight")] == ["Mask", "BlockGrid"]
