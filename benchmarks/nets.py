"""Nets for the zoo, each with an example input: every structure that pruning, reading and writing must stand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor, nn

Example = Callable[[], dict[str, tuple[Tensor, dict[int, str]]]]
"""Inputs by name, each with the names of its dynamic dimensions."""


class LeNet300(nn.Sequential):
    """LeNet-300-100 (LeCun et al., 1998)."""

    def __init__(self) -> None:
        super().__init__(
            nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
        )


class Inverted(nn.Module):
    """Inverted residual with depthwise convolution and squeeze-and-excitation (arXiv:1905.02244)."""

    def __init__(self, inside: int, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(inside, width, 1, bias=False), nn.BatchNorm2d(width), nn.Hardswish())
        self.depthwise = nn.Sequential(
            nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False), nn.BatchNorm2d(width), nn.Hardswish()
        )
        self.squeeze, self.excite = nn.Conv2d(width, width // 4, 1), nn.Conv2d(width // 4, width, 1)
        self.project = nn.Sequential(nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out))
        self.residual = stride == 1 and inside == out

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.expand(x))
        gate = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1))))
        y = self.project(y * F.hardsigmoid(gate))
        return x + y if self.residual else y


class MobileNet(nn.Module):
    """MobileNetV3-like; `times` as wide."""

    def __init__(self, channels: int = 3, times: int = 1) -> None:
        super().__init__()
        few, some, many, last = (times * width for width in (16, 24, 40, 160))
        self.stem = nn.Sequential(nn.Conv2d(channels, few, 3, 2, 1, bias=False), nn.BatchNorm2d(few), nn.Hardswish())
        self.blocks = nn.Sequential(
            Inverted(few, 4 * few, some, 2),
            Inverted(some, 3 * some, some, 1),
            Inverted(some, 4 * some, many, 2),
            Inverted(many, 3 * many, many, 1),
        )
        self.head = nn.Sequential(nn.Conv2d(many, last, 1), nn.Hardswish())
        self.classifier = nn.Linear(last, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(x)))
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Transformer(nn.Module):
    """One encoder layer, pre-norm, with its own attention over one matrix for queries, keys and values."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value)
        x = x + self.proj(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """Vision transformer (arXiv:2010.11929)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 64, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 64) / 8)
        self.positions = nn.Parameter(torch.randn(1, 17, 64) / 8)
        self.layers = nn.Sequential(*(Transformer(64, 4, 128) for _ in range(3)))
        self.norm, self.head = nn.LayerNorm(64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), patches], dim=1) + self.positions
        return self.head(self.norm(self.layers(x))[:, 0])


def _double(inside: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(),
        nn.Conv2d(out, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(),
    )  # fmt: skip


class UNet(nn.Module):
    """U-Net with concatenated skips (arXiv:1505.04597)."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = _double(1, 16), _double(16, 32), _double(32, 64)
        self.up2, self.up1 = nn.ConvTranspose2d(64, 32, 2, 2), nn.ConvTranspose2d(32, 16, 2, 2)
        self.join2, self.join1, self.last = _double(64, 32), _double(32, 16), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        x = self.bottom(F.max_pool2d(second, 2))
        x = self.join2(torch.cat([self.up2(x), second], dim=1))
        return self.last(self.join1(torch.cat([self.up1(x), first], dim=1)))


class Recurrent(nn.Module):
    """Two bidirectional layers over (batch, time, 12), the mean over time, and a classifier."""

    def __init__(self, kind: type[nn.LSTM | nn.GRU]) -> None:
        super().__init__()
        self.cells = kind(12, 48, num_layers=2, bidirectional=True, batch_first=True)
        self.classifier = nn.Linear(96, 9)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.cells(x)[0].mean(dim=1))


class SentenceEncoder(nn.Module):
    """A sentence-transformers folder: token embeddings, averaged where the mask says so, of length 1."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        from transformers import AutoModel  # noqa: PLC0415 (takes seconds, and only this net needs it)

        self.bert = AutoModel.from_pretrained(folder, attn_implementation="eager")

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        tokens = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(tokens.dtype)
        return F.normalize((tokens * mask).sum(1) / mask.sum(1).clamp(min=1e-9), dim=-1)


def sentences() -> dict[str, tuple[Tensor, dict[int, str]]]:
    ids = torch.randint(1000, 30000, (3, 11), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, 7:] = 0
    dims = {0: "batch", 1: "length"}
    return {"input_ids": (ids, dims), "attention_mask": (mask, dims)}


def _images(channels: int, size: int) -> Example:
    return lambda: {"x": (torch.randn(2, channels, size, size), {0: "batch"})}


def _series() -> dict[str, tuple[Tensor, dict[int, str]]]:
    return {"x": (torch.randn(2, 20, 12), {0: "batch", 1: "time"})}


NETS: dict[str, tuple[Callable[[], nn.Module], Example]] = {
    "lenet-300-100": (LeNet300, _images(1, 28)),
    "mobilenet": (MobileNet, _images(3, 32)),
    "vit": (ViT, _images(3, 32)),
    "unet": (UNet, _images(1, 32)),
    "bigru": (lambda: Recurrent(nn.GRU), _series),
    "bilstm": (lambda: Recurrent(nn.LSTM), _series),
}
