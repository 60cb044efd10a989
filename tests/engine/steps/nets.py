"""Small trained nets that an exporter wrote, their data, and the context that a step runs in."""

import io
import tempfile
import time
from functools import cache
from importlib import import_module
from pathlib import Path

import onnxruntime
import torch
from torch import nn

from modelpress.steps import STEPS
from workers.engine.context import Context
from workers.engine.readers.onnx import read_onnx
from workers.engine.readers.pt2 import read_pt2
from workers.engine.steps import APPLY
from workers.engine.writers.onnx import write_onnx

CLASSES = 4
EXAMPLES = 800
TIME = 10


class Examples:
    """Batches (`workers.engine.context.Batches`) in memory."""

    def __init__(self, inputs, labels=None):
        self.inputs = inputs
        self.labels = labels

    @property
    def examples(self):
        return len(self.inputs)

    @property
    def labelled(self):
        return self.labels is not None

    def take(self, indices):
        return (self.inputs[indices],), None if self.labels is None else self.labels[indices]

    def unlabelled(self):
        return Examples(self.inputs)


class Convolutional(nn.Module):
    """A stem and a residual block, with batch norms."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.conv1 = nn.Conv2d(16, 16, 3, 1, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, 1, 1)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        return self.head(torch.relu(x + self.conv2(torch.relu(self.norm1(self.conv1(x))))).mean((2, 3)))


class Attention(nn.Module):
    """Tags every position of a sequence."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.block = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x):
        return self.head(self.block(self.embed(x)))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.GRU(8, 16, bidirectional=True, batch_first=True)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x):
        return self.head(self.encoder(x)[0].mean(1))


def images(examples, seed):
    """Noise with one bright quadrant, which is the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (examples,), generator=generator)
    x = torch.randn(examples, 1, 8, 8, generator=generator)
    for image, label in zip(x, labels, strict=True):
        image[0, 4 * (label // 2) :, 4 * (label % 2) :][:4, :4] += 1.2
    return Examples(x, labels)


def sequences(examples, seed):
    """Steps that carry one of four signs each, in noise; the label of a sequence is its most frequent sign."""
    signs = torch.randn(CLASSES, 8, generator=torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(seed)
    tags = torch.randint(CLASSES, (examples, TIME), generator=generator)
    x = signs[tags] + 0.8 * torch.randn(examples, TIME, 8, generator=generator)
    return Examples(x, tags)


def melodies(examples, seed):
    """Sequences of which three steps in five carry the sign of the label."""
    generator = torch.Generator().manual_seed(seed)
    tagged = sequences(examples, seed)
    labels = torch.randint(CLASSES, (examples,), generator=generator)
    own = torch.rand(examples, TIME, generator=generator) < 0.6
    signs = torch.randn(CLASSES, 8, generator=torch.Generator().manual_seed(5))
    return Examples(torch.where(own[..., None], signs[labels][:, None].expand_as(tagged.inputs), tagged.inputs), labels)


NETS = {
    "convolutional": (Convolutional, images),
    "attention": (Attention, sequences),
    "recurrent": (Recurrent, melodies),
}
KINDS = sorted(NETS)


@cache
def _exported(kind):
    torch.set_num_threads(1)
    torch.manual_seed(1)
    make, data = NETS[kind]
    net, examples = make().train(), data(EXAMPLES, 1)
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(6):
        for batch in torch.randperm(examples.examples).split(50):
            (x,), labels = examples.take(batch)
            nn.functional.cross_entropy(net(x).flatten(0, -2), labels.flatten()).backward()
            optimizer.step()
            optimizer.zero_grad()
    return exported(net, examples.inputs[:2])


def exported(net, x, batch=None):
    """What the reader makes of a net's own export; the batch is free unless it is given."""
    if batch is not None:
        return _with_fixed_batch(net, x)
    program = torch.export.export(net.eval(), (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=512)},))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "net.pt2"
        torch.export.save(program, file)
        return read_pt2(file)


def _with_fixed_batch(net, x):
    """As an ONNX file: the batch of a program is opened when it is read."""
    file = io.BytesIO()
    torch.onnx.export(net.eval(), (x,), file, dynamo=False, opset_version=17)
    return read_onnx(file.getvalue())


def trained(kind):
    """A fresh copy of the trained net of this kind."""
    return _exported(kind).copy()


@cache
def data_of(kind, use="train"):
    examples, seed = {"train": (EXAMPLES, 1), "test": (500, 2)}[use]
    return NETS[kind][1](examples, seed)


def context_for(kind, *, train="labelled", **fields):
    """A step's context, as the pipeline makes it; `train`: labelled, unlabelled, Examples, or None."""
    if isinstance(train, str):
        examples = data_of(kind)
        train = examples if train == "labelled" else examples.unlabelled()
    teacher = trained(kind)
    given = {
        "train": train,
        "calibrate": train,
        "teacher": teacher,
        "original": teacher,
        "device": torch.device("cpu"),
        "runtime": "cpu-avx2",
        "task": "classification",
        "output": 0,
        "class_axis": -1,
        "seed": 0,
        "deadline": time.monotonic() + 600,
        "progress": lambda fraction, message: None,
        "metric": lambda values: None,
    }
    return Context(**(given | fields))


def apply(graph, context, *steps):
    """Run steps given as a recipe has them, and return the last graph."""
    for options in steps:
        step = STEPS[options["step"]](**options)
        import_module(f"workers.engine.steps.{step.step}")
        graph = APPLY[type(step)](step, graph, context)
    return graph


def accuracy(graph, kind):
    """On test data, in ONNX Runtime, of the file that the graph is written to."""
    return score(write_onnx(graph), kind)


def score(file, kind):
    data = data_of(kind, "test")
    chosen = outputs(file, data.inputs).argmax(-1)
    return float((chosen == data.labels.numpy()).mean())


def outputs(file, x):
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


def weights(graph):
    """The matrices and kernels as the layers use them, by layer and parameter."""
    return {
        f"{layer.name}.{name}": weight.detach().clone()
        for layer in graph.layers()
        for name, weight in layer.weights.items()
        if weight.ndim > 1
    }


def zeros(graph):
    """The places that are zero, by layer and parameter."""
    return {name: weight == 0 for name, weight in weights(graph).items()}


def share_of_zeros(graph):
    found = torch.cat([zero.flatten() for zero in zeros(graph).values()])
    return float(found.double().mean())
