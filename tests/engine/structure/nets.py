"""Nets written in ONNX's own text form, with random weights, and what pruning must not change in them."""

import math

import onnxruntime
import torch
from onnx import numpy_helper, parser

from workers.engine.readers.onnx import read_onnx
from workers.engine.shapes import example_inputs
from workers.engine.structure.groups import find_groups, remove_units, zero_units
from workers.engine.writers.onnx import write_onnx

CLOSE = 1e-5


def net(text, weights, constants=None, opset=17):
    """A graph of this text. `weights` gives shapes; what is called `var` or `scale` is positive."""
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> main {text}')
    generator = torch.Generator().manual_seed(0)
    tensors = dict(constants or {})
    for name, shape in weights.items():
        fan = math.prod(shape[1:]) if len(shape) > 1 else 4
        tensor = torch.randn(shape, generator=generator) / math.sqrt(fan)
        tensors[name] = tensor.abs() + 0.5 if name.startswith(("var", "scale")) else tensor
    model.graph.initializer.extend(numpy_helper.from_array(value.numpy(), name) for name, value in tensors.items())
    return read_onnx(model.SerializeToString())


def half(groups, seed=0):
    """Half of the units of each group that may lose some, at random."""
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for group in groups:
        if group.frozen is None:
            keep[group.name] = torch.zeros(group.units, dtype=torch.bool)
            keep[group.name][torch.randperm(group.units, generator=generator)[: math.ceil(group.units / 2)]] = True
    return keep


def pruned_exactly(graph, *, free=7, runtime=True, frozen=()):
    """The groups and the graph without half of their units: equal to the graph that has them zeroed.

    Every group must give units but those of the outputs and those that are called `frozen`.
    """
    groups = find_groups(graph)
    keep = half(groups)
    staying = {group.name: group.frozen for group in groups if group.frozen}
    outputs = {name for name, reason in staying.items() if reason.startswith("it is part of the output")}
    assert staying.keys() - outputs == set(frozen), staying
    pruned, zeroed = graph.copy(), graph.copy()
    remove_units(pruned, keep)
    zero_units(zeroed, keep)
    assert parameters(pruned) < parameters(graph)
    for batch, length in ((2, free), (3, free + 4)):
        inputs = example_inputs(graph, batch, length)
        answers = run(pruned, inputs)
        assert distance(answers, run(zeroed, inputs)) < CLOSE
        assert distance(answers, run(graph, inputs)) > 1e-3, "removing units changed nothing"
        if runtime:
            session = onnxruntime.InferenceSession(write_onnx(pruned), providers=["CPUExecutionProvider"])
            feeds = {spec.name: value.numpy() for spec, value in zip(graph.inputs, inputs, strict=True)}
            assert distance(answers, [torch.from_numpy(array) for array in session.run(None, feeds)]) < 1e-4
    again = {group.name: group for group in find_groups(pruned)}
    for name, units in keep.items():
        if int(units.sum()) > 1:
            assert again[name].units == int(units.sum())
    return {group.name: group for group in groups}, pruned


def run(graph, inputs):
    with torch.no_grad():
        return graph(*inputs)


def distance(found, wanted):
    pairs = zip(found, wanted, strict=True)
    return max(float((one - other).norm() / other.norm().clamp_min(1e-12)) for one, other in pairs)


def parameters(graph):
    return sum(parameter.numel() for parameter in graph.module.parameters())
