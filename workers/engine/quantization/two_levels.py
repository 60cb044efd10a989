"""Activations of two values: a leaf of the graph, trained straight through, written as a comparison and a choice."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from workers.engine.context import Context
from workers.engine.graph import Graph, Layer
from workers.engine.ops.axis_rules import elementwise
from workers.engine.ops.base import Op, register, source_of
from workers.engine.ops.convolution import Conv, ConvTranspose
from workers.engine.ops.linear import Linear
from workers.engine.quantization.calibration import Calibration, observe
from workers.engine.quantization.nodes import calls_of
from workers.engine.quantization.ranges import Histogram

if TYPE_CHECKING:
    from workers.engine.writers.onnx import OnnxBuilder

PRODUCTS = (Conv, ConvTranspose, Linear)
"""Layers whose input may be binary; what a recurrent layer keeps in mind, and the tokens of a table, may not."""


class TwoLevels(nn.Module):
    """value → `high` above `threshold`, else `low`; all three are trained.

    XNOR-Net's sign with a scale (Rastegari et al., arXiv:1603.05279), where the scale is learned as in Bulat &
    Tzimiropoulos, arXiv:1909.13863, and 0 need not lie between the two: after a ReLU nothing lies below it. Gradients
    pass straight through within half the distance of the two from the threshold.
    """

    def __init__(self, threshold: float, low: float, high: float) -> None:
        super().__init__()
        self.threshold, self.low, self.high = (nn.Parameter(torch.tensor(value)) for value in (threshold, low, high))

    @classmethod
    def of(cls, histogram: Histogram) -> TwoLevels:
        """The two levels that move the values least, in squares (Otsu's threshold)."""
        counts, centers = histogram.counts, histogram.centers.to(histogram.counts)
        below, total = counts.cumsum(0), counts.sum().clamp_min(1)
        sums = (counts * centers).cumsum(0)
        low, high = sums / below.clamp_min(1), (sums[-1] - sums) / (total - below).clamp_min(1)
        best = int((below * (total - below) * (high - low).square()).argmax())
        edge = float(centers[best] + histogram.width / 2)
        return cls(edge, float(low[best]), float(high[best]))

    def forward(self, value: Tensor) -> Tensor:
        if not self.training:
            return torch.where(value > self.threshold, self.high, self.low)
        distance = self.high - self.low
        span = torch.where(distance == 0, 1.0, distance.detach())  # of a value that is the same in all examples
        soft = ((value - self.threshold) / span).clamp(-0.5, 0.5)
        above = (value > self.threshold).to(value.dtype) + (soft - soft.detach())
        return self.low + distance * above


@register
class TwoLevelsOp(Op):
    name = "TwoLevels"
    domain = "modelpress"
    modules = (TwoLevels,)
    axes = elementwise

    def write(self, node: fx.Node, onnx: OnnxBuilder) -> None:
        leaf: Any = onnx.module(node)
        threshold, low, high = (
            onnx.initializer(f"{node.target}_{name}", getattr(leaf, name).detach())
            for name in ("threshold", "low", "high")
        )
        above = onnx.node("Greater", (onnx.value(node.args[0]), threshold), f"{node.name}_above")
        onnx.emit(node, "Where", (above, high, low))


def binarize_inputs(graph: Graph, layers: Iterable[Layer], context: Context) -> frozenset[str]:
    """Put two levels in front of these layers, one leaf for each value that they read, where they are products of it.

    Returns the names of the layers. Raises StepError where there is nothing to calibrate on.
    """
    found = [layer for layer in layers if isinstance(layer.module, PRODUCTS)]
    calls = [call for layer in found for call in calls_of(layer.node)]
    sources = list(dict.fromkeys(source_of(call) for call in calls))
    histograms = observe(graph, sources, Calibration.of(graph, context), count=True)
    module = graph.module
    last_input = [node for node in module.graph.nodes if node.op == "placeholder"][-1]
    for number, source in enumerate(sources):
        name = f"two_levels_{number}"
        module.add_submodule(name, TwoLevels.of(histograms[source]).to(context.device))
        with module.graph.inserting_after(last_input if source.op == "placeholder" else source):
            binary = module.graph.call_module(name, (source,))
        binary.meta = {key: source.meta[key] for key in ("shape",) if key in source.meta}
        for call in calls:
            if call.args[0] is source:
                call.update_arg(0, binary)
    module.graph.lint()
    module.recompile()
    return frozenset(layer.name for layer in found)
