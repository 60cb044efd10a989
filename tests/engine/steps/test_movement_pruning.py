import pytest
import torch
from torch import nn

from tests.engine.quantization.nets import inputs_of, net
from tests.engine.steps.nets import (
    CLASSES,
    KINDS,
    Examples,
    accuracy,
    apply,
    context_for,
    exported,
    sequences,
    share_of_zeros,
    trained,
    weights,
    zeros,
)
from workers.engine.constraints import Mask
from workers.engine.errors import StepError
from workers.engine.steps.movement_pruning import Scores

MOVE = {"step": "movement_pruning", "epochs": 12, "learning_rate": 3e-3}


def constraints(graph):
    return [
        [type(constraint) for constraint in layer.constraints(name)]
        for layer in graph.layers()
        for name, weight in layer.weights.items()
        if weight.ndim > 1
    ]


def test_a_score_falls_where_training_takes_its_weight_to_zero():
    scores = Scores(torch.tensor([1.0, -1.0, 2.0, 0.0]))
    weight = torch.tensor([1.0, -1.0, 2.0, 0.0], requires_grad=True)
    scores.keep[2] = False
    x = torch.tensor([1.0, 1.0, 1.0, 1.0])
    result = scores(weight)
    assert result.tolist() == [1.0, -1.0, 0.0, 0.0]
    (result @ x).backward()
    assert scores.scores.grad.tolist() == [1.0, -1.0, 2.0, 0.0], "the product of weight and gradient, masked or not"
    assert weight.grad.tolist() == [1.0, 1.0, 0.0, 0.0], "masked weights stay where they are"


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_share_that_was_asked_for_is_zero_and_stays_so(kind, scope):
    context = context_for(kind, train="unlabelled")
    graph = apply(trained(kind), context, MOVE | {"sparsity": 0.8, "scope": scope})
    assert share_of_zeros(graph) == pytest.approx(0.8, abs=0.01)
    assert context.figures["sparsity"] == pytest.approx(share_of_zeros(graph))
    if scope == "layer":
        assert all(zero.float().mean() == pytest.approx(0.8, abs=0.02) for zero in zeros(graph).values())
    assert accuracy(graph, kind) > 0.7
    assert all(kinds == [Mask] for kinds in constraints(graph)), "nothing is left of the scores"
    before = zeros(graph)
    graph = apply(graph.copy(), context, {"step": "distillation", "epochs": 1}, {"step": "half_precision"})
    assert all((zeros(graph)[name] | ~zero).all() for name, zero in before.items())


def test_it_does_better_than_taking_the_smallest_at_once():
    context = context_for("convolutional", train="unlabelled")
    step = {"sparsity": 0.93}
    at_once = apply(trained("convolutional"), context, {"step": "magnitude_pruning"} | step)
    moved = apply(trained("convolutional"), context, MOVE | step)
    assert accuracy(moved, "convolutional") > accuracy(at_once, "convolutional") + 0.1


def test_large_weights_go_where_they_do_not_matter():
    """Those that always meet zeros go, however large they are."""
    graph = trained("attention")
    first = next(iter(graph.layers()))
    with torch.no_grad():
        first.module.weight[:, 0] = 10.0
    x = sequences(400, 1).inputs
    x[..., 0] = 0
    context = context_for("attention", train=Examples(x), teacher=graph.copy())
    step = {"sparsity": 0.85, "layers": {"include": [first.name]}}
    by_size = apply(graph.copy(), context, {"step": "magnitude_pruning"} | step)
    moved = apply(graph, context, MOVE | step)
    assert (weights(by_size)[f"{first.name}.weight"][:, 0] != 0).all()
    assert (weights(moved)[f"{first.name}.weight"][:, 0] == 0).all()


def test_zeros_of_an_earlier_step_stay_and_count():
    context = context_for("convolutional", train="unlabelled")
    half = apply(trained("convolutional"), context, {"step": "magnitude_pruning", "sparsity": 0.5})
    before = zeros(half)
    graph = apply(half, context, MOVE | {"sparsity": 0.8, "epochs": 3})
    assert share_of_zeros(graph) == pytest.approx(0.8, abs=0.01)
    assert all((zeros(graph)[name] | ~zero).all() for name, zero in before.items())
    assert all(kinds == [Mask] for kinds in constraints(graph))
    with pytest.raises(StepError, match="zero already"):
        apply(graph, context, MOVE | {"sparsity": 0.7})


def test_tied_weights_have_one_score():
    graph = net("tied")
    context = context_for("attention", train=Examples(inputs_of("tied")), teacher=graph.copy())
    graph = apply(graph, context, MOVE | {"sparsity": 0.5, "epochs": 2})
    shared = [layer.module.weight for layer in graph.layers()][1:3]
    assert torch.equal(*shared)
    assert (shared[0] == 0).any()


def test_what_no_gradient_reaches_is_left_alone():
    graph = trained("attention")
    layers = list(graph.layers())
    layers[0].module.register_forward_hook(lambda module, inputs, result: result.detach())
    context = context_for("attention", train="unlabelled")
    graph = apply(graph, context, MOVE | {"sparsity": 0.5, "epochs": 1})
    assert "no gradient" in context.untouched[layers[0].name]
    assert not zeros(graph)[f"{layers[0].name}.weight"].any()


def test_nothing_that_learns_is_refused_with_the_reason():
    graph = trained("attention")
    for layer in graph.layers():
        layer.module.register_forward_hook(lambda module, inputs, result: result.detach())
    with pytest.raises(StepError, match="no gradient"):
        apply(graph, context_for("attention", train="unlabelled"), MOVE)


class Single(nn.Module):
    """Takes one example at a time, of which a batch norm could learn nothing."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, CLASSES)

    def forward(self, x):
        return self.last(self.norm(torch.relu(self.first(x)))).reshape(1, CLASSES)


def test_a_batch_norm_of_a_model_that_takes_single_examples():
    x = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    graph = exported(Single(), x[:1], batch=1)
    context = context_for("attention", train=Examples(x), teacher=graph.copy())
    graph = apply(graph, context, MOVE | {"sparsity": 0.5, "epochs": 1})
    assert share_of_zeros(graph) == pytest.approx(0.5, abs=0.01)
