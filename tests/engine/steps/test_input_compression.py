import pytest
import torch

from tests.engine.interface.running import ROWS, File, colours, features, flat, tokens
from tests.engine.steps.nets import Examples, apply, context_for, data_of, outputs, trained
from workers.engine.data import SyntheticBatches
from workers.engine.errors import StepError
from workers.engine.inspection import signature
from workers.engine.writers.onnx import write_onnx

MEAN, STD = 0.286, 0.353
RGB = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def taken(graph, real=None, **options):
    """The file, and the context in which the step ran on these inputs, or on made-up ones."""
    data = SyntheticBatches(signature(graph), 0, 9) if real is None else Examples(real)
    context = context_for("convolutional", train=data, teacher=graph, original=graph)
    return File(apply(graph.copy(), context, {"step": "input_compression", **options})), context


def raw(*shape):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(3), dtype=torch.uint8)


def channels(numbers):
    return torch.tensor(numbers).reshape(-1, *[1] * 2) if isinstance(numbers, tuple) else numbers


def answers(graph, *inputs):
    with torch.no_grad():
        return graph(*inputs)[0]


@pytest.mark.parametrize("kind", ["convolutional", "attention", "recurrent"])
def test_raw_bytes_are_answered_as_normalised_floats_were(kind):
    graph, shape = trained(kind), data_of(kind).inputs.shape[1:]
    sent = raw(16, *shape)
    file, _ = taken(graph, mean=MEAN, std=STD)
    found = file.send(sent)["output"]
    torch.testing.assert_close(found, answers(graph, (sent / 255 - MEAN) / STD), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("net", "left"), [
    ({"padding": 0}, []), ({"padding": 1}, ["Add"]), ({"padding": 0, "groups": 3}, []),
    ({"padding": 1, "groups": 3}, ["Add"]),
])  # fmt: skip
def test_the_normalisation_of_each_channel_goes_into_the_first_layer_as_far_as_that_is_exact(net, left):
    graph, sent = colours(**net), raw(16, 3, 8, 8)
    file, _ = taken(graph, **RGB)
    floats = (sent / 255 - channels(RGB["mean"])) / channels(RGB["std"])
    torch.testing.assert_close(file.send(sent)["output"], answers(graph, floats), rtol=1e-5, atol=1e-5)
    assert file.ops[: len(left) + 2] == ["Cast", *left, "Conv"]


def test_a_scale_alone_goes_into_a_padded_convolution_and_through_reshapes():
    sent = raw(16, 3, 8, 8)
    for graph in (colours(padding=1), flat()):
        file, _ = taken(graph, scale=1 / 255)
        assert not {"Mul", "Add"} & set(file.ops[:3])
        torch.testing.assert_close(file.send(sent)["output"], answers(graph, sent / 255), rtol=1e-5, atol=1e-5)


def test_data_in_the_original_form_is_mapped_to_the_very_bytes():
    graph, sent = colours(), raw(16, 3, 8, 8)
    floats = (sent / 255 - channels(RGB["mean"])) / channels(RGB["std"])
    file, context = taken(graph, floats, **RGB)
    (own,) = file.interface.own((floats,))
    assert torch.equal(own, sent)
    assert context.figures["rounded_by"] < 1e-3
    assert not context.warnings
    torch.testing.assert_close(file.interface.seen((floats,))[0], floats, rtol=1e-5, atol=1e-5)


def test_the_file_says_what_callers_send():
    file, context = taken(colours(), **RGB)
    assert "byte × 0.00392156863 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]" in file.told["inputs"]["x"]
    assert context.figures["bytes_sent_before"] == 4 * context.figures["bytes_sent_after"] == 768
    assert [value.type for value in file.session.get_inputs()] == ["tensor(uint8)"]


def test_data_that_bytes_cannot_say_is_warned_of():
    floats = torch.randn(64, 3, 8, 8)
    _, context = taken(colours(), floats, scale=1 / 255)
    assert "are cut off" in context.warnings[0]
    _, context = taken(colours(), floats.clamp(-1, 1), mean=0.5, std=0.5)
    assert "are rounded" in context.warnings[0]


def test_a_model_that_is_trained_afterwards_still_takes_bytes():
    data = data_of("convolutional")
    graph = apply(
        trained("convolutional"), context_for("convolutional"),
        {"step": "input_compression", "scale": 0.05, "mean": 6.0}, {"step": "distillation", "epochs": 1},
    )  # fmt: skip
    file = File(graph)
    with torch.no_grad():
        torch.testing.assert_close(file(data.inputs[:16])[0], graph(data.inputs[:16])[0], rtol=1e-4, atol=1e-4)
    chosen = file(data.inputs)[0].argmax(-1)
    assert float((chosen == data.labels).float().mean()) > 0.9


def test_a_quantized_first_layer_reads_the_bytes_as_its_integers():
    graph = features()
    floats = raw(64, 16) / 255 - 0.2
    context = context_for("convolutional", train=Examples(floats), teacher=graph, original=graph)
    steps = {"step": "static_quantization", "keep_float": 1.0}, {"step": "input_compression", "mean": 0.2}
    file = File(apply(graph.copy(), context, *steps))
    assert file.ops[0] == "DequantizeLinear"
    assert "Cast" not in file.ops
    wanted, found = answers(graph, floats), file(floats)[0]
    assert float((found - wanted).norm() / wanted.norm()) < 0.03


def test_token_ids_come_in_as_few_bytes_as_count_the_table():
    graph = tokens()
    ids = torch.randint(0, ROWS, (7, 9), generator=torch.Generator().manual_seed(0))
    file, context = taken(graph)
    assert [value.type for value in file.session.get_inputs()] == ["tensor(int16)"]
    torch.testing.assert_close(file.send(ids.to(torch.int16))["output"], answers(graph, ids), rtol=1e-5, atol=1e-5)
    assert context.figures["bytes_sent_after"] * 4 == context.figures["bytes_sent_before"]
    with pytest.raises(StepError, match="300 rows, which uint8 cannot count"):
        taken(graph, integers="uint8")


def test_a_net_that_pools_computes_on_the_small_image():
    graph = colours()
    file, context = taken(graph, resolution=0.5)
    (value,) = file.session.get_inputs()
    assert value.shape[1:] == [3, 4, 4]
    assert context.figures["macs_after"] < 0.3 * context.figures["macs_before"]
    x = torch.randn(6, 3, 8, 8)
    small = torch.nn.functional.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True)
    torch.testing.assert_close(file(x)[0], answers(graph, small), rtol=1e-4, atol=1e-4)


def test_a_net_of_one_size_enlarges_the_small_image_first():
    graph = flat()
    file, context = taken(graph, resolution=0.5)
    assert file.session.get_inputs()[0].shape[1:] == [3, 4, 4]
    assert "no computation is saved" in context.notes[0]
    even = torch.full((2, 3, 8, 8), 0.7)
    torch.testing.assert_close(file(even)[0], answers(graph, even), rtol=1e-4, atol=1e-4)


def test_bytes_of_smaller_images():
    file, context = taken(colours(), resolution=0.5, **RGB)
    assert file.session.get_inputs()[0].shape[1:] == [3, 4, 4]
    assert context.figures["bytes_sent_after"] == 48
    assert "height 4, width 4, then bytes" in file.told["inputs"]["x"]


@pytest.mark.parametrize(("graph", "options", "reason"), [
    (colours, {}, "say what bytes would mean"),
    (colours, {"mean": (0.1, 0.2)}, "no dimension of 'x'"),
    (colours, {"std": 0.0, "floats": "uint8"}, "nothing can be divided"),
    (colours, {"inputs": ("y",)}, "there is no input 'y'; the model has x"),
    (lambda: trained("recurrent"), {"resolution": 0.5}, "it is no image"),
    (tokens, {"integers": "keep"}, "no input can be sent in fewer bytes"),
])  # fmt: skip
def test_refusals_say_what_to_do(graph, options, reason):
    with pytest.raises(StepError, match=reason):
        taken(graph(), **options)


def test_an_option_without_effect_is_warned_of():
    _, context = taken(tokens(), resolution=0.5)
    assert context.warnings == ["resolution had no effect: no input holds real numbers"]


def test_a_graph_whose_edges_are_still_on_is_written_with_the_interface_of_the_original():
    graph = colours()
    context = context_for(
        "convolutional", train=SyntheticBatches(signature(graph), 0, 8), teacher=graph, original=graph
    )
    changed = apply(graph.copy(), context, {"step": "input_compression", "resolution": 0.5, **RGB})
    x = torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(
        torch.from_numpy(outputs(write_onnx(changed), x)), answers(changed, x), rtol=1e-4, atol=1e-4
    )
