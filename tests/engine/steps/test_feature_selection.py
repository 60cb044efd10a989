import onnx
import onnx.parser
import pytest
import torch
from torch import nn

from tests.engine.interface.running import File, colours, features, flat, tokens
from tests.engine.onnx.odd_models import speech
from tests.engine.steps.nets import Examples, apply, context_for, data_of, exported, outputs, trained
from workers.engine.errors import StepError
from workers.engine.interface.cutting import after_cut
from workers.engine.readers.onnx import read_onnx
from workers.engine.writers.onnx import write_onnx

NETS = {"colours": (colours, (3, 8, 8)), "features": (features, (16,)), "flat": (flat, (3, 8, 8))}


def inputs_of(name, examples=256):
    """Of which the first feature never changes and the second hardly does; no mean is 0."""
    x = torch.randn(examples, *NETS[name][1], generator=torch.Generator().manual_seed(1)) + 0.5
    x[:, 0] = 0.7
    x[:, 1] = 0.3 + 0.01 * x[:, 1]
    return x


def selected(name, **options):
    """The graph before and after, the context and test inputs."""
    graph, x = NETS[name][0](), inputs_of(name)
    context = context_for("convolutional", train=Examples(x), teacher=graph, original=graph)
    return graph, apply(graph.copy(), context, {"step": "feature_selection", **options}), context, inputs_of(name, 32)


def error(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("importance", ["permutation", "weights"])
@pytest.mark.parametrize("name", ["colours", "features"])
def test_features_that_do_not_change_go_first(name, importance):
    graph, small, context, x = selected(name, keep=NETS[name][1][0] - 2, importance=importance)
    file = File(small)
    assert file.session.get_inputs()[0].shape[1] == NETS[name][1][0] - 2
    assert "in this order: 2" in file.told["inputs"]["x"]
    with torch.no_grad():
        assert error(file(x)[0], graph(x)[0]) < 0.05
    assert context.figures["parameters_after"] < context.figures["parameters_before"]
    assert context.figures["bytes_sent_after"] < context.figures["bytes_sent_before"]
    assert context.series["worth"] == sorted(context.series["worth"])


def test_what_a_feature_was_on_average_goes_into_the_bias():
    graph, small, _, x = selected("features", keep=15)
    _, without, _, _ = selected("features", keep=15, refit=False)
    with torch.no_grad():
        assert error(small(x)[0], graph(x)[0]) < 1e-3
        assert error(without(x)[0], graph(x)[0]) > 0.01


def test_an_image_of_one_size_gives_its_channels_or_rows():
    _, small, _, x = selected("flat", keep=1)
    file = File(small)
    (shape,) = (value.shape[1:] for value in file.session.get_inputs())
    assert sorted(shape) in ([1, 8, 8], [1, 3, 8])
    with torch.no_grad():
        torch.testing.assert_close(file(x)[0], small(x)[0], rtol=1e-4, atol=1e-4)


def test_as_many_go_as_the_answers_bear():
    _, _, context, _ = selected("features", max_effect=0.05)
    assert context.figures["effect"] <= 0.05
    assert 2 <= 16 - context.figures["features_after"] < 16
    with pytest.raises(StepError, match="raise max_effect"):
        selected("features", max_effect=1e-7, refit=False)


@pytest.mark.parametrize("kind", ["attention", "recurrent"])
def test_sequences_lose_features_and_keep_their_length(kind):
    graph = apply(trained(kind), context_for(kind), {"step": "feature_selection", "keep": 6})
    file = File(graph)
    assert file.session.get_inputs()[0].shape[1:] == [10, 6]
    x = data_of(kind, "test").inputs[:32]
    with torch.no_grad():
        torch.testing.assert_close(file(x)[0], graph(x)[0], rtol=1e-4, atol=1e-4)


def test_training_and_rounding_follow_on_the_features_that_are_left():
    kind = "recurrent"
    lost = apply(trained(kind), context_for(kind), {"step": "feature_selection", "keep": 5})
    recovered = apply(lost.copy(), context_for(kind), {"step": "distillation", "epochs": 4})
    rounded = apply(recovered.copy(), context_for(kind), {"step": "dynamic_quantization"})
    data = data_of(kind, "test")
    shares = [
        float((File(graph)(data.inputs)[0].argmax(-1) == data.labels).float().mean())
        for graph in (lost, recovered, rounded)
    ]
    assert shares[1] > shares[0]
    assert shares[2] == pytest.approx(shares[1], abs=0.03)


def test_later_pruning_leaves_the_inputs_alone():
    graph, small, _, x = selected("colours", keep=2)
    context = context_for("convolutional", train=Examples(x), teacher=graph, original=graph)
    pruned = apply(small, context, {"step": "channel_pruning", "round_to": 1})
    assert File(pruned).session.get_inputs()[0].shape[1] == 2


def test_a_second_selection_chooses_among_what_the_first_has_left():
    graph, small, _, x = selected("features", keep=10)
    context = context_for("convolutional", train=Examples(x), teacher=graph, original=graph)
    smaller = apply(small, context, {"step": "feature_selection", "keep": 4})
    file = File(smaller)
    assert file.session.get_inputs()[0].shape[1] == 4
    with torch.no_grad():
        torch.testing.assert_close(file(x)[0], smaller(x)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "layer", "shape"), [
    ("convolutional", "conv1", (16, 4, 4)), ("attention", "embed", (10, 32)), ("recurrent", "encoder.0", None),
])  # fmt: skip
def test_a_cut_makes_a_feature_extractor(kind, layer, shape):
    graph, x = trained(kind), data_of(kind, "test").inputs[:32]
    layer = layer if any(found.name == layer for found in graph.layers()) else next(graph.layers()).name
    context = context_for(kind)
    small = apply(graph, context, {"step": "feature_selection", "cut": layer})
    kept = {}
    original = trained(kind)
    module = next(found for found in original.layers() if found.name == layer).module
    module.register_forward_hook(lambda _module, _inputs, result: kept.update(result=result))
    with torch.no_grad():
        original(x)
    wanted = kept["result"][0] if isinstance(kept["result"], tuple) else kept["result"]
    file = File(small)
    torch.testing.assert_close(file(x)[0], wanted, rtol=1e-4, atol=1e-4)
    assert file.told["outputs"] == {layer: f"is what '{layer}' gives inside the original"}
    assert context.figures["parameters_after"] < context.figures["parameters_before"]
    assert shape is None or tuple(wanted.shape[1:]) == shape


def test_a_teacher_that_has_no_such_layer_teaches_nothing_of_it():
    """Not even where its answers happen to be as wide."""
    graph = features()
    teacher = exported(nn.Sequential(nn.Linear(16, 32)), torch.zeros(2, 16))
    context = context_for("convolutional", train=Examples(inputs_of("features")), teacher=teacher, original=graph)
    small = apply(graph.copy(), context, {"step": "feature_selection", "cut": "hidden"})
    x = inputs_of("features", 8)
    with torch.no_grad():
        torch.testing.assert_close(after_cut(context, small).teacher(x)[0], small(x)[0])


TWO_INPUTS = """
    <ir_version: 8, opset_import: ["" : 17]>
    sum (float[batch, 2] x, float[batch, 2] y) => (float[batch, 3] z)
    <float[2, 3] first = {1, 2, 3, 4, 5, 6}, float[2, 3] second = {6, 5, 4, 3, 2, 1}> {
        a = MatMul (x, first)
        b = MatMul (y, second)
        z = Add (a, b)
    }
"""


def test_inputs_that_only_the_rest_has_read_are_not_sent_any_more():
    graph = read_onnx(onnx.parser.parse_model(TWO_INPUTS).SerializeToString())
    context = context_for("recurrent", train=None, teacher=graph, original=graph)
    file = File(apply(graph.copy(), context, {"step": "feature_selection", "cut": "second"}))
    assert [value.name for value in file.session.get_inputs()] == ["y"]
    assert file.told["inputs"] == {"x": "is not sent any more: the answers do not depend on it"}
    (found,) = file(torch.zeros(1, 2), torch.tensor([[1.0, 10.0]]))
    assert found.tolist() == [[36.0, 25.0, 14.0]]


@pytest.mark.parametrize(("graph", "options", "reason"), [
    (tokens, {}, "input holds whole numbers|ids holds whole numbers"),
    (features, {"cut": "nowhere"}, "there is no layer 'nowhere'; the model has hidden, head"),
    (features, {"keep": 16}, "no feature goes: there are 16"),
    (features, {"inputs": ("y",)}, "there is no input 'y'; the model has x"),
    (lambda: trained("convolutional"), {}, "no input has features that can go: .*the convolution stem slides along it"),
])  # fmt: skip
def test_refusals_say_why(graph, options, reason):
    graph = graph()
    x = torch.randn(32, *graph.inputs[0].shape[1:])
    context = context_for("convolutional", train=Examples(x), teacher=graph, original=graph)
    with pytest.raises(StepError, match=reason):
        apply(graph.copy(), context, {"step": "feature_selection", **options})


def test_weights_of_what_onnx_runtime_computes_are_no_place_to_cut():
    graph = read_onnx(speech()[0])
    context = context_for("recurrent", train=None, teacher=graph, original=graph)
    with pytest.raises(StepError, match="gives the same whatever the inputs are"):
        apply(graph.copy(), context, {"step": "feature_selection", "cut": "W"})


def test_a_cut_where_earlier_steps_have_changed_the_width_is_refused():
    graph, context = trained("attention"), context_for("attention")
    with pytest.raises(StepError, match="put feature_selection before them"):
        apply(graph, context, {"step": "channel_pruning"}, {"step": "feature_selection", "cut": "block.linear1"})


def test_a_graph_whose_edges_are_still_on_is_written_with_the_interface_of_the_original():
    _, small, _, x = selected("features", keep=4)
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(outputs(write_onnx(small), x)), small(x)[0], rtol=1e-4, atol=1e-4)
