"""Every step of the catalogue is carried out somewhere, and has run on a real model from file to report."""

import importlib
import subprocess
import sys

import pytest

from modelpress.steps import STEPS
from tests.engine.pipeline.models import blobs, compress, convolutional, images, mlp, residual, wide
from workers.engine.steps import APPLY

QUICK = {"epochs": 1}
"""For steps that train; the others have no such option."""
MODELS = {"depth_pruning": residual, "low_rank_factorization": wide, "feature_selection": mlp}
"""For steps that look for something that not every model has."""
EXAMPLES = {mlp: blobs}
"""For models that take other examples than images."""
OPTIONS = {
    "input_compression": {"scale": 0.03, "mean": 4.0},
    "movement_pruning": {"epochs": 20},
    "lottery_ticket": {"round_share": 0.6, "epochs": 5},
}
"""For steps that cannot know without a word, or that need more than a few updates."""


@pytest.mark.parametrize("name", STEPS)
def test_the_step_runs_on_a_real_model(tmp_path, name):
    options = {key: value for key, value in QUICK.items() if key in STEPS[name].model_fields}
    options |= OPTIONS.get(name, {})
    model = MODELS.get(name, convolutional)
    examples = EXAMPLES.get(model, images)
    data = {"train": examples(300, 3), "calibrate": examples(100, 4), "evaluate": examples(300, 2)}

    result, _ = compress(tmp_path / "run", model(), [{"step": name, **options}], data=data)

    assert result.error is None, result.error
    assert result.report.quality.result > 0.7
    (step,) = result.report.steps
    assert step.step == name
    assert step.notes or step.metrics, "a step says what it did"


@pytest.mark.parametrize(("name", "step"), STEPS.items())
def test_the_step_has_one_function_in_the_module_of_its_name(name, step):
    module = importlib.import_module(f"workers.engine.steps.{name}")
    assert APPLY[step].__module__ == module.__name__
    assert step.__doc__ or step.model_fields
    assert step.never_after.keys() <= STEPS.keys()


@pytest.mark.slow
def test_preloading_starts_no_thread_and_opens_no_gpu():
    program = (
        "import os, workers.engine.pipeline as pipeline; pipeline.preload(); import torch; "
        "print(len(os.listdir('/proc/self/task')), torch.cuda.is_initialized())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"OPENBLAS_NUM_THREADS": "1", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.split() == ["1", "False"]
