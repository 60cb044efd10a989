"""The command line against a real service, as a shell sees it: what is printed, and the exit code."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

from modelpress.client import Job, Model
from modelpress.jobs import JobStatus
from modelpress.report import Report
from tests.service_process import EXAMPLE, Service

LENET = str(EXAMPLE / "lenet5.onnx")


def test_compress_shows_progress_and_the_table(service: Service, tmp_path: Path) -> None:
    evaluate = f"evaluate={EXAMPLE / 'evaluate.npz'}"
    done = service.run("compress", LENET, "--recipe", "half_precision", "--data", evaluate, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "100%  succeeded"
    said = done.stdout.splitlines()
    assert said[0].startswith("lenet5.compressed.onnx  (mdl_")
    assert "PASSED" in said[2]  # the verdict comes before every figure
    table = done.stdout
    assert re.search(r"^file +242\.7 KiB +\d+\.\d KiB +1\.\d\d× smaller", table, re.MULTILINE)
    assert re.search(r"^latency, batch 1, 1 thread +\d+\.\d+ ms +\d+\.\d+ ms +\d+\.\d+×", table, re.MULTILINE)
    assert re.search(r"^accuracy, n = 2000 +0\.9115 +0\.91\d\d +[+-]0\.00", table, re.MULTILINE)
    assert "same class" in table
    assert (tmp_path / "lenet5.compressed.onnx").stat().st_size < 140_000


def test_targets_that_are_missed_are_an_exit_code(service: Service, lenet: Model, tmp_path: Path) -> None:
    done = service.run("compress", lenet.id, "-r", "half_precision", "--size-ratio", "50", "-o", str(tmp_path))
    assert done.returncode == 5, done.stderr
    assert "TARGETS NOT MET" in done.stdout
    assert len(list(tmp_path.glob("*.onnx"))) == 1


def test_a_ruined_model_is_an_exit_code(service: Service, lenet: Model, tmp_path: Path) -> None:
    recipe = "magnitude_pruning:sparsity=0.99"
    data = f"evaluate={EXAMPLE / 'evaluate.npz'}"
    done = service.run("compress", lenet.id, "-r", recipe, "-d", data, "-o", str(tmp_path / "ruin.onnx"))
    assert done.returncode == 3, done.stderr
    assert "DEGRADED" in done.stdout


def test_a_gain_of_nothing_is_an_exit_code(service: Service, lenet: Model, tmp_path: Path) -> None:
    only_one_layer = 'half_precision:layers={"include": ["no such layer"]}'
    done = service.run("compress", lenet.id, "-r", only_one_layer, "-o", str(tmp_path / "same.onnx"))
    assert done.returncode in {1, 4}, done.stdout


def test_json_is_one_document_for_scripts(service: Service, lenet: Model, tmp_path: Path) -> None:
    done = service.run("compress", lenet.id, "-r", "half_precision", "-o", str(tmp_path / "a.onnx"), "--json")
    answer = json.loads(done.stdout)
    assert Report.model_validate(answer["report"]).size_ratio > 1.5
    assert list(answer["files"].values()) == [str(tmp_path / "a.onnx")]
    listed = json.loads(service.run("jobs", "list", "--json").stdout)
    assert answer["job_id"] in {job["id"] for job in listed}


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["compress", "missing.onnx", "-r", "half_precision"], 1, "missing.onnx"),
        (["compress", LENET, "-r", "magic"], 2, "there is no step 'magic'"),
        (["compress", LENET, "-r", "half_precision", "-d", "test=x.npz"], 2, "calibrate=FILE"),
        (["compress", LENET, "-r", "half_precision", "-f", "gguf"], 2, "onnx, pt2, safetensors, packed"),
        (["compress", ".", "-r", "half_precision"], 1, "neither a config.json"),
        (["compress", LENET, "-r", "fine_tuning"], 1, "[invalid]"),
        (["jobs", "show", "job_nothing"], 1, "[not_found]"),
        (["--api-key", "mp_wrong", "models", "list"], 1, "--api-key or MODELPRESS_API_KEY"),
        (["--url", "http://127.0.0.1:1", "steps"], 1, "modelpress up"),
    ],
)
def test_errors_are_sentences(service: Service, tmp_path: Path, argv: list[str], code: int, said: str) -> None:
    done = service.run(*argv, cwd=tmp_path)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_weights_alone_are_compressed_in_the_architecture_of_another_file(service: Service, tmp_path: Path) -> None:
    stored = {each.name: numpy_helper.to_array(each) for each in onnx.load(LENET).graph.initializer}
    save_file({name: each for name, each in stored.items() if each.dtype.kind == "f"}, tmp_path / "epoch9.safetensors")
    argv = ["--architecture", LENET, "-r", "half_precision", "-f", "onnx", "-f", "safetensors", "-o", "small.onnx"]
    done = service.run("compress", "epoch9.safetensors", *argv, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert load_file(tmp_path / "small.safetensors").keys() == load_file(tmp_path / "epoch9.safetensors").keys()
    assert (tmp_path / "small.onnx").stat().st_size < 140_000
    listed = service.run("models", "list").stdout
    assert re.search(r"epoch9 \(half_precision\) +ready +onnx, safetensors", listed)


def test_an_interrupt_cancels_the_job(service: Service, lenet: Model, tmp_path: Path) -> None:
    data = f"train={EXAMPLE / 'train.npz'}"
    argv = ["compress", lenet.id, "-r", "distillation:epochs=1000", "-d", data, "-o", str(tmp_path / "never.onnx")]
    with subprocess.Popen(
        [sys.executable, "-m", "modelpress", *argv], env=service.env, stderr=subprocess.PIPE, text=True
    ) as program:
        assert program.stderr is not None
        said = ""
        while "distillation" not in said:
            said = program.stderr.readline()
            assert said, "it ended by itself"
        program.send_signal(signal.SIGINT)
        rest = program.stderr.read()
    assert program.returncode == 130
    canceled = re.search(r"(job_\w+) is canceled", rest)
    assert canceled is not None, rest
    with service.client() as client:
        assert client.wait_job(canceled[1], timeout=60).status is JobStatus.CANCELED


def test_what_is_there(service: Service, lenet: Model, halved: Job, tmp_path: Path) -> None:
    assert halved.result is not None
    small = halved.result.model_id
    assert lenet.id in service.run("models", "list").stdout
    assert json.loads(service.run("models", "show", small).stdout)["parent_id"] == lenet.id
    assert re.search(rf"{halved.id} +succeeded +passed +half_precision", service.run("jobs", "list").stdout)
    assert service.run("jobs", "watch", halved.id).stdout == "succeeded\n"
    assert "PASSED" in service.run("jobs", "report", halved.id).stdout
    assert service.run("jobs", "log", halved.id).returncode == 0
    assert small[:10] in service.run("compare", lenet.id, small, "--json").stdout
    assert "(original)" in service.run("compare", lenet.id, small).stdout
    assert service.run("download", small, "-o", str(tmp_path / "x.onnx")).stdout.strip() == str(tmp_path / "x.onnx")


def test_datasets(service: Service) -> None:
    uploaded = service.run("datasets", "upload", str(EXAMPLE / "calibrate.npz")).stdout.strip()
    assert re.fullmatch(r"dst_[0-9a-f]{32}", uploaded)
    assert re.search(rf"{uploaded} +calibrate +ready +500", service.run("datasets", "list").stdout)


def test_the_catalogue(service: Service) -> None:
    assert re.search(r"static_quantization +calibrate", service.run("steps").stdout)
    one = service.run("steps", "magnitude_pruning").stdout
    assert "arXiv:1506.02626" in one
    assert re.search(r"scope +global +one threshold for all layers", one)


def test_the_key_of_an_embedded_start_is_found(service: Service, lenet: Model, tmp_path: Path) -> None:
    (tmp_path / "api-key").write_text(service.api_key)
    at_home = Service(service.url, "", tmp_path)
    assert lenet.id in at_home.run("models", "list").stdout
