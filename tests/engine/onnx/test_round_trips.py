"""Whole networks from torch's exporters: read, run at a batch size nobody has traced, write, run again."""

from collections import Counter

import numpy as np
import onnx
import pytest
import torch

from tests.engine.onnx.nets import example, export
from tests.engine.onnx.running import in_engine, in_runtime
from workers.engine.readers.onnx import read_onnx
from workers.engine.shapes import propagate, stats
from workers.engine.writers.onnx import write_onnx

NETS = ("perceptron", "mobile", "unet", "encoder", "lstm", "gru", "rnn")
UNSEEN_BATCH = 5


@pytest.mark.parametrize("exporter", ["torchscript-17", pytest.param("dynamo", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NETS)
def test_a_network_survives_reading_and_writing(name: str, exporter: str) -> None:
    net, x = example(name)
    original = export(net, x, exporter)
    graph = read_onnx(original)
    written = write_onnx(graph)
    onnx.checker.check_model(written, full_check=True)

    feeds = {graph.inputs[0].name: torch.cat([x, x.flip(0), x])[:UNSEEN_BATCH].numpy()}
    expected = in_runtime(original, feeds)
    for ours, theirs in zip(in_runtime(written, feeds), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(in_engine(graph, feeds), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    gained = ops_in(written) - ops_in(original)
    assert gained <= Counter(GlobalAveragePool=ops_in(original)["ReduceMean"], ConstantOfShape=2)
    assert len(written) <= 1.02 * len(original)
    assert write_onnx(read_onnx(written)) == written


@pytest.mark.parametrize("opset", [9, 11, 13, 20])
def test_older_and_newer_opsets_read_the_same(opset: int) -> None:
    net, x = example("mobile")
    graph = read_onnx(export(net, x, f"torchscript-{opset}"))
    with torch.no_grad():
        torch.testing.assert_close(graph(x)[0], net(x), rtol=1e-4, atol=1e-5)


def test_layers_have_the_names_of_the_modules_they_were() -> None:
    net, x = example("encoder")
    names = {layer.name for layer in read_onnx(export(net, x, "torchscript-17")).layers()}
    assert {"embedding", "head", "encoder.layers.0.linear1", "encoder.layers.1.self_attn.out_proj"} <= names


@pytest.mark.parametrize("name", NETS)
def test_everything_trains_in_a_copy_that_shares_nothing(name: str) -> None:
    net, x = example(name)
    graph = read_onnx(export(net, x, "torchscript-17"))
    before = graph(x)[0].detach().clone()
    copied = graph.copy()
    copied.module.train()
    optimizer = torch.optim.SGD(copied.module.parameters(), lr=0.1)
    sum(output.square().sum() for output in copied(x)).backward()
    optimizer.step()
    assert not [name for name, weight in copied.module.named_parameters() if weight.grad is None]
    assert not torch.equal(copied(x)[0], before)
    assert torch.equal(graph(x)[0], before)


def test_counts_are_those_of_the_network() -> None:
    net, x = example("mobile")
    graph = read_onnx(export(net, x, "torchscript-17"))
    counted = stats(graph)
    folded = sum(weight.numel() for name, weight in net.named_parameters() if not batch_norm(net, name))
    biases = sum(m.num_features for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d) and m.num_features != 16)
    assert counted.parameters == folded + biases + 2 * 16
    stem, blocks, head = 27 * 16 * 256, 2 * (16 * 64 * 256 + 9 * 64 * 256 + 64 * 16 * 256 + 16 * 16), 160
    assert counted.macs == stem + blocks + head
    propagate(graph, batch=3)
    assert next(iter(graph.module.graph.nodes)).meta["shape"] == (3, 3, 32, 32)


def batch_norm(net: torch.nn.Module, parameter: str) -> bool:
    return isinstance(net.get_submodule(parameter.rpartition(".")[0]), torch.nn.BatchNorm2d)


def ops_in(model: bytes) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load_from_string(model).graph.node)
