import numpy as np
import pytest
import torch

from modelpress.models import Signature
from tests.engine.quantization.nets import answers, inputs_of, net, relative
from tests.engine.steps.nets import Examples, accuracy, apply, context_for, data_of, score, trained, weights, zeros
from workers.engine.data import SyntheticBatches
from workers.engine.errors import StepError
from workers.engine.quantization.equalization import equalize
from workers.engine.quantization.grid import BiasGrid, grid_of
from workers.engine.writers.onnx import write_onnx

STEP = {"step": "static_quantization"}
METHODS = ["auto", "min_max", "percentile", "entropy", "mse"]


def context_of(kind, **fields):
    return context_for("convolutional", train=None, **{"calibrate": Examples(inputs_of(kind, 200)), **fields})


@pytest.mark.parametrize("kind", ["uneven", "residual", "bounded", "gated", "perceptron", "normalized"])
@pytest.mark.parametrize("runtime", ["cpu-avx2", "cpu-vnni"])
def test_the_file_answers_as_the_graph_does(kind, runtime):
    context = context_of(kind, runtime=runtime)
    graph = apply(net(kind), context, {**STEP, "keep_float": 1})
    ours, theirs = answers(graph, inputs_of(kind, 256, seed=9))
    # a rounding tie may fall the other way in one place and move a few outputs by a step
    off = (ours - theirs).abs() > 1e-3 * ours.abs().max()
    assert off.float().mean() < 0.02
    assert relative(theirs, ours) < 0.01
    assert context.figures["layers_quantized"] >= 2


@pytest.mark.parametrize("kind", ["uneven", "residual", "gated", "perceptron", "tied"])
def test_outputs_stay_near_the_float_ones(kind):
    x = inputs_of(kind, 256, seed=9)
    before, _ = answers(net(kind), x)
    _, after = answers(apply(net(kind), context_of(kind, runtime="cpu-vnni"), STEP), x)
    assert relative(after, before) < 0.06


def test_a_trained_net_keeps_its_accuracy_and_is_a_quarter_of_the_size():
    context = context_for("convolutional", train="unlabelled")
    graph = apply(trained("convolutional"), context, STEP)
    assert accuracy(graph, "convolutional") >= accuracy(trained("convolutional"), "convolutional") - 0.01
    stored = sum(weight.numel() for weight in weights(graph).values())
    assert len(write_onnx(graph)) - len(write_onnx(trained("convolutional"))) < -2.5 * stored + 6000
    assert any("batch norms are folded" in note for note in context.notes)
    assert any("biases corrected" in note or "did not help" in note for note in context.notes)


@pytest.mark.parametrize("method", METHODS)
def test_every_way_to_find_ranges_works(method):
    context = context_for("convolutional", train="unlabelled")
    graph = apply(trained("convolutional"), context, {**STEP, "ranges": method})
    assert accuracy(graph, "convolutional") >= 0.9 * accuracy(trained("convolutional"), "convolutional")
    assert any(method in note or method == "auto" for note in context.notes if note.startswith("ranges of"))


def test_every_layer_has_int8_weights_and_int32_biases_with_the_scale_of_the_accumulators():
    graph = apply(net("uneven"), context_of("uneven"), {**STEP, "keep_float": 1})
    for layer in graph.layers():
        grid = grid_of(layer.module, "weight")
        assert grid.width == 7
        (bias,) = layer.constraints("bias")
        assert isinstance(bias, BiasGrid)
        leaf = graph.module.get_submodule(str(layer.node.args[0].target))
        assert torch.allclose(bias.scale, leaf.scale * grid.scale.flatten())


@pytest.mark.parametrize(("runtime", "width"), [("cpu-avx2", 7), ("cpu-vnni", 8), ("cpu-arm", 8), ("cuda", 8)])
def test_the_runtime_decides_how_many_bits_the_weights_use(runtime, width):
    graph = apply(net("perceptron"), context_of("perceptron", runtime=runtime), {**STEP, "keep_float": 1})
    assert {grid_of(layer.module, "weight").width for layer in graph.layers()} == {width}
    asked = apply(net("perceptron"), context_of("perceptron"), {**STEP, "keep_float": 1, "weight_bits": 7})
    assert {grid_of(layer.module, "weight").width for layer in asked.layers()} == {7}


def test_the_same_job_gives_the_same_bytes():
    first, second = (write_onnx(apply(trained("convolutional"), context_for("convolutional"), STEP)) for _ in range(2))
    assert first == second


def test_zeros_of_pruning_are_kept_in_the_file():
    steps = [{"step": "magnitude_pruning", "sparsity": 0.7}, STEP]
    pruned = zeros(apply(trained("convolutional"), context_for("convolutional"), steps[0]))
    context = context_for("convolutional")
    graph = apply(trained("convolutional"), context, *steps)
    assert any("2 batch norms are folded" in note for note in context.notes)
    after = zeros(graph)
    assert all(bool((after[name] | ~zero).all()) for name, zero in pruned.items())


def test_training_afterwards_keeps_the_grids_and_helps():
    context = context_for("convolutional", runtime="cpu-avx2")
    graph = apply(trained("convolutional"), context, {**STEP, "keep_float": 1})
    torch.manual_seed(0)
    with torch.no_grad():
        for layer in graph.layers():
            layer.module.parametrizations.weight.original.add_(0.2 * torch.randn_like(layer.module.weight))
    damaged = accuracy(graph, "convolutional")
    before = weights(graph)
    graph = apply(graph, context, {"step": "distillation", "epochs": 4, "learning_rate": 2e-3})
    assert accuracy(graph, "convolutional") >= damaged
    for layer in graph.layers():
        grid, weight = grid_of(layer.module, "weight"), layer.module.weight
        assert torch.equal(grid(weight), weight)
        assert not torch.equal(weight, before[f"{layer.name}.weight"])
    x = data_of("convolutional", "test").inputs
    ours, theirs = answers(graph, x)
    assert relative(theirs, ours) < 0.02


def test_layers_that_hurt_compute_in_float_and_are_named():
    generous, strict = context_of("uneven"), context_of("uneven")
    apply(net("uneven"), generous, {**STEP, "keep_float": 1})
    bound = 0.5 * generous.figures["error_all_quantized"]
    graph = apply(net("uneven"), strict, {**STEP, "keep_float": bound, "bias_correction": False})
    assert strict.figures["error"] <= bound
    assert strict.figures["layers_quantized"] < generous.figures["layers_quantized"]
    assert strict.untouched
    assert all("would move the outputs by" in reason for reason in strict.untouched.values())
    x = inputs_of("uneven", 64)
    assert relative(*answers(graph, x)) < 0.01


def test_where_nothing_can_be_quantized_well_enough_it_says_so():
    with pytest.raises(StepError, match="raise keep_float"):
        apply(net("uneven"), context_of("uneven"), {**STEP, "keep_float": 1e-9})


def test_layers_that_are_not_selected_stay_as_they_are():
    context = context_of("uneven")
    graph = apply(net("uneven"), context, {**STEP, "layers": {"exclude": ["first", "h*"]}})
    assert context.untouched == {"first": "not selected", "hidden": "not selected", "head": "not selected"}
    assert [layer.name for layer in graph.layers() if grid_of(layer.module, "weight")] == ["depthwise", "second"]


def test_recurrent_layers_stay_float_and_the_way_to_go_is_named():
    context = context_of("gru")
    apply(net("gru"), context, {**STEP, "keep_float": 1})
    (reason,) = [reason for name, reason in context.untouched.items() if name != "head"]
    assert "dynamic_quantization" in reason


def test_an_embedding_is_stored_in_eight_bits_and_the_layers_behind_it_compute_in_integers():
    context = context_of("tokens")
    graph = apply(net("tokens"), context, STEP)
    ours, theirs = answers(graph, inputs_of("tokens", seed=9))
    assert relative(theirs, ours) < 0.01
    assert context.figures["layers_quantized"] == 2
    assert grid_of(next(iter(graph.layers())).module, "weight").scale.shape == (50, 1)
    assert any("1 layers are stored in 8 bits" in note for note in context.notes)


def test_a_convolution_of_very_few_channels_computes_in_float():
    context = context_of("narrow")
    graph = apply(net("narrow"), context, STEP)
    assert list(context.untouched) == ["0"]
    assert "too few channels" in context.untouched["0"]
    grids = [grid_of(layer.module, "weight") for layer in graph.layers()]
    assert [grid.folded for grid in grids] == [True, False, False]
    ours, theirs = answers(graph, inputs_of("narrow", seed=9))
    assert relative(theirs, ours) < 0.01


def test_made_up_data_is_said():
    graph = net("perceptron")
    made_up = SyntheticBatches(Signature(inputs=graph.inputs, outputs=graph.outputs), 0, 4)
    context = context_of("perceptron", calibrate=made_up)
    apply(graph, context, STEP)
    assert any("made-up inputs" in note for note in context.notes)


def test_without_any_data_it_is_refused():
    with pytest.raises(StepError, match="calibration data"):
        apply(net("perceptron"), context_of("perceptron", calibrate=None), STEP)


def test_data_that_is_not_finite_is_refused_with_the_layer():
    x = inputs_of("perceptron", 100)
    x[7, 3] = float("inf")
    with pytest.raises(StepError, match="not finite"):
        apply(net("perceptron"), context_of("perceptron", calibrate=Examples(x)), STEP)


def test_a_model_that_is_bound_to_a_batch_size_works():
    graph = net("uneven", batch=4)
    graph = apply(graph, context_of("uneven"), STEP)
    ours, theirs = answers(graph, inputs_of("uneven", 4))
    assert relative(theirs, ours) < 0.01


def test_a_batch_of_one_is_calibrated_on_many_examples_and_its_figures_are_those_of_the_same_net_with_a_free_batch():
    free, fixed, habit = context_of("grouped"), context_of("grouped"), context_of("perceptron")
    options = {**STEP, "adaptive_rounding": True, "smooth": 0.5}
    apply(net("grouped"), free, options)
    apply(net("grouped", batch=1), fixed, options)
    assert fixed.figures == pytest.approx(free.figures, rel=0.2)
    assert any(note.startswith("the roundings of 2 layers are learned on 200 examples") for note in fixed.notes)
    apply(net("perceptron", batch=1), habit, STEP)
    assert any("from 200 examples" in note for note in habit.notes)


def test_fewer_examples_than_the_model_takes_at_a_time_are_refused_with_the_number_it_needs():
    few = context_of("uneven", calibrate=Examples(inputs_of("uneven", 3)))
    with pytest.raises(StepError, match="the calibration data has 3: send 4 or more"):
        apply(net("uneven", batch=4), few, STEP)


def test_what_the_preparation_does_to_the_outputs_counts(monkeypatch):
    plain, damaged = context_of("perceptron"), context_of("perceptron")
    apply(net("perceptron"), plain, {**STEP, "keep_float": 1})

    def halve(graph, values):
        outcome = equalize(graph, values)
        with torch.no_grad():
            list(graph.layers())[-1].module.weight.mul_(0.5)
        return outcome

    monkeypatch.setattr("workers.engine.steps.static_quantization.equalize", halve)
    apply(net("perceptron"), damaged, {**STEP, "keep_float": 1})
    assert plain.figures["error_all_quantized"] < 0.1
    assert damaged.figures["error_all_quantized"] > 0.3


def test_learned_rounding_is_nearer_than_rounding_to_nearest():
    plain, learned = context_of("perceptron"), context_of("perceptron")
    options = {**STEP, "keep_float": 1, "bias_correction": False, "equalize": False}
    apply(net("perceptron"), plain, options)
    apply(net("perceptron"), learned, {**options, "adaptive_rounding": True})
    assert learned.figures["error"] < plain.figures["error"]
    assert any("roundings of 3 layers are learned" in note for note in learned.notes)


def test_smoothing_helps_where_a_layer_norm_has_outliers():
    plain, smoothed = context_of("normalized"), context_of("normalized")
    apply(net("normalized"), plain, {**STEP, "keep_float": 1, "smooth": None})
    apply(net("normalized"), smoothed, {**STEP, "keep_float": 1})
    assert smoothed.figures["error"] < 0.7 * plain.figures["error"]
    assert any(note.startswith("SmoothQuant in front of 1 groups") for note in smoothed.notes)
    fixed = context_of("perceptron")
    apply(net("perceptron"), fixed, {**STEP, "keep_float": 1, "smooth": 0.5})
    assert any("smooth had no effect" in warning for warning in fixed.warnings)


@pytest.mark.parametrize("kind", ["attention", "recurrent"])
def test_other_trained_nets_keep_their_accuracy(kind):
    context = context_for(kind, train="unlabelled")
    before = score(write_onnx(trained(kind)), kind)
    assert accuracy(apply(trained(kind), context, STEP), kind) >= before - 0.02
    assert np.isfinite(context.figures["error"])


def test_shared_weights_are_not_rounded_for_one_layer_alone():
    context = context_of("tied")
    graph = apply(net("tied"), context, {**STEP, "keep_float": 1, "adaptive_rounding": True})
    assert any("roundings of 2 layers are learned" in note for note in context.notes)
    shared = [layer.module.weight for layer in graph.layers()][1:3]
    assert torch.equal(*shared)


def test_seven_bits_are_kept_to_by_layers_that_are_only_stored():
    graph = apply(net("tokens"), context_of("tokens", runtime="cpu-vnni"), {**STEP, "weight_bits": 7})
    assert [grid_of(layer.module, "weight").width for layer in graph.layers()] == [7, 7, 7]
    graph = apply(net("tokens"), context_of("tokens", runtime="cpu-avx2"), STEP)
    assert [grid_of(layer.module, "weight").width for layer in graph.layers()] == [8, 7, 7]


@pytest.mark.parametrize("earlier", ["weight_clustering", "ternarization"])
def test_a_layer_that_earlier_steps_left_a_few_values_has_no_more_of_them_afterwards(earlier):
    steps = {
        "weight_clustering": {"step": "weight_clustering", "values": 8, "train": False},
        "ternarization": {"step": "ternarization", "epochs": 1},
    }
    context = context_for("convolutional", train="unlabelled")
    graph = apply(trained("convolutional"), context, steps[earlier])
    before = {name: weight.unique() for name, weight in weights(graph).items()}
    few = {name for name, values in before.items() if len(values) <= 256}
    assert few
    graph = apply(graph, context, {**STEP, "keep_float": 1, "adaptive_rounding": True})
    after = {name: weight for name, weight in weights(graph).items() if name in few}
    assert after.keys() == few
    assert all(len(weight.unique()) <= len(before[name]) for name, weight in after.items())
    x = data_of("convolutional", "test").inputs
    assert relative(*answers(graph, x)) < 0.02
