import numpy as np
import pytest
import torch
from torch import nn

from tests.engine.interface.running import File, colours, tokens
from tests.engine.steps.nets import KINDS, Examples, apply, context_for, data_of, exported, outputs, trained
from workers.engine.data import SyntheticBatches
from workers.engine.errors import StepError
from workers.engine.inspection import signature
from workers.engine.transforms.output_rounding import Decided, round_outputs
from workers.engine.writers.onnx import write_onnx


def smaller(kind, **options):
    """The graph, the context that it was changed in, and inputs with what the original answers to them."""
    context = context_for(kind)
    graph = apply(trained(kind), context, {"step": "output_compression", **options})
    x = data_of(kind, "test").inputs[:64]
    with torch.no_grad():
        return graph, context, x, trained(kind)(x)[0]


def untrained(graph, **options):
    data = SyntheticBatches(signature(graph), 0, 8)
    context = context_for("convolutional", train=data, teacher=graph, original=graph, class_axis=None)
    return apply(graph.copy(), context, {"step": "output_compression", **options}), context


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_classes_are_those_of_the_original(kind):
    graph, context, x, wanted = smaller(kind, top=2, dtype="keep")
    found = File(graph).send(x)
    values, places = wanted.topk(2, -1)
    assert torch.equal(found["output_indices"].long(), places)
    torch.testing.assert_close(found["output"], values, rtol=1e-4, atol=1e-4)
    assert found["output_indices"].dtype == torch.uint8
    assert context.figures["bytes_answered_after"] < context.figures["bytes_answered_before"]


@pytest.mark.parametrize("kind", KINDS)
def test_class_numbers_alone(kind):
    graph, _, x, wanted = smaller(kind, top=1, values=False)
    (found,) = File(graph).send(x).values()
    assert torch.equal(found.long(), wanted.argmax(-1, keepdim=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("options", "bound"), [({}, 1e-3), ({"dtype": "uint8"}, 6e-3), ({"decimals": 1}, 2e-2)])
def test_narrower_numbers_stand_for_the_original_ones(kind, options, bound):
    graph, _, x, wanted = smaller(kind, **options)
    file = File(graph)
    (sent,) = file.send(x).values()
    (found,) = file(x)
    assert sent.element_size() < 4
    assert float((found - wanted).norm() / wanted.norm()) < bound


class Typed(nn.Module):
    """Answers in a type that runtimes do not quantize."""

    def __init__(self, dtype):
        super().__init__()
        self.layer, self.dtype = nn.Linear(8, 6), dtype

    def forward(self, x):
        return self.layer(x).to(self.dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
@pytest.mark.parametrize("options", [{}, {"top": 5}], ids=["all", "best"])
def test_answers_of_any_type_become_bytes(dtype, options):
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    graph = exported(Typed(dtype), x[:2])
    context = context_for("convolutional", train=Examples(x), teacher=graph, original=graph, class_axis=None)
    file = File(apply(graph.copy(), context, {"step": "output_compression", "dtype": "uint8", **options}))
    assert all(sent.dtype == torch.uint8 for sent in file.send(x).values())
    (found,), (wanted,) = file(x), graph(x)
    assert found.dtype == dtype
    best = wanted.double() >= wanted.double().topk(options.get("top", 6)).values[:, -1:]
    assert float((found - wanted).double()[best].norm() / wanted.double()[best].norm()) < 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_yes_or_no(kind):
    graph, _, x, wanted = smaller(kind, decide="auto")
    (found,) = File(graph).send(x).values()
    assert found.dtype == torch.uint8
    assert torch.equal(found.bool(), wanted > 0)


def test_small_answers_become_zero():
    graph, _, x, wanted = smaller("convolutional", below=1.0, dtype="keep")
    (found,) = File(graph).send(x).values()
    torch.testing.assert_close(found, torch.where(wanted < 1, 0.0, wanted), rtol=1e-4, atol=1e-4)
    assert 0 < float((found == 0).float().mean()) < 1


def test_what_the_best_classes_stand_for_ranks_all_others_below():
    graph, _, x, wanted = smaller("convolutional", top=2)
    (found,) = File(graph)(x)
    assert found.shape == wanted.shape
    assert torch.equal(found.argmax(-1), wanted.argmax(-1))
    lowest = found.topk(2, -1).values[:, -1:]
    assert ((found >= lowest).sum(-1) == 2).all()


def test_it_is_compared_with_what_the_original_says_in_the_same_form():
    graph, _, x, wanted = smaller("convolutional", top=2, dtype="keep")
    file = File(graph)
    torch.testing.assert_close(file(x)[0], file.interface.asked([wanted])[0], rtol=1e-4, atol=1e-4)


def test_thousands_of_classes_are_counted_in_more_bytes():
    graph, _ = untrained(tokens(), top=1)
    file = File(graph)
    assert [value.type for value in file.session.get_outputs()] == ["tensor(float16)", "tensor(uint8)"]
    assert "numbers of these classes, as uint8" in file.told["outputs"]["output"]


@pytest.mark.parametrize("options", [{"top": 2}, {"top": 2, "values": False}, {"decide": 0.0}, {"decimals": 2}])
@pytest.mark.parametrize("kind", ["convolutional", "attention"])
def test_a_graph_whose_edges_are_still_on_is_written_with_the_interface_of_the_original(kind, options):
    graph, _, x, _ = smaller(kind, **options)
    with torch.no_grad():
        np.testing.assert_allclose(outputs(write_onnx(graph), x), graph(x)[0].numpy(), rtol=1e-3, atol=1e-3)


def test_answers_that_float16_cannot_hold_stay():
    graph = colours()
    with torch.no_grad():
        list(graph.layers())[-1].module.bias.add_(1e6)
    context = context_for("convolutional", train=Examples(torch.randn(32, 3, 8, 8)), teacher=graph, original=graph)
    with pytest.raises(StepError, match="float16 cannot hold"):
        apply(graph.copy(), context, {"step": "output_compression"})


@pytest.mark.parametrize(("options", "reason"), [
    ({"dtype": "uint8"}, "send inputs as data.calibrate, or take float16"),
    ({"decide": "auto"}, "give the threshold"),
    ({"top": 5}, "has only 5 classes"),
    ({"outputs": ("scores",)}, "there is no output 'scores'; the model has output"),
])  # fmt: skip
def test_refusals_say_what_to_do(options, reason):
    with pytest.raises(StepError, match=reason):
        untrained(colours(), **options)


def test_a_second_time_there_is_nothing_left():
    with pytest.raises(StepError, match="one output_compression does all of it"):
        apply(smaller("recurrent")[0], context_for("recurrent"), {"step": "output_compression"})


def test_rounded_outputs_pass_gradients_near_the_threshold():
    graph = trained("convolutional")
    round_outputs(graph, [0], lambda dtype: Decided(dtype, 0.0))
    x = data_of("convolutional").inputs[:64]
    (found,) = graph(x)
    assert set(found.unique().tolist()) == {0.0, 1.0}
    found.sum().backward()
    assert any(float(p.grad.abs().sum()) > 0 for p in graph.module.parameters() if p.grad is not None)
