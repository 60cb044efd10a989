"""TorchScript: what was traced is converted, all else is refused with what to do."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from workers.engine.errors import InvalidModelError, UnsupportedModelError
from workers.engine.readers import read_model

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8 * 6 * 6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(1))


class Fixed(Net):
    """Its batch is a number in the code."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).reshape(2, -1))


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)

    def forward(self, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        found = self.embed(ids) * weights[..., None]
        return found.sum(1), found.mean(1)


def traced(model: nn.Module, inputs: tuple[Tensor, ...], path: Path) -> torch.jit.ScriptModule:
    torch.manual_seed(0)
    module = torch.jit.trace(model.eval(), inputs)
    module.save(str(path))
    return module


@pytest.mark.parametrize("batch", [1, 2])
def test_a_traced_module_is_converted_with_its_batch_open(batch: int, tmp_path: Path) -> None:
    module = traced(Net(), (torch.randn(batch, 3, 8, 8),), tmp_path / "model.pt")
    format_, graph = read_model(tmp_path / "model.pt")
    assert format_ == "torchscript"
    assert graph.inputs[0].shape == ("batch", 3, 8, 8)
    assert [layer.name for layer in graph.layers()] == ["body.0", "head"]
    x = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(graph(x)[0], module(x), rtol=1e-4, atol=1e-5)


def test_integers_and_several_inputs_and_outputs_are_converted(tmp_path: Path) -> None:
    ids, weights = torch.randint(0, 9, (3, 5)), torch.rand(3, 5)
    module = traced(Words(), (ids, weights), tmp_path / "model.pt")
    _, graph = read_model(tmp_path / "model.pt")
    assert [spec.name for spec in graph.outputs] == ["output", "output_1"]
    with torch.no_grad():
        torch.testing.assert_close(graph(ids, weights), module(ids, weights))


def test_a_batch_that_the_code_fixes_stays_fixed_and_is_said(tmp_path: Path) -> None:
    traced(Fixed(), (torch.randn(2, 3, 8, 8),), tmp_path / "model.pt")
    _, graph = read_model(tmp_path / "model.pt")
    assert graph.inputs[0].shape == (2, 3, 8, 8)
    assert any("batch is fixed" in note for note in graph.notes)


def test_a_scripted_module_is_refused_with_what_to_do(tmp_path: Path) -> None:
    torch.jit.script(Net().eval()).save(str(tmp_path / "model.pt"))
    with pytest.raises(UnsupportedModelError, match=r"scripted, not traced.*torch\.onnx\.export\(torch\.jit\.load"):
        read_model(tmp_path / "model.pt")


class Reads(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.from_file(__file__, False, 1, dtype=torch.float32)


def test_ops_that_reach_files_never_run(tmp_path: Path) -> None:
    traced(Reads(), (torch.randn(2, 1),), tmp_path / "model.pt")
    with pytest.raises(UnsupportedModelError, match="'aten::from_file', which is not run here"):
        read_model(tmp_path / "model.pt")


def members(path: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            yield name, archive.read(name)


def test_a_pickle_of_inputs_that_names_code_is_refused(tmp_path: Path) -> None:
    traced(Net(), (torch.randn(2, 3, 8, 8),), tmp_path / "model.pt")
    with zipfile.ZipFile(tmp_path / "bad.pt", "w") as archive:
        for name, content in members(tmp_path / "model.pt"):
            evil = b"cos\nsystem\n(X\x04\x00\x00\x00truetR."
            archive.writestr(name, evil if name.endswith("traced_inputs.pkl") else content)
    with pytest.raises(InvalidModelError, match=r"names os\.system"):
        read_model(tmp_path / "bad.pt")


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    traced(Net(), (torch.randn(2, 3, 8, 8),), tmp_path / "model.pt")
    with zipfile.ZipFile(tmp_path / "bad.pt", "w") as archive:
        for name, content in members(tmp_path / "model.pt"):
            archive.writestr(name, content[: len(content) // 2] if name.endswith("/data.pkl") else content)
    with pytest.raises(InvalidModelError, match="TorchScript file is damaged"):
        read_model(tmp_path / "bad.pt")
