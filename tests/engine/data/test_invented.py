"""Inputs that are made up, because a job has no data."""

import io
import re
import time

import pytest
import torch
from torch import nn

from modelpress.models import Signature
from tests.engine.pipeline.models import compress
from tests.engine.steps.nets import accuracy, apply, context_for, data_of, exported, trained
from workers.engine.data import SyntheticBatches, inversion
from workers.engine.data.invented import InventedBatches
from workers.engine.ops.normalization import BatchNorm
from workers.engine.readers.onnx import read_onnx
from workers.engine.writers.onnx import write_onnx


def invented(graph, *, seed=0, train=False, seconds=60.0, free=16, classes=None):
    deadline = time.monotonic() + seconds
    return InventedBatches(graph, seed=seed, free=free, deadline=deadline, train=train, classes=classes)


def taken(batches):
    return batches.take(torch.arange(batches.examples))[0]


def statistics_off(graph, x):
    """By how many deviations the means of what the batch norms take are off, at the worst."""
    off = []
    for layer in graph.module.modules():
        if isinstance(layer, BatchNorm):

            def see(norm, inputs):
                mean, variance = norm.statistics
                dims = [0, *range(2, inputs[0].ndim)]
                off.append(float(((inputs[0].mean(dims) - mean) / variance.sqrt()).abs().mean()))

            handle = layer.register_forward_pre_hook(see)
            off_before = len(off)
            with torch.no_grad():
                graph(x)
            handle.remove()
            assert len(off) == off_before + 1
    return max(off)


@pytest.fixture(scope="module")
def from_norms():
    return invented(trained("convolutional"), classes=(0, 1))


def test_batch_norms_see_the_statistics_that_they_keep(from_norms):
    graph = trained("convolutional")
    (x,) = taken(from_norms)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)) * 2 + 1
    assert statistics_off(graph, x) < 0.15 < statistics_off(graph, noise)
    (told,) = from_norms.news()
    assert "2 batch norms see the statistics of the training" in told
    assert not from_norms.news()


def test_all_classes_are_among_them(from_norms):
    (x,) = taken(from_norms)
    with torch.no_grad():
        chosen = trained("convolutional")(x)[0].argmax(-1)
    assert (chosen.bincount(minlength=4) > x.shape[0] // 20).all()


def test_they_are_the_same_for_a_seed():
    def once(seed):
        return taken(invented(trained("convolutional"), seed=seed))[0]

    assert torch.equal(once(0), once(0))
    assert not torch.equal(once(0), once(1))


def test_a_pruned_net_recovers_on_them_and_not_on_noise(from_norms):
    pruned = {"step": "magnitude_pruning", "sparsity": 0.8, "scope": "layer"}
    step = {"step": "distillation", "epochs": 25, "learning_rate": 3e-3}
    context = context_for("convolutional", train=from_norms)
    before = accuracy(apply(trained("convolutional"), context, pruned), "convolutional")
    after = accuracy(apply(trained("convolutional"), context, pruned, step), "convolutional")
    assert after > before + (0.95 - before) / 2


def test_an_input_of_another_scale_is_found():
    """As of a model that takes pixels from 0 to 255 and normalises them itself."""

    class Pixels(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

        def forward(self, x):
            return torch.relu(self.norm(self.conv((x - 120) / 60))).mean((2, 3))

    torch.manual_seed(0)
    net = Pixels().train()
    for _ in range(50):
        net(torch.rand(16, 3, 12, 12) * 255)
    (x,) = taken(invented(exported(net, torch.zeros(2, 3, 12, 12))))
    assert 60 < float(x.mean()) < 180
    assert float(x.std()) > 20


def test_few_are_made_where_time_is_short():
    began = time.monotonic()
    batches = invented(trained("convolutional"), train=True, seconds=1.0)
    assert 0 < batches.examples < 1024
    assert time.monotonic() - began < 5
    assert "the time allowed no more" in batches.news()[0]


def test_guesses_make_up_for_what_there_was_no_time_for(monkeypatch):
    monkeypatch.setattr(inversion, "MEMORY", 1)  # an example at a time
    batches = invented(trained("convolutional"), seconds=0.4)
    assert batches.examples >= inversion.FEWEST
    assert re.search(r"no data: \d+ made-up .* the other \d+ are noise", batches.news()[0])


class Tagger(nn.Module):
    """Token numbers, a mask and the numbers of segments in; as exporters of language models have them."""

    def __init__(self):
        super().__init__()
        self.tokens, self.segments, self.head = nn.Embedding(1000, 8), nn.Embedding(2, 8), nn.Linear(8, 3)

    def forward(self, ids, mask, segments):
        found = self.tokens(ids) + self.segments(segments)
        return self.head((found * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True))


def tagger():
    file, one = io.BytesIO(), torch.ones(2, 6, dtype=torch.int64)
    torch.onnx.export(
        Tagger().eval(), (one, one, one), file, dynamo=False, input_names=["ids", "mask", "segments"],
        dynamic_axes={name: {0: "batch", 1: "time"} for name in ("ids", "mask", "segments")},
    )  # fmt: skip
    return file.getvalue()


def test_tokens_come_from_the_whole_table_that_they_are_looked_up_in():
    batches = invented(read_onnx(tagger()))
    ids, mask, segments = taken(batches)
    assert ids.shape == mask.shape == segments.shape == (256, 16)
    assert int(ids.min()) < 20
    assert 980 < int(ids.max()) < 1000
    assert (mask == 1).all()
    assert set(segments.flatten().tolist()) == {0, 1}
    assert (segments == segments[:, :1]).all()
    (told,) = batches.news()
    assert "all 1,000 rows" in told
    assert "ones, as in a mask, for 'mask'" in told


def test_images_for_a_net_without_batch_norms_are_smooth_and_the_report_says_why():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
    batches = invented(exported(net, torch.zeros(2, 1, 8, 8)))
    (x,) = taken(batches)
    neighbours = (x[..., 1:] - x[..., :-1]).square().mean()
    assert float(neighbours) < 1.4  # 2 in white noise
    assert float(x.std()) == pytest.approx(1, abs=0.05)
    assert "no batch norms" in batches.news()[0]


def test_a_net_of_one_batch_size_gets_whole_batches():
    torch.manual_seed(0)
    file = io.BytesIO()
    torch.onnx.export(
        Batched().eval(), (torch.randn(24, 1, 8, 8),), file, dynamo=False,
        training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False,
    )  # fmt: skip
    graph = read_onnx(file.getvalue())
    graph.module.eval()
    batches = invented(graph)
    assert batches.examples % 24 == 0
    graph(taken(batches)[0][:24])
    assert "1 batch norms see" in batches.news()[0]


class Batched(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x.view(24, 1, 8, 8)))).mean((2, 3)))


def test_a_recipe_without_data_says_how_its_inputs_were_made(tmp_path):
    file = write_onnx(trained("convolutional"))
    test = data_of("convolutional", "test")
    recipe = [
        {"step": "magnitude_pruning", "sparsity": 0.7, "scope": "layer"},
        {"step": "distillation", "epochs": 3},
        {"step": "static_quantization"},
    ]
    data = {"evaluate": (test.inputs.numpy(), test.labels.numpy())}
    result, _ = compress(tmp_path / "run", file, recipe, data=data)
    assert result.error is None, result.error
    assert any("distillation, static_quantization had no data" in warning for warning in result.report.warnings)
    notes = [note for step in result.report.steps for note in step.notes if "no data: 1024 made-up inputs" in note]
    assert len(notes) == 1
    assert result.report.quality.result > result.report.quality.original - 0.08


def test_an_untrained_student_learns_without_data_from_the_batch_norms_of_an_uploaded_teacher(tmp_path):
    torch.manual_seed(0)
    student = nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4)
    )
    test = data_of("convolutional", "test")
    step = {"step": "distillation", "epochs": 30, "learning_rate": 1e-2, "features": True, "attention": True}
    result, _ = compress(
        tmp_path / "run", write_onnx(exported(student, test.inputs[:2])), [step],
        data={"evaluate": (test.inputs.numpy(), test.labels.numpy())}, teacher=write_onnx(trained("convolutional")),
    )  # fmt: skip
    assert result.error is None, result.error
    notes = result.report.steps[0].notes
    assert any("matched too, by depth" in note for note in notes)
    assert any("where the convolutions of 1 resolutions look" in note for note in notes)
    assert any("2 batch norms" in note for note in notes)
    assert result.report.quality.result > result.report.quality.original + 0.3


def test_real_inputs_for_calibration_are_trained_on_where_there_are_no_others(tmp_path):
    x = data_of("convolutional").inputs[:200].numpy()
    file = write_onnx(trained("convolutional"))
    recipe = [{"step": "distillation", "epochs": 1}]
    result, _ = compress(tmp_path / "run", file, recipe, data={"calibrate": {"x": x}})
    assert result.error is None, result.error
    assert any("trains on the inputs for calibration" in note for note in result.report.steps[0].notes)
    assert not any("made-up" in warning for warning in result.report.warnings)


def test_agreement_without_data_is_measured_on_tokens_of_the_whole_table():
    """A quantized table is wrong in most of its rows, of which the first two would say nothing."""
    signature = read_onnx(tagger())
    plain = SyntheticBatches(Signature(inputs=signature.inputs, outputs=signature.outputs), 0, 16, {"ids": 1000})
    ids, mask, _ = plain.take(torch.arange(plain.examples))[0]
    assert int(ids.max()) > 980
    assert int(mask.max()) == 1
