"""Tasks that the shapes of outputs and labels do not tell: sequences without times (CTC), and embeddings."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.engine.pipeline.models import blobs, compress
from tests.engine.steps.nets import Examples, apply, context_for, exported, outputs
from workers.engine.errors import InvalidDataError
from workers.engine.labels import Target, contrastive, nearest_neighbor
from workers.engine.sequences import collapsed, distances, packed
from workers.engine.writers.onnx import write_onnx

TIME, SIGNS = 12, 4


def spoken(examples, seed):
    """One to four signs, never the same twice in a row, each for two steps in noise: (N, 12, 8), and what was said."""
    signs = torch.randn(SIGNS + 1, 8, generator=torch.Generator().manual_seed(5)) * 2
    signs[0] = 0
    generator = np.random.default_rng(seed)
    x, labels = np.zeros((examples, TIME), np.int64), np.full((examples, 4), -100)
    for row, said in zip(x, labels, strict=True):
        place = 0
        for index in range(generator.integers(1, 5)):
            sign = generator.choice([s for s in range(1, SIGNS + 1) if s != said[max(index - 1, 0)]])
            said[index], row[place : place + 2] = sign, sign
            place += 2 + generator.integers(0, 2)
    noise = torch.randn(examples, TIME, 8, generator=torch.Generator().manual_seed(seed))
    return Examples(signs[torch.from_numpy(x)] + 0.4 * noise, torch.from_numpy(labels))


class Speech(nn.Module):
    def __init__(self, time_first=False, softmax=False):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, SIGNS + 1))
        self.time_first, self.softmax = time_first, softmax

    def forward(self, x):
        scores = self.net(x)
        scores = scores.softmax(-1) if self.softmax else scores
        return scores.transpose(0, 1) if self.time_first else scores


def speech(**options):
    torch.manual_seed(1)
    return exported(Speech(**options), spoken(2, 0).inputs)


def error_rate(file, data, time_first=False):
    answers = outputs(file, data.inputs)
    given = collapsed((answers.swapaxes(0, 1) if time_first else answers).argmax(-1), 0)
    wanted = packed(data.labels.numpy(), 0)
    return distances(given, wanted).sum() / (wanted >= 0).sum()


@pytest.mark.parametrize("options", [{}, {"time_first": True}, {"softmax": True}], ids=str)
def test_ctc_learns_what_is_said_without_being_told_when(options):
    context = context_for("attention", train=spoken(500, 1), task="ctc", class_axis=2)
    step = {"step": "fine_tuning", "epochs": 30, "learning_rate": 1e-2}
    graph = apply(speech(**options), context, step)
    rate = error_rate(write_onnx(graph), spoken(200, 2), options.get("time_first", False))
    assert rate < 0.1
    assert context.figures["validation_token_error_rate"] == pytest.approx(rate, abs=0.1)


def test_a_ctc_student_learns_from_its_teacher_and_labels_at_once():
    context = context_for("attention", train=spoken(500, 1), task="ctc", class_axis=2)
    teacher = apply(speech(), context, {"step": "fine_tuning", "epochs": 30, "learning_rate": 1e-2})
    context.teacher = teacher.copy()
    pruned = apply(teacher, context, {"step": "magnitude_pruning", "sparsity": 0.6})
    before = error_rate(write_onnx(pruned), spoken(200, 2))
    graph = apply(pruned, context, {"step": "distillation", "epochs": 10, "label_weight": 0.3, "learning_rate": 1e-2})
    assert error_rate(write_onnx(graph), spoken(200, 2)) < before / 2
    assert {"validation_agreement", "validation_token_error_rate"} <= context.figures.keys()


def test_what_a_ctc_model_cannot_say_is_refused():
    answers = torch.randn(3, TIME, 5)
    with pytest.raises(InvalidDataError, match="from 0 to 4"):
        Target(answers, torch.tensor([[1, 5], [2, 3], [1, -100]]), "ctc", 2)
    with pytest.raises(InvalidDataError, match="no axis counts them"):
        Target(answers, torch.ones(4, 2, dtype=torch.int64), "ctc", 2)


def test_repeats_are_one_and_blanks_none():
    chosen = np.array([[0, 3, 3, 0, 3, 1], [2, 2, 2, 2, 2, 2], [0, 0, 0, 0, 0, 0]])
    assert [row[row >= 0].tolist() for row in collapsed(chosen, 0)] == [[3, 3, 1], [2], []]


def test_distances_are_the_fewest_edits():
    words = [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("flaw", "lawn", 2), ("same", "same", 0)]

    def numbers(texts):
        return packed(np.array([[*map(ord, text), *[-1] * (7 - len(text))] for text in texts]), 0)

    given, wanted, edits = zip(*words, strict=True)
    assert distances(numbers(given), numbers(wanted)).tolist() == list(edits)


class Embed(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 6))


def embed():
    torch.manual_seed(0)
    return exported(Embed(), torch.zeros(2, 16))


def test_vectors_of_a_class_come_together():
    x, labels = (torch.from_numpy(part) for part in blobs(800, 1))
    context = context_for("attention", train=Examples(x, labels), task="embedding", class_axis=None)
    other, wanted = (torch.from_numpy(part) for part in blobs(300, 2))
    before = nearest_neighbor(torch.from_numpy(outputs(write_onnx(embed()), other)), wanted)
    graph = apply(embed(), context, {"step": "fine_tuning", "epochs": 15, "learning_rate": 3e-3})
    after = nearest_neighbor(torch.from_numpy(outputs(write_onnx(graph), other)), wanted)
    assert after > before + (1 - before) / 3
    assert context.figures["validation_nearest_neighbor"] == pytest.approx(after, abs=0.15)


def test_vectors_point_where_they_should_whatever_their_length():
    x, _ = (torch.from_numpy(part) for part in blobs(800, 1))
    wanted = 100 * (x @ torch.randn(16, 6, generator=torch.Generator().manual_seed(0)))
    context = context_for("attention", train=Examples(x, wanted), task="embedding", class_axis=None)
    graph = apply(embed(), context, {"step": "fine_tuning", "epochs": 15, "learning_rate": 1e-2})
    assert context.figures["validation_cosine"] > 0.95
    found = torch.from_numpy(outputs(write_onnx(graph), x))
    assert float(torch.cosine_similarity(found, wanted).mean()) > 0.95


def test_without_pairs_there_is_nothing_to_bring_together():
    vectors = torch.randn(3, 4, requires_grad=True)
    loss = contrastive(vectors, torch.tensor([0, 1, -100]))
    loss.backward()
    assert float(loss) == 0
    assert float(vectors.grad.abs().sum()) == 0


def test_jobs_measure_them(tmp_path):
    """From a file and datasets to the report."""
    data, test = spoken(500, 1), spoken(200, 2)
    sets = {
        use: {"x": part.inputs.numpy(), "labels": part.labels.numpy()}
        for use, part in (("train", data), ("evaluate", test))
    }
    step = {"step": "fine_tuning", "epochs": 30, "learning_rate": 1e-2}
    result, _ = compress(tmp_path / "ctc", write_onnx(speech()), [step], data=sets, task={"kind": "ctc"})
    assert result.error is None, result.error
    assert result.report.quality.metric == "token_error_rate"
    assert result.report.quality.result < result.report.quality.original / 3
    sets = {"train": blobs(800, 1), "evaluate": blobs(300, 2)}
    result, _ = compress(tmp_path / "embed", write_onnx(embed()), [step], data=sets, task={"kind": "embedding"})
    assert result.error is None, result.error
    assert result.report.quality.metric == "nearest_neighbor"
    assert result.report.quality.result > result.report.quality.original
