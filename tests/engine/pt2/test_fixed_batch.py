"""Programs that were exported with a fixed batch: opened where they answer every example by itself."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from workers.engine.readers.pt2 import read_pt2


class Viewing(nn.Module):
    """A class token, heads split by views, batched products: what vision transformers do with a literal batch."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.mix = nn.Linear(8, 24)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        x = torch.cat([self.token.expand(batch, -1, -1), x], 1)
        q, k, v = self.mix(x).view(batch, 6, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        q, k, v = (part.reshape(batch * 2, 6, 4) for part in (q, k, v))
        mixed = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)
        mixed = mixed.view(batch, 2, 6, 4).transpose(1, 2).reshape(batch, 6, 8)
        return self.head(mixed[:, 0])


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(8, 4, 3)
        self.head = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(x.transpose(1, 2))).view(x.shape[0], -1))


class Stored(nn.Module):
    """A table with one row for every example, all of them equal."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.arange(8.0).expand(x.shape[0], 5, 8).contiguous()


class Mixing(nn.Module):
    """Examples see each other: nothing says what another batch would answer."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)


class Counted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, x.shape[0] // 2 * 40).sum(1) if x.shape[0] > 1 else x.sum((1, 2))


def exported(model: nn.Module, batch: int, path: Path) -> Path:
    torch.manual_seed(0)
    torch.export.save(torch.export.export(model.eval(), (torch.randn(batch, 5, 8),)), path)
    return path


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("make", [Viewing, Flat, Stored])
def test_a_fixed_batch_is_opened(make: Callable[[], nn.Module], batch: int, tmp_path: Path) -> None:
    model = make()
    graph = read_pt2(exported(model, batch, tmp_path / "model.pt2"))
    assert graph.inputs[0].shape == ("batch", 5, 8)
    assert graph.outputs[0].shape[0] == "batch"
    assert any("the batch was opened" in note for note in graph.notes)
    for examples in (1, 2, 5):
        x = torch.randn(examples, 5, 8)
        with torch.no_grad():
            torch.testing.assert_close(graph(x)[0], model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("make", "batch"), [(Mixing, 2), (Mixing, 3), (Counted, 4)])
def test_a_batch_that_means_something_stays_fixed_and_is_said(
    make: Callable[[], nn.Module], batch: int, tmp_path: Path
) -> None:
    graph = read_pt2(exported(make(), batch, tmp_path / "model.pt2"))
    assert graph.inputs[0].shape == (batch, 5, 8)
    assert any("dynamic_shapes to open the batch" in note for note in graph.notes)
