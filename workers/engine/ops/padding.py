"""Padding with a value, or with what stands at the edge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor

from workers.engine.ops.aten import reads_aten
from workers.engine.ops.base import Quantization
from workers.engine.ops.convolution import torch_pads
from workers.engine.ops.layout_rules import padded
from workers.engine.ops.plain import plain
from workers.engine.ops.reductions import as_ints

if TYPE_CHECKING:
    from workers.engine.builder import GraphBuilder, Value
    from workers.engine.readers.aten import AtenNode

Ints = Sequence[int] | Tensor


def pad(
    x: Tensor,
    pads: Ints,
    value: Tensor | Sequence[float] | float | None = None,
    axes: Ints | None = None,
    *,
    mode: str = "constant",
) -> Tensor:
    amounts = as_ints(pads)
    if axes is not None:
        chosen = [axis % x.dim() for axis in as_ints(axes)]
        full = [0] * (2 * x.dim())
        for index, axis in enumerate(chosen):
            full[axis], full[axis + x.dim()] = amounts[index], amounts[index + len(chosen)]
        amounts = full
    if mode == "constant":
        number = value[0] if isinstance(value, Sequence) else value
        return F.pad(x, torch_pads(amounts), value=0 if number is None else float(number))
    for axis in range(x.dim()):
        x = _pad_axis(x, axis, amounts[axis], amounts[axis + len(amounts) // 2], mode)
    return x


def _pad_axis(x: Tensor, axis: int, begin: int, end: int, mode: str) -> Tensor:
    if not begin and not end:
        return x
    length = x.shape[axis]
    places = torch.arange(-begin, length + end, device=x.device)
    if mode == "edge":
        places = places.clamp(0, length - 1)
    elif mode == "wrap":
        places = places % length
    else:
        period = max(2 * (length - 1), 1)
        places = (places % period).minimum((-places) % period) if length > 1 else places * 0
    return x.index_select(axis, places)


plain(
    "Pad",
    pad,
    axes=padded,
    folds=0,
    literals=frozenset({1, 2, 3}),
    attribute_before={1: ("pads", 11), 2: ("value", 11)},
    quantization=Quantization(passes=True),
)


@reads_aten("constant_pad_nd.default", "pad.default")
def read_aten_pad(node: AtenNode, graph: GraphBuilder) -> Value:
    amounts, rank = node.get("pad"), node.rank("self")
    modes = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    pads = [0] * (2 * rank)
    for place in range(len(amounts) // 2):
        axis = rank - 1 - place
        pads[axis], pads[axis + rank] = int(amounts[2 * place]), int(amounts[2 * place + 1])
    value = float(node.get("value") or 0)
    return graph.call(pad, node.value("self"), tuple(pads), value, None, mode=modes[node.get("mode", "constant")])
