"""`.pt2` programs, written: PyTorch loads them, so does our own reader, and nothing of this machine is in them."""

import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from tests.engine.huggingface.models import inputs, make, saved
from tests.engine.onnx.odd_models import fast_gelu
from workers.engine.constraints import Mask, constrain
from workers.engine.errors import UnsupportedModelError
from workers.engine.graph import Graph
from workers.engine.quantization.fake_quantize import FakeQuantize
from workers.engine.readers.huggingface import read_huggingface
from workers.engine.readers.onnx import read_onnx
from workers.engine.readers.pt2 import read_pt2
from workers.engine.writers import write_model

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.depth = nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.up = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(8, 4, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(12, 5)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.nn.functional.hardswish(self.stem(image))
        x = x + self.depth(x)
        wide = self.up(x)
        pooled = torch.cat([self.pool(x), self.pool(wide)], 1).flatten(1)
        return self.head(pooled), wide


class Sequence(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.encoder = kind(6, 5, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x)[0].mean(1))


BATCH = torch.export.Dim("batch", min=1)


def program(model: nn.Module, example: Tensor, path: Path) -> Graph:
    torch.manual_seed(0)
    torch.export.save(torch.export.export(model.eval(), (example,), dynamic_shapes=({0: BATCH},)), path)
    return read_pt2(path)


def written(graph: Graph, path: Path) -> tuple[Any, Graph]:
    """What PyTorch loads, and what our own reader does."""
    write_model(graph, "pt2", path)
    return torch.export.load(path).module(), read_pt2(path)


def assert_same(graph: Graph, others: tuple[Any, Graph], given: tuple[Tensor, ...]) -> None:
    with torch.no_grad():
        wanted = graph(*given)
        for other in others:
            found = other(*given)
            found = tuple(found.values()) if isinstance(found, dict) else found
            for own, value in zip(found if isinstance(found, tuple) else (found,), wanted, strict=True):
                torch.testing.assert_close(own, value, rtol=1e-5, atol=1e-6)


def test_a_convolutional_net_keeps_names_and_its_open_batch(tmp_path: Path) -> None:
    graph = program(Images(), torch.randn(3, 3, 8, 8), tmp_path / "model.pt2")
    loaded, again = written(graph, tmp_path / "again.pt2")
    for examples in (1, 5):
        assert_same(graph, (loaded, again), (torch.randn(examples, 3, 8, 8),))
    assert [layer.name for layer in again.layers()] == [layer.name for layer in graph.layers()]
    assert [(spec.name, spec.shape) for spec in again.inputs] == [("image", ("batch", 3, 8, 8))]
    names = set(torch.export.load(tmp_path / "again.pt2").state_dict)
    assert names == set(Images().state_dict())  # num_batches_tracked too


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_are_torchs_own(kind: type[nn.RNNBase], tmp_path: Path) -> None:
    graph = program(Sequence(kind), torch.randn(3, 7, 6), tmp_path / "model.pt2")
    loaded, again = written(graph, tmp_path / "again.pt2")
    for examples in (1, 4):
        assert_same(graph, (loaded, again), (torch.randn(examples, 7, 6),))
    assert any(name.endswith("weight_hh_l0_reverse") for name in loaded.state_dict())


def test_a_recurrent_layer_over_an_open_time_is_refused(tmp_path: Path) -> None:
    torch.onnx.export(
        Sequence(nn.LSTM).eval(), (torch.randn(3, 7, 6),), tmp_path / "model.onnx", dynamo=False, input_names=["x"],
        dynamic_axes={"x": {0: "batch", 1: "time"}},
    )  # fmt: skip
    graph = read_onnx(tmp_path / "model.onnx")
    with pytest.raises(UnsupportedModelError, match="would fix the dimension 'time' of the input 'x'"):
        write_model(graph, "pt2", tmp_path / "again.pt2")


def test_several_outputs_keep_their_names(tmp_path: Path) -> None:
    graph = read_huggingface(saved(make("bert"), tmp_path / "model"))
    loaded, again = written(graph, tmp_path / "again.pt2")
    given = tuple(inputs(graph, 2, 5).values())
    assert list(loaded(*given)) == ["last_hidden_state", "pooler_output"]
    assert [spec.name for spec in again.outputs] == ["last_hidden_state", "pooler_output"]
    assert_same(graph, (loaded, again), given)


@pytest.mark.parametrize("name", ["bert classifier", "llama", "gpt2", "vit", "t5 encoder"])
def test_transformers_keep_batch_and_length_open(name: str, tmp_path: Path) -> None:
    graph = read_huggingface(saved(make(name), tmp_path / "model"))
    others = written(graph, tmp_path / "again.pt2")
    for batch, length in ((1, 5), (4, 9)):
        assert_same(graph, others, tuple(inputs(graph, batch, length).values()))


def shapes_in_the_graph() -> onnx.ModelProto:
    """Height and width are open, and the file computes with them."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Slice", ["shape", "zero", "two"], ["lead"]),
        helper.make_node("Concat", ["lead", "minus"], ["flat"], axis=0),
        helper.make_node("Reshape", ["x", "flat"], ["rows"]),
        helper.make_node("ReduceMax", ["rows"], ["most"], axes=[2], keepdims=1),
        helper.make_node("Sub", ["rows", "most"], ["less"]),
        helper.make_node("Reshape", ["less", "shape"], ["odd name/of.output"]),
    ]
    constants = {"zero": [0], "two": [2], "minus": [-1]}
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2, "height", "width"])],
        [helper.make_tensor_value_info("odd name/of.output", TensorProto.FLOAT, ["n", 2, "height", "width"])],
        [helper.make_tensor(name, TensorProto.INT64, [1], values) for name, values in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])


def test_computing_with_shapes_keeps_them_open(tmp_path: Path) -> None:
    graph = read_onnx(shapes_in_the_graph().SerializeToString())
    others = written(graph, tmp_path / "model.pt2")
    for shape in ((1, 2, 3, 4), (3, 2, 5, 2)):
        assert_same(graph, others, (torch.randn(shape),))


def test_constraints_are_in_the_weights(tmp_path: Path) -> None:
    graph = program(Images(), torch.randn(3, 3, 8, 8), tmp_path / "model.pt2")
    layer = next(graph.layers())
    constrain(layer.module, "weight", Mask(torch.rand_like(layer.module.weight) > 0.5))
    others = written(graph, tmp_path / "again.pt2")
    assert_same(graph, others, (torch.randn(2, 3, 8, 8),))
    assert set(torch.export.load(tmp_path / "again.pt2").state_dict) == set(Images().state_dict())
    assert layer.constraints("weight")  # the graph itself is as it was


def test_the_bytes_are_the_same_every_time_and_name_no_place(tmp_path: Path) -> None:
    graph = program(Images(), torch.randn(3, 3, 8, 8), tmp_path / "model.pt2")
    for name in ("one.pt2", "two.pt2"):
        write_model(graph, "pt2", tmp_path / name)
    content = (tmp_path / "one.pt2").read_bytes()
    assert content == (tmp_path / "two.pt2").read_bytes()
    for place in (sys.prefix, str(Path(__file__).parents[3]), str(tmp_path), "site-packages"):
        assert place.encode() not in content


def test_quantized_activations_are_refused(tmp_path: Path) -> None:
    graph = program(Images(), torch.randn(3, 3, 8, 8), tmp_path / "model.pt2")
    graph.module.add_module("fake", FakeQuantize(0.1, 0))
    with pytest.raises(UnsupportedModelError, match="activations are quantized to integers"):
        write_model(graph, "pt2", tmp_path / "again.pt2")


def test_parts_that_only_onnx_runtime_knows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="kept as ONNX nodes, which PyTorch cannot run"):
        write_model(read_onnx(fast_gelu()), "pt2", tmp_path / "model.pt2")
