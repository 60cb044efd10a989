"""Layers that lost inputs learn to give what they gave before, by least squares on what is left of them.

He et al., 2017, arXiv:1707.06168, here for whole graphs: layer by layer in the order of execution, each on the inputs
that the layers before it, fitted already, give it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor, fx

from workers.engine.constraints import constraints_of, tied_parameters
from workers.engine.graph import Graph
from workers.engine.ops.base import source_of
from workers.engine.ops.convolution import Conv, torch_pads
from workers.engine.ops.linear import Linear
from workers.engine.quantization.lockstep import Steps
from workers.engine.quantization.nodes import calls_of, module_of
from workers.engine.structure.groups import Group

ROWS = 16_384
"""Examples of a layer's inputs and outputs, positions counted, on which it is fitted."""
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Of the inputs' mean square: what holds weights back that the examples say little about. Each layer takes its best."""
JUDGED = 0.2
"""The share of the examples by which that is decided."""


@torch.no_grad()
def refit(
    before: Graph,
    after: Graph,
    groups: Sequence[Group],
    keep: Mapping[str, Tensor],
    batches: Sequence[Sequence[Tensor]],
) -> int:
    """Fit every linear and convolutional layer of `after` that lost inputs, in place. Returns how many there were.

    `groups` are those of `before`, of which `keep` says what is left. Layers with constraints, groups or shared weights
    are left as they are.
    """
    rows = _rows_left(groups, keep)
    poorer = {
        slot.owner
        for group in groups
        if group.name in keep
        for slot in group.slots
        if slot.role == "takes" and slot.axis
    }
    return fit_layers(before, after, lambda node: str(node.target) in poorer, batches, rows)


@torch.no_grad()
def fit_layers(
    before: Graph,
    after: Graph,
    poorer: Callable[[fx.Node], bool],
    batches: Sequence[Sequence[Tensor]],
    rows: Mapping[str, Tensor] | None = None,
) -> int:
    """The same for the layers of `after` that are `poorer`, each to what the node of its name gave before.

    `rows`: of leaves of which some outputs are gone, those that are left.
    """
    twins = {node.name: node for node in before.module.graph.nodes}
    layers = [node for node in _fittable(after) if poorer(node) and node.name in twins]
    old, new = Steps(before.module, batches), Steps(after.module, batches)
    ahead = iter(before.module.graph.nodes)
    for node in after.module.graph.nodes:
        if node.op == "output":
            break
        if node in layers:
            _run_until(twins[node.name], ahead, old)
            left = (rows or {}).get(str(node.target))
            pairs = zip(new.values[source_of(node)], old.values[twins[node.name]], strict=True)
            _fit(module_of(node), [(x, _part(y, node, left)) for x, y in pairs])
        new.run(node)
        new.forget(node)
    return len(layers)


def _run_until(last: fx.Node, ahead: Iterator[fx.Node], steps: Steps) -> None:
    for node in ahead:
        steps.run(node)
        steps.forget(node)
        if node is last:
            return


def _rows_left(groups: Sequence[Group], keep: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of each leaf that lost rows of its weight: bool, in the order before."""
    gone: dict[str, list[Tensor]] = {}
    sizes: dict[str, int] = {}
    for group in groups:
        for slot in group.slots:
            if slot.name == "weight" and slot.axis == 0 and slot.role == "makes":
                sizes[slot.owner] = max(sizes.get(slot.owner, 0), int(slot.positions.max()) + 1)
                if group.name in keep:
                    gone.setdefault(slot.owner, []).append(slot.positions[~keep[group.name].cpu()].flatten())
    return {
        owner: torch.ones(sizes[owner], dtype=torch.bool).index_fill(0, torch.cat(parts), value=False)
        for owner, parts in gone.items()
    }


def _fittable(graph: Graph) -> list[fx.Node]:
    tied = tied_parameters(graph.module)
    found = []
    for layer in graph.layers():
        module = layer.module
        fits = isinstance(module, Linear) or (
            isinstance(module, Conv) and module.groups == 1 and module.rank < 3 and module.auto_pad == "NOTSET"
        )
        alone = len(calls_of(layer.node)) == 1 and not any(parameter in tied for parameter in module.parameters())
        if fits and alone and not constraints_of(module, "weight") and not constraints_of(module, "bias"):
            found.append(layer.node)
    return found


def _part(wanted: Tensor, node: fx.Node, left: Tensor | None) -> Tensor:
    """What the layer gave before, of the rows that are left; the channels last."""
    last = wanted.movedim(1, -1) if isinstance(module_of(node), Conv) else wanted
    return last if left is None else last[..., left.to(last.device)]


def _fit(layer: Linear | Conv, pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Change weight and bias where that brings the outputs of examples that were not used nearer."""
    share = ROWS / sum(wanted[..., 0].numel() for _, wanted in pairs)
    generator = torch.Generator().manual_seed(0)
    used: list[tuple[Tensor, Tensor]] = []
    others: list[tuple[Tensor, Tensor]] = []
    for given, wanted in pairs:
        judged = max(1, round(JUDGED * len(given)))
        for x, y, taken in ((given[judged:], wanted[judged:], used), (given[:judged], wanted[:judged], others)):
            if len(x):
                taken.append(_sample(_columns(layer, x), y.flatten(0, -2), share, generator))
    x, y = _joined(used or others)
    weight, bias = layer.weight.data, layer.bias
    old = weight.flatten(1).double()
    missing = y - x @ old.T
    zero = torch.zeros((), dtype=x.dtype, device=x.device)
    x_mean, y_mean = (zero, zero) if bias is None else (x.mean(0), missing.mean(0))
    x = x - x_mean
    values, vectors = torch.linalg.eigh(x.T @ x)
    target = vectors.T @ (x.T @ (missing - y_mean))
    judged_x, judged_y = _joined(others)
    judged_y = judged_y - judged_x @ old.T
    changes = [
        torch.zeros_like(old),
        *((vectors @ (target / (values + r)[:, None])).T for r in (ridge * float(values.mean()) for ridge in RIDGES)),
    ]
    errors = [float((judged_y - y_mean - (judged_x - x_mean) @ change.T).square().sum()) for change in changes]
    best = changes[min(range(len(errors)), key=errors.__getitem__)]
    weight += best.view_as(weight)
    if bias is not None:
        bias.data.copy_(y_mean - best @ x_mean)


def _sample(x: Tensor, y: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """This share of the rows, in double precision."""
    if share < 1:
        some = torch.randperm(len(y), generator=generator)[: max(1, round(share * len(y)))].to(y.device)
        x, y = x[some], y[some]
    return x.double(), y.double()


def _joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    xs, ys = zip(*parts, strict=True)
    return torch.cat(xs), torch.cat(ys)


def _columns(layer: Linear | Conv, given: Tensor) -> Tensor:
    """(examples, inputs of one output): for a convolution, all that its kernel sees at each place."""
    if isinstance(layer, Linear):
        return given.flatten(0, -2)
    padded = F.pad(given, torch_pads(layer.pads))
    kernel, dilation, stride = tuple(layer.weight.shape[2:]), layer.dilation, layer.stride
    if layer.rank == 1:
        padded, kernel = padded.unsqueeze(2), (1, *kernel)
        dilation, stride = (1, *dilation), (1, *stride)
    return F.unfold(padded, kernel, dilation=dilation, stride=stride).movedim(1, -1).flatten(0, 1)
