import onnx
import pytest
import torch

from tests.engine.quantization.nets import answers, inputs_of, net, relative
from tests.engine.steps.nets import Examples, accuracy, apply, context_for, trained, weights, zeros
from workers.engine.errors import StepError
from workers.engine.quantization.dynamic import DynamicLinear, DynamicLSTM
from workers.engine.quantization.grid import grid_of
from workers.engine.writers.onnx import write_onnx

STEP = {"step": "dynamic_quantization"}


def context_of(kind, **fields):
    return context_for("convolutional", train=None, **{"calibrate": Examples(inputs_of(kind, 64)), **fields})


def ops(graph):
    return [node.op_type for node in onnx.load_from_string(write_onnx(graph)).graph.node]


@pytest.mark.parametrize("kind", ["perceptron", "normalized", "lstm", "gru"])
@pytest.mark.parametrize("runtime", ["cpu-avx2", "cpu-vnni", "cuda"])
def test_the_file_answers_as_the_graph_does_and_near_the_float_one(kind, runtime):
    x = inputs_of(kind, 40, seed=9)
    before, _ = answers(net(kind), x)
    graph = apply(net(kind), context_of(kind, runtime=runtime), STEP)
    ours, theirs = answers(graph, x)
    assert relative(theirs, ours) < 2e-3
    assert relative(theirs, before) < 0.02
    assert len(write_onnx(graph)) < len(write_onnx(net(kind)))


def test_large_products_run_in_integers_and_small_ones_in_float():
    graph = apply(net("perceptron"), context_of("perceptron"), STEP)
    kinds = {layer.name: type(layer.module) for layer in graph.layers()}
    assert issubclass(kinds["second"], DynamicLinear)
    assert not issubclass(kinds["first"], DynamicLinear)
    assert ops(graph).count("MatMulInteger") == 1
    assert ops(graph).count("DequantizeLinear") == 0


def test_an_lstm_runs_in_integers_and_a_gru_in_float_from_stored_ones():
    lstm = apply(net("lstm"), context_of("lstm"), STEP)
    assert any(isinstance(layer.module, DynamicLSTM) for layer in lstm.layers())
    assert "DynamicQuantizeLSTM" in ops(lstm)
    gru = ops(apply(net("gru"), context_of("gru"), STEP))
    assert gru.count("Cast") == 3
    assert "GRU" in gru
    assert "DynamicQuantizeLSTM" not in ops(apply(net("lstm"), context_of("lstm", runtime="cuda"), STEP))


def test_integer_kernels_get_seven_bits_without_vnni_and_stored_weights_all_eight():
    graph = apply(net("perceptron"), context_of("perceptron", runtime="cpu-avx2"), STEP)
    assert {layer.name: grid_of(layer.module, "weight").width for layer in graph.layers()} == {
        "first": 8,
        "second": 7,
        "head": 8,
    }


def test_every_gate_of_every_direction_has_its_own_scale():
    graph = apply(net("gru"), context_of("gru"), STEP)
    recurrent = next(layer for layer in graph.layers() if "weight_hh" in layer.weights)
    assert grid_of(recurrent.module, "weight_hh").scale.shape == (2, 60, 1)


def test_what_quantized_activations_would_ruin_computes_in_float():
    context = context_of("lstm")
    graph = apply(net("lstm"), context, {**STEP, "largest_error": 1e-6})
    assert "DynamicQuantizeLSTM" not in ops(graph)
    assert context.figures["layers_in_integers"] == 0
    assert any(note.startswith("1 layers compute in float: with quantized activations") for note in context.notes)


def test_all_layers_together_are_held_to_the_bound_and_those_that_hurt_most_for_what_they_gain_go_first():
    generous, strict = context_of("perceptron"), context_of("perceptron")
    apply(net("perceptron"), generous, {**STEP, "largest_error": 1})
    bound = 0.5 * generous.figures["error_all_in_integers"]
    graph = apply(net("perceptron"), strict, {**STEP, "largest_error": bound})
    assert strict.figures["error"] <= bound
    assert strict.figures["layers_in_integers"] < generous.figures["layers_in_integers"]
    assert len(write_onnx(graph)) < 0.35 * len(write_onnx(net("perceptron")))


def test_smoothing_helps_where_a_layer_norm_has_outliers(monkeypatch):
    monkeypatch.setattr("workers.engine.quantization.storage.INTEGER_PAYS", 1)
    plain, smoothed = context_of("normalized"), context_of("normalized")
    apply(net("normalized"), plain, {**STEP, "largest_error": 1})
    apply(net("normalized"), smoothed, {**STEP, "largest_error": 1, "smooth": True})
    assert smoothed.figures["error"] < 0.7 * plain.figures["error"]


def test_convolutions_are_never_touched():
    context = context_of("uneven")
    graph = apply(net("uneven"), context, STEP)
    assert {"first", "depthwise", "second"} == set(context.untouched)
    assert all("slower" in reason for reason in context.untouched.values())
    assert grid_of(next(iter(graph.layers())).module, "weight") is None


def test_a_model_of_convolutions_alone_is_refused():
    with pytest.raises(StepError, match="static_quantization is for those"):
        apply(net("uneven"), context_of("uneven"), {**STEP, "layers": {"include": ["first", "second"]}})


def test_what_static_quantization_did_is_left_and_the_rest_is_done():
    context = context_of("gru")
    graph = apply(net("gru"), context, {"step": "static_quantization", "keep_float": 1})
    again = context_of("gru")
    graph = apply(graph, again, STEP)
    assert again.untouched == {"head": "it is in 8 bits already"}
    ours, theirs = answers(graph, inputs_of("gru"))
    assert relative(theirs, ours) < 0.01


@pytest.mark.parametrize("kind", ["attention", "recurrent"])
def test_trained_nets_keep_their_accuracy(kind):
    graph = apply(trained(kind), context_for(kind), STEP)
    assert accuracy(graph, kind) >= accuracy(trained(kind), kind) - 0.01


@pytest.mark.parametrize("kind", ["perceptron", "lstm", "gru"])
def test_training_afterwards_keeps_the_grids(kind):
    x = inputs_of(kind, 256)
    context = context_for("convolutional", train=Examples(x), teacher=net(kind), original=net(kind))
    graph = apply(net(kind), context, STEP)
    with torch.no_grad():
        for parameter in graph.module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    before = weights(graph)
    graph = apply(graph, context, {"step": "distillation", "epochs": 2})
    after = weights(graph)
    assert any(not torch.equal(after[name], before[name]) for name in after)
    for layer in graph.layers():
        for name, weight in layer.weights.items():
            grid = grid_of(layer.module, name)
            assert grid is None or torch.equal(grid(weight), weight)
    ours, theirs = answers(graph, inputs_of(kind, 16, seed=9))
    assert relative(theirs, ours) < 2e-3


@pytest.mark.parametrize("kind", ["perceptron", "lstm", "gru"])
def test_zeros_of_pruning_survive(kind):
    prune = {"step": "magnitude_pruning", "sparsity": 0.6}
    pruned = zeros(apply(net(kind), context_of(kind), prune))
    after = zeros(apply(net(kind), context_of(kind), prune, STEP))
    assert all(bool((after[name] | ~zero).all()) for name, zero in pruned.items())


def test_the_same_job_gives_the_same_bytes():
    first, second = (write_onnx(apply(net("lstm"), context_of("lstm"), STEP)) for _ in range(2))
    assert first == second


def test_a_model_in_half_precision_is_refused_with_the_way_out():
    graph = net("perceptron")
    graph.module.half()
    with pytest.raises(StepError, match="export the model in float32"):
        apply(graph, context_of("perceptron"), STEP)
