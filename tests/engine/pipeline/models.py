"""Small trained networks and their data, made in code in a moment, and run directories around them."""

import io
import json
from functools import cache

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from modelpress.run import RunResult
from workers.engine.pipeline import run

CLASSES = 4
FEATURES = 16


def blobs(examples, seed):
    """Points around four centres that overlap a little: float32 (examples, 16) and int64 labels."""
    centres = np.random.default_rng(99).normal(size=(CLASSES, FEATURES)) * 0.7
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, examples)
    return (centres[labels] + generator.normal(size=(examples, FEATURES))).astype(np.float32), labels


def images(examples, seed):
    """Noise with one bright quadrant, which is the class: float32 (examples, 1, 8, 8) and int64 labels."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, examples)
    x = generator.normal(size=(examples, 1, 8, 8)).astype(np.float32)
    for image, label in zip(x, labels, strict=True):
        image[0, 4 * (label // 2) :, 4 * (label % 2) :][:4, :4] += 1.2
    return x, labels


@cache
def mlp():
    """16 → 96 → 96 → 4, about .9 right: ONNX bytes."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(FEATURES, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, CLASSES))
    _train(net, *blobs(2000, 1))
    return as_onnx(net, ("batch", FEATURES))


@cache
def convolutional():
    """Two convolutions and a linear layer, about .95 right: ONNX bytes."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(32 * 9, CLASSES),
    )  # fmt: skip
    _train(net, *images(1500, 1))
    return as_onnx(net, ("batch", 1, 8, 8))


@cache
def wide():
    """64 → 512 → 512 → 4 on images, about .95 right, of which few directions matter: ONNX bytes."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, CLASSES)
    )
    _train(net, *images(1500, 1))
    return as_onnx(net, ("batch", 1, 8, 8))


class Residual(nn.Module):
    """Blocks that are trained to do without each other: in training every one is left out at times."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, 2, 1)
        self.blocks = nn.ModuleList(nn.Conv2d(16, 16, 3, 1, 1) for _ in range(3))
        self.head = nn.Linear(16 * 16, CLASSES)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        for block in self.blocks:
            if not self.training or torch.rand(()) < 0.7:
                x = x + torch.relu(block(x))
        return self.head(x.flatten(1))


@cache
def residual():
    """Three residual blocks, about .95 right with all and hardly less with two: ONNX bytes."""
    torch.manual_seed(0)
    net = Residual()
    _train(net, *images(1500, 1))
    file = io.BytesIO()
    torch.onnx.export(
        net.eval(), (torch.zeros(2, 1, 8, 8),), file, dynamo=False, input_names=["x"], output_names=["logits"],
        dynamic_axes={"x": {0: "batch"}, "logits": {0: "batch"}},
    )  # fmt: skip
    return file.getvalue()


def as_onnx(net, shape, name="x", output="logits"):
    """A chain of layers as ONNX bytes, written node by node."""
    nodes, stored, value = [], [], name
    layers = list(net)
    for index, layer in enumerate(layers):
        result = output if layer is layers[-1] else f"value_{index}"
        names = [f"layer{index}.{key}" for key, _ in layer.named_parameters()]
        stored += [
            numpy_helper.from_array(p.detach().numpy(), n) for n, p in zip(names, layer.parameters(), strict=True)
        ]
        nodes.append(_node(layer, [value, *names], result))
        value = result
    outputs = next(layer.out_features for layer in reversed(layers) if isinstance(layer, nn.Linear))
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, (shape[0], outputs))],
        stored,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def run_dir(path, job, **files):
    """A run directory: `files` by name, and a job that names them (`{"path": "in/…"}` is filled in for each name)."""
    (path / "in").mkdir(parents=True)
    for name, content in files.items():
        if isinstance(content, dict):
            np.savez(path / "in" / name, **content)
            (path / "in" / f"{name}.npz").rename(path / "in" / name)
        else:
            (path / "in" / name).write_bytes(content)
    (path / "job.json").write_text(json.dumps(job))
    return path


def file(name):
    return {"path": f"in/{name}", "filename": name}


def compress(path, model, recipe, *, data=None, teacher=None, **request) -> tuple[RunResult, list]:
    """Run a recipe. `data`: use → (x, labels), x or a dict of arrays."""
    sets = {use: _arrays(given) for use, given in (data or {}).items()}
    job = {
        "kind": "compress",
        "model": file("model"),
        "data": {use: file(use) for use in sets},
        "request": {"recipe": recipe, **request},
    }
    files = {"model": model, **sets}
    if teacher is not None:
        job["teacher"] = file("teacher")
        files["teacher"] = teacher
    events = []
    result = run(run_dir(path, job, **files), events.append)
    return result, events


def inspect_model(path, content):
    return run(run_dir(path, {"kind": "inspect_model", "model": file("model")}, model=content), print)


def inspect_dataset(path, content):
    return run(run_dir(path, {"kind": "inspect_dataset", "dataset": file("data")}, data=content), print)


def _arrays(given):
    if isinstance(given, dict):
        return given
    return {"x": given[0], "labels": given[1]} if isinstance(given, tuple) else {"x": given}


def _node(layer, inputs, output):
    if isinstance(layer, nn.Linear):
        return helper.make_node("Gemm", inputs, [output], output, transB=1)
    if isinstance(layer, nn.Conv2d):
        padding = [layer.padding[0]] * 4
        return helper.make_node("Conv", inputs, [output], output, pads=padding, strides=layer.stride)
    return helper.make_node({nn.ReLU: "Relu", nn.Flatten: "Flatten"}[type(layer)], inputs, [output], output)


def _train(net, x, labels):
    torch.set_num_threads(1)
    inputs, wanted = torch.from_numpy(x), torch.from_numpy(labels)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(6):
        for batch in torch.randperm(len(inputs)).split(50):
            nn.functional.cross_entropy(net(inputs[batch]), wanted[batch]).backward()
            optimizer.step()
            optimizer.zero_grad()
