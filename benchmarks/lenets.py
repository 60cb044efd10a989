"""The two networks that Deep Compression and the lottery ticket were shown on, trained on Fashion-MNIST."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from benchmarks.jobs import Arrays, fashion

BATCH = 128
CLASSES = 10


def lenet_300_100() -> nn.Module:
    """266,610 parameters."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, CLASSES)
    )


def lenet_5() -> nn.Module:
    """Caffe's, 431,080 parameters: the only ReLU is that between the linear layers."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, CLASSES),
    )  # fmt: skip


@dataclass(frozen=True)
class Dense:
    """A network and how it was trained before it is compressed."""

    build: Callable[[], nn.Module]
    epochs: int
    rate: float
    decay: float
    careful: bool
    """One-cycle schedule, and the epoch that did best on `val`; else a constant rate, and the last epoch."""


NETS: dict[str, Dense] = {
    "LeNet-300-100": Dense(lenet_300_100, 30, 2e-3, 0.1, careful=True),
    "LeNet-300-100 plain": Dense(lenet_300_100, 15, 1e-3, 0.0, careful=False),
    "LeNet-5": Dense(lenet_5, 12, 2e-3, 0.1, careful=True),
    "LeNet-5 plain": Dense(lenet_5, 8, 1e-3, 0.0, careful=False),
}
"""Careful training is one or two points better than plain Adam, and harder to keep in few weights."""


def reference(name: str, folder: Path, cache: Path) -> Path:
    """The dense network as ONNX, trained on the 55,000 images where the cache does not hold it."""
    file = cache / f"{name.lower().replace(' ', '-')}.onnx"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        net = NETS[name].build()
        _train(net, NETS[name], fashion(folder, "train", labelled=True), fashion(folder, "val", labelled=True))
        torch.onnx.export(
            net, (torch.zeros(2, 1, 28, 28),), file, dynamo=False, input_names=["x"], output_names=["logits"],
            dynamic_axes={"x": {0: "batch"}, "logits": {0: "batch"}},
        )  # fmt: skip
    return file


def accuracy(model: Path, data: Arrays) -> float:
    """In ONNX Runtime."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (answers,) = session.run(None, {"x": data["x"]})
    return float((np.asarray(answers).argmax(1) == data["labels"]).mean())


def _train(net: nn.Module, dense: Dense, train: Arrays, val: Arrays) -> None:
    (x, labels), held_out = _tensors(train), _tensors(val)
    optimizer = torch.optim.AdamW(net.parameters(), dense.rate, weight_decay=dense.decay)
    updates = dense.epochs * -(-len(x) // BATCH)
    schedule = (
        torch.optim.lr_scheduler.OneCycleLR(optimizer, dense.rate, total_steps=updates, cycle_momentum=False)
        if dense.careful
        else torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    )
    best, kept = 0.0, {}
    for _ in range(dense.epochs):
        net.train()
        for batch in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
        net.eval()
        with torch.no_grad():
            right = float((net(held_out[0]).argmax(1) == held_out[1]).float().mean())
        if right > best or not dense.careful:
            best, kept = right, {name: value.clone() for name, value in net.state_dict().items()}
    net.load_state_dict(kept)


def _tensors(data: Arrays) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(data["x"]), torch.from_numpy(data["labels"])
