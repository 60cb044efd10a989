import math

import pytest
import torch
from torch import nn

from tests.engine.steps.nets import (
    KINDS,
    accuracy,
    apply,
    context_for,
    outputs,
    share_of_zeros,
    trained,
    weights,
    zeros,
)
from workers.engine.errors import StepError
from workers.engine.initialization import draw_anew
from workers.engine.writers.onnx import write_onnx

TICKET = {"step": "lottery_ticket", "round_share": 0.5, "epochs": 2, "learning_rate": 3e-3}


@pytest.mark.parametrize("kind", KINDS)
def test_rounds_reach_the_sparsity_and_tell_how_each_did(kind):
    told = []
    context = context_for(kind, progress=lambda fraction, message: told.append((fraction, message)))
    graph = apply(trained(kind), context, TICKET | {"sparsity": 0.85, "label_weight": 1.0})
    assert share_of_zeros(graph) == pytest.approx(0.85, abs=0.01)
    assert context.series["kept"] == pytest.approx([1, 0.15 ** (1 / 3), 0.15 ** (2 / 3), 0.15])
    assert len(context.series["accuracy"]) == len(context.series["loss"]) == 4
    assert context.figures["rounds"] == 3
    assert accuracy(graph, kind) > 0.7
    assert [fraction for fraction, _ in told] == sorted(fraction for fraction, _ in told)
    assert "training 4 of 4" in told[-1][1]


def test_the_ticket_is_the_uploaded_weights_under_the_mask_that_was_found():
    before = weights(trained("convolutional"))
    context = context_for("convolutional", train="unlabelled")
    graph = apply(trained("convolutional"), context, TICKET | {"sparsity": 0.7})
    ticket = weights(context.extras["ticket"])
    for name, weight in ticket.items():
        assert torch.equal(weight != 0, ~zeros(graph)[name]), name
        assert torch.equal(weight[weight != 0], before[name][weight != 0]), name
    assert any(not torch.equal(weights(graph)[name], weight) for name, weight in ticket.items()), "it was trained"
    x = context.train.inputs[:4]
    stored = torch.from_numpy(outputs(write_onnx(context.extras["ticket"]), x))
    torch.testing.assert_close(stored, context.extras["ticket"](x)[0].detach(), rtol=1e-4, atol=1e-4)


def test_it_can_begin_before_any_training():
    context = context_for("convolutional", seed=5)
    step = TICKET | {"rewind": "initial", "label_weight": 1.0, "epochs": 12, "sparsity": 0.5}
    graph = apply(trained("convolutional"), context, step)
    fresh = trained("convolutional")
    assert draw_anew(fresh, 5) == []
    drawn, ticket = weights(fresh), weights(context.extras["ticket"])
    assert all(torch.equal(ticket[name][ticket[name] != 0], drawn[name][ticket[name] != 0]) for name in drawn)
    assert accuracy(context.extras["ticket"], "convolutional") < 0.6
    assert accuracy(graph, "convolutional") > 0.75


def test_it_can_go_back_to_early_in_the_first_training():
    tickets = {}
    for rewind, early in (("initial", {}), ("early", {"early": 0.5})):
        context = context_for("convolutional")
        apply(
            trained("convolutional"), context, TICKET | {"rewind": rewind, "label_weight": 1.0, "sparsity": 0.5} | early
        )
        tickets[rewind] = context.extras["ticket"]
    fresh = trained("convolutional")
    draw_anew(fresh, 0)
    moved = [
        float((weight - weights(fresh)[name])[weight != 0].abs().mean())
        for name, weight in weights(tickets["early"]).items()
    ]
    assert min(moved) > 1e-3
    assert accuracy(tickets["early"], "convolutional") > accuracy(tickets["initial"], "convolutional")


def test_an_earlier_mask_stays_and_counts():
    context = context_for("convolutional", train="unlabelled")
    half = apply(trained("convolutional"), context, {"step": "magnitude_pruning", "sparsity": 0.5})
    before = zeros(half)
    graph = apply(half, context, TICKET | {"sparsity": 0.75, "scope": "layer"})
    assert context.series["kept"] == pytest.approx([0.5, 0.25], abs=1e-3)
    assert all((zeros(graph)[name] | ~zero).all() for name, zero in before.items())
    with pytest.raises(StepError, match="zero already"):
        apply(graph, context, TICKET | {"sparsity": 0.6})


def test_an_option_that_does_nothing_is_warned_of():
    context = context_for("attention", train="unlabelled")
    apply(trained("attention"), context, TICKET | {"early": 0.3, "sparsity": 0.3})
    assert context.warnings == ["early had no effect: it is for rewind early, and this is uploaded"]


def test_the_time_is_shared_by_the_rounds():
    context = context_for("convolutional", train="unlabelled")
    apply(trained("convolutional"), context, TICKET | {"sparsity": 0.75, "epochs": 1000, "seconds": 1.5})
    assert len(context.series["kept"]) == 3
    assert context.figures["seconds_a_round"] < 1.5
    assert "3 of the 3 trainings were stopped by the time limit" in context.notes[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_drawn_as_pytorch_draws_them(kind):
    graph = trained(kind)
    draw_anew(graph, 0)
    again = trained(kind)
    draw_anew(again, 0)
    other = trained(kind)
    draw_anew(other, 1)
    for name, weight in weights(graph).items():
        assert torch.equal(weight, weights(again)[name])
        assert not torch.equal(weight, weights(other)[name])
        inputs = 16 if kind == "recurrent" and "weight_" in name else math.prod(weight.shape[1:])
        assert 0.9 < float(weight.abs().max()) * math.sqrt(inputs) <= 1
    norms = [module for module in graph.module.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == (2 if kind == "convolutional" else 0)
    assert all(norm.running_var.eq(1).all() and norm.running_mean.eq(0).all() for norm in norms)
