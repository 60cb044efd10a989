"""`modelpress pack` and `unpack`, which need no service."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from modelpress.cli import cli
from tests.packed.models import holding, normal, sparse

ROOT = Path(__file__).parents[2]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(holding(sparse(normal(100, 200))))
    return path


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_there_and_back(model, tmp_path):
    code, output = run("pack", model)
    assert code == 0
    assert "model.onnx.packed" in output
    assert "× smaller" in output
    before = model.read_bytes()
    model.unlink()
    assert run("unpack", tmp_path / "model.onnx.packed")[0] == 0
    assert model.read_bytes() == before


def test_names_and_folders_of_the_users_choice(model, tmp_path):
    (tmp_path / "folder").mkdir()
    assert run("pack", model, "-o", tmp_path / "small.packed")[0] == 0
    assert run("pack", model, "-o", tmp_path / "folder")[0] == 0
    assert run("unpack", tmp_path / "small.packed")[0] == 0
    assert (tmp_path / "small.onnx").read_bytes() == model.read_bytes()
    assert (tmp_path / "folder" / "model.onnx.packed").exists()


def test_nothing_is_written_over_unasked(model, tmp_path):
    run("pack", model)
    code, output = run("unpack", tmp_path / "model.onnx.packed")
    assert code == 2
    assert "is there already" in output
    assert run("unpack", tmp_path / "model.onnx.packed", "-o", model)[0] == 0


def test_a_folder_that_is_not_there_is_named(model, tmp_path):
    code, output = run("pack", model, "-o", tmp_path / "nowhere" / "small.packed")
    assert code == 2
    assert "there is no folder" in output


def test_errors_are_sentences(model, tmp_path):
    code, output = run("unpack", model, "-o", tmp_path / "again")
    assert (code, output.strip()) == (1, "error: this is not a packed file")
    run("pack", model)
    code, output = run("unpack", f"{model}.packed", "-o", tmp_path / "again", "--max-bytes", 1000)
    assert code == 1
    assert "more than the 1000 that are allowed here" in output
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("missing", ["constriction", "numpy", "zstandard"])
def test_what_to_install_is_said_where_it_is_missing(missing, model):
    code = f"import sys; sys.modules[{missing!r}] = None; from modelpress.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "pack", model], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 1
    assert "pip install 'modelpress[packed]'" in done.stderr
    assert "Traceback" not in done.stderr
