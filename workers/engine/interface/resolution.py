"""Smaller images: the graph computes on them where it can, else it enlarges them first."""

from __future__ import annotations

import torch

from workers.engine.errors import InvalidModelError
from workers.engine.graph import Graph
from workers.engine.interface.attaching import attach_feed
from workers.engine.interface.feeds import Shrink, smaller
from workers.engine.ops.resizing import resize
from workers.engine.shapes import propagate
from workers.engine.transforms.adding import results_of

OPSET = 18
"""The first in which an image is enlarged to a size along two of its dimensions."""


def why_no_image(graph: Graph, index: int) -> str | None:
    spec = graph.inputs[index]
    if not spec.dtype.startswith("float") or len(spec.shape) != 4:
        return "it is no image of the shape (examples, channels, height, width)"
    return None


def shrink(graph: Graph, index: int, share: float) -> str | None:
    """Take smaller images, in place: which way it went, for the report. None, and nothing changed, where none goes."""
    spec = graph.inputs[index]
    height, width = (smaller(dim, share) if isinstance(dim, int) else None for dim in spec.shape[-2:])
    wanted = _answered(graph)
    trial = graph.copy()
    attach_feed(trial, index, Shrink(share, (height, width)))
    if wanted is not None and _answered(trial) == wanted:
        attach_feed(graph, index, Shrink(share, (height, width)))
        return "it computes on the small image"
    if height is None or width is None:
        return None
    call = attach_feed(graph, index, Shrink(share, (height, width)))
    with graph.module.graph.inserting_after(call):
        large = graph.module.graph.call_function(
            resize, (call, None, None, spec.shape[-2:]), {"mode": "linear", "axes": (2, 3)}
        )
    call.replace_all_uses_with(large, delete_user_cb=lambda user: user is not large)
    graph.module.recompile()
    graph.opset = max(graph.opset, OPSET)
    return "the model enlarges it first, because its layers take images of one size only: no computation is saved"


def _answered(graph: Graph) -> list[object] | None:
    """Shapes of the answers to two batch sizes; None where it does not run."""
    shapes: list[object] = []
    for batch in (2, 3):
        try:
            with torch.no_grad():
                propagate(graph, batch=batch)
        except InvalidModelError:
            return None
        shapes += [node.meta["shape"] for node in results_of(graph.module)]
    return shapes
