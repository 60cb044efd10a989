import pytest
import torch
from pydantic import ValidationError
from torch import nn

from modelpress.steps.depth_pruning import DepthPruning
from tests.engine.steps.nets import Examples, accuracy, apply, context_for, exported, outputs, trained
from workers.engine.data import SyntheticBatches
from workers.engine.errors import StepError
from workers.engine.inspection import signature
from workers.engine.structure.blocks import find_blocks
from workers.engine.writers.onnx import write_onnx


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, 1, 1)
        self.norm = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, x):
        return torch.relu(x + self.conv2(torch.relu(self.norm(self.conv1(x)))))


class Deep(nn.Module):
    """Four identity blocks around one that halves the resolution, and so cannot go. `sizes` scales what each adds."""

    def __init__(self, sizes=(1.0, 0.01, 2.0, 0.3)):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, 1, 1)
        self.blocks = nn.ModuleList(Block(8) for _ in sizes)
        self.down, self.short = nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(8, 8, 1, 2)
        self.head = nn.Linear(8, 4)
        for block, size in zip(self.blocks, sizes, strict=True):
            nn.init.constant_(block.conv2.bias, 0.0)
            block.conv2.weight.data.mul_(size)

    def forward(self, x):
        x = self.blocks[1](self.blocks[0](self.stem(x)))
        x = self.down(x) + self.short(x)
        return self.head(self.blocks[3](self.blocks[2](x)).mean((2, 3)))


class Encoder(nn.Module):
    def __init__(self, first):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, norm_first=first)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)

    def forward(self, x):
        return self.encoder(x)


INPUTS = Examples(torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(3)))


def deep():
    torch.manual_seed(0)
    return exported(Deep(), INPUTS.inputs[:2])


def encoder(first):
    torch.manual_seed(0)
    return exported(Encoder(first), torch.randn(2, 5, 16))


def drop(graph, context=None, **options):
    return apply(
        graph.copy(), context or context_for("convolutional", train=INPUTS), {"step": "depth_pruning", **options}
    )


def names(graph):
    return [block.name for block in find_blocks(graph)]


def test_blocks_that_keep_their_shape_are_found_under_the_names_of_their_layers():
    assert names(deep()) == ["blocks.0", "blocks.1", "blocks.2", "blocks.3"]
    assert names(trained("convolutional")) == ["conv1 to conv2"]
    for first in (True, False):
        found = find_blocks(encoder(first))
        assert len(found) == 6
        assert found[0].name == "encoder.layers.0.self_attn"
        assert all("linear2" in block.layers[-1] for block in found[1::2])


def test_nets_without_residuals_are_refused():
    with pytest.raises(StepError, match="it has none"):
        drop(trained("recurrent"), context_for("recurrent"))


def test_the_block_that_adds_least_goes_first_and_nothing_else_changes():
    context = context_for("convolutional", train=INPUTS)
    graph, small = deep(), drop(deep(), context, blocks=1)
    assert names(small) == ["blocks.0", "blocks.2", "blocks.3"]
    assert not any(name.startswith("blocks.1") for name in (layer.name for layer in small.layers()))
    x = INPUTS.inputs
    torch.testing.assert_close(small(x)[0], graph(x)[0], rtol=0.02, atol=0.02)
    assert not torch.equal(small(x)[0], graph(x)[0])
    torch.testing.assert_close(
        torch.from_numpy(outputs(write_onnx(small), x[:3])), small(x[:3])[0], rtol=1e-4, atol=1e-4
    )
    assert context.notes[0].startswith("dropped blocks.1: alone it moves the outputs by ")
    assert context.untouched["stem"] == "it is in no residual block"
    assert context.figures["blocks_dropped"] == 1
    assert context.figures["parameters_after"] < context.figures["parameters_before"]


@pytest.mark.parametrize(("options", "left"), [({}, 3), ({"ratio": 0.5}, 2), ({"blocks": 4}, 0)])
def test_as_many_blocks_go_as_asked_for(options, left):
    assert len(names(drop(deep(), **options))) == left


def test_blocks_go_as_long_as_the_outputs_move_little():
    context = context_for("convolutional", train=INPUTS)
    graph = drop(deep(), context, max_effect=0.1)
    assert 0 < len(names(graph)) < 4
    assert 0 < context.figures["effect"] <= 0.1
    with pytest.raises(StepError, match="raise max_effect"):
        drop(deep(), max_effect=1e-6)


def test_blocks_with_layers_that_are_not_selected_stay():
    context = context_for("convolutional", train=INPUTS)
    graph = drop(deep(), context, blocks=2, layers={"exclude": ["blocks.1.conv2"]})
    assert "blocks.1" in names(graph)
    assert context.untouched["blocks.1.conv1"] == "its block holds blocks.1.conv2, which is not selected"
    with pytest.raises(StepError, match="4 blocks cannot go: there are 3 that may"):
        drop(deep(), blocks=4, layers={"exclude": ["blocks.1.*"]})
    with pytest.raises(StepError, match="every one of them holds a layer that is not selected"):
        drop(deep(), layers={"include": ["head"]})


@pytest.mark.parametrize("first", [True, False])
def test_halves_of_transformer_layers_go_one_by_one(first):
    x = torch.randn(30, 5, 16, generator=torch.Generator().manual_seed(4))
    context = context_for("attention", train=Examples(x), task="none", class_axis=None)
    graph = drop(encoder(first), context, blocks=5)
    assert len(names(graph)) == 1
    answers = outputs(write_onnx(graph), x[:3])
    torch.testing.assert_close(torch.from_numpy(answers), graph(x[:3])[0].detach(), rtol=1e-4, atol=1e-4)


def test_made_up_inputs_are_said_to_be_so():

    context = context_for("convolutional", calibrate=SyntheticBatches(signature(deep()), 0, 1))
    drop(deep(), context)
    assert "made-up inputs" in context.notes[0]


def test_channel_pruning_and_distillation_follow():
    context = context_for("attention", train="unlabelled")
    graph = apply(
        trained("attention"), context,
        {"step": "depth_pruning", "blocks": 1},
        {"step": "channel_pruning"},
        {"step": "distillation", "epochs": 4, "learning_rate": 5e-3},
    )  # fmt: skip
    assert len(names(graph)) == 1
    assert accuracy(graph, "attention") > 0.8


def test_options_that_contradict_each_other_are_refused():
    with pytest.raises(ValidationError, match="give one of them"):
        DepthPruning(ratio=0.5, blocks=1)
