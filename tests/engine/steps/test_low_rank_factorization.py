from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from modelpress.steps import LowRankFactorization
from tests.engine.huggingface.models import make, saved
from tests.engine.quantization.nets import net
from tests.engine.steps.nets import (
    CLASSES,
    Examples,
    accuracy,
    apply,
    context_for,
    exported,
    images,
    share_of_zeros,
    trained,
)
from workers.engine.data.batches import SyntheticBatches
from workers.engine.errors import StepError, UnsupportedModelError
from workers.engine.factorization import plan
from workers.engine.inspection import signature
from workers.engine.readers.huggingface import read_huggingface
from workers.engine.shapes import stats
from workers.engine.writers import write_model

STEP = {"step": "low_rank_factorization"}
UNTIMED = STEP | {"measure": False}
"""What is faster is a matter of the machine: tests of all else do without."""


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 32, 3, 2, 1)
        self.middle = nn.Conv2d(32, 64, 3, 1, 1)
        self.hidden = nn.Linear(64 * 16, 128)
        self.head = nn.Linear(128, CLASSES)

    def forward(self, x):
        x = torch.relu(self.middle(torch.relu(self.conv(x))))
        return self.head(torch.relu(self.hidden(x.flatten(1))))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells = nn.LSTM(48, 24, bidirectional=True, batch_first=True)
        self.head = nn.Linear(48, CLASSES)

    def forward(self, x):
        return self.head(self.cells(x)[0].mean(1))


@pytest.fixture(scope="module")
def wide_graph():
    torch.manual_seed(1)
    torch.set_num_threads(1)
    wide, examples = Wide(), images(800, 1)
    optimizer = torch.optim.Adam(wide.parameters(), 2e-3)
    for _ in range(4):
        for batch in torch.randperm(800).split(50):
            (x,), labels = examples.take(batch)
            nn.functional.cross_entropy(wide(x), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
    return exported(wide, examples.inputs[:2])


@pytest.fixture
def wide(wide_graph):
    return wide_graph.copy()


def context(graph, **fields):
    data = images(800, 1).unlabelled()
    return context_for("convolutional", **({"train": data, "teacher": graph, "original": graph} | fields))


def names(graph):
    return [layer.name for layer in graph.layers()]


def test_layers_become_thinner_ones_and_the_report_says_how(wide):
    own = context(wide.copy())
    before = stats(wide)
    graph = apply(wide, own, UNTIMED | {"energy": 0.9})
    after = stats(graph)
    assert names(graph)[:1] == ["conv"]
    assert {"middle.v", "hidden.v", "hidden.u"} <= set(names(graph))
    assert after.macs < 0.6 * before.macs
    assert own.figures["macs_after"] == after.macs
    assert own.figures["layers_split"] == sum(name.endswith(".v") for name in names(graph))
    assert "too small" in own.untouched["conv"]
    assert any(note.startswith("hidden: rank ") for note in own.notes)
    assert accuracy(graph, "convolutional") > accuracy(own.original, "convolutional") - 0.04


@pytest.mark.parametrize(("target", "figure"), [("macs_left", "macs"), ("parameters_left", "parameters")])
def test_a_target_of_cost_is_reached_and_hardly_more_than_that(wide, target, figure):
    own = context(wide.copy())
    apply(wide, own, UNTIMED | {target: 0.5})
    left = own.figures[f"{figure}_after"] / own.figures[f"{figure}_before"]
    assert 0.4 < left <= 0.5
    assert not own.warnings


def test_a_target_that_cannot_be_reached_is_warned_of(wide):
    own = context(wide.copy())
    apply(wide, own, UNTIMED | {"parameters_left": 0.5, "layers": {"include": ["middle"]}})
    assert own.figures["parameters_after"] > 0.6 * own.figures["parameters_before"]
    assert "parameters_left 0.5 was asked for" in own.warnings[0]


def test_as_low_as_the_outputs_bear(wide):
    costs = []
    for bound in (0.005, 0.1):
        own = context(wide.copy())
        graph = apply(wide.copy(), own, UNTIMED | {"max_error": bound, "refit": False})
        assert own.figures["error"] <= bound
        costs.append(stats(graph).macs)
    assert costs[1] < costs[0] < stats(wide).macs


def test_real_inputs_say_which_directions_matter(wide):
    step = UNTIMED | {"macs_left": 0.3, "refit": False}
    made_up = SyntheticBatches(signature(wide), 0, 8)
    x = images(300, 2).inputs
    wanted = wide(x)[0].detach()
    errors = {}
    for name, calibrate in (("data", images(800, 1).unlabelled()), ("none", made_up)):
        graph = apply(wide.copy(), context(wide.copy(), calibrate=calibrate), step)
        errors[name] = float((graph(x)[0].detach() - wanted).norm() / wanted.norm())
    assert errors["data"] < 0.7 * errors["none"]


def test_the_last_parts_are_fitted_to_what_the_layers_gave(wide):
    own = context(wide.copy())
    apply(wide, own, UNTIMED | {"macs_left": 0.2})
    assert own.figures["error"] < 0.9 * own.figures["error_before_refit"]


def test_what_is_no_faster_stays_whole_and_is_told(wide, monkeypatch):
    monkeypatch.setattr(plan, "FASTER", 1e9)
    own = context(wide.copy())
    with pytest.raises(StepError, match=r"no layer of this model is worth splitting.*hidden: with rank \d+.*no faster"):
        apply(wide, own, STEP)
    assert names(wide) == ["conv", "middle", "hidden", "head"]


def test_the_split_is_measured(wide):
    own = context(wide.copy())
    apply(wide, own, STEP | {"layers": {"include": ["hidden"]}, "energy": 0.8})
    (note,) = [note for note in own.notes if note.startswith("hidden")]
    assert float(note.split(" times as fast")[0].rpartition(" ")[2]) > plan.FASTER


def test_layers_that_cannot_be_split_say_why():
    own = context_for("attention", train=None)
    with pytest.raises(StepError, match="worth splitting"):
        apply(net("tied"), own, UNTIMED)
    assert "shared with another layer" in " ".join(own.untouched.values())
    own = context_for("convolutional", train=None)
    apply(net("uneven"), own, UNTIMED)
    assert "12 groups" in own.untouched["depthwise"]


def test_a_recurrent_layer_loses_inputs_of_its_product_only():
    data = Examples(torch.randn(64, 10, 8) @ torch.randn(8, 2) @ torch.randn(2, 48))
    graph = exported(Recurrent(), data.inputs[:2])
    (wanted,) = graph(data.inputs)
    whole = graph.copy()
    own = context_for("recurrent", train=data, teacher=whole, original=whole)
    apply(graph, own, UNTIMED | {"energy": 0.99})
    assert [name.rpartition(".")[2] for name in names(graph)] == ["v", "u", "head"]
    assert graph(data.inputs)[0].sub(wanted).abs().max() < 1e-3
    assert stats(graph).macs < stats(whole).macs


def test_later_steps_work_on_the_parts(wide, tmp_path):
    own = context(wide.copy())
    graph = apply(wide, own, UNTIMED | {"macs_left": 0.3, "refit": False})
    split = names(graph)
    before = accuracy(graph, "convolutional")
    graph = apply(
        graph.copy(), own, {"step": "distillation", "epochs": 2}, {"step": "magnitude_pruning", "sparsity": 0.5},
        {"step": "distillation", "epochs": 2}, {"step": "static_quantization", "keep_float": 1.0},
    )  # fmt: skip
    assert names(graph) == split
    assert share_of_zeros(graph) >= 0.5
    assert accuracy(graph, "convolutional") > max(before - 0.02, 0.8)


@pytest.mark.parametrize("format_", ["onnx", "pt2", "safetensors"])
def test_every_format_holds_the_parts(wide, tmp_path, format_):
    graph = apply(wide, context(wide.copy()), UNTIMED)
    file = Path(tmp_path) / "model"
    write_model(graph, format_, file)
    if format_ == "safetensors":
        from safetensors.torch import load_file

        assert {"hidden.v.weight", "hidden.u.weight", "hidden.u.bias"} <= load_file(file).keys()
        return
    from workers.engine.readers import read_model

    _, again = read_model(file)
    x = images(8, 3).inputs
    torch.testing.assert_close(again(x)[0], graph(x)[0], rtol=1e-4, atol=1e-4)
    assert {"hidden.v", "hidden.u"} <= set(names(again))


def test_a_hugging_face_folder_has_no_place_for_the_parts(tmp_path):
    graph = read_huggingface(saved(make("bert"), tmp_path / "bert"))
    own = context_for("attention", train=None, teacher=graph.copy(), original=graph.copy())
    graph = apply(graph, own, UNTIMED | {"energy": 0.4})
    assert own.figures["macs_after"] < own.figures["macs_before"]
    assert "set embeddings" in own.untouched["embeddings.word_embeddings"]
    with pytest.raises(UnsupportedModelError, match=r"no place for.*take the result as onnx or pt2"):
        write_model(graph, "safetensors", tmp_path / "model.zip")


def test_one_target_is_enough():
    with pytest.raises(ValidationError, match="four ways to say one thing"):
        LowRankFactorization(energy=0.9, macs_left=0.5)


def test_weights_that_are_not_numbers_are_refused():
    graph = trained("convolutional")
    with torch.no_grad():
        next(iter(graph.layers())).module.weight[0] = torch.nan
    with pytest.raises(StepError, match="not numbers"):
        apply(graph, context_for("convolutional"), STEP)
