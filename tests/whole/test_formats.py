"""Models in every format, from HTTP to the runner and back: folders, archives, weights alone, several files."""

import json
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import save_file

from modelpress import Client, ModelpressError
from modelpress.client import Model
from modelpress.packed import unpack
from modelpress.report import Report
from tests.service_process import EXAMPLE, Service

PRUNE = [{"step": "magnitude_pruning", "sparsity": 0.5}]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `save_pretrained` makes it."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=200, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    folder = tmp_path_factory.mktemp("hub") / "tiny-bert"
    BertModel(config).save_pretrained(folder)
    return folder


def result_of(client: Client, model: str, recipe: list[dict[str, Any]], **options: Any) -> tuple[Model, Report]:
    job = client.wait_job(client.create_job(model, recipe, **options).id, timeout=240)
    assert job.result is not None, f"{job.error}\n{client.log(job.id)}"
    return client.get_model(job.result.model_id), client.report(job.id)


def answers(file: Path) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(file)
    tokens = np.arange(14).reshape(2, 7)
    feed = {given.name: tokens if given.name == "input_ids" else np.ones_like(tokens) for given in session.get_inputs()}
    return session.run(None, feed)


def test_a_hugging_face_folder_comes_back_in_every_format(client: Client, bert: Path, tmp_path: Path) -> None:
    model = client.wait(client.upload_model(bert), timeout=120)
    assert (model.name, model.filename, model.format) == ("tiny-bert", "tiny-bert.zip", "huggingface")
    result, _ = result_of(client, model.id, PRUNE, formats=["onnx", "safetensors", "packed"])
    assert [(file.format, file.filename) for file in result.files] == [
        ("onnx", "tiny-bert.onnx"),
        ("packed", "tiny-bert.packed"),
        ("safetensors", "tiny-bert.zip"),
    ]
    paths = {file.format: client.download(result.id, tmp_path, file.format) for file in result.files}

    unpack(paths["packed"], tmp_path / "unpacked.onnx")
    assert (tmp_path / "unpacked.onnx").read_bytes() == paths["onnx"].read_bytes()
    with zipfile.ZipFile(paths["safetensors"]) as archive:
        archive.extractall(tmp_path / "folder")

    from transformers import AutoModel

    pruned = AutoModel.from_pretrained(tmp_path / "folder")
    tokens = torch.arange(14).reshape(2, 7)
    with torch.no_grad():
        states = pruned(tokens, attention_mask=torch.ones_like(tokens), token_type_ids=torch.ones_like(tokens))
    assert np.allclose(states.last_hidden_state.numpy(), answers(paths["onnx"])[0], atol=1e-5)
    weight = pruned.encoder.layer[0].intermediate.dense.weight
    assert 0.4 < (weight == 0).float().mean() < 0.6


def test_a_program_comes_back_as_a_program_with_fewer_channels(client: Client, tmp_path: Path) -> None:
    model = client.wait(client.upload_model(EXAMPLE / "resnet.pt2"), timeout=60)
    recipe = [{"step": "channel_pruning", "ratio": 0.5}]
    small, report = result_of(client, model.id, recipe, formats=["pt2", "onnx"])
    assert [file.format for file in report.files] == ["pt2", "onnx"], report.warnings
    program = torch.export.load(client.download(small.id, tmp_path / "small.pt2", "pt2")).module()
    session = onnxruntime.InferenceSession(client.download(small.id, tmp_path / "small.onnx", "onnx"))
    images = torch.randn(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        answer = program(images)
    assert np.allclose(answer, session.run(None, {"x": images.numpy()})[0], atol=1e-4)
    assert sum(parameter.numel() for parameter in program.parameters()) < 60_000


def test_what_one_job_made_is_what_the_next_one_works_on(client: Client, bert: Path, tmp_path: Path) -> None:
    whole = client.wait(client.upload_model(bert), timeout=120)
    narrow, report = result_of(client, whole.id, [{"step": "channel_pruning"}], formats=["safetensors"])
    assert [file.format for file in narrow.files] == ["safetensors"], report.warnings
    assert any("modelpress.huggingface.load" in warning for warning in report.warnings)
    half, report = result_of(client, narrow.id, [{"step": "half_precision"}], formats=["packed"])
    assert report.size_ratio > 1.7
    assert whole.stats is not None
    assert report.size[0].parameters < 0.8 * whole.stats.parameters
    last, _ = result_of(client, half.id, [{"step": "magnitude_pruning"}])
    assert last.parent_id == half.id


def test_the_command_line_takes_a_folder_and_fetches_every_format(service: Service, bert: Path, tmp_path: Path) -> None:
    argv = ["-r", "half_precision", "-f", "packed", "-f", "onnx"]
    done = service.run("compress", str(bert), *argv, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"tiny-bert.compressed.onnx", "tiny-bert.compressed.packed"}
    assert re.search(r"^file as packed +\S+ KiB +\S+ KiB +\d", done.stdout, re.MULTILINE)
    assert re.search(r"^file as onnx +\S+ KiB +\d", done.stdout, re.MULTILINE)


def test_weights_alone_are_put_into_the_architecture_that_they_name(
    client: Client, lenet: Model, tmp_path: Path
) -> None:
    stored = {each.name: numpy_helper.to_array(each) for each in onnx.load(EXAMPLE / "lenet5.onnx").graph.initializer}
    weights = {name: torch.from_numpy(values / 2) for name, values in stored.items() if values.dtype == np.float32}
    torch.save({"state_dict": weights, "epoch": 9}, tmp_path / "epoch9.pt")
    save_file(weights, tmp_path / "epoch9.safetensors")
    for name in ("epoch9.pt", "epoch9.safetensors"):
        model = client.wait(client.upload_model(tmp_path / name, architecture=lenet.id), timeout=60)
        assert (model.format, model.architecture_id, model.signature) == ("state_dict", lenet.id, lenet.signature)
    result, _ = result_of(client, model.id, [{"step": "half_precision"}])
    halved = onnx.load(client.download(result.id, tmp_path / "result.onnx"))
    values = [numpy_helper.to_array(each) for each in halved.graph.initializer]
    largest = max(float(np.abs(each).max()) for each in values if each.dtype.kind == "f")
    assert largest == pytest.approx(max(float(values.abs().max()) for values in weights.values()), rel=1e-3)


def test_a_checkpoint_goes_into_a_hugging_face_architecture(client: Client, bert: Path, tmp_path: Path) -> None:
    from transformers import BertModel

    torch.save(BertModel.from_pretrained(bert).state_dict(), tmp_path / "finetuned.pth")
    whole = client.wait(client.upload_model(bert), timeout=60)
    model = client.wait(client.upload_model(tmp_path / "finetuned.pth", architecture=whole.id), timeout=60)
    assert (model.format, model.signature, model.stats) == ("state_dict", whole.signature, whole.stats)


def test_torchscript_is_read_as_it_is(client: Client, tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)).eval()
    torch.jit.save(torch.jit.trace(net, torch.randn(2, 8)), tmp_path / "net.pt")
    model = client.wait(client.upload_model(tmp_path / "net.pt"), timeout=60)
    assert (model.format, model.architecture_id) == ("torchscript", None)
    assert model.stats is not None
    assert model.stats.parameters == 8 * 16 + 16 + 16 * 3 + 3


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch canary",)


def test_weights_that_are_code_are_rejected(client: Client, lenet: Model, tmp_path: Path) -> None:
    torch.save({"0.weight": Evil()}, tmp_path / "evil.pt")
    uploaded = client.upload_model(tmp_path / "evil.pt", architecture=lenet.id)
    with pytest.raises(ModelpressError, match=r"pickle|code") as rejected:
        client.wait(uploaded, timeout=60)
    assert rejected.value.code in {"invalid_model", "unsupported_model"}


def test_an_onnx_model_may_keep_its_weights_beside_it(client: Client, lenet: Model, tmp_path: Path) -> None:
    (tmp_path / "lenet").mkdir()
    model, file = onnx.load(EXAMPLE / "lenet5.onnx"), tmp_path / "lenet" / "model.onnx"
    onnx.save(model, file, save_as_external_data=True, location="weights", size_threshold=0)
    read = client.wait(client.upload_model(tmp_path / "lenet"), timeout=60)
    assert (read.format, read.signature, read.stats) == ("onnx", lenet.signature, lenet.stats)


def bomb(archive: zipfile.ZipFile) -> None:
    archive.writestr("model.safetensors", bytes(500_000_000), zipfile.ZIP_DEFLATED)


def climbing(archive: zipfile.ZipFile) -> None:
    archive.writestr("../../../../tmp/canary", b"out")


def link(archive: zipfile.ZipFile) -> None:
    entry = zipfile.ZipInfo("config.json")
    entry.external_attr = 0o120777 << 16
    archive.writestr(entry, "/etc/passwd")


def crowd(archive: zipfile.ZipFile) -> None:
    for number in range(30_000):
        archive.writestr(f"weights{number}", b"")


def code(archive: zipfile.ZipFile) -> None:
    config = {"model_type": "made_up", "architectures": ["Evil"], "auto_map": {"AutoModel": "evil.Evil"}}
    archive.writestr("config.json", json.dumps(config))
    archive.writestr("evil.py", "open('/tmp/canary', 'w')")


def nothing(archive: zipfile.ZipFile) -> None:
    archive.writestr("readme.txt", b"no model")


@pytest.mark.parametrize("fill", [bomb, climbing, link, crowd, code, nothing])
def test_a_hostile_archive_is_rejected_with_a_sentence(
    client: Client, tmp_path: Path, fill: Callable[[zipfile.ZipFile], None]
) -> None:
    path = tmp_path / "folder.zip"
    with zipfile.ZipFile(path, "w") as archive:
        fill(archive)
    uploaded = client.upload_model(path)
    with pytest.raises(ModelpressError) as rejected:
        client.wait(uploaded, timeout=60)
    assert rejected.value.code in {"invalid_model", "unsupported_model"}
    assert len(rejected.value.detail) > 25
