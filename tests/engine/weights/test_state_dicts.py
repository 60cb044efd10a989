"""Weights that come alone, in every wrapping that training loops save, onto the architecture of another file."""

import io
import json
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from modelpress.packed import pack
from tests.engine.huggingface.models import DISTILBERT, saved, zipped
from workers.engine.errors import InvalidModelError, UnsupportedModelError
from workers.engine.readers import read_model

Weights = dict[str, Tensor]


class Net(nn.Module):
    """Layers of many kinds: convolution, batch norm, recurrent, a bare parameter, tied matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(3, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ReLU())
        self.gru = nn.GRU(8, 6, batch_first=True)
        self.scale = nn.Parameter(torch.randn(6))
        self.up = nn.Linear(6, 6)
        self.down = nn.Linear(6, 6)
        self.down.weight = self.up.weight

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.gru(self.stem(x).transpose(1, 2))[0][:, -1] * self.scale
        return self.down(torch.relu(self.up(hidden)))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 7), nn.LayerNorm(7))
        self.head = nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def trained(make: Callable[[], nn.Module], seed: int) -> Any:
    torch.manual_seed(seed)
    model = make()
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.1)
    return model.eval()


def example(model: nn.Module, examples: int) -> Tensor:
    return torch.randn(examples, 3, 5) if isinstance(model, Net) else torch.randn(examples, 5)


def program(model: nn.Module, path: Path) -> Path:
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    torch.export.save(torch.export.export(model, (example(model, 3),), dynamic_shapes=shapes), path)
    return path


def assert_reads_as(path: Path, architecture: Path, model: nn.Module) -> None:
    format_, graph = read_model(path, architecture)
    assert format_ == "state_dict"
    x = example(model, 4)
    with torch.no_grad():
        torch.testing.assert_close(graph(x)[0], model(x), rtol=1e-4, atol=1e-5)


WRAPPINGS: dict[str, Callable[[Weights], Any]] = {
    "as it is": dict,
    "of a training loop": lambda weights: {"epoch": 3, "state_dict": weights, "optimizer": {"lr": 0.1}},
    "of Lightning": lambda weights: {"state_dict": {f"model.{name}": value for name, value in weights.items()}},
    "of DataParallel": lambda weights: {"model": {f"module.{name}": value for name, value in weights.items()}},
    "of torch.compile": lambda weights: {f"_orig_mod.{name}": value for name, value in weights.items()},
    "of all of them": lambda weights: {
        "checkpoint": {"model_state_dict": {f"module._orig_mod.{name}": value for name, value in weights.items()}}
    },
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_state_dict_fills_a_program_of_the_same_shape(wrapping: str, legacy: bool, tmp_path: Path) -> None:
    model, path = trained(Net, 1), tmp_path / "weights.pt"
    torch.save(WRAPPINGS[wrapping](model.state_dict()), path, _use_new_zipfile_serialization=not legacy)
    assert_reads_as(path, program(trained(Net, 2), tmp_path / "model.pt2"), model)


def test_the_likelier_of_two_sets_of_weights_is_taken_and_said(tmp_path: Path) -> None:
    model, other = trained(Net, 1), trained(Net, 3)
    torch.save({"ema": other.state_dict(), "state_dict": model.state_dict()}, tmp_path / "weights.pt")
    architecture = program(trained(Net, 2), tmp_path / "model.pt2")
    assert_reads_as(tmp_path / "weights.pt", architecture, model)
    _, graph = read_model(tmp_path / "weights.pt", architecture)
    assert "of the weights in the file, those under 'state_dict' were taken" in graph.notes


def test_safetensors_without_the_second_name_of_a_tied_weight(tmp_path: Path) -> None:
    model = trained(Net, 1)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items() if name != "down.weight"}
    save_file(weights, tmp_path / "weights.safetensors")
    assert_reads_as(tmp_path / "weights.safetensors", program(trained(Net, 2), tmp_path / "model.pt2"), model)


def on_cuda(saved_by_torch: bytes) -> bytes:
    """The same file as a machine with a GPU would have saved it: storages are said to lie there."""
    source = zipfile.ZipFile(io.BytesIO(saved_by_torch))
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as copy:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):
                assert b"X\x03\x00\x00\x00cpu" in content
                content = content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
                assert "cuda:0" in {argument for _, argument, _ in pickletools.genops(content)}
            copy.writestr(name, content)
    return target.getvalue()


def test_weights_saved_on_a_gpu_are_read_without_one(tmp_path: Path) -> None:
    model, buffer = trained(Net, 1), io.BytesIO()
    torch.save({"state_dict": model.state_dict()}, buffer)
    (tmp_path / "weights.pth").write_bytes(on_cuda(buffer.getvalue()))
    assert_reads_as(tmp_path / "weights.pth", program(trained(Net, 2), tmp_path / "model.pt2"), model)


def test_legacy_weights_saved_on_a_gpu_are_read_without_one(tmp_path: Path) -> None:
    model, buffer = trained(Plain, 1), io.BytesIO()
    torch.save(model.state_dict(), buffer, _use_new_zipfile_serialization=False)
    content = buffer.getvalue()
    assert content.count(b"X\x03\x00\x00\x00cpu") == 1
    changed = content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
    (tmp_path / "weights.pth").write_bytes(changed)
    assert_reads_as(tmp_path / "weights.pth", program(trained(Plain, 2), tmp_path / "model.pt2"), model)


def test_weights_of_16_bits_go_into_a_program_of_32(tmp_path: Path) -> None:
    model = trained(Plain, 1)
    torch.save({name: value.half() for name, value in model.state_dict().items()}, tmp_path / "weights.pt")
    assert_reads_as(
        tmp_path / "weights.pt",
        program(trained(Plain, 2), tmp_path / "model.pt2"),
        model.half().float(),
    )


@pytest.mark.parametrize("dynamo", [False, True])
def test_a_state_dict_fills_an_onnx_file(dynamo: bool, tmp_path: Path) -> None:
    model = trained(Plain, 1)
    torch.onnx.export(trained(Plain, 2), (torch.randn(3, 5),), tmp_path / "model.onnx", dynamo=dynamo, verbose=False,
                      dynamic_shapes=({0: torch.export.Dim("batch", min=1)},) if dynamo else None,
                      input_names=["x"], dynamic_axes=None if dynamo else {"x": {0: "batch"}})  # fmt: skip
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    assert_reads_as(tmp_path / "weights.pt", tmp_path / "model.onnx", model)


def test_an_onnx_file_with_folded_batch_norms_says_so(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.Flatten())

    torch.onnx.export(trained(make, 2), (torch.randn(2, 3, 5),), tmp_path / "model.onnx", dynamo=False)
    torch.save(trained(make, 1).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(InvalidModelError, match=r"has folded into the convolutions .* Upload the model as \.pt2"):
        read_model(tmp_path / "weights.pt", tmp_path / "model.onnx")


def distilbert(seed: int) -> Any:
    torch.manual_seed(seed)
    return transformers.DistilBertModel(transformers.DistilBertConfig(**DISTILBERT)).eval()


@pytest.mark.parametrize("alone", [False, True])
def test_a_state_dict_fills_a_hugging_face_folder_or_its_config_alone(alone: bool, tmp_path: Path) -> None:
    model = distilbert(1)
    folder = saved(distilbert(2), tmp_path / "model")
    if alone:
        (folder / "model.safetensors").unlink()
    torch.save({f"module.{name}": value for name, value in model.state_dict().items()}, tmp_path / "weights.pt")
    _, graph = read_model(tmp_path / "weights.pt", zipped(folder, tmp_path / "model.zip"))
    words, mask = torch.randint(0, 60, (2, 7)), torch.ones(2, 7, dtype=torch.int64)
    with torch.no_grad():
        torch.testing.assert_close(graph(words, mask)[0], model(words, mask).last_hidden_state)


def test_every_mismatch_is_listed(tmp_path: Path) -> None:
    weights = trained(Plain, 1).state_dict()
    weights["extra.weight"] = torch.zeros(2)
    weights["head.bias"] = torch.zeros(3)
    del weights["body.2.weight"]
    torch.save(weights, tmp_path / "weights.pt")
    with pytest.raises(
        InvalidModelError,
        match=r"missing: body\.2\.weight; left over: extra\.weight; of another shape: head\.bias \(3,\) for \(2,\)",
    ):
        read_model(tmp_path / "weights.pt", program(trained(Plain, 2), tmp_path / "model.pt2"))


def test_every_mismatch_with_a_hugging_face_class_is_listed(tmp_path: Path) -> None:
    weights = distilbert(1).state_dict()
    weights["extra.weight"] = torch.zeros(2)
    weights["transformer.layer.0.ffn.lin1.bias"] = torch.zeros(3)
    del weights["embeddings.LayerNorm.bias"]
    torch.save(weights, tmp_path / "weights.pt")
    architecture = zipped(saved(distilbert(2), tmp_path / "model"), tmp_path / "model.zip")
    with pytest.raises(
        InvalidModelError,
        match=r"missing: embeddings\.LayerNorm\.bias; left over: extra\.weight; of another shape: .*\(3,\) for \(48,\)",
    ):
        read_model(tmp_path / "weights.pt", architecture)


def test_weights_alone_say_how_to_give_an_architecture(tmp_path: Path) -> None:
    torch.save(trained(Plain, 1).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(UnsupportedModelError, match=r"weights alone.*send it with `architecture`"):
        read_model(tmp_path / "weights.pt")
    with pytest.raises(InvalidModelError, match="state_dict file, whose layers take no weights"):
        read_model(tmp_path / "weights.pt", tmp_path / "weights.pt")


def test_a_whole_model_takes_no_architecture(tmp_path: Path) -> None:
    path = program(trained(Plain, 1), tmp_path / "model.pt2")
    with pytest.raises(InvalidModelError, match="goes with weights alone"):
        read_model(path, path)


class Runs:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return open, (str(self.target), "w")


def test_a_packed_onnx_file_is_an_architecture_too(tmp_path: Path) -> None:
    model = trained(Plain, 1)
    torch.onnx.export(trained(Plain, 2), (torch.randn(3, 5),), tmp_path / "model.onnx", dynamo=False,
                      input_names=["x"], dynamic_axes={"x": {0: "batch"}})  # fmt: skip
    pack(tmp_path / "model.onnx", tmp_path / "model.packed")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    assert_reads_as(tmp_path / "weights.pt", tmp_path / "model.packed", model)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickles_that_run_code_never_do(legacy: bool, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    torch.save({"weight": torch.zeros(2), "more": Runs(ran)}, tmp_path / "weights.pt",
               _use_new_zipfile_serialization=not legacy)  # fmt: skip
    architecture = program(trained(Plain, 2), tmp_path / "model.pt2")
    with pytest.raises(InvalidModelError, match=r"more than tensors.*torch\.save\(model\.state_dict\(\), path\)"):
        read_model(tmp_path / "weights.pt", architecture)
    torch.save(trained(Plain, 1), tmp_path / "model.pt")
    with pytest.raises(InvalidModelError, match="more than tensors"):
        read_model(tmp_path / "model.pt", architecture)
    with pytest.raises(InvalidModelError, match=r"by default\.\): send the whole model as torch\.export"):
        read_model(tmp_path / "model.pt")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Runs(ran)))
    with pytest.raises(UnsupportedModelError, match="never loaded"):
        read_model(tmp_path / "plain.pkl", architecture)
    assert not ran.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_damaged_files_are_refused_in_words(legacy: bool, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(trained(Plain, 1).state_dict(), buffer, _use_new_zipfile_serialization=not legacy)
    content, architecture = buffer.getvalue(), program(trained(Plain, 2), tmp_path / "model.pt2")
    generator = torch.Generator().manual_seed(0)
    refused = 0
    for _ in range(60):
        mutated = bytearray(content)
        for place in torch.randint(0, len(content), (6,), generator=generator).tolist():
            mutated[place] = int(torch.randint(0, 256, (), generator=generator))
        (tmp_path / "mutated.pt").write_bytes(mutated)
        try:
            read_model(tmp_path / "mutated.pt", architecture)
        except (InvalidModelError, UnsupportedModelError):
            refused += 1
    assert refused > 5


def test_a_damaged_safetensors_file_is_refused(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "bad.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    with pytest.raises(InvalidModelError, match="safetensors file is damaged"):
        read_model(tmp_path / "bad.safetensors", program(trained(Plain, 2), tmp_path / "model.pt2"))


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"weight": torch.zeros(1 << 20)}, buffer)
    source = zipfile.ZipFile(buffer)
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in source.namelist():
            archive.writestr(name, source.read(name))
    with pytest.raises(InvalidModelError, match="claims to hold"):
        read_model(tmp_path / "bomb.pt", program(trained(Plain, 2), tmp_path / "model.pt2"))
