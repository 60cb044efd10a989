"""What an attempt has trained is not lost with it: the next one goes on, as if nothing had happened."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from modelpress.steps import STEPS
from tests.engine.steps.nets import apply, context_for, trained
from workers.engine.steps.distillation import distil
from workers.engine.writers.onnx import write_onnx

PRUNED = {"step": "magnitude_pruning", "sparsity": 0.8, "scope": "layer"}
LONG = {"step": "distillation", "epochs": 12, "learning_rate": 3e-3}


class GoneError(Exception):
    pass


def distilled(folder, step=LONG, *, until=None, seen=None, **fields):
    """Prune and distil with checkpoints in the folder; the worker is lost after so many epochs."""

    def metric(values):
        if "validation_loss" in values:
            if seen is not None:
                seen.append(values["epoch"])
            if values["epoch"] == until:
                raise GoneError

    context = context_for("recurrent", train="unlabelled", metric=metric, checkpoints=folder, **fields)
    return apply(trained("recurrent"), context, PRUNED, step), context


def test_the_next_attempt_goes_on_from_the_last_epoch_and_ends_in_the_same_bytes(tmp_path):
    whole, _ = distilled(None)
    with pytest.raises(GoneError):
        distilled(tmp_path, until=7)
    epochs = []
    graph, context = distilled(tmp_path, seen=epochs)
    assert min(epochs) > 1
    assert max(epochs) == 12
    assert f"{int(min(epochs)) - 1} of them in an earlier attempt" in context.notes[-1]
    assert write_onnx(graph) == write_onnx(whole)


def test_what_was_trained_to_the_end_is_not_trained_again(tmp_path):
    whole, _ = distilled(tmp_path)
    epochs = []
    graph, context = distilled(tmp_path, seen=epochs)
    assert epochs == []
    assert "12 of them in an earlier attempt" in context.notes[-1]
    assert write_onnx(graph) == write_onnx(whole)


@pytest.mark.parametrize("other", [{"step": LONG | {"learning_rate": 1e-3}}, {"seed": 1}])
def test_a_checkpoint_of_another_training_is_not_used(tmp_path, other):
    distilled(tmp_path)
    epochs = []
    _, context = distilled(tmp_path, **({"step": LONG} | other), seen=epochs)
    assert min(epochs) == 0
    assert any("does not fit it" in note for note in context.notes)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 and no more", b"cos\nsystem\n(S'true'\ntR."])
def test_a_damaged_checkpoint_is_not_used(tmp_path, damage):
    (tmp_path / "training-0.pt").write_bytes(damage)
    epochs = []
    _, context = distilled(tmp_path, LONG | {"epochs": 1}, seen=epochs)
    assert epochs == [0, 1]
    assert any("does not fit it" in note for note in context.notes)


def test_without_room_for_checkpoints_it_trains_on_and_says_so(tmp_path):
    folder = tmp_path / "gone"
    _, context = distilled(folder, LONG | {"epochs": 2})
    assert context.figures["updates"] > 0
    assert [w for w in context.warnings if "no checkpoint could be kept" in w]


def test_the_seconds_of_earlier_attempts_count(tmp_path):
    limited = LONG | {"epochs": 1000, "seconds": 2.0}
    with pytest.raises(GoneError):
        distilled(tmp_path, limited, until=4)
    spent = torch.load(tmp_path / "training-0.pt", weights_only=True)["seconds"]
    epochs = []
    _, context = distilled(tmp_path, limited, seen=epochs)
    assert 0 < spent < 2
    assert "stopped by the time limit" in context.notes[-1]
    assert min(epochs) > 1


class Remembering(nn.Module):
    """Remembers how far the training was, as a rewinding to an early epoch has to."""

    seen: torch.Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def advance(self, fraction):
        assert fraction >= float(self.seen) - 1e-6
        self.seen.fill_(fraction)

    def settled(self, fraction):
        return True


def test_a_schedule_keeps_what_it_remembers(tmp_path):
    def once():
        schedule = Remembering()
        context = context_for("recurrent", train="unlabelled", checkpoints=tmp_path)
        distil(STEPS["distillation"](**LONG | {"epochs": 1}), trained("recurrent"), context, schedule)
        return float(schedule.seen)

    assert once() == once() == 1.0
    assert (tmp_path / "training-0.pt").exists()


PROGRAM = """
import sys
from pathlib import Path
from tests.engine.test_checkpoints import distilled
from workers.engine.writers.onnx import write_onnx

class Told(list):
    def append(self, epoch):
        print(int(epoch), flush=True)

graph, context = distilled(Path(sys.argv[1]), seen=Told())
Path(sys.argv[2]).write_bytes(write_onnx(graph))
"""


@pytest.mark.slow
def test_the_attempt_after_a_killed_process_goes_on_from_its_epoch(tmp_path):
    folder, result = tmp_path / "checkpoints", tmp_path / "result.onnx"
    folder.mkdir()

    def begin():
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, folder, result],
            stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2], env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    with begin() as killed:
        for line in killed.stdout:
            if int(line) == 6:
                killed.send_signal(signal.SIGKILL)
                break
        assert killed.wait() == -signal.SIGKILL
    assert not result.exists()
    with begin() as again:
        epochs = [int(line) for line in again.stdout]
        assert again.wait() == 0
    assert 1 < epochs[0] <= 7
    assert epochs[-1] == 12
    whole, _ = distilled(None)
    assert result.read_bytes() == write_onnx(whole)
