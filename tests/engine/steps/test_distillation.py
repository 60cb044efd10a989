import math
import time

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from modelpress.steps import STEPS
from tests.engine.steps.nets import (
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
    weights,
    zeros,
)  # fmt: skip
from workers.engine.attention_maps import attentions
from workers.engine.batching import Batch
from workers.engine.errors import StepError
from workers.engine.losses import softened_bce, softened_kl
from workers.engine.readers.onnx import read_onnx
from workers.engine.steps.distillation import Imitation
from workers.engine.teaching import Teacher
from workers.engine.watching import values_of
from workers.engine.writers.onnx import write_onnx

PRUNED = {"step": "magnitude_pruning", "sparsity": 0.8, "scope": "layer"}


def agreement(graph, teacher, kind):
    x = data_of(kind, "test").inputs
    one, other = (outputs(write_onnx(net), x).argmax(-1) for net in (graph, teacher))
    return float((one == other).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_a_pruned_net_learns_to_answer_as_the_original_does_without_labels(kind):
    context = context_for(kind, train="unlabelled")
    pruned = apply(trained(kind), context, PRUNED)
    before, places = agreement(pruned, trained(kind), kind), zeros(pruned)
    graph = apply(pruned, context, {"step": "distillation", "epochs": 4, "learning_rate": 3e-3})
    after = agreement(graph, trained(kind), kind)
    assert after > before + (1 - before) / 3
    assert all(torch.equal(zeros(graph)[name], zero) for name, zero in places.items())
    assert context.figures["validation_agreement"] == pytest.approx(after, abs=0.1)
    assert not graph.module.training


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_bytes(kind):
    def once(seed):
        context = context_for(kind, train="unlabelled", seed=seed)
        return write_onnx(apply(trained(kind), context, PRUNED, {"step": "distillation", "epochs": 1}))

    assert once(0) == once(0)
    assert once(0) != once(1)


@pytest.mark.parametrize("kind", KINDS)
def test_inner_results_are_matched_by_name(kind):
    context = context_for(kind, train="unlabelled")
    pruned = apply(trained(kind), context, PRUNED)
    before = agreement(pruned, trained(kind), kind)
    graph = apply(pruned, context, {"step": "distillation", "epochs": 4, "learning_rate": 3e-3, "features": True})
    assert agreement(graph, trained(kind), kind) > before
    assert any("inner results of" in note for note in context.notes)
    assert not any(module._forward_hooks for module in graph.module.modules())


class Narrow(nn.Module):
    """The convolutional net with half the channels: same names, other widths."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, 2, 1)
        self.conv1 = nn.Conv2d(8, 8, 3, 1, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(torch.relu(self.conv1(torch.relu(self.stem(x)))).mean((2, 3)))


def test_a_student_of_another_width_learns_through_projections_that_are_thrown_away():
    torch.manual_seed(0)
    student = exported(Narrow(), data_of("convolutional").inputs[:2])
    names = list(student.module.state_dict())
    context = context_for("convolutional", train="unlabelled")
    graph = apply(student, context, {"step": "distillation", "epochs": 8, "learning_rate": 1e-2, "features": True})
    assert agreement(graph, trained("convolutional"), "convolutional") > 0.8
    assert list(graph.module.state_dict()) == names


class Deep(nn.Module):
    """The convolutional net with other names, another width and a layer more."""

    def __init__(self):
        super().__init__()
        convolutions = [nn.Conv2d(1, 12, 3, 2, 1), nn.Conv2d(12, 12, 3, 1, 1), nn.Conv2d(12, 12, 3, 1, 1)]
        self.layers = nn.Sequential(*(layer for conv in convolutions for layer in (conv, nn.ReLU())))
        self.answer = nn.Linear(12, 4)

    def forward(self, x):
        return self.answer(self.layers(x).mean((2, 3)))


def test_layers_of_other_names_are_matched_by_depth():
    torch.manual_seed(0)
    student = exported(Deep(), data_of("convolutional").inputs[:2])
    context = context_for("convolutional", train="unlabelled")
    graph = apply(student, context, {"step": "distillation", "epochs": 8, "learning_rate": 1e-2, "features": True})
    assert "4 layers were matched too, by depth, as no two have the same name, 3 of them through" in context.notes[0]
    assert agreement(graph, trained("convolutional"), "convolutional") > 0.8


ATTENTIVE = {"step": "distillation", "epochs": 4, "learning_rate": 3e-3, "attention": True}


def looks(graph, x):
    """Attention probabilities, head by head."""
    return list(values_of(graph.module, attentions(graph), (x,)).values())


def test_a_student_with_fewer_heads_learns_to_look_where_its_teacher_looks():
    teacher, x = trained("attention"), data_of("attention", "test").inputs[:100]
    context = context_for("attention", train="unlabelled")
    context.calibrate = None
    pruned = apply(teacher.copy(), context, {"step": "channel_pruning", "ratio": 0.5})
    (before,), (wanted,) = looks(pruned, x), looks(teacher, x)
    assert before.shape[1] < wanted.shape[1]
    plain = apply(pruned.copy(), context, ATTENTIVE | {"attention": False})
    graph = apply(pruned, context, ATTENTIVE)
    assert any("probabilities of 1 attentions were matched" in note for note in context.notes)
    off = [float((looks(net, x)[0].mean(1) - wanted.mean(1)).square().mean()) for net in (graph, plain)]
    assert off[0] < off[1] / 2
    assert agreement(graph, teacher, "attention") > 0.9


def test_convolutions_learn_to_look_where_their_teacher_looks():
    context = context_for("convolutional", train="unlabelled")
    pruned = apply(trained("convolutional"), context, PRUNED)
    before = agreement(pruned, trained("convolutional"), "convolutional")
    graph = apply(pruned, context, ATTENTIVE | {"features": True})
    assert any("where the convolutions of 1 resolutions look was matched" in note for note in context.notes)
    assert agreement(graph, trained("convolutional"), "convolutional") > before
    assert not any(module._forward_hooks for module in graph.module.modules())


def test_what_one_does_not_look_at_as_the_other_does_is_refused():
    context = context_for("recurrent", train="unlabelled")
    with pytest.raises(StepError, match="neither attends nor convolves: leave attention out"):
        apply(trained("recurrent"), context, ATTENTIVE)

    class Convolving(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(8, 4, 3, padding=1)

        def forward(self, x):
            return self.conv(x.mT).mT

    student = exported(Convolving(), data_of("attention").inputs[:2])
    with pytest.raises(StepError, match="no size in common"):
        apply(student, context_for("attention", train="unlabelled"), ATTENTIVE)


def fused(width, heads):
    """One attention in one node, as exporters write it from opset 23 on."""
    generator = np.random.default_rng(width)
    stored = [
        numpy_helper.from_array(generator.normal(size=shape).astype(np.float32) / 3, name)
        for name, shape in (("q", (8, width)), ("k", (8, width)), ("v", (8, width)), ("out", (width, 4)))
    ]
    nodes = [helper.make_node("MatMul", ["x", name], [f"{name}s"]) for name in ("q", "k", "v")]
    nodes.append(helper.make_node("Attention", ["qs", "ks", "vs"], ["seen"], q_num_heads=heads, kv_num_heads=heads))
    nodes.append(helper.make_node("MatMul", ["seen", "out"], ["logits"]))
    shapes = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ("batch", 10, d)) for n, d in (("x", 8), ("logits", 4))
    ]
    graph = helper.make_graph(nodes, "fused", shapes[:1], shapes[1:], stored)
    return read_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)]).SerializeToString())


def test_fused_attention_is_matched_as_well():
    teacher, student, x = fused(16, 4), fused(8, 2), data_of("attention").inputs
    (shares,) = looks(teacher, x[:5])
    assert shares.shape == (5, 4, 10, 10)
    assert torch.allclose(shares.sum(-1), torch.ones(5, 4, 10))
    before = float((looks(student, x)[0].mean(1) - looks(teacher, x)[0].mean(1)).square().mean())
    context = context_for("attention", train="unlabelled", teacher=teacher)
    graph = apply(student, context, ATTENTIVE | {"learning_rate": 1e-2})
    after = float((looks(graph, x)[0].mean(1) - looks(teacher, x)[0].mean(1)).square().mean())
    assert after < before / 2


def test_values_are_matched_by_squared_error():
    context = context_for("attention", train="unlabelled", task="regression")
    pruned = apply(trained("attention"), context, PRUNED)
    x = data_of("attention", "test").inputs
    wanted = outputs(write_onnx(trained("attention")), x)
    before = ((outputs(write_onnx(pruned), x) - wanted) ** 2).mean() / wanted.var()
    graph = apply(pruned, context, {"step": "distillation", "epochs": 4, "learning_rate": 3e-3})
    after = ((outputs(write_onnx(graph), x) - wanted) ** 2).mean() / wanted.var()
    assert after < before / 2
    assert context.figures["validation_loss"] == pytest.approx(after, rel=0.5)


class Softmaxed(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4), nn.Softmax(-1))


def test_a_net_that_ends_in_a_softmax_is_taught_through_its_logits():
    torch.manual_seed(0)
    x = data_of("convolutional").inputs
    teacher, student = (exported(Softmaxed(), x[:2]) for _ in range(2))
    with torch.no_grad():
        list(teacher.layers())[-1].module.weight.mul_(6)
    context = context_for("convolutional", train="unlabelled", teacher=teacher)
    before = agreement(student, teacher, "convolutional")
    graph = apply(student, context, {"step": "distillation", "epochs": 25, "learning_rate": 1e-2})
    assert agreement(graph, teacher, "convolutional") > before + 0.3


def test_labels_mix_in_where_there_are_any():
    context = context_for("recurrent")
    graph = apply(trained("recurrent"), context, PRUNED, {"step": "distillation", "epochs": 4, "label_weight": 0.5})
    assert accuracy(graph, "recurrent") > accuracy(apply(trained("recurrent"), context, PRUNED), "recurrent")
    with pytest.raises(StepError, match="label_weight needs labels"):
        apply(graph, context_for("recurrent", train="unlabelled"), {"step": "distillation", "label_weight": 0.5})


def test_few_examples_are_gone_over_more_often():
    few = Examples(data_of("convolutional").inputs[:100])
    context = context_for("convolutional", train=few)
    apply(trained("convolutional"), context, PRUNED, {"step": "distillation"})
    assert context.figures["updates"] == 300


def test_it_stops_when_its_seconds_are_over_and_keeps_the_best():
    context = context_for("convolutional", train="unlabelled")
    pruned = apply(trained("convolutional"), context, PRUNED)
    began = time.monotonic()
    apply(pruned, context, {"step": "distillation", "epochs": 1000, "seconds": 1.0})
    assert time.monotonic() - began < 4
    assert "stopped by the time limit" in context.notes[-1]


def test_the_deadline_of_the_job_is_obeyed_too():
    context = context_for("convolutional", train="unlabelled", deadline=time.monotonic() + 1.0)
    apply(trained("convolutional"), context, PRUNED, {"step": "distillation", "epochs": 1000})
    assert time.monotonic() - context.deadline < 3


def test_weights_that_were_best_before_stay():
    context = context_for("convolutional", train="unlabelled")
    graph = apply(trained("convolutional"), context, {"step": "distillation", "epochs": 1})
    assert "left as they were" in context.notes[-1]
    untouched = weights(trained("convolutional"))
    assert all(torch.equal(weight, untouched[name]) for name, weight in weights(graph).items())


def test_a_loss_that_explodes_says_what_to_change():
    graph = trained("attention")
    context = context_for("attention", train="unlabelled")
    with torch.no_grad():
        list(graph.layers())[-1].module.weight.mul_(1e38)
    with pytest.raises(StepError, match="learning_rate below"):
        apply(graph, context, {"step": "distillation", "learning_rate": 1.0})


def test_progress_and_figures_are_told_while_it_runs():
    told, figures = [], []
    context = context_for(
        "attention", train="unlabelled", progress=lambda *told_: told.append(told_), metric=figures.append
    )
    apply(trained("attention"), context, PRUNED, {"step": "distillation", "epochs": 10, "seconds": 3})
    assert told
    assert all(0 <= fraction <= 1 and "epoch" in message for fraction, message in told)
    assert any({"epoch", "loss", "learning_rate"} <= told_.keys() for told_ in figures)
    assert "validation_agreement" in figures[-1]


def test_a_model_that_takes_one_example_at_a_time_is_trained_all_the_same():
    torch.manual_seed(0)
    fixed = exported(Batched(), data_of("convolutional").inputs[:1], batch=1)
    assert fixed.inputs[0].shape[0] == 1
    few = Examples(data_of("convolutional").inputs[:200])
    context = context_for("convolutional", train=few, teacher=fixed.copy())
    pruned = apply(fixed, context, PRUNED)
    apply(pruned, context, {"step": "distillation", "epochs": 2, "batch_size": 16, "learning_rate": 3e-3})
    assert context.figures["updates"] == 2 * (180 // 16)
    assert "left as they were" not in context.notes[-1]
    assert share_of_zeros(pruned) == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize(
    ("examples", "share", "held_out"), [(500, 0.1, 64), (130, 0.1, 64), (70, 0.5, 0), (64, 0.1, 0), (128, 0.0, 0)]
)
def test_whole_batches_are_held_out_and_one_is_left_to_train_on(examples, share, held_out):
    few = Examples(data_of("convolutional").inputs[:examples])
    graph = exported(Batched(64), few.inputs[:64], batch=64)
    context = context_for("convolutional", train=few, teacher=graph.copy())
    shaken = apply(graph, context, PRUNED)
    apply(shaken, context, {"step": "distillation", "epochs": 1, "learning_rate": 1.0, "validation": share})
    assert ("validation_loss" in context.figures) == bool(held_out)
    assert ("no examples were held out" in context.notes[-1]) == (not held_out)
    assert context.figures["updates"] == max(1, (examples - held_out) // 64)


def test_fewer_examples_than_one_batch_are_refused_with_the_number_needed():
    graph = exported(Batched(64), data_of("convolutional").inputs[:64], batch=64)
    context = context_for("convolutional", train=Examples(data_of("convolutional").inputs[:63]), teacher=graph.copy())
    with pytest.raises(StepError, match="takes 64 examples at a time and the training data has 63"):
        apply(graph, context, {"step": "distillation"})


@pytest.mark.parametrize(("student", "teacher"), [(None, 1), (None, 64), (4, 64), (64, 1)])
def test_a_teacher_is_asked_in_the_batch_size_that_it_takes(student, teacher):
    torch.manual_seed(0)
    data = Examples(data_of("convolutional").inputs[:200])
    taught = exported(Batched(teacher), data.inputs[:teacher], batch=teacher)
    free = fresh() if student is None else exported(Batched(student), data.inputs[:student], batch=student)
    context = context_for("convolutional", train=data, teacher=taught)
    apply(free, context, {"step": "distillation", "epochs": 3, "learning_rate": 1e-2})
    assert "left as they were" not in context.notes[-1]
    if student is not None:
        with pytest.raises(StepError, match=f"the teacher takes {teacher} examples at a time"):
            apply(free, context, {"step": "distillation", "features": True})


def fresh():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
    return exported(net, data_of("convolutional").inputs[:2])


def test_an_output_of_one_number_beside_others_is_taught_too():
    graph = exported(Summed(8), data_of("convolutional").inputs[:8], batch=8)
    context = context_for("convolutional", train=Examples(data_of("convolutional").inputs[:80]), teacher=graph.copy())
    apply(apply(graph, context, PRUNED), context, {"step": "distillation", "epochs": 2, "learning_rate": 3e-3})
    assert math.isfinite(context.figures["validation_loss"])


def test_weights_of_16_bits_are_refused_with_the_way_out():
    half = exported(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).half(), data_of("convolutional").inputs[:2].half())
    context = context_for("convolutional", train=Examples(data_of("convolutional").inputs.half()), teacher=half.copy())
    with pytest.raises(StepError, match="export the model in float32"):
        apply(half, context, {"step": "distillation"})


class Batched(nn.Module):
    """Its view knows one batch size only."""

    def __init__(self, batch=1):
        super().__init__()
        self.batch = batch
        self.first = nn.Linear(64, 32)
        self.norm = nn.BatchNorm1d(32)
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.first(x.view(self.batch, 64)))))


class Summed(Batched):
    def forward(self, x):
        scores = super().forward(x)
        return scores, (scores * scores).mean()


def test_without_data_it_says_what_to_send():
    with pytest.raises(StepError, match=r"data\.train"):
        apply(trained("attention"), context_for("attention", train=None), {"step": "distillation"})


@pytest.mark.parametrize("axis", [1, 2])
def test_the_classes_stand_where_the_task_says(axis):
    """Classes that all have the same score in one place, whichever axis that is, leave nothing to be taught."""
    student = torch.randn(3, 5, 5)
    context = context_for("convolutional", train=Examples(student), teacher=lambda x: (x,), class_axis=axis)
    batch = Batch((student,), None, torch.arange(3))
    objective = Imitation(STEPS["distillation"](step="distillation"), context, Teacher(context), (), batch, None)
    shifted = student + torch.randn(5).unsqueeze(0).unsqueeze(axis)
    assert float(objective.loss((shifted,), batch)) == pytest.approx(0, abs=1e-5)
    assert float(objective.loss((shifted.mT,), batch)) > 0.1


def test_rounding_never_takes_a_divergence_below_zero():
    scores = torch.randn(2000, 7, generator=torch.Generator().manual_seed(0))
    for shift in range(20):
        assert softened_kl(scores + shift / 7, scores, 4.0) >= 0
        assert softened_bce(scores * (1 + shift * 1e-7), scores, 3.0) >= 0
