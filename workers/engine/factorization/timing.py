"""Whether a layer is faster split: both run alone in ONNX Runtime, paired, on one example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from modelpress.models import TensorSpec
from workers.engine.builder import GraphBuilder
from workers.engine.context import Context
from workers.engine.dtypes import WORD_OF_TORCH
from workers.engine.graph import Layer
from workers.engine.measuring.latency import measure_latency
from workers.engine.ops.base import source_of
from workers.engine.ops.recurrent_cells import LSTM, Recurrent
from workers.engine.runtime import arrays, open_session
from workers.engine.writers.onnx import write_onnx

FASTER = 1.05
"""Ratios of times below this are noise, or not worth it."""


class Stopwatch:
    """Layers of the same sizes are measured once."""

    def __init__(self, context: Context, opset: int) -> None:
        self._context, self._opset = context, opset
        self._known: dict[tuple[Any, ...], float] = {}

    def ratio(self, layer: Layer, leaves: Sequence[nn.Module]) -> float:
        """Time of the layer / time of its parts."""
        source = source_of(layer.node)
        key = (source.meta["shape"], _sizes([layer.module]), _sizes(leaves))
        if key not in self._known:
            made = layer.node.meta["shape"]
            rank = len(made[0] if isinstance(layer.module, Recurrent) else made)
            self._known[key] = self._measured(source, layer.module, leaves, rank)
        return self._known[key]

    def _measured(self, source: fx.Node, whole: nn.Module, leaves: Sequence[nn.Module], rank: int) -> float:
        """`rank`: number of dimensions of what is made."""
        threads = torch.get_num_threads()
        shape, dtype = source.meta["shape"], source.meta["dtype"]
        spec = TensorSpec(name="x", dtype=WORD_OF_TORCH[dtype], shape=shape)
        runtime = self._context.runtime
        before, after = (open_session(self._alone(spec, part, rank), threads, runtime) for part in ([whole], leaves))
        generator = torch.Generator().manual_seed(0)
        example = arrays([torch.randn(shape, generator=generator).to(dtype)])
        measured = measure_latency(before, after, example, batch=1, threads=threads, seed=self._context.seed)
        return 0.0 if measured is None else measured.ratio

    def _alone(self, spec: TensorSpec, leaves: Sequence[nn.Module], rank: int) -> bytes:
        builder = GraphBuilder()
        value: Any = builder.input(spec)
        for index, leaf in enumerate(leaves):
            value = builder.module(f"part{index}", leaf, value)
            if isinstance(leaf, Recurrent):
                value = builder.unpack(value, 3 if isinstance(leaf, LSTM) else 2)[0]
        result = TensorSpec(name="y", dtype=spec.dtype, shape=(None,) * rank)
        return write_onnx(builder.finish([(result, value)], opset=self._opset))


def _sizes(leaves: Sequence[nn.Module]) -> tuple[Any, ...]:
    return tuple((type(leaf), *(tuple(p.shape) for p in leaf.parameters()), repr(leaf)) for leaf in leaves)
