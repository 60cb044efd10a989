"""Files made to break a reader: only EngineError may come out, quickly, and nothing in a file is ever run."""

import random
import time

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from tests.engine.onnx.nets import example, export
from tests.engine.onnx.odd_models import ODD
from tests.engine.onnx.running import model_of
from workers.engine.errors import EngineError
from workers.engine.readers.onnx import read_onnx
from workers.engine.shapes import example_inputs, propagate_inputs

X = {"x": ["batch", 4]}
Y = {"y": ["batch", 4]}


@pytest.fixture(scope="module")
def honest() -> bytes:
    net, x = example("lstm")
    return export(net, x, "torchscript-17")


def try_to_use(model: bytes) -> bool:
    """Whether the file was read and runs; it must be that or an EngineError."""
    try:
        graph = read_onnx(model)
        propagate_inputs(graph, example_inputs(graph, batch=2, free=3))
    except EngineError:
        return False
    return True


def test_files_that_are_cut_off(honest: bytes) -> None:
    assert try_to_use(honest)
    used = [try_to_use(honest[:length]) for length in range(0, len(honest), max(len(honest) // 150, 1))]
    assert not any(used)


def test_files_with_wrong_bytes(honest: bytes) -> None:
    """Where they hit a weight the model still runs; where they hit structure it is refused."""
    chance = random.Random(0)
    outcomes = set()
    for _ in range(150):
        mutant = bytearray(honest)
        mutant[chance.randrange(len(honest))] = chance.randrange(256)
        outcomes.add(try_to_use(bytes(mutant)))
    assert outcomes == {True, False}


@pytest.mark.parametrize("name", ["speech", "optimised", "sequences", "texts"])
def test_opaque_parts_with_wrong_bytes(name: str) -> None:
    """What ONNX Runtime does not take is refused in its words; it neither crashes nor reads anything else."""
    honest, chance, outcomes = ODD[name]()[0], random.Random(0), set()
    for _ in range(80):
        mutant = bytearray(honest)
        place = chance.randrange(len(honest))
        mutant[place : place + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
        outcomes.add(try_to_use(bytes(mutant)))
    assert outcomes == {True, False}


def test_functions_that_stand_for_more_than_a_memory_holds() -> None:
    """Each calls the next one twice, forty of them."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    model = onnx.load_from_string(model_of([helper.make_node("F0", ["x"], ["y"], domain="own")], X, Y))
    model.opset_import.append(opsets[1])
    for level in range(40):
        inner = [helper.make_node(f"F{level + 1}", [a], [b], domain="own") for a, b in (("a", "m"), ("m", "b"))]
        model.functions.append(helper.make_function("own", f"F{level}", ["a"], ["b"], inner, opsets))
    last = [helper.make_node("Relu", ["a"], ["b"])]
    model.functions.append(helper.make_function("own", "F40", ["a"], ["b"], last, opsets))
    with pytest.raises(EngineError, match="more than 1,000,000 nodes"):
        read_onnx(model.SerializeToString())


def test_fields_of_the_wrong_kind(honest: bytes) -> None:
    """Every attribute of every kind of node becomes a text, a float, a tensor and a list in turn."""
    replacements = ["__import__('os').system('true')", 1.5, np.zeros(3, np.float32), [1 << 62, -1], ["a", "b"]]
    model = onnx.load_from_string(honest)
    places = {(node.op_type, a): (n, a) for n, node in enumerate(model.graph.node) for a in range(len(node.attribute))}
    assert len(places) > 5
    for node, attribute in places.values():
        for value in replacements:
            mutant = onnx.load_from_string(honest)
            old = mutant.graph.node[node].attribute[attribute]
            new = onnx.numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value
            old.CopyFrom(helper.make_attribute(old.name, new))
            try_to_use(mutant.SerializeToString())


def test_small_files_do_not_become_large_constants() -> None:
    huge = np.array([1 << 20, 1 << 20], np.int64)
    zero, one, limit = np.array(0, np.int64), np.array(1, np.int64), np.array(1 << 50, np.int64)
    makers = [
        helper.make_node("ConstantOfShape", ["huge"], ["c"]),
        helper.make_node("Range", ["zero", "limit", "one"], ["c"]),
        helper.make_node("Expand", ["seed", "huge"], ["c"]),
        helper.make_node("Tile", ["seed", "huge"], ["c"]),
        helper.make_node("OneHot", ["zero", "limit", "pair"], ["c"]),
        helper.make_node("Pad", ["seed", "pads"], ["c"]),
    ]
    weights = {
        "huge": huge,
        "zero": zero,
        "one": one,
        "limit": limit,
        "seed": np.ones((1, 1), np.float32),
        "pair": np.ones(2, np.float32),
        "pads": np.array([0, 0, 1 << 20, 1 << 20], np.int64),
    }
    for maker in makers:
        tail = helper.make_node("Mul", ["x", "c"], ["y"])
        started = time.monotonic()
        read_onnx(model_of([maker, tail], X, Y, weights))
        assert time.monotonic() - started < 5


@pytest.mark.parametrize("bad", [b"\xff\xfe", b"a\x00b", b"\xed\xa0\x80"])
def test_names_that_no_database_takes(bad: bytes) -> None:
    placed = b"PLACE"[: len(bad)]
    node = helper.make_node("Relu", ["x"], ["y"], name=placed.decode())
    model = model_of([node], X, Y)
    assert model.count(placed) == 1
    with pytest.raises(EngineError, match="not valid UTF-8"):
        read_onnx(model.replace(placed, bad))


def test_deep_nesting() -> None:
    graph = b""
    for _ in range(5000):
        attribute = field(1, b"then_branch") + field(6, graph)
        graph = field(1, field(4, b"If") + field(5, attribute))
    with pytest.raises(EngineError, match="not an ONNX model"):
        read_onnx(field(7, graph))


def field(number: int, payload: bytes) -> bytes:
    """A protobuf field that holds bytes: graph is 7 of a model, node 1 of a graph, attribute 5 of a node."""
    length, rest = b"", len(payload)
    while rest > 127:
        length, rest = length + bytes([rest & 127 | 128]), rest >> 7
    return bytes([number << 3 | 2]) + length + bytes([rest]) + payload


def test_functions_that_call_themselves() -> None:
    call = helper.make_node("Loop", ["a"], ["b"], domain="own")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    function = helper.make_function("own", "Loop", ["a"], ["b"], [call], opsets)
    node = helper.make_node("Loop", ["x"], ["y"], domain="own")
    model = onnx.load_from_string(model_of([node], X, Y))
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))
    with pytest.raises(EngineError):
        read_onnx(model.SerializeToString())


def test_a_long_chain_is_not_too_deep() -> None:
    nodes = [helper.make_node("Relu", [f"v{step}"], [f"v{step + 1}"]) for step in range(3000)]
    nodes[0].input[0], nodes[-1].output[0] = "x", "y"
    graph = read_onnx(model_of(nodes, X, Y))
    assert graph(torch.ones(2, 4))[0].shape == (2, 4)
    assert graph.copy()(torch.ones(2, 4))[0].shape == (2, 4)


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (helper.make_node("Relu", [], ["w"]), "Relu node 'w': input 0 is missing"),
        (helper.make_node("Add", ["x"], ["w"]), "Add node 'w': input 1 is missing"),
        (helper.make_node("Concat", ["a", "b"], ["w"], axis=1), "'w' cannot be computed"),
    ],
)
def test_nodes_that_cannot_be_computed(node: onnx.NodeProto, reason: str) -> None:
    nodes = [node, helper.make_node("MatMul", ["x", "w"], ["y"])]
    weights = {"a": np.ones((2000, 4)), "b": np.ones((3, 4))}
    with pytest.raises(EngineError, match=rf"{reason}.*export the model again"):
        read_onnx(model_of(nodes, X, Y, weights))


def test_two_initializers_of_one_name() -> None:
    model = onnx.load_from_string(model_of([helper.make_node("Mul", ["x", "w"], ["y"])], X, Y, {"w": np.ones(4)}))
    model.graph.initializer.append(TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], raw_data=bytes(16)))
    with pytest.raises(EngineError, match="two tensors"):
        read_onnx(model.SerializeToString())
