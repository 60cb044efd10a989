"""Layers whose weights have a low rank say the same in parts, whatever their window."""

import pytest
import torch
from torch import nn

from modelpress.models import TensorSpec
from tests.engine.steps.nets import outputs
from workers.engine.builder import GraphBuilder
from workers.engine.errors import StepError
from workers.engine.factorization.moments import Seen, observe
from workers.engine.factorization.spectra import spectrum, two_modes
from workers.engine.factorization.splits import kind_of
from workers.engine.factorization.splitting import split
from workers.engine.ops.convolution import Conv, ConvTranspose
from workers.engine.ops.indexing import Embedding
from workers.engine.ops.linear import Linear, Projection
from workers.engine.ops.recurrent_cells import GRU, LSTM
from workers.engine.shapes import propagate_inputs
from workers.engine.writers.onnx import write_onnx

RANK = 8


def low(*shape, rank=RANK):
    """A matrix (out, in) of this rank."""
    return torch.randn(shape[0], rank) @ torch.randn(rank, shape[1]) / rank


def kernel(out, into, *size, rank=(RANK, RANK)):
    """(out, in, *size) of this rank on both sides."""
    core = torch.randn(rank[1], rank[0], *size)
    both = torch.einsum("or,ri...->oi...", torch.randn(out, rank[1]), core)
    return torch.einsum("or...,ri->oi...", both, torch.randn(rank[0], into)) / 32


def window(rank, stride=1, pads=None, dilation=1):
    return {"stride": (stride,) * rank, "pads": pads or (1,) * (2 * rank), "dilation": (dilation,) * rank}


def parameter(tensor):
    return nn.Parameter(tensor.contiguous())


def recurrent(kind, directions):
    gates = kind.gates * 16
    weight = low(directions * gates, 40).unflatten(0, (directions, gates))
    hidden, bias = torch.randn(directions, gates, 16) / 8, torch.randn(directions, 2 * gates)
    direction = "bidirectional" if directions == 2 else "forward"
    return kind(parameter(weight), parameter(hidden), parameter(bias), direction=direction)


IMAGES = (2, 24, 9, 8)
LAYERS = {
    "linear": (lambda: Linear(parameter(low(48, 64)), parameter(torch.randn(48))), (3, 64)),
    "wide linear without bias": (lambda: Linear(parameter(low(96, 40)), None), (3, 40)),
    "projection": (lambda: Projection(parameter(low(64, 64)), parameter(torch.randn(64))), (2, 5, 64)),
    "conv": (lambda: Conv(parameter(kernel(32, 24, 3, 3)), parameter(torch.randn(32)), **window(2)), IMAGES),
    "conv with strides": (lambda: Conv(parameter(kernel(32, 24, 3, 3)), None, **window(2, stride=2)), IMAGES),
    "uneven pads": (lambda: Conv(parameter(kernel(32, 24, 3, 2)), None, **window(2, pads=(0, 1, 2, 1))), IMAGES),
    "dilated conv": (lambda: Conv(parameter(kernel(32, 24, 3, 3)), None, **window(2, dilation=2)), IMAGES),
    "padded as tensorflow does": (
        lambda: Conv(parameter(kernel(32, 24, 3, 3)), None, **window(2, stride=2), auto_pad="SAME_UPPER"), IMAGES,
    ),
    "conv of one place": (
        lambda: Conv(
            parameter(kernel(64, 24, 1, 1)), parameter(torch.randn(64)), **window(2, stride=2, pads=(0, 0, 0, 0))
        ),
        IMAGES,
    ),
    "few inputs": (lambda: Conv(parameter(kernel(64, 3, 5, 5, rank=(3, RANK))), None, **window(2)), (2, 3, 9, 8)),
    "one dimension": (lambda: Conv(parameter(kernel(32, 24, 5)), parameter(torch.randn(32)), **window(1)), (2, 24, 11)),
    "three dimensions": (lambda: Conv(parameter(kernel(24, 24, 3, 3, 3)), None, **window(3)), (2, 24, 4, 5, 4)),
    "transposed conv": (
        lambda: ConvTranspose(
            parameter(kernel(24, 32, 4, 4)), parameter(torch.randn(32)), **window(2, stride=2), output_padding=(0, 1)
        ),
        IMAGES,
    ),
    "LSTM": (lambda: recurrent(LSTM, 1), (6, 2, 40)),
    "bidirectional GRU": (lambda: recurrent(GRU, 2), (6, 2, 40)),
}  # fmt: skip


def graph_of(leaf, x, word="float32"):
    builder = GraphBuilder()
    value = builder.module("fc", leaf, builder.input(TensorSpec(name="x", dtype=word, shape=tuple(x.shape))))
    if isinstance(leaf, (GRU, LSTM)):
        value = builder.unpack(value, 3 if isinstance(leaf, LSTM) else 2)[0]
    return builder.finish([(TensorSpec(name="y", dtype="float32", shape=(None,)), value)], opset=17)


def split_of(graph, x, seen=None):
    propagate_inputs(graph, [x])
    (layer,) = graph.layers()
    made = kind_of(layer.module)(layer, seen or Seen())
    made.find_options(8)
    return made


@pytest.mark.parametrize("seen", [False, True], ids=["no data", "data"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_of_low_rank_says_the_same_in_parts_and_costs_what_was_told(name, seen):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    x = torch.randn(shape)
    graph = graph_of(make(), x)
    wanted = graph(x)[0].detach()
    found = observe(graph, graph.layers(), [[torch.randn(64, *shape[1:])]])["fc"] if seen and len(shape) != 3 else None
    made = split_of(graph, x, found)
    ranks = min(made.options, key=lambda ranks: (round(ranks.lost, 6), ranks.macs))

    nodes = split(graph, made.layer, made.leaves(ranks))

    assert ranks.lost < 1e-6
    answer = graph(x)[0].detach()
    torch.testing.assert_close(answer, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))
    propagate_inputs(graph, [x])
    layers = {layer.name: layer for layer in graph.layers()}
    assert list(layers) == [f"fc.{part}" for part in ("v", "core", "u")[:: 1 if len(nodes) == 3 else 2]]
    assert sum(layer.op.macs(layer.node) for layer in layers.values()) == ranks.macs < 0.9 * made.macs
    assert torch.tensor(outputs(write_onnx(graph), x)).sub(answer).abs().max() < 1e-3 * float(wanted.abs().max())


def test_a_table_becomes_a_smaller_one_and_a_product():
    torch.manual_seed(0)
    x = torch.randint(0, 500, (2, 7))
    graph = graph_of(Embedding(parameter(low(500, 64))), x, "int64")
    (wanted,) = graph(x)
    made = split_of(graph, x)
    (ranks,) = [ranks for ranks in made.options if ranks.into == RANK]
    split(graph, made.layer, made.leaves(ranks))
    torch.testing.assert_close(graph(x)[0], wanted, rtol=1e-4, atol=1e-4)
    assert sum(p.numel() for p in graph.module.parameters()) == ranks.parameters == RANK * 564
    assert torch.tensor(outputs(write_onnx(graph), x)).sub(wanted).abs().max() < 1e-4


def test_the_energy_that_is_lost_is_that_of_the_products():
    torch.manual_seed(0)
    matrix, x = torch.randn(20, 30).double(), torch.randn(500, 30).double() @ torch.randn(30, 30).double()
    found = spectrum(matrix, x.T @ x / len(x))
    for rank in (1, 5, 12):
        left, right = found.cut(rank)
        missing = (x @ (matrix - left @ right).T).square().sum() / (x @ matrix.T).square().sum()
        assert float(missing) == pytest.approx(float(found.lost[rank]), rel=1e-3)
    plain = spectrum(matrix)
    left, right = plain.cut(5)
    best = torch.linalg.svdvals(matrix)[5:].square().sum()
    assert float((matrix - left @ right).square().sum()) == pytest.approx(float(best))
    left, right = found.cut(5)
    assert (matrix - left @ right).square().sum() > best, "data-aware is not the SVD"


def test_iterating_over_both_modes_is_no_worse_than_the_singular_vectors_of_each():
    torch.manual_seed(0)
    tensor = torch.randn(20, 16, 9).double()
    out, core, into = two_modes(tensor, 4, 5)
    assert core.shape == (5, 4, 9)

    def leading(mode, rank):
        return torch.linalg.svd(tensor.movedim(mode, 0).flatten(1), full_matrices=False).U[:, :rank]

    first, second = leading(0, 5), leading(1, 4)
    once = torch.einsum("oik,op,ir->prk", tensor, first, second)
    assert core.norm() > once.norm()
    whole = torch.einsum("po,prk,ri->oik", out, core, into)
    assert (tensor - whole).square().sum() == pytest.approx(tensor.square().sum() - core.square().sum())


def test_inputs_that_never_vary_have_a_spectrum():
    """Their covariance is rounding, of which some is negative."""
    matrix, row = torch.randn(24, 16).double(), torch.randn(16).double() * 100
    rows = row.expand(50, 16)
    second = rows.T @ rows / 50 - torch.outer(row, row) - 1e-11 * torch.eye(16).double()
    assert float(torch.linalg.eigvalsh(second)[0]) < 0
    found = spectrum(matrix, second)
    assert all(part.isfinite().all() for part in (found.lost, *found.cut(8)))


def test_inputs_that_are_no_numbers_are_refused():
    builder = GraphBuilder()
    x = builder.input(TensorSpec(name="x", dtype="float32", shape=("batch", 8)))
    y = builder.module("layer", Linear(parameter(torch.randn(16, 8)), None), x)
    graph = builder.finish([(TensorSpec(name="y", dtype="float32", shape=("batch", 16)), y)], opset=17)
    with pytest.raises(StepError, match="not finite"):
        observe(graph, list(graph.layers()), [(torch.full((4, 8), torch.inf),)])
