"""Plain safetensors of models that came as ONNX or `.pt2`: under the file's names, for the user's own code."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.engine.onnx.odd_models import fast_gelu
from workers.engine.constraints import Mask, constrain
from workers.engine.errors import UnsupportedModelError
from workers.engine.quantization.fake_quantize import FakeQuantize
from workers.engine.readers import read_model
from workers.engine.readers.onnx import read_onnx
from workers.engine.writers import write_model

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(4))
        self.stem = nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.ReLU())
        self.embed = nn.Linear(4, 6)
        self.head = nn.Linear(6, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.stem(x).transpose(1, 2) * self.scale
        return self.head(torch.relu(self.embed(hidden))).mean(1)


def made(path: Path) -> Net:
    torch.manual_seed(0)
    model = Net().eval()
    x = torch.randn(3, 3, 7)
    if path.suffix == ".pt2":
        program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
        torch.export.save(program, path)
    else:
        torch.onnx.export(
            model, (x,), path, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "batch"}},
            training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False,
        )  # fmt: skip
    return model


@pytest.mark.parametrize("name", ["model.pt2", "model.onnx"])
def test_the_users_own_model_takes_the_weights(name: str, tmp_path: Path) -> None:
    model = made(tmp_path / name)
    _, graph = read_model(tmp_path / name)
    layer = next(layer for layer in graph.layers() if layer.name == "embed")
    constrain(layer.module, "weight", Mask(torch.rand_like(layer.module.weight) > 0.5))
    write_model(graph, "safetensors", tmp_path / "result")
    again = Net().eval()
    again.load_state_dict(load_file(tmp_path / "result"))
    x = torch.randn(5, 3, 7)
    with torch.no_grad():
        torch.testing.assert_close(again(x), graph(x)[0], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(again(x), model(x))


def test_the_weights_go_back_onto_the_result_as_onnx(tmp_path: Path) -> None:
    made(tmp_path / "model.pt2")
    _, graph = read_model(tmp_path / "model.pt2")
    write_model(graph, "safetensors", tmp_path / "result")
    write_model(graph, "onnx", tmp_path / "result.onnx")
    _, again = read_model(tmp_path / "result", tmp_path / "result.onnx")
    x = torch.randn(5, 3, 7)
    with torch.no_grad():
        torch.testing.assert_close(again(x)[0], graph(x)[0], rtol=1e-5, atol=1e-6)


def test_quantized_activations_are_refused(tmp_path: Path) -> None:
    made(tmp_path / "model.pt2")
    _, graph = read_model(tmp_path / "model.pt2")
    graph.module.add_module("fake", FakeQuantize(0.1, 0))
    with pytest.raises(UnsupportedModelError, match="activations are quantized too: take it as onnx"):
        write_model(graph, "safetensors", tmp_path / "result")


def test_parts_that_only_onnx_runtime_knows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="kept as ONNX nodes"):
        write_model(read_onnx(fast_gelu()), "safetensors", tmp_path / "result")
