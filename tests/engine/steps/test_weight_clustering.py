import pytest
import torch

from modelpress.steps import WeightClustering
from tests.engine.quantization.nets import net
from tests.engine.steps.nets import (
    KINDS,
    accuracy,
    apply,
    context_for,
    data_of,
    outputs,
    share_of_zeros,
    trained,
    weights,
    zeros,
)
from workers.engine.clustering import Clusters, k_means
from workers.engine.errors import StepError
from workers.engine.readers.onnx import read_onnx
from workers.engine.writers.onnx import write_onnx

STEP = {"step": "weight_clustering"}
PRUNE = {"step": "magnitude_pruning", "sparsity": 0.7}


def values_of(graph):
    return {name: len(weight.unique()) for name, weight in weights(graph).items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [2, 5, 16, 256])
def test_no_weight_has_more_values_than_were_asked_for(kind, count):
    before = weights(trained(kind))
    graph = apply(trained(kind), context_for(kind, train=None), STEP | {"values": count})
    found = values_of(graph)
    assert all(number <= count for number in found.values())
    assert all(found[name] == count for name, weight in before.items() if weight.numel() > 20 * count)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [4, 16])
def test_training_wins_back_what_sharing_loses(kind, count):
    step = STEP | {"values": count, "epochs": 5, "learning_rate": 3e-3}
    context = context_for(kind, train="unlabelled")
    untrained = apply(trained(kind), context_for(kind, train=None), STEP | {"values": count})
    graph = apply(trained(kind), context, step)
    x = data_of(kind, "test").inputs
    wanted = outputs(write_onnx(trained(kind)), x)
    error, before = (((outputs(write_onnx(one), x) - wanted) ** 2).mean() for one in (graph, untrained))
    assert error < 0.7 * before
    assert all(number <= count for number in values_of(graph).values())
    assert any("the values are trained: " in note for note in context.notes)


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_of_a_mask_stay_and_are_one_of_the_values(kind):
    context = context_for(kind, train="unlabelled")
    pruned = apply(trained(kind), context, PRUNE)
    before = zeros(pruned)
    graph = apply(pruned, context, STEP | {"values": 8, "epochs": 2})
    for name, zero in zeros(graph).items():
        assert torch.equal(zero, before[name]), name
    assert all(number <= 8 for number in values_of(graph).values())
    assert share_of_zeros(graph) == pytest.approx(0.7, abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_is_what_the_graph_is_and_smaller(kind):
    context = context_for(kind, train="unlabelled")
    graph = apply(trained(kind), context, PRUNE, STEP | {"epochs": 1})
    file = write_onnx(graph)
    x = data_of(kind, "test").inputs
    (expected,) = graph(x)
    torch.testing.assert_close(torch.from_numpy(outputs(file, x)), expected.detach(), rtol=1e-4, atol=1e-5)
    assert len(file) < 0.7 * len(write_onnx(trained(kind)))
    (again,) = read_onnx(file)(x)
    torch.testing.assert_close(again.detach(), expected.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "later",
    [
        {"step": "distillation", "epochs": 1},
        {"step": "fine_tuning", "epochs": 1},
        {"step": "static_quantization"},
        {"step": "dynamic_quantization"},
    ],
    ids=lambda step: step["step"],
)
def test_what_comes_later_keeps_the_values_and_the_zeros(later):
    kind = "convolutional"
    context = context_for(kind)
    graph = apply(trained(kind), context, PRUNE, STEP | {"values": 8, "train": False})
    before = weights(graph)
    after = apply(graph.copy(), context, later)
    for name, weight in weights(after).items():
        assert (weight[before[name] == 0] == 0).all()
        for channel, was in zip(weight, before[name], strict=True):
            for value in was.unique():
                assert len(channel[was == value].unique()) == 1, "equal weights of a channel stay equal"


def test_half_precision_takes_only_what_is_not_in_fewer_bits_already():
    context = context_for("convolutional", train=None)
    graph = apply(trained("convolutional"), context, STEP | {"layers": {"exclude": ["conv2"]}})
    before = weights(graph)
    after = weights(apply(graph, context, {"step": "half_precision"}))
    assert "stored in 4 bits already" in context.untouched["conv1"]
    assert {name for name in before if not torch.equal(before[name], after[name])} >= {"conv2.weight"}


def test_an_entry_learns_by_the_sum_of_its_members():
    weight = torch.tensor([[0.0, 1.0, 1.1], [-2.0, 0.9, 0.0]])
    clusters = Clusters.fit(weight, 3)
    assert clusters.values.tolist() == pytest.approx([0.0, -2.0, 1.0])
    gradient = torch.arange(6.0).view(2, 3)
    clusters(weight).backward(gradient)
    assert clusters.entries.grad.tolist() == [3.0, 1.0 + 2.0 + 4.0]


def test_k_means_is_near_the_best_and_leaves_no_value_unused():
    torch.manual_seed(0)
    numbers = torch.cat([torch.randn(5000) * 0.01, torch.tensor([5.0, -3.0])])
    for count in (4, 16, 64, 256):
        entries = k_means(numbers, count)
        assert len(entries) == count
        assert torch.equal(entries, entries.sort().values)
        nearest = (numbers[:, None] - entries).abs().argmin(1)
        assert len(nearest.unique()) == count
        means = torch.stack([numbers[nearest == one].mean() for one in range(count)])
        torch.testing.assert_close(means, entries, rtol=1e-4, atol=2e-4)
    assert torch.equal(k_means(numbers, 16), k_means(numbers.flip(0), 16))
    assert k_means(torch.tensor([3.0, 1.0, 3.0]), 16).tolist() == [1.0, 3.0]


def test_places_that_are_left_keep_their_values():
    clusters = Clusters.fit(torch.randn(6, 4), 4)
    whole = clusters(torch.zeros(6, 4))
    clusters.narrow(0, torch.tensor([0, 3, 5]))
    assert torch.equal(clusters(torch.zeros(3, 4)), whole[[0, 3, 5]])


def test_tied_weights_share_their_values_through_a_training():
    context = context_for("attention", train=None)
    graph = apply(net("tied"), context, STEP | {"values": 6})
    assert any("in 3 tensors" in note for note in context.notes)
    layers = list(graph.layers())[1:3]
    assert torch.equal(layers[0].module.weight, layers[1].module.weight)
    with torch.no_grad():
        layers[0].constraints("weight")[0].entries.add_(1)
    assert torch.equal(layers[0].module.weight, layers[1].module.weight)
    copied = list(graph.copy().layers())[1:3]
    assert copied[0].constraints("weight")[0].entries is copied[1].constraints("weight")[0].entries


def test_biases_share_values_where_it_is_asked_for():
    context = context_for("recurrent", train=None)
    graph = apply(trained("recurrent"), context, STEP | {"values": 8, "biases": True})
    (recurrent, *_) = graph.layers()
    biases = [value for name, value in recurrent.module.state_dict().items() if "bias" in name and "entries" in name]
    assert biases
    before = [layer.module.bias for layer in trained("recurrent").layers()]
    after = [layer.module.bias for layer in graph.layers()]
    assert len(torch.cat([bias.flatten() for bias in after]).unique()) == 8
    assert all(bias.shape == was.shape for bias, was in zip(after, before, strict=True))
    plain = apply(trained("recurrent"), context, STEP | {"values": 8})
    assert all(torch.equal(x.module.bias, bias) for x, bias in zip(plain.layers(), before, strict=True))


def test_a_file_of_shared_values_can_lose_channels_by_their_effect():
    """No parameter is behind what a file picks from a list of values; its gradient tells all the same."""
    stored = apply(trained("convolutional"), context_for("convolutional", train=None), STEP)
    step = {"step": "channel_pruning", "importance": "taylor", "refit": False}
    in_memory, from_file = (
        apply(graph, context_for("convolutional"), step) for graph in (stored, read_onnx(write_onnx(stored)))
    )
    x = data_of("convolutional", "test").inputs
    torch.testing.assert_close(from_file(x)[0], in_memory(x)[0], rtol=1e-4, atol=1e-4)


def test_without_data_it_says_that_nothing_was_trained():
    context = context_for("convolutional", train=None)
    apply(trained("convolutional"), context, STEP | {"epochs": 3})
    assert any("not trained, because there is no training data" in note for note in context.notes)
    assert context.warnings == ["epochs had no effect: the values were not trained"]
    with pytest.raises(StepError, match=r"send a dataset"):
        apply(trained("convolutional"), context_for("convolutional", train=None), STEP | {"train": True})


def test_accuracy_survives_pruning_clustering_and_the_file():
    kind = "convolutional"
    context = context_for(kind, train="unlabelled")
    prune = PRUNE | {"schedule": "cubic", "epochs": 6, "learning_rate": 3e-3}
    graph = apply(trained(kind), context, prune, STEP | {"values": 16, "epochs": 3})
    assert accuracy(graph, kind) > accuracy(trained(kind), kind) - 0.03


def test_what_is_clustered_already_is_left_alone_with_the_reason():
    context = context_for("convolutional", train=None)
    graph = apply(trained("convolutional"), context, STEP | {"values": 4})
    with pytest.raises(StepError, match="stored in 2 bits already"):
        apply(graph, context, STEP | {"values": 2})


def test_data_are_needed_only_where_training_is_asked_for():
    assert WeightClustering().data_needed() == "none"
    assert WeightClustering(train=True).data_needed() == "unlabelled"
