"""Rules that many ops share about which dimensions are the same: an op's record names its own as `axes`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx

from workers.engine.ops.base import Op, source_of
from workers.engine.structure.labels import ONLY

if TYPE_CHECKING:
    from workers.engine.structure.axes import Axes


def elementwise(_: Op, node: fx.Node, axes: Axes) -> None:
    """Inputs are broadcast against each other, and each element of the output comes from the same place in all."""
    axes.give(node, axes.broadcast([axes.of(source) for source in node.all_input_nodes], axes.shape(node)))


def like_first(_: Op, node: fx.Node, axes: Axes) -> None:
    """Each element of the output comes from the same place of the first input; other inputs have no say."""
    axes.give(node, axes.of(source_of(node)))


def windowed(op: Op, node: fx.Node, axes: Axes) -> None:
    """Each channel (dimension 1) is worked on by itself, all that follows it as one picture."""
    dims = axes.of(source_of(node))
    for dim in dims[2:]:
        axes.keep(dim, f"{op.name} works across it")
    shape = axes.shape(node)
    axes.give(node, [*dims[:2], *(axes.stays(size, f"{op.name} works across it") for size in shape[2:])])


def coupled(op: Op, node: fx.Node, axes: Axes, along: set[int]) -> None:
    """The output looks like the first input; elements along these dimensions depend on each other."""
    dims = axes.of(source_of(node))
    for axis in along:
        axes.keep(dims[axis % len(dims)], f"{op.name} works across it")
    axes.give(node, dims)


def along_axis(op: Op, node: fx.Node, axes: Axes) -> None:
    """Elements along the dimension `axis` depend on each other."""
    coupled(op, node, axes, {int(node.kwargs["axis"])})  # type: ignore[arg-type]


def reduced(op: Op, node: fx.Node, axes: Axes) -> None:
    """The dimensions `axes`, or `axis`, become one element, or none without `keepdims`."""
    source = source_of(node)
    dims = axes.of(source)
    chosen = node.kwargs["axis"] if "axis" in node.kwargs else node.args[1] if len(node.args) > 1 else ()
    given = axes.numbers(() if chosen is None else chosen)
    if given is None:
        axes.freeze(node, f"{op.name} computes the dimensions that it works across")
        return
    if not given and not node.kwargs.get("noop_with_empty_axes"):
        given = list(range(len(dims)))
    gone = {axis % len(dims) for axis in given}
    for axis in gone:
        axes.keep(dims[axis], f"{op.name} works across it")
    one = axes.stays(1, ONLY)
    if node.kwargs.get("keepdims", 1):
        axes.give(node, [one if axis in gone else dim for axis, dim in enumerate(dims)])
    else:
        axes.give(node, [dim for axis, dim in enumerate(dims) if axis not in gone])


def accumulated(op: Op, node: fx.Node, axes: Axes) -> None:
    """Elements along the dimension that the second argument names depend on each other."""
    along = axes.numbers(node.args[1])
    if along is None:
        axes.freeze(node, f"{op.name} computes the dimension that it works along")
    else:
        coupled(op, node, axes, set(along))


def along_axes(op: Op, node: fx.Node, axes: Axes) -> None:
    """Elements along the dimensions `axes` depend on each other."""
    coupled(op, node, axes, {int(axis) for axis in node.kwargs["axes"]})  # type: ignore[union-attr, arg-type]


def across_channels(op: Op, node: fx.Node, axes: Axes) -> None:
    """Channels (dimension 1) depend on each other."""
    coupled(op, node, axes, {1})
