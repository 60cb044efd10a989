import math

import pytest
import torch
from pydantic import ValidationError

from modelpress.steps import MagnitudePruning
from tests.engine.quantization.nets import net
from tests.engine.steps.nets import KINDS, accuracy, apply, context_for, share_of_zeros, trained, weights, zeros
from workers.engine.errors import StepError
from workers.engine.sparsity import CHANGES, RAMP, Gradually, relative, without_smallest


def total(graph):
    return sum(weight.numel() for weight in weights(graph).values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sparsity", [0.3, 0.7, 0.95])
def test_one_threshold_for_all_layers_takes_the_smallest_weights_of_the_model(kind, sparsity):
    before = weights(trained(kind))
    graph = apply(trained(kind), context_for(kind), {"step": "magnitude_pruning", "sparsity": sparsity})
    after = weights(graph)
    assert share_of_zeros(graph) == pytest.approx(math.ceil(sparsity * total(graph)) / total(graph), abs=1e-12)
    kept = {name: weight != 0 for name, weight in after.items()}
    assert all(torch.equal(after[name][kept[name]], before[name][kept[name]]) for name in before)
    largest_gone = max(before[name][~kept[name]].abs().max() for name in before if not kept[name].all())
    for name, weight in before.items():
        smaller = weight[kept[name]].abs() < largest_gone
        # but for the few that keep a small layer alive
        assert int(smaller.sum()) <= max(1, 0.02 * weight.numel()), name


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_can_get_the_same_sparsity(kind):
    step = {"step": "magnitude_pruning", "sparsity": 0.6, "scope": "layer"}
    for name, zero in zeros(apply(trained(kind), context_for(kind), step)).items():
        assert int(zero.sum()) == math.ceil(0.6 * zero.numel() - 1e-6), name


def test_equal_weights_are_pruned_to_the_exact_number():
    (keep,) = without_smallest([torch.ones(10, 10)], 0.37)
    assert int((~keep).sum()) == 37
    first, second = without_smallest([torch.tensor([1.0, 2.0, 2.0]), torch.tensor([2.0, 2.0, 3.0])], 0.5)
    assert first.tolist() == [False, False, False]
    assert second.tolist() == [True, True, True]


def test_no_layer_loses_everything_to_a_common_threshold():
    graph = trained("convolutional")
    with torch.no_grad():
        next(iter(graph.layers())).module.weight.mul_(1e-6)
    pruned = apply(graph, context_for("convolutional"), {"step": "magnitude_pruning", "sparsity": 0.9})
    assert share_of_zeros(pruned) >= 0.9
    assert all(zero.float().mean() < 1 for zero in zeros(pruned).values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8)])
def test_n_of_m_along_the_inputs(kind, n, m):
    context = context_for(kind)
    before = weights(trained(kind))
    graph = apply(trained(kind), context, {"step": "magnitude_pruning", "pattern": f"{n}:{m}"})
    for name, weight in weights(graph).items():
        layer = name.rsplit(".", 1)[0]
        axis = 2 if "weight_" in name else 1
        if weight.shape[axis] % m:
            assert f"a multiple of {m} inputs" in context.untouched[layer]
            assert torch.equal(weight, before[name])
            continue
        groups = weight.movedim(axis, -1).unflatten(-1, (-1, m))
        assert ((groups == 0).sum(-1) == m - n).all(), name
        largest = before[name].movedim(axis, -1).unflatten(-1, (-1, m)).abs().topk(n, -1).values.sum(-1)
        torch.testing.assert_close(groups.abs().sum(-1), largest)


def test_pruning_again_counts_the_zeros_that_are_there():
    context = context_for("convolutional")
    half = apply(trained("convolutional"), context, {"step": "magnitude_pruning", "sparsity": 0.5})
    first = zeros(half)
    assert not context.warnings
    assert share_of_zeros(apply(half.copy(), context, {"step": "magnitude_pruning", "sparsity": 0.3})) == 0.5
    assert "50.00% of these weights were zero already" in context.warnings.pop()
    more = apply(half, context, {"step": "magnitude_pruning", "sparsity": 0.8})
    assert share_of_zeros(more) == pytest.approx(0.8, abs=1e-3)
    assert all((zeros(more)[name] | ~zero).all() for name, zero in first.items())
    assert all(len(layer.constraints("weight")) == 1 for layer in more.layers())


def test_only_the_selected_layers_are_touched():
    step = {"step": "magnitude_pruning", "sparsity": 0.5, "layers": {"include": ["conv*"], "exclude": ["conv2"]}}
    context = context_for("convolutional")
    graph = apply(trained("convolutional"), context, step)
    assert [name for name, zero in zeros(graph).items() if zero.any()] == ["conv1.weight"]
    assert context.figures["sparsity"] == 0.5


def test_a_selection_of_nothing_names_the_layers_there_are():
    step = {"step": "magnitude_pruning", "layers": {"include": ["layer9.*"]}}
    with pytest.raises(StepError, match=r"layer9\.\*.*stem, conv1, conv2, head"):
        apply(trained("convolutional"), context_for("convolutional"), step)


@pytest.mark.parametrize("kind", KINDS)
def test_the_cubic_schedule_reaches_its_sparsity_and_does_better_than_one_shot(kind):
    step = {"step": "magnitude_pruning", "sparsity": 0.85}
    told = []
    context = context_for(kind, train="unlabelled", progress=lambda fraction, message: told.append((fraction, message)))
    at_once = apply(trained(kind), context, step)
    graph = apply(trained(kind), context, step | {"schedule": "cubic", "epochs": 6, "learning_rate": 3e-3})
    assert share_of_zeros(graph) == pytest.approx(0.85, abs=1e-3)
    assert accuracy(graph, kind) > accuracy(at_once, kind)
    assert [fraction for fraction, _ in told] == sorted(fraction for fraction, _ in told)
    assert any("held-out loss" in note for note in context.notes)
    assert context.figures["updates"] > 60


def test_the_schedule_prunes_fast_at_first_and_is_done_before_the_training_is():
    shares = []
    schedule = Gradually(0.2, 0.9, shares.append)
    for update in range(1000):
        schedule.advance(update / 1000)
        assert schedule.settled(update / 1000) == (update >= RAMP * 1000)
    schedule.advance(1.0)
    assert shares == sorted(shares)
    assert shares[0] == pytest.approx(0.2)
    assert shares[-1] == 0.9
    assert shares[len(shares) // 2] > 0.2 + 0.8 * (0.9 - 0.2)
    assert RAMP * CHANGES / 2 < len(shares) <= RAMP * CHANGES + 1


def test_a_training_that_is_cut_short_still_reaches_its_sparsity():
    context = context_for("convolutional", train="unlabelled")
    step = {"step": "magnitude_pruning", "sparsity": 0.8, "schedule": "cubic", "epochs": 500, "seconds": 0.3}
    graph = apply(trained("convolutional"), context, step)
    assert share_of_zeros(graph) == pytest.approx(0.8, abs=1e-3)
    assert any("stopped by the time limit" in note for note in context.notes)


@pytest.mark.parametrize("pattern", ["2:4", "1:4"])
def test_n_of_m_can_be_reached_gradually(pattern):
    context = context_for("attention", train="unlabelled")
    step = {"step": "magnitude_pruning", "pattern": pattern, "schedule": "cubic", "epochs": 2}
    graph = apply(trained("attention"), context, step)
    n, m = map(int, pattern.split(":"))
    for weight in weights(graph).values():
        assert ((weight.unflatten(1, (-1, m)) == 0).sum(-1) == m - n).all()


def test_a_mask_outlives_training_and_a_copy():
    context = context_for("recurrent", train="unlabelled")
    step = {"step": "magnitude_pruning", "sparsity": 0.8, "schedule": "cubic", "epochs": 1}
    graph = apply(trained("recurrent"), context, step)
    before = zeros(graph)
    later = apply(graph.copy(), context, {"step": "distillation", "epochs": 1})
    assert not torch.equal(weights(later)["head.weight"], weights(graph)["head.weight"])
    for name, zero in zeros(later).items():
        assert torch.equal(zero, before[name])


def test_a_pattern_says_the_sparsity():
    assert MagnitudePruning(pattern="1:4").share == 0.75
    assert MagnitudePruning(pattern="2:4", sparsity=0.5).share == 0.5
    assert MagnitudePruning().share == 0.5
    with pytest.raises(ValidationError, match=r"always zeroes 0\.5 of the weights"):
        MagnitudePruning(pattern="2:4", sparsity=0.7)
    with pytest.raises(ValidationError, match="n has to be less than m"):
        MagnitudePruning(pattern="4:4")
    with pytest.raises(ValidationError, match="pattern"):
        MagnitudePruning(pattern="two of four")


def test_options_of_the_training_have_no_effect_without_one():
    context = context_for("convolutional")
    apply(trained("convolutional"), context, {"step": "magnitude_pruning", "sparsity": 0.5, "epochs": 3})
    assert context.warnings == ["epochs had no effect: only the cubic schedule trains"]


def test_a_recipe_with_all_its_defaults_filled_in_as_jobs_keep_it_is_not_warned_of():
    context = context_for("convolutional")
    apply(trained("convolutional"), context, MagnitudePruning(sparsity=0.5).model_dump())
    assert context.warnings == []


def test_tied_weights_are_counted_once_and_masked_alike():
    context = context_for("attention")
    graph = apply(net("tied"), context, {"step": "magnitude_pruning", "sparsity": 0.5, "scope": "global"})
    assert any("of the 1248 weights in 3 tensors" in note for note in context.notes)
    assert context.figures["sparsity"] == 0.5
    shared = [layer.module.weight for layer in graph.layers()][1:3]
    assert torch.equal(*shared)
    assert (shared[0] == 0).any()


def test_an_adaptive_threshold_compares_weights_by_what_is_left_of_their_layer():
    small, large = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([[30.0, -10.0, 20.0]])
    shares = relative([small, large])
    assert shares[0].tolist() == pytest.approx([1 / 14, 4 / 13, 1.0])
    assert shares[1].tolist() == [pytest.approx([1.0, 1 / 14, 4 / 13])]


@pytest.mark.parametrize("kind", KINDS)
def test_an_adaptive_threshold_spares_what_a_common_one_would_nearly_empty(kind):
    graph = trained(kind)
    with torch.no_grad():
        list(graph.layers())[-1].module.weight.mul_(0.01)
    step = {"step": "magnitude_pruning", "sparsity": 0.8}
    adaptive, common = (
        zeros(apply(graph.copy(), context_for(kind), step | {"scope": scope})) for scope in ("adaptive", "global")
    )
    for found in (adaptive, common):
        assert sum(int(zero.sum()) for zero in found.values()) == math.ceil(0.8 * total(graph))
    assert adaptive["head.weight"].float().mean() < 0.9 < common["head.weight"].float().mean()
