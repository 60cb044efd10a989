import pytest
import torch
from torch import nn

from tests.engine.steps.nets import (
    CLASSES,
    KINDS,
    Examples,
    accuracy,
    apply,
    context_for,
    data_of,
    exported,
    outputs,
    share_of_zeros,
    trained,
    zeros,
)  # fmt: skip
from workers.engine.constraints import Constraint
from workers.engine.errors import InvalidDataError, StepError
from workers.engine.writers.onnx import write_onnx

TUNED = {"step": "fine_tuning", "epochs": 4, "learning_rate": 3e-3}
PRUNED = {"step": "magnitude_pruning", "sparsity": 0.8, "scope": "layer"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_pruned_net_recovers_on_labels_and_keeps_its_zeros(kind):
    context = context_for(kind)
    pruned = apply(trained(kind), context, PRUNED)
    before, places = accuracy(pruned, kind), zeros(pruned)
    graph = apply(pruned, context, TUNED)
    assert accuracy(graph, kind) > before
    assert all(torch.equal(zeros(graph)[name], zero) for name, zero in places.items())
    assert context.figures["validation_accuracy"] == pytest.approx(accuracy(graph, kind), abs=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_pruning_again_after_fine_tuning_goes_on_where_the_first_ended(kind):
    context = context_for(kind)
    half = {"step": "magnitude_pruning", "sparsity": 0.5}
    graph = apply(trained(kind), context, half, TUNED)
    first = zeros(graph)
    graph = apply(graph, context, half | {"sparsity": 0.75}, TUNED)
    assert share_of_zeros(graph) == pytest.approx(0.75, abs=1e-3)
    assert all((zeros(graph)[name] | ~zero).all() for name, zero in first.items())


def data_with(labels):
    return Examples(data_of("convolutional").inputs, labels)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float32])
def test_class_numbers_of_any_type_will_do(dtype):
    context = context_for("convolutional", train=data_with(data_of("convolutional").labels.to(dtype)))
    graph = apply(trained("convolutional"), context, PRUNED, TUNED)
    assert accuracy(graph, "convolutional") > 0.8


def test_one_hot_labels_are_the_same_as_class_numbers():
    one_hot = nn.functional.one_hot(data_of("convolutional").labels, CLASSES).float()
    graph = apply(trained("convolutional"), context_for("convolutional", train=data_with(one_hot)), PRUNED, TUNED)
    assert accuracy(graph, "convolutional") > 0.8


def fresh(*layers):
    torch.manual_seed(0)
    return exported(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), *layers), data_of("convolutional").inputs[:2]
    )


@pytest.mark.parametrize("last", [(), (nn.Sigmoid(),)], ids=["logits", "probabilities"])
def test_several_labels_can_be_true_at_once(last):
    data = data_of("convolutional")
    both = torch.stack((data.labels > 1, data.labels % 2 == 1), 1).float()
    graph = apply(
        fresh(nn.Linear(32, 2), *last), context_for("convolutional", train=data_with(both)), TUNED | {"epochs": 10}
    )
    answers = outputs(write_onnx(graph), data_of("convolutional", "test").inputs) > (0.5 if last else 0)
    labels = data_of("convolutional", "test").labels
    assert (answers[:, 0] == (labels > 1).numpy()).mean() > 0.8
    assert (answers[:, 1] == (labels % 2 == 1).numpy()).mean() > 0.8


def test_a_single_score_is_a_yes_or_no():
    data = data_of("convolutional")
    context = context_for("convolutional", train=data_with((data.labels > 1).long()))
    graph = apply(fresh(nn.Linear(32, 1)), context, TUNED | {"epochs": 10})
    answers = outputs(write_onnx(graph), data_of("convolutional", "test").inputs)[:, 0] > 0
    assert (answers == (data_of("convolutional", "test").labels > 1).numpy()).mean() > 0.8


def test_values_are_met_by_squared_error():
    data, test = data_of("convolutional"), data_of("convolutional", "test")
    context = context_for("convolutional", train=data_with(data.inputs.mean((1, 2, 3))), task="regression")
    graph = apply(fresh(nn.Linear(32, 1)), context, TUNED | {"epochs": 20})
    wanted = test.inputs.mean((1, 2, 3)).numpy()
    error = outputs(write_onnx(graph), test.inputs)[:, 0] - wanted
    assert (error**2).mean() < wanted.var() / 2


def test_positions_that_do_not_count_are_left_out():
    data = data_of("attention")
    labels = data.labels.clone()
    labels[:, 5:] = -100
    context = context_for("attention", train=Examples(data.inputs, labels))
    graph = apply(trained("attention"), context, PRUNED, TUNED)
    assert accuracy(graph, "attention") > accuracy(apply(trained("attention"), context, PRUNED), "attention")


@pytest.mark.parametrize(
    ("label", "said"), [(4, "label 4 is none"), (-1, "label -1 is none"), (0.5, "label 0.5 is none")]
)
def test_an_impossible_label_is_named(label, said):
    labels = data_of("convolutional").labels.to(torch.float64)
    labels[17] = label
    with pytest.raises(InvalidDataError, match=f"label {label} is none.*0 to 3"):
        apply(trained("convolutional"), context_for("convolutional", train=data_with(labels)), TUNED)


def test_labels_of_the_wrong_shape_are_refused():
    labels = data_of("convolutional").labels[:, None].repeat(1, 3)
    with pytest.raises(InvalidDataError, match="class index for each row"):
        apply(trained("convolutional"), context_for("convolutional", train=data_with(labels)), TUNED)


def test_without_labels_it_points_to_distillation():
    with pytest.raises(StepError, match="distillation"):
        apply(trained("attention"), context_for("attention", train="unlabelled"), TUNED)


def test_it_stops_where_the_held_out_loss_no_longer_falls():
    """Random labels can only be learnt by heart."""
    data = data_of("convolutional")
    chance = torch.randint(CLASSES, data.labels.shape, generator=torch.Generator().manual_seed(0))
    context = context_for("convolutional", train=data_with(chance))
    step = TUNED | {"epochs": 200, "learning_rate": 1e-2, "patience": 3}
    apply(trained("convolutional"), context, step)
    assert context.figures["updates"] < 60 * 11
    assert "stopped as the held-out loss no longer fell" in context.notes[-1]


class Stretched(Constraint):
    """A weight times a factor, which learns at a pace of its own, or not at all."""

    def __init__(self, pace):
        super().__init__()
        self.factor, self.rates = nn.Parameter(torch.ones(())), {"factor": pace}

    def forward(self, weight):
        return weight * self.factor


def test_parameters_of_constraints_learn_at_their_own_pace():
    def moved(pace):
        graph = trained("convolutional")
        constraint = Stretched(pace)
        next(layer for layer in graph.layers() if layer.name == "stem").constrain("weight", constraint)
        step = TUNED | {"epochs": 1, "learning_rate": 1e-4, "validation": 0, "weight_decay": 0.5}
        graph = apply(graph, context_for("convolutional"), step)
        return abs(float(constraint.factor) - 1)

    assert moved(0.0) == 0.0
    assert moved(100.0) > 20 * moved(1.0) > 0
