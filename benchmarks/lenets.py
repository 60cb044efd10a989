"""The two networks that Deep Compression and the lottery ticket were shown on, trained on Fashion-MNIST."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from benchmarks.jobs import Arrays, fashion

EPOCHS = {"LeNet-300-100": 30, "LeNet-5": 12}
BATCH, RATE, DECAY = 128, 2e-3, 0.1
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


NETS: dict[str, Callable[[], nn.Module]] = {"LeNet-300-100": lenet_300_100, "LeNet-5": lenet_5}


def reference(name: str, folder: Path, cache: Path) -> Path:
    """The dense network as ONNX, trained on the 55,000 images where the cache does not hold it.

    The epoch with the best accuracy on the 4,000 images of `val` is the one that is kept.
    """
    file = cache / f"{name.lower()}.onnx"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        net = NETS[name]()
        _train(net, EPOCHS[name], fashion(folder, "train", labelled=True), fashion(folder, "val", labelled=True))
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


def _train(net: nn.Module, epochs: int, train: Arrays, val: Arrays) -> None:
    (x, labels), held_out = _tensors(train), _tensors(val)
    optimizer = torch.optim.AdamW(net.parameters(), RATE, weight_decay=DECAY)
    updates = epochs * -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=updates, cycle_momentum=False)
    best, kept = 0.0, {}
    for _ in range(epochs):
        net.train()
        for batch in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
        net.eval()
        with torch.no_grad():
            right = float((net(held_out[0]).argmax(1) == held_out[1]).float().mean())
        if right > best:
            best, kept = right, {name: value.clone() for name, value in net.state_dict().items()}
    net.load_state_dict(kept)


def _tensors(data: Arrays) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(data["x"]), torch.from_numpy(data["labels"])
