"""Untrained nets whose activations and weights have uneven ranges, made by an exporter, and inputs for them."""

from functools import cache

import torch
from torch import nn

from tests.engine.onnx.running import in_engine, in_runtime
from tests.engine.steps.nets import exported
from workers.engine.writers.onnx import write_onnx


class Uneven(nn.Module):
    """Convolutions, a depthwise one, pooling, linear layers; some channels are a hundred times larger than others."""

    def __init__(self, activation=nn.ReLU):
        super().__init__()
        self.first = nn.Conv2d(6, 12, 3, padding=1)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.second = nn.Conv2d(12, 8, 3)
        self.hidden = nn.Linear(8 * 3 * 3, 16)
        self.head = nn.Linear(16, 5)
        self.activation = activation()
        with torch.no_grad():
            spread = torch.logspace(-1, 1, 12)
            self.first.weight.mul_(spread.view(-1, 1, 1, 1))
            self.first.bias.mul_(spread)
            self.depthwise.weight.mul_(spread.flip(0).view(-1, 1, 1, 1))

    def forward(self, x):
        x = self.activation(self.first(x))
        x = self.activation(self.depthwise(x))
        x = nn.functional.max_pool2d(self.activation(self.second(x)), 2)
        return self.head(self.activation(self.hidden(x.flatten(1))))


class Residual(nn.Module):
    """Two branches that meet, and a value that three ops read."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(6, 8, 3, padding=1)
        self.one = nn.Conv2d(8, 8, 3, padding=1)
        self.two = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.one(x))
        return self.head(torch.cat([x, self.two(x)], 1).mean((2, 3))[:, :8])


class Gated(nn.Module):
    """Hard swish, and a squeeze-and-excite gate with a hard sigmoid."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(6, 8, 3, padding=1)
        self.gate = nn.Conv2d(8, 8, 1)
        self.last = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = nn.functional.hardswish(self.stem(x))
        x = x * nn.functional.hardsigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        return self.head(nn.functional.hardswish(self.last(x)).mean((2, 3)))


class Perceptron(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(24, 200)
        self.second = nn.Linear(200, 200)
        self.head = nn.Linear(200, 4)

    def forward(self, x):
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


class Normalized(nn.Module):
    """Linear layers behind a layer norm with outliers in a few channels, as transformers have them."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(24)
        self.query = nn.Linear(24, 16)
        self.value = nn.Linear(24, 16)
        with torch.no_grad():
            self.norm.weight[::6] *= 40

    def forward(self, x):
        x = self.norm(x)
        return torch.sigmoid(self.query(x)) * self.value(x)


class Grouped(nn.Module):
    """Lays its values out by a shape that an export with a fixed batch knows by heart."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(24, 32)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        return self.head(torch.relu(self.first(x)).reshape(x.shape[0], 2, 16).mean(1))


class Memory(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.encoder = kind(6, 20, bidirectional=True, batch_first=True)
        self.head = nn.Linear(40, 3)

    def forward(self, x):
        return self.head(self.encoder(x)[0].mean(1))


class Tied(nn.Module):
    """One uneven linear layer applied twice, which the readers make two layers of that share a matrix."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(24, 24)
        self.shared = nn.Linear(24, 24)
        self.head = nn.Linear(24, 4)
        with torch.no_grad():
            self.first.weight.mul_(2)
            self.shared.weight.mul_(torch.logspace(-1.5, 1, 24)[:, None])

    def forward(self, x):
        x = torch.relu(self.first(x))
        for _ in range(2):
            x = torch.relu(self.shared(x))
        return self.head(x)


class Narrow(nn.Sequential):
    """Begins as LeNet-5 does."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 6, 5), nn.ReLU(), nn.Conv2d(6, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 4, 3)
        )


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 24)
        self.hidden = nn.Linear(24, 32)
        self.head = nn.Linear(32, 3)

    def forward(self, x):
        return self.head(torch.relu(self.hidden(self.table(x))).mean(1))


SHAPES = {
    "uneven": (Uneven, (6, 8, 8)),
    "residual": (Residual, (6, 8, 8)),
    "bounded": (lambda: Uneven(nn.Hardtanh), (6, 8, 8)),
    "gated": (Gated, (6, 8, 8)),
    "perceptron": (Perceptron, (24,)),
    "tied": (Tied, (24,)),
    "grouped": (Grouped, (24,)),
    "normalized": (Normalized, (7, 24)),
    "narrow": (Narrow, (1, 8, 8)),
    "tokens": (Tokens, (9,)),
    "lstm": (lambda: Memory(nn.LSTM), (9, 6)),
    "gru": (lambda: Memory(nn.GRU), (9, 6)),
}


def inputs_of(kind, examples=64, seed=3):
    generator = torch.Generator().manual_seed(seed)
    if kind == "tokens":
        return torch.randint(50, (examples, 9), generator=generator)
    return torch.randn(examples, *SHAPES[kind][1], generator=generator)


@cache
def _exported(kind, batch):
    torch.manual_seed(0)
    return exported(SHAPES[kind][0](), inputs_of(kind, batch or 2), batch)


def net(kind, batch=None):
    """A fresh copy; the batch is free unless it is given."""
    return _exported(kind, batch).copy()


def answers(graph, x):
    """What the engine's graph answers, and what ONNX Runtime answers for the file that is written from it."""
    feeds = {graph.inputs[0].name: x.numpy()}
    (ours,), (theirs,) = in_engine(graph, feeds), in_runtime(write_onnx(graph), feeds)
    return torch.from_numpy(ours), torch.from_numpy(theirs)


def relative(value, reference):
    return float((value - reference).norm() / reference.norm())
