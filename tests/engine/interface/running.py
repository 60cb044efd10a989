"""Results as callers meet them: the file, fed with what they send, and what its answers stand for."""

import json

import onnx
import onnxruntime
import torch
from torch import nn

from tests.engine.steps.nets import exported
from workers.engine.interface.exposing import METADATA, expose
from workers.engine.writers.onnx import write_onnx

ROWS = 300
"""Of the table of `Tokens`: more than a byte counts."""


class File:
    """What a graph is written to once its edges are off; the graph itself stays as it is."""

    def __init__(self, graph):
        own = graph.copy()
        self.interface = expose(own)
        self.graph = own
        self.content = write_onnx(own)
        self.session = onnxruntime.InferenceSession(self.content, providers=["CPUExecutionProvider"])

    def send(self, *own):
        """The answers to what callers send, by name."""
        given = {value.name: tensor.numpy() for value, tensor in zip(self.session.get_inputs(), own, strict=True)}
        names = [value.name for value in self.session.get_outputs()]
        return dict(zip(names, map(torch.from_numpy, self.session.run(None, given)), strict=True))

    def __call__(self, *inputs):
        """The answers, in the original's form, to inputs in the original's form."""
        return self.interface.read(list(self.send(*self.interface.own(inputs)).values()))

    @property
    def told(self):
        """What the file says of its inputs and outputs."""
        metadata = {entry.key: entry.value for entry in onnx.load_from_string(self.content).metadata_props}
        return json.loads(metadata[METADATA])

    @property
    def ops(self):
        return [node.op_type for node in onnx.load_from_string(self.content).graph.node]


class Tokens(nn.Module):
    """A transformer that reads token ids, with positions from a table of their own, and a mask."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(ROWS, 16)
        self.places = nn.Embedding(12, 16)
        self.block = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, ids):
        places = torch.arange(ids.shape[1], device=ids.device)
        return self.head(self.block(self.words(ids) + self.places(places)).mean(1))


class Colours(nn.Module):
    """Two convolutions over images of three channels, and pooling over all places."""

    def __init__(self, padding=1, groups=1):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, 1, padding, groups=groups)
        self.conv = nn.Conv2d(12, 8, 3, 2, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(torch.relu(self.conv(torch.relu(self.stem(x)))).mean((2, 3)))


class Flat(nn.Module):
    """A linear layer over all that an image of one size holds."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(3 * 8 * 8, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.head(torch.relu(self.hidden(x.flatten(1))))


class Features(nn.Module):
    """Two linear layers over features of which some are read with ten times the weights of others."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(16, 32)
        self.head = nn.Linear(32, 4)
        with torch.no_grad():
            self.hidden.weight.mul_(torch.logspace(-1, 0, 16))

    def forward(self, x):
        return self.head(torch.relu(self.hidden(x)))


def made(net, x):
    torch.manual_seed(0)
    return exported(net().eval() if isinstance(net, type) else net, x)


def tokens():
    return made(Tokens, torch.zeros(2, 9, dtype=torch.int64))


def colours(**options):
    torch.manual_seed(0)
    return made(Colours(**options), torch.zeros(2, 3, 8, 8))


def features():
    return made(Features, torch.zeros(2, 16))


def flat():
    return made(Flat, torch.zeros(2, 3, 8, 8))
