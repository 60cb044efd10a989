"""What exporters take apart comes back as the layer or op that it was, and leaves as its file's opset can hold it."""

import numpy as np
import onnx.parser
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor, nn

from tests.engine.onnx.nets import export
from tests.engine.onnx.running import in_engine, in_runtime, model_of
from workers.engine.graph import Graph
from workers.engine.ops.activations import gelu, hard_sigmoid, hard_swish, mish, swish
from workers.engine.ops.convolution import Conv
from workers.engine.ops.normalization import LayerNorm, RMSNorm
from workers.engine.ops.pooling import global_average_pool
from workers.engine.ops.reductions import reduce_mean
from workers.engine.ops.shapes import flatten
from workers.engine.readers.onnx import read_onnx
from workers.engine.writers.onnx import write_onnx

GENERATOR = np.random.default_rng(0)
X = GENERATOR.standard_normal((2, 5, 8), dtype=np.float32) * 3
WEIGHTS = {name: GENERATOR.standard_normal(8, dtype=np.float32) for name in ("norm_weight", "norm_bias")}


class Function(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class RootMeanSquare(nn.Module):
    """As transformers writes it for llama and t5."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(8) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(torch.float32)
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


class LongHardSwish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * F.relu6(x + 3) / 6


def trained_norm() -> nn.Module:
    norm = nn.LayerNorm(8, eps=1e-3)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


MODULES = {
    "layer norm": (trained_norm, LayerNorm),
    "rms norm": (RootMeanSquare, RMSNorm),
    "gelu": (nn.GELU, gelu),
    "gelu by tanh": (lambda: nn.GELU(approximate="tanh"), gelu),
    "hard swish": (nn.Hardswish, hard_swish),
    "hard swish of relu6": (LongHardSwish, hard_swish),
    "hard sigmoid": (lambda: Function(lambda x: F.relu6(x + 3) / 6), hard_sigmoid),
    "silu": (nn.SiLU, swish),
    "quick gelu": (lambda: Function(lambda x: x * torch.sigmoid(1.702 * x)), swish),
    "mish": (nn.Mish, mish),
}


def ops(graph: Graph) -> list[object]:
    """Functions and classes of leaves, in order."""
    return [
        type(graph.module.get_submodule(str(node.target))) if node.op == "call_module" else node.target
        for node in graph.module.graph.nodes
        if node.op.startswith("call")
    ]


def assert_exact(graph: Graph, model: bytes, x: np.ndarray = X) -> None:
    (expected,) = in_runtime(model, {"x": x})
    np.testing.assert_allclose(in_engine(graph, {"x": x})[0], expected, rtol=1e-6, atol=2e-6)
    np.testing.assert_allclose(in_runtime(write_onnx(graph), {"x": x})[0], expected, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("exporter", [*(f"torchscript-{opset}" for opset in (11, 13, 14, 17, 18, 20)), "dynamo"])
@pytest.mark.parametrize("name", MODULES)
def test_what_torch_exports_comes_back_whole(name: str, exporter: str) -> None:
    torch.manual_seed(0)
    make, op = MODULES[name]
    model = export(make().eval(), torch.from_numpy(X), exporter)
    graph = read_onnx(model)
    assert [found for found in ops(graph) if getattr(found, "__name__", "") != "cast"] == [op]
    assert_exact(graph, model)
    written = onnx.load_from_string(write_onnx(graph))
    assert written.opset_import[0].version == max(13, onnx.load_from_string(model).opset_import[0].version)
    assert len(written.SerializeToString()) <= 1.02 * len(model) + 200
    onnx.checker.check_model(written, full_check=True)
    assert ops(read_onnx(written.SerializeToString()))[-1:] == [op]


SPELLINGS = {
    "keras": (
        LayerNorm,
        """mean = ReduceMean <axes = [2]> (x)
           centred = Sub (x, mean)
           square = Mul (centred, centred)
           variance = ReduceMean <axes = [2]> (square)
           shifted = Add (eps, variance)
           root = Sqrt (shifted)
           inverse = Reciprocal (root)
           gain = Mul (inverse, norm_weight)
           left = Mul (x, gain)
           middle = Mul (mean, gain)
           right = Sub (norm_bias, middle)
           y = Add (left, right)""",
    ),
    "two differences": (
        LayerNorm,
        """mean = ReduceMean <axes = [-1]> (x)
           one = Sub (x, mean)
           two = Sub (x, mean)
           square = Pow (one, two_)
           variance = ReduceMean <axes = [-1]> (square)
           shifted = Add (variance, eps)
           root = Sqrt (shifted)
           normal = Div (two, root)
           scaled = Mul (norm_weight, normal)
           y = Add (norm_bias, scaled)""",
    ),
    "without bias": (
        LayerNorm,
        """mean = ReduceMean <axes = [-1]> (x)
           one = Sub (x, mean)
           square = Mul (one, one)
           variance = ReduceMean <axes = [-1]> (square)
           shifted = Add (variance, eps)
           root = Sqrt (shifted)
           normal = Div (one, root)
           y = Mul (norm_weight, normal)""",
    ),
    "rms by power": (
        RMSNorm,
        """square = Pow (x, two_)
           variance = ReduceMean <axes = [2]> (square)
           shifted = Add (variance, eps)
           inverse = Pow (shifted, minus_half)
           normal = Mul (x, inverse)
           y = Mul (normal, norm_weight)""",
    ),
    "gelu, halves first": (
        gelu,
        """half_x = Mul (half, x)
           scaled = Mul (x, root_half)
           erf = Erf (scaled)
           gate = Add (one_, erf)
           y = Mul (half_x, gate)""",
    ),
    "gelu, halves last": (
        gelu,
        """scaled = Mul (x, root_half)
           erf = Erf (scaled)
           halved = Mul (erf, half)
           gate = Add (halved, half)
           y = Mul (x, gate)""",
    ),
    "hard swish by clip and factor": (
        hard_swish,
        """shifted = Add (x, three)
           gate = Clip (shifted, zero, six)
           gated = Mul (gate, x)
           y = Mul (gated, sixth)""",
    ),
    "keras hard sigmoid": (
        hard_sigmoid,
        """steep = Mul (x, fifth)
           shifted = Add (steep, half)
           y = Clip (shifted, zero, one_)""",
    ),
}
NUMBERS = {
    "eps": 1e-3, "two_": 2, "minus_half": -0.5, "half": 0.5, "root_half": 0.5**0.5, "one_": 1, "three": 3, "zero": 0,
    "six": 6, "sixth": 1 / 6, "fifth": 0.2,
}  # fmt: skip


def model_from(text: str, *, opset: int = 13) -> bytes:
    """Nodes in ONNX's own text form; their constants are those above."""
    graph = onnx.parser.parse_graph(f"main (float[n, 5, 8] x) => (float[n, 5, 8] y) {{ {text} }}")
    constants = WEIGHTS | {name: np.float32(number) for name, number in NUMBERS.items()}
    used = {name for node in graph.node for name in node.input}
    for node in graph.node:  # texts have no dots in names
        node.input[:] = [name.replace("norm_", "norm.") for name in node.input]
    weights = {name.replace("norm_", "norm."): constant for name, constant in constants.items() if name in used}
    return model_of(graph.node, {"x": ["n", 5, 8]}, {"y": ["n", 5, 8]}, weights, opset=opset)


@pytest.mark.parametrize("name", SPELLINGS)
def test_other_spellings_come_back_whole(name: str) -> None:
    op, text = SPELLINGS[name]
    model = model_from(text)
    graph = read_onnx(model)
    assert ops(graph) == [op]
    assert_exact(graph, model)


def test_a_raised_norm_has_the_name_of_its_weight() -> None:
    graph = read_onnx(model_from(SPELLINGS["keras"][1]))
    assert [node.meta["layer"] for node in graph.module.graph.nodes if node.op == "call_module"] == ["norm"]
    assert {name for name, _ in graph.module.named_parameters()} == {"layernorm_0.weight", "layernorm_0.bias"}


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("keras", "middle = Mul (mean, gain)", "middle = Mul (x, gain)"),
        ("keras", "variance = ReduceMean <axes = [2]>", "variance = ReduceMean <axes = [1]>"),
        ("two differences", "axes = [-1]", "axes = [1]"),
        (
            "without bias",
            "y = Mul (norm_weight, normal)",
            "scaled = Mul (norm_weight, normal)\n y = Add (scaled, root)",
        ),
        ("gelu, halves first", "Mul (half, x)", "Mul (one_, x)"),
        ("hard swish by clip and factor", "Add (x, three)", "Add (x, two_)"),
    ],
)
def test_what_computes_something_else_is_left_alone(name: str, old: str, new: str) -> None:
    op, text = SPELLINGS[name]
    model = model_from(text.replace(old, new))
    graph = read_onnx(model)
    assert op not in ops(graph)
    assert_exact(graph, model)


class PooledByMean(nn.Module):
    def __init__(self, keep: bool) -> None:
        super().__init__()
        self.conv, self.keep = nn.Conv2d(3, 4, 3), keep

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean((2, 3), keepdim=self.keep)


@pytest.mark.parametrize("exporter", ["torchscript-13", "torchscript-18"])
@pytest.mark.parametrize(("keep", "after"), [(True, []), (False, [flatten])])
def test_a_mean_over_space_is_a_pooling(keep: bool, after: list[object], exporter: str) -> None:
    x = torch.randn(2, 3, 8, 8)
    model = export(PooledByMean(keep).eval(), x, exporter)
    graph = read_onnx(model)
    assert ops(graph) == [Conv, global_average_pool, *after]
    assert_exact(graph, model, x.numpy())


def test_a_mean_over_some_dimensions_is_none() -> None:
    x = torch.from_numpy(X)
    graph = read_onnx(export(Function(lambda x: x.mean((1, 2))), x, "torchscript-17"))
    assert ops(graph) == [reduce_mean]
