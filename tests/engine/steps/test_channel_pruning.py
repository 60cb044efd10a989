from typing import get_args

import pytest
import torch
from pydantic import ValidationError

from modelpress.steps import Data
from modelpress.steps.channel_pruning import ChannelPruning, Importance
from tests.engine.pipeline.models import compress, convolutional, images
from tests.engine.steps.nets import KINDS, Examples, accuracy, apply, context_for, data_of, outputs, trained, zeros
from workers.engine.errors import StepError
from workers.engine.shapes import stats
from workers.engine.structure.groups import find_groups
from workers.engine.writers.onnx import write_onnx

IMPORTANCES = [name for name in get_args(Importance) if name != "auto"]


def prune(kind, context=None, **options):
    return apply(trained(kind), context or context_for(kind), {"step": "channel_pruning", **options})


def widths(graph):
    """Units by group, of those that may be pruned."""
    return {group.name: group.units for group in find_groups(graph) if not group.frozen}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("importance", IMPORTANCES)
def test_half_of_all_units_are_gone_and_the_file_still_runs_at_any_batch_size(kind, importance):
    if importance == "batch_norm_scale" and kind != "convolutional":
        with pytest.raises(StepError, match="choose another importance"):
            prune(kind, importance=importance)
        return
    before, graph = widths(trained(kind)), prune(kind, importance=importance)
    assert widths(graph) == {name: units // 2 for name, units in before.items()}
    for examples in (1, 3):
        x = data_of(kind, "test").inputs[:examples]
        answers = outputs(write_onnx(graph), x)
        assert len(answers) == examples
        torch.testing.assert_close(torch.from_numpy(answers), graph(x)[0].detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_importances_choose_differently(kind):
    kept = {
        tuple(layer.module.state_dict()[name].sum().item() for layer in graph.layers() for name in layer.weights)
        for graph in (prune(kind, importance=name) for name in ("l2", "random", "taylor"))
    }
    assert len(kept) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_units_that_do_nothing_go_first(kind):
    graph = trained(kind)
    group = next(group for group in find_groups(graph) if not group.frozen)
    dead = torch.arange(0, group.units, 2)
    for slot in group.slots:
        if slot.role != "scales":
            tensor = dict(graph.module.get_submodule(slot.owner).named_parameters())[slot.name]
            tensor.data.index_fill_(slot.axis, slot.positions[dead].flatten(), 0)
    x = data_of(kind, "test").inputs[:4]
    for importance in ("l1", "l2", "taylor"):
        step = {"step": "channel_pruning", "importance": importance, "layers": {"include": list(group.layers)}}
        pruned = apply(graph.copy(), context_for(kind), step)
        torch.testing.assert_close(pruned(x)[0], graph(x)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_distillation_brings_back_what_pruning_took(kind):
    context = context_for(kind, train="unlabelled")
    graph = prune(kind, context, refit=False)
    graph = apply(graph, context, {"step": "distillation", "epochs": 8, "learning_rate": 3e-3})
    assert accuracy(graph, kind) >= accuracy(trained(kind), kind) - 0.03


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("importance", ["random", "taylor"])
def test_fitting_the_layers_behind_brings_most_of_it_back_without_training(kind, importance):
    context = context_for(kind, train="unlabelled")
    options = {"importance": importance, "ratio": 0.4, "round_to": 1}
    rough = accuracy(prune(kind, context, refit=False, **options), kind)
    fitted = accuracy(prune(kind, context, **options), kind)
    assert context.figures["error"] < context.figures["error_before_refit"]
    assert fitted >= rough
    assert fitted >= accuracy(trained(kind), kind) - 0.06
    assert "fitted by least squares" in context.notes[-1]


def test_fitting_that_does_not_help_is_left_out():
    context = context_for("convolutional", train=Examples(torch.randn(2, 1, 8, 8)))
    plain = prune("convolutional", context_for("convolutional"), importance="l2", refit=False)
    graph = prune("convolutional", context, importance="l2")
    told = context.notes[-1]
    same = all(torch.equal(a, b) for a, b in zip(graph.module.parameters(), plain.module.parameters(), strict=True))
    assert same == ("did not help" in told)


@pytest.mark.parametrize("target", ["macs_left", "parameters_left"])
@pytest.mark.parametrize("scope", ["uniform", "global"])
def test_a_target_of_cost_is_reached_with_no_more_than_needed(target, scope):
    before = stats(trained("convolutional"))
    after = stats(prune("convolutional", scope=scope, round_to=1, **{target: 0.4}))
    name = target.removesuffix("_left")
    assert 0.3 < getattr(after, name) / getattr(before, name) <= 0.4


def test_a_target_out_of_reach_is_refused_with_what_is_left_at_least():
    with pytest.raises(StepError, match=r"macs_left 0\.01 is out of reach: .* is left"):
        prune("convolutional", macs_left=0.01, kinds=["channels"])


@pytest.mark.parametrize(("round_to", "warned"), [(1, False), (8, True)])
def test_coarse_widths_that_take_much_more_than_asked_for_are_warned_of(round_to, warned):
    context = context_for("convolutional")
    step = {"step": "channel_pruning", "kinds": ["channels"], "macs_left": 0.95, "round_to": round_to}
    apply(trained("convolutional"), context, step)
    assert any(warning.startswith("macs_left 0.95 was asked for, and 0.") for warning in context.warnings) == warned


def test_one_threshold_for_the_model_takes_the_least_important_and_spares_every_layer():
    graph = trained("convolutional")
    with torch.no_grad():
        for name in ("stem", "conv2"):
            next(layer for layer in graph.layers() if layer.name == name).module.weight.mul_(100)
    step = {"step": "channel_pruning", "scope": "global", "importance": "random", "ratio": 0.9, "round_to": 1}
    left = widths(apply(graph, context_for("convolutional"), step))
    assert set(left) == {"stem", "conv1"}
    assert all(units >= 2 for units in left.values())
    assert sum(left.values()) < 8


@pytest.mark.parametrize(("round_to", "left"), [(1, 10), (4, 8), (8, 8), (16, None), (32, 10)])
def test_widths_are_rounded_to_a_multiple_and_narrow_layers_are_not(round_to, left):
    if left is None:
        with pytest.raises(StepError, match="no more than one multiple of 16"):
            prune("convolutional", ratio=0.4, round_to=round_to)
        return
    assert set(widths(prune("convolutional", ratio=0.4, round_to=round_to)).values()) == {left}


def test_heads_are_wide_enough_to_be_taken_one_by_one():
    assert widths(prune("attention", ratio=0.3))["block.self_attn"] == 3


def test_layers_and_kinds_can_be_left_alone():
    context = context_for("attention")
    before, left = widths(trained("attention")), widths(prune("attention", context, kinds=["neurons"]))
    assert left == before | {"block.linear1": before["block.linear1"] // 2}
    assert context.untouched["block.self_attn"] == "its heads stay: heads are not among the kinds to remove"
    context = context_for("convolutional")
    left = widths(prune("convolutional", context, layers={"exclude": ["conv2"]}))
    assert left == {"stem": 16, "conv1": 8}
    assert context.untouched["stem"] == "its channels stay: shared with conv2, which is not selected"
    assert "output" in context.untouched["head"]


def test_layers_can_have_shares_of_their_own():
    context = context_for("convolutional")
    left = widths(prune("convolutional", context, layer_ratios={"conv1": 0.75, "nothing": 0.5}, round_to=1))
    assert left == {"stem": 8, "conv1": 4}
    assert context.warnings == ["the pattern 'nothing' of layer_ratios matches the name of no layer"]
    assert widths(prune("convolutional", layer_ratios={"conv1": 0})) == {"stem": 8, "conv1": 16}
    assert widths(prune("convolutional", scope="global", layer_ratios={"conv1": 0.25}, round_to=1))["conv1"] == 12


def test_nothing_to_remove_is_refused_with_the_reasons():
    with pytest.raises(StepError, match=r"nothing can be removed .*head: it is part of the output"):
        prune("convolutional", layers={"include": ["head"]})
    with pytest.raises(StepError, match="no layer is selected"):
        prune("convolutional", layers={"include": ["absent"]})
    with pytest.raises(StepError, match="nothing would be removed"):
        prune("convolutional", ratio=0.1)


def test_what_was_done_is_told():
    context = context_for("convolutional", train="unlabelled")
    graph = prune("convolutional", context)
    assert "taylor: gradients of the distance to the model's own answers on 512 inputs" in context.notes
    assert "channels: 16 → 8: stem, conv1" in context.notes
    before, after = stats(trained("convolutional")), stats(graph)
    assert context.figures == {
        "units_before": 32,
        "units_after": 16,
        "parameters_before": before.parameters,
        "parameters_after": after.parameters,
        "macs_before": before.macs,
        "macs_after": after.macs,
        "error_before_refit": context.figures["error_before_refit"],
        "error": context.figures["error"],
    }


def test_taylor_looks_at_labels_where_there_are_any():
    context = context_for("convolutional")
    prune("convolutional", context, importance="taylor")
    assert "taylor: gradients of the labels' loss on 512 examples" in context.notes


def test_taylor_knows_models_that_decide_nothing():
    context = context_for("convolutional", train="unlabelled", task="regression", class_axis=None)
    assert set(widths(prune("convolutional", context, importance="taylor")).values()) == {8}


def test_masks_and_later_steps_hold_on_the_smaller_model():
    context = context_for("convolutional", train="unlabelled")
    few = {"epochs": 1, "learning_rate": 3e-3}
    graph = apply(
        trained("convolutional"), context,
        {"step": "magnitude_pruning", "sparsity": 0.3},
        {"step": "channel_pruning"},
        {"step": "distillation", **few},
        {"step": "magnitude_pruning", "sparsity": 0.5},
        {"step": "static_quantization", "keep_float": 1.0},
    )  # fmt: skip
    assert {layer.name: len(layer.module.weight) for layer in graph.layers() if layer.name == "conv1"} == {"conv1": 8}
    share = torch.cat([zero.flatten() for zero in zeros(graph).values()]).float().mean()
    assert share >= 0.5
    assert accuracy(graph, "convolutional") > 0.5


@pytest.mark.parametrize("kind", ["attention", "recurrent"])
def test_pruned_transformers_and_recurrent_layers_are_quantized_and_trained_on(kind):
    context = context_for(kind, train="unlabelled")
    graph = apply(
        trained(kind), context,
        {"step": "channel_pruning"},
        {"step": "dynamic_quantization"},
        {"step": "distillation", "epochs": 2, "learning_rate": 3e-3},
    )  # fmt: skip
    assert accuracy(graph, kind) > 0.8


def test_from_file_to_report(tmp_path):
    data = {"train": images(300, 3)[0], "evaluate": images(300, 2)}
    recipe = [{"step": "channel_pruning"}, {"step": "distillation", "epochs": 8, "learning_rate": 5e-3}]
    result, _ = compress(tmp_path / "run", convolutional(), recipe, data=data)
    assert result.error is None, result.error
    report = result.report
    assert report.size_ratio > 2
    assert report.size[1].parameters < 0.4 * report.size[0].parameters
    first, second, last = report.layers
    assert first.parameters_after == first.parameters_before / 2
    assert second.parameters_after == second.parameters_before / 4
    assert "output" in last.note
    assert report.quality.result > 0.7


def test_options_that_contradict_each_other_are_refused():
    with pytest.raises(ValidationError, match="give one of them"):
        ChannelPruning(ratio=0.5, macs_left=0.5)
    with pytest.raises(ValidationError):
        ChannelPruning(layer_ratios={"x": 1.0})
    assert ChannelPruning(importance="taylor").data_needed() is Data.CALIBRATE
    assert ChannelPruning().data_needed() is Data.NONE
