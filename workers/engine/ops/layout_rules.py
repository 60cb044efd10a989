"""Rules about axes of the ops that lay values out anew: what becomes of each dimension, what counts its elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import fx

from workers.engine.ops.axis_rules import coupled
from workers.engine.ops.base import Op, op_of, source_of
from workers.engine.structure.labels import COPIES

if TYPE_CHECKING:
    from workers.engine.structure.axes import Axes, Count
    from workers.engine.structure.labels import Dim


def relaid(_: Op, node: fx.Node, axes: Axes) -> None:
    """Elements in the same order, dimensions of other sizes."""
    axes.give(node, axes.reshaped(axes.of(source_of(node)), axes.shape(node)))


def reshaped(op: Op, node: fx.Node, axes: Axes) -> None:
    relaid(op, node, axes)
    axes.sized_by(node, 1, axes.of(node), like=source_of(node))


def transposed(_: Op, node: fx.Node, axes: Axes) -> None:
    dims = axes.of(source_of(node))
    order: Any = node.kwargs.get("perm") or range(len(dims) - 1, -1, -1)
    axes.give(node, [dims[axis] for axis in order])


def concatenated(_: Op, node: fx.Node, axes: Axes) -> None:
    parts = [axes.of(source) for source in node.args]  # type: ignore[arg-type]
    along = int(node.kwargs["axis"]) % len(parts[0])  # type: ignore[arg-type]
    for part in parts[1:]:
        for axis, dim in enumerate(part):
            if axis != along:
                axes.same(parts[0][axis], dim)
    joined = axes.joined([part[along] for part in parts])
    axes.give(node, [joined if axis == along else dim for axis, dim in enumerate(parts[0])])


def divided(_: Op, node: fx.Node, axes: Axes) -> None:
    """Sizes of the parts are written out where they are not those that the op has by itself."""
    dims = axes.of(source_of(node))
    along = int(node.kwargs["axis"]) % len(dims)  # type: ignore[arg-type]
    parts, start = [], 0
    for shape in axes.shape(node):
        parts.append(dims[along][start : start + shape[along]])
        start += shape[along]
    given: Any = node.args[1] if len(node.args) > 1 else None
    if given is not None and axes.numbers(given) is None:
        axes.keep(dims[along], "the sizes of its parts are computed")
    else:
        axes.rewritten(node, 1, lambda count: (tuple(count(part) for part in parts),))
    axes.give_parts(node, [[*dims[:along], part, *dims[along + 1 :]] for part in parts])


def sliced(_: Op, node: fx.Node, axes: Axes) -> None:
    """Bounds count what is left before them."""
    source = source_of(node)
    dims, shape = axes.of(source), axes.shape(node)
    whole = list(dims)
    given: list[Any] = [*node.args[1:], None, None][:4]
    starts, ends, chosen, steps = (axes.numbers(value) for value in given)
    computed = any(value is not None and axes.numbers(value) is None for value in given[2:])
    if starts is None or ends is None or computed:
        _slice_unknown(node, axes)
        return
    along = [axis % len(dims) for axis in (range(len(starts)) if chosen is None else chosen)]
    for axis, first, last, step in zip(along, starts, ends, steps or [1] * len(along), strict=True):
        if step < 0 or axes.sizes.is_open(source, axis):
            axes.keep(dims[axis], "a slice reverses it, or its size depends on the inputs")
            dims[axis] = axes.stays(shape[axis], "it is a slice that cannot shrink")
        else:
            if step > 1:
                axes.keep(dims[axis], "only every few elements of it are taken")
            dims[axis] = dims[axis][first:last:step]

    def bounds(given: Sequence[int], count: Count) -> tuple[int, ...]:
        return tuple(_bound(bound, whole[axis], count) for bound, axis in zip(given, along, strict=True))

    rest = (tuple(along), tuple(steps or [1] * len(along)))
    axes.rewritten(node, 1, lambda count: (bounds(starts, count), bounds(ends, count), *rest))
    axes.give(node, dims)


def _slice_unknown(node: fx.Node, axes: Axes) -> None:
    """Bounds that depend on the inputs: dimensions that the model may cut stay."""
    source, reason = source_of(node), "the bounds of a slice of it are computed"
    shape = axes.shape(node)
    chosen = axes.numbers(node.args[3]) if len(node.args) > 3 else None
    dims = axes.of(source)
    cut = range(len(dims)) if chosen is None else [axis % len(dims) for axis in chosen]
    for axis in cut:
        axes.keep(dims[axis], reason)
        dims[axis] = axes.stays(shape[axis], reason)
    axes.give(node, dims)


def _bound(bound: int, dim: Dim, count: Count) -> int:
    """A bound of a slice, after elements went. One at the end or beyond means the end, whatever that is."""
    if bound >= dim.size or bound < -dim.size:
        return bound
    return count(dim[:bound]) if bound >= 0 else -count(dim[bound:])


def padded(_: Op, node: fx.Node, axes: Axes) -> None:
    """What is padded to channels may go too; it is counted by the paddings."""
    source, shape = source_of(node), axes.shape(node)
    dims = axes.of(source)
    amounts = axes.numbers(node.args[1]) if len(node.args) < 4 and node.kwargs["mode"] == "constant" else None
    around: dict[int, Dim] = {}
    for axis, dim in enumerate(dims):
        if dim.size == shape[axis]:
            continue
        before, after = (0, 0) if amounts is None else (amounts[axis], amounts[axis + len(dims)])
        if before < 0 or after < 0 or before + after == 0 or (dim < 0).all():
            axes.keep(dim, "it is padded")
            dims[axis] = axes.stays(shape[axis], "it is padded")
        else:
            around[axis], around[axis + len(dims)] = axes.fresh(before), axes.fresh(after)
            dims[axis] = axes.joined([around[axis], dim, around[axis + len(dims)]])
    if amounts is not None and around:
        axes.rewritten(
            node,
            1,
            lambda count: (tuple(count(around[n]) if n in around else amount for n, amount in enumerate(amounts)),),
        )
    axes.give(node, dims)


def expanded(_: Op, node: fx.Node, axes: Axes) -> None:
    """One element that becomes many is copied: the copies may be fewer."""
    source, shape = source_of(node), axes.shape(node)
    dims = axes.of(source)
    after = []
    for axis, size in enumerate(shape, len(dims) - len(shape)):
        if axis >= 0 and dims[axis].size == size:
            after.append(dims[axis])
        elif axes.sizes.is_open(node, len(after)):
            after.append(axes.stays(size, "it is copied as often as the sizes of the inputs say"))
        else:
            after.append(axes.fresh(size))
            axes.prefer(after[-1], COPIES)
    axes.give(node, after)
    axes.sized_by(node, 1, after)


def tiled(_: Op, node: fx.Node, axes: Axes) -> None:
    dims, shape = axes.of(source_of(node)), axes.shape(node)
    axes.give(node, [axes.repeated(dim, size // max(dim.size, 1)) for dim, size in zip(dims, shape, strict=True)])


def sizes(_: Op, node: fx.Node, axes: Axes) -> None:
    """Sizes that the model asks for become numbers once it is pruned; those of open dimensions cannot."""
    source = source_of(node)
    dims = axes.of(source)
    start: Any = node.kwargs.get("start", 0)
    end: Any = node.kwargs.get("end")
    asked = range(len(dims))[start:end]
    for axis in (asked[place] for place in _used(node, len(asked))):
        if axes.sizes.is_open(source, axis):
            axes.keep(dims[axis], "the model computes with its size, which depends on the inputs")
    axes.give(node, [axes.stays(len(asked), "it is a list of sizes")])


def _used(node: fx.Node, count: int) -> set[int]:
    """Which of the elements of a list of sizes the model picks; all, unless it picks them by numbers in the graph."""
    places: set[int] = set()
    for user in node.users:
        arguments: list[Any] = list(user.args[1:])
        name = op_of(user).name if user.op == "call_function" else ""
        if name == "Gather" and isinstance(arguments[0], (int, tuple)):
            chosen = arguments[0] if isinstance(arguments[0], tuple) else (arguments[0],)
            places.update(range(count)[place] for place in chosen)
        elif name == "Slice" and all(isinstance(bound, tuple) for bound in arguments):
            step = arguments[3][0] if len(arguments) > 3 else 1
            places.update(range(count)[arguments[0][0] : arguments[1][0] : step])
        else:
            return set(range(count))
    return places


def elements(_: Op, node: fx.Node, axes: Axes) -> None:
    source = source_of(node)
    dims = axes.of(source)
    if any(axes.sizes.is_open(source, axis) for axis in range(len(dims))):
        for dim in dims:
            axes.keep(dim, "the model computes with the number of elements, which depends on the inputs")
    axes.give(node, [])


def depth_to_space(_: Op, node: fx.Node, axes: Axes) -> None:
    batch, channels, height, width = axes.of(source_of(node))
    block = int(node.kwargs["blocksize"])  # type: ignore[arg-type]
    first = node.kwargs.get("mode", "DCR") == "DCR"
    parts = axes.factors(channels, [block, block, -1] if first else [-1, block, block])
    depth = parts.pop(-1 if first else 0)
    for part in (*parts, height, width):
        axes.keep(part, "it becomes a part of height or width")
    spaces = (axes.stays(size, "it is height or width") for size in axes.shape(node)[2:])
    axes.give(node, [batch, depth, *spaces])


def space_to_depth(_: Op, node: fx.Node, axes: Axes) -> None:
    batch, channels, height, width = axes.of(source_of(node))
    for part in (height, width):
        axes.keep(part, "a part of it becomes channels")
    block = axes.stays(int(node.kwargs["blocksize"]) ** 2, "it is a part of height or width")  # type: ignore[arg-type]
    spaces = (axes.stays(size, "it is height or width") for size in axes.shape(node)[2:])
    axes.give(node, [batch, axes.merged([block, channels]), *spaces])


def triangular(op: Op, node: fx.Node, axes: Axes) -> None:
    coupled(op, node, axes, {-1, -2})
