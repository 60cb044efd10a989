"""Make everything in this folder from the four files of Fashion-MNIST.

    python make_example.py FOLDER        # FOLDER holds train-images-idx3-ubyte.gz and the other three

Needs torch, onnx, onnxscript and numpy. Takes about ten minutes on two cores.
"""

import argparse
import gzip
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F  # noqa: N812 - the name that all of PyTorch's users know
from torch import Tensor, nn

HERE = Path(__file__).parent
MEAN, STD = 0.2860, 0.3530
TRAIN, CALIBRATE, EVALUATE = 6000, 500, 2000
BATCH = 128


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut, which is a 1 x 1 convolution where the shape changes."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """Three residual blocks at 14, 7 and 4 pixels: 173,842 parameters, 9 batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 24, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.block1 = Block(24, 24, 1)
        self.block2 = Block(24, 48, 2)
        self.block3 = Block(48, 96, 2)
        self.classifier = nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        features = self.block3(self.block2(self.block1(self.stem(x))))
        return self.classifier(features.mean((2, 3)))


class LeNet5(nn.Sequential):
    """LeCun et al., 1998, with ReLU and max pooling: 61,706 parameters."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 6, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(400, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, 10),
        )


def read_idx(path: Path) -> np.ndarray:
    """An array of unsigned bytes in the IDX format: a magic number, one big-endian size a dimension, the bytes."""
    raw = gzip.decompress(path.read_bytes())
    dims = raw[3]
    shape = np.frombuffer(raw, ">u4", dims, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape)


def read(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images as the networks take them, float32 (N, 1, 28, 28) with mean 0 and deviation 1, and their int64 labels."""
    images = read_idx(folder / f"{part}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{part}-labels-idx1-ubyte.gz")
    x = (images.astype(np.float32) / 255 - MEAN) / STD
    return x[:, None].astype(np.float32), labels.astype(np.int64)


def augment(x: Tensor) -> Tensor:
    """Half of the images mirrored, the batch moved by up to two pixels."""
    mirrored = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)
    dy, dx = torch.randint(0, 5, (2,)).tolist()
    return F.pad(mirrored, (2, 2, 2, 2), value=-MEAN / STD)[:, :, dy : dy + 28, dx : dx + 28]


def train(model: nn.Module, x: Tensor, labels: Tensor, epochs: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.02)
    steps = epochs * (len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    for epoch in range(epochs):
        model.train()
        total = 0.0
        for batch in torch.randperm(len(x)).split(BATCH)[: len(x) // BATCH]:
            loss = F.cross_entropy(model(augment(x[batch])), labels[batch], label_smoothing=0.05)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}/{epochs}: loss {total / (len(x) // BATCH):.4f}", flush=True)


@torch.inference_mode()
def accuracy(model: nn.Module, x: Tensor, labels: Tensor) -> float:
    model.eval()
    return torch.cat([model(batch).argmax(1) for batch in x.split(500)]).eq(labels).float().mean().item()


def save_onnx(model: nn.Module, path: Path) -> None:
    """Export with a free batch size. The exporter leaves stack traces with local paths: out with them."""
    torch.onnx.export(
        model.eval(),
        (torch.zeros(2, 1, 28, 28),),
        str(path),
        input_names=["x"],
        output_names=["logits"],
        dynamic_shapes=({0: "batch"},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    exported = onnx.load(path)
    del exported.metadata_props[:]
    del exported.graph.metadata_props[:]
    del exported.graph.value_info[:]
    for thing in (*exported.graph.node, *exported.graph.initializer, *exported.graph.input, *exported.graph.output):
        del thing.metadata_props[:]
        thing.doc_string = ""
    onnx.checker.check_model(exported, full_check=True)
    onnx.save(exported, path)


def save_pt2(model: nn.Module, path: Path) -> None:
    """torch.export with a free batch size, without sample inputs and without the stack traces that name local files."""
    batch = torch.export.Dim("batch")
    program = torch.export.export(model.eval(), (torch.zeros(2, 1, 28, 28),), dynamic_shapes=({0: batch},))
    for node in program.graph.nodes:
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node"):
            node.meta.pop(key, None)
    program.example_inputs = None
    torch.export.save(program, path)


def save_npz(path: Path, x: np.ndarray, labels: np.ndarray) -> None:
    np.savez_compressed(path, x=x, labels=labels)
    print(f"{path.name}: {len(x)} images, {path.stat().st_size} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the four .gz files of Fashion-MNIST are")
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    x, labels = read(arguments.folder, "train")
    test_x, test_labels = read(arguments.folder, "t10k")
    order = np.random.default_rng(0).permutation(len(x))
    chosen, others = order[:TRAIN], order[TRAIN : TRAIN + CALIBRATE]
    save_npz(HERE / "train.npz", x[chosen], labels[chosen])
    save_npz(HERE / "calibrate.npz", x[others], labels[others])
    save_npz(HERE / "evaluate.npz", test_x[:EVALUATE], test_labels[:EVALUATE])

    for name, model, epochs in (("lenet5", LeNet5(), arguments.epochs), ("resnet", ResNet(), arguments.epochs)):
        train(model, torch.from_numpy(x), torch.from_numpy(labels), epochs)
        score = accuracy(model, torch.from_numpy(test_x), torch.from_numpy(test_labels))
        print(f"{name}: test accuracy {score:.4f}, {sum(p.numel() for p in model.parameters())} parameters")
        save_onnx(model, HERE / f"{name}.onnx")
        if name == "resnet":
            save_pt2(model, HERE / "resnet.pt2")


if __name__ == "__main__":
    main()
