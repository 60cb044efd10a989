"""`.pt2` programs of nets that are common in the field: read, run at another batch size, written, run again."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from workers.engine.errors import InvalidModelError, UnsupportedModelError
from workers.engine.graph import Graph
from workers.engine.readers.pt2 import read_pt2
from workers.engine.writers.onnx import write_onnx

BATCH = torch.export.Dim("batch", min=1, max=512)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.encoder = kind(12, 16, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x)[0].mean(1))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.block = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.embed(x))[:, 0])


class Mobile(nn.Module):
    """Depthwise, squeeze-and-excite, channel split and concatenation, a view with a computed size."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish(),
            nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.ReLU6(), nn.Conv2d(16, 24, 1), nn.SiLU(),
        )  # fmt: skip
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(24, 6, 1), nn.ReLU(), nn.Conv2d(6, 24, 1), nn.Hardsigmoid()
        )
        self.pool = nn.AvgPool2d(2)
        self.head = nn.Linear(24 * 16, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        x = self.pool(x * self.squeeze(x))
        x = torch.cat([x[:, :12], x[:, 12:] * 2 + 1], 1)
        return self.head(x.view(x.size(0), -1))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(1, 8, 3, padding=1)
        self.deep = nn.Conv2d(8, 16, 3, padding=1, stride=2)
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.out = nn.Conv2d(16, 2, 3, padding="same")

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.relu(self.wide(x))
        return self.out(torch.cat([wide, self.up(torch.relu(self.deep(wide)))], 1))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3), nn.Softmax(-1))


NETS = {
    "lstm": (lambda: Recurrent(nn.LSTM), lambda n: torch.randn(n, 7, 12)),
    "gru": (lambda: Recurrent(nn.GRU), lambda n: torch.randn(n, 7, 12)),
    "transformer": (Transformer, lambda n: torch.randint(0, 50, (n, 7))),
    "mobile": (Mobile, lambda n: torch.randn(n, 3, 16, 16)),
    "unet": (UNet, lambda n: torch.randn(n, 1, 16, 16)),
    "mlp": (mlp, lambda n: torch.randn(n, 4, 4)),
}


def exported(model: nn.Module, example: Tensor, path: Path, *, dynamic: bool = True) -> Path:
    shapes = ({0: BATCH},) if dynamic else None
    torch.export.save(torch.export.export(model.eval(), (example,), dynamic_shapes=shapes), path)
    return path


def run_onnx(graph: Graph, x: Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(write_onnx(graph), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return output


@pytest.mark.parametrize("name", NETS)
def test_a_program_reads_exactly_and_keeps_its_batch_dynamic(name: str, tmp_path: Path) -> None:
    make, inputs = NETS[name]
    torch.manual_seed(0)
    model = make().eval()
    graph = read_pt2(exported(model, inputs(3), tmp_path / "model.pt2"))
    assert graph.inputs[0].shape[0] == "batch"
    x = inputs(5)
    with torch.no_grad():
        wanted = model(x)
        torch.testing.assert_close(graph(x)[0], wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run_onnx(graph, x), wanted.numpy(), rtol=1e-4, atol=1e-5)


def test_layers_have_the_names_of_the_users_modules(tmp_path: Path) -> None:
    graph = read_pt2(exported(Mobile(), torch.randn(3, 3, 16, 16), tmp_path / "model.pt2"))
    assert [layer.name for layer in graph.layers()] == ["body.0", "body.3", "body.5", "squeeze.1", "squeeze.3", "head"]


def test_a_fixed_batch_is_read_as_fixed(tmp_path: Path) -> None:
    graph = read_pt2(exported(mlp(), torch.randn(3, 4, 4), tmp_path / "model.pt2", dynamic=False))
    assert graph.inputs[0].shape == (3, 4, 4)


def test_an_unknown_op_is_named(tmp_path: Path) -> None:
    class Unusual(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.i0(x)

    with pytest.raises(UnsupportedModelError, match=r"aten\.special_i0.*op table"):
        read_pt2(exported(Unusual(), torch.randn(3, 4), tmp_path / "model.pt2"))


def test_nan_weights_are_named(tmp_path: Path) -> None:
    model = mlp()
    with torch.no_grad():
        model[1].weight[0, 0] = float("nan")
    with pytest.raises(InvalidModelError, match=r"'1\.weight' holds NaN"):
        read_pt2(exported(model, torch.randn(3, 4, 4), tmp_path / "model.pt2"))


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_archive_is_refused(cut: float, tmp_path: Path) -> None:
    path = exported(mlp(), torch.randn(3, 4, 4), tmp_path / "model.pt2")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * cut)])
    with pytest.raises(InvalidModelError, match=r"torch\.export\.save"):
        read_pt2(path)


def test_mutated_archives_only_ever_raise_engine_errors(tmp_path: Path) -> None:
    data = bytearray(exported(mlp(), torch.randn(3, 4, 4), tmp_path / "model.pt2").read_bytes())
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        mutated = bytearray(data)
        for place in generator.integers(0, len(data), 8):
            mutated[place] = generator.integers(0, 256)
        path = tmp_path / "mutated.pt2"
        path.write_bytes(mutated)
        try:
            read_pt2(path)
        except (InvalidModelError, UnsupportedModelError):
            refused += 1
    assert refused > 50
