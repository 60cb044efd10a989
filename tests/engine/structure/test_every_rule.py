"""No rule fails on any use of its op that ONNX's own node tests know."""

import warnings
from collections import Counter

import pytest
from onnx.backend.test.case.node import collect_testcases

from workers.engine.errors import EngineError
from workers.engine.readers.onnx import read_onnx
from workers.engine.structure.axes import Axes


@pytest.mark.slow
def test_rules_hold_on_every_node_test():
    outcomes = Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    for case in cases:
        try:
            graph = read_onnx(case.model.SerializeToString())
            axes = Axes(graph)
        except EngineError:  # not read, or it needs other inputs than made-up ones
            outcomes["refused"] += 1
            continue
        axes.resolve()
        for node in graph.module.graph.nodes:
            if node.op == "output":
                continue
            shape = axes.shape(node)
            shapes = shape if shape and isinstance(shape[0], tuple) else (shape,)
            assert [dim.size for dim in axes.all_of(node)] == [size for part in shapes for size in part], (
                case.name,
                node.name,
            )
        outcomes["held"] += 1
    assert outcomes["held"] > 5 * outcomes["refused"]
