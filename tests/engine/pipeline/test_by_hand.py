"""`python -m workers.engine RUN_DIR`: a run without any service."""

import subprocess
import sys

import pytest
from pydantic import TypeAdapter

from modelpress.run import Event, RunResult
from tests.engine.pipeline.models import file, mlp, run_dir


def by_hand(folder):
    command = [sys.executable, "-m", "workers.engine", folder]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
def test_events_are_lines_and_the_exit_status_says_how_it_ended(tmp_path):
    job = {"kind": "compress", "model": file("model"), "request": {"recipe": [{"step": "half_precision"}]}}
    folder = run_dir(tmp_path / "good", job, model=mlp())

    done = by_hand(folder)

    assert done.returncode == 0, done.stderr
    events = [TypeAdapter(Event).validate_json(line) for line in done.stdout.splitlines()]
    assert events[0].progress.step == "reading"
    assert RunResult.model_validate_json((folder / "out/result.json").read_text()).report is not None

    folder = run_dir(tmp_path / "bad", job, model=b"")
    done = by_hand(folder)
    assert done.returncode == 1
    assert "invalid_model" in done.stderr
