"""Puts the weights of single layers on grids of few bits, each weight once however many layers share it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor, nn

from workers.engine.constraints import raw_parameter
from workers.engine.graph import Graph, Layer
from workers.engine.ops.linear import Linear
from workers.engine.quantization import gptq
from workers.engine.quantization.block_grid import BlockGrid, block_length
from workers.engine.quantization.block_products import BlockLinear
from workers.engine.quantization.blocks import Blocks, as_rows, from_rows
from workers.engine.quantization.fitting import Kind, fit
from workers.engine.quantization.storage import channel_axes, product_pays

EXACT_FROM = 4
"""Bits from which on a zero point between two whole numbers gains nothing."""


@dataclass(frozen=True)
class Options:
    width: int
    group: int | None
    symmetric: bool
    half_quadratic: bool
    """Fit grids so that few errors are large, not for the least squared error."""
    products: bool
    """Large matrices may be multiplied as integers."""


@dataclass
class Quantizer:
    """Quantizes in place; `grids` has those of each raw parameter, one for each layer that uses it."""

    graph: Graph
    options: Options
    grids: dict[nn.Parameter, list[BlockGrid]] = field(default_factory=dict)
    compensated: set[str] = field(default_factory=set)
    """Layers of which GPTQ has rounded a weight."""

    @torch.no_grad()
    def quantize(self, layer: Layer, name: str, hessian: Tensor | None = None) -> None:
        """`hessian` (groups, values, values), None: each weight is rounded by itself."""
        module = self.graph.module.get_submodule(str(layer.node.target))
        raw = raw_parameter(module, name)
        if raw in self.grids:
            grid = copy.deepcopy(self.grids[raw][0])
            grid.product = self._multiplied(module, grid.blocks, raw.numel()) and grid.whole_zeros
        else:
            weight: Tensor = getattr(module, name).detach()
            grid = self._fitted(layer, name, weight, hessian)
            if hessian is not None:
                raw.copy_(self._rounded(weight, grid, hessian))
                self.compensated.add(layer.name)
            grid.measure(weight)
        layer_now = Layer(layer.name, module, layer.op, layer.node)
        layer_now.constrain(name, grid)
        self.grids.setdefault(raw, []).append(grid)
        if grid.product and isinstance(module, Linear):
            self.graph.module.set_submodule(str(layer.node.target), BlockLinear.of(module, grid.blocks.length))

    @torch.no_grad()
    def widen(self, raw: nn.Parameter, weight: Tensor) -> None:
        """Store in 8 bits what was stored in fewer. `weight`: what the parameter was."""
        raw.copy_(weight)
        for grid in self.grids[raw]:
            kind = Kind(8, self.options.symmetric, exact=True)
            grid.refit(grid.blocks, 8, *fit(grid.blocks.split(weight), kind), product=grid.product)
            grid.measure(weight)

    def _fitted(self, layer: Layer, name: str, weight: Tensor, hessian: Tensor | None) -> BlockGrid:
        options, axes = self.options, channel_axes(layer, name)
        product = options.products and isinstance(layer.module, Linear)
        inside = as_rows(weight, axes).shape[1]
        length = block_length(inside, options.group, options.width, product=product)
        blocks = Blocks(axes, length)
        if product and not self._multiplied(layer.module, blocks, weight.numel()):
            product, blocks = False, Blocks(axes, block_length(inside, options.group, options.width, product=False))
        exact = product or options.width >= EXACT_FROM or bool((weight == 0).any())
        importance = None if hessian is None else _importance(weight, blocks, hessian)
        scale, zero = fit(
            blocks.split(weight),
            Kind(options.width, options.symmetric, exact),
            importance,
            half_quadratic=options.half_quadratic,
        )
        return BlockGrid(blocks, options.width, scale, zero, product=product)

    def _multiplied(self, module: nn.Module, blocks: Blocks, weights: int) -> bool:
        """Whether the module's weight is multiplied as it is stored."""
        options = self.options
        return options.products and isinstance(module, Linear) and product_pays(weights, options.width, blocks.length)

    def _rounded(self, weight: Tensor, grid: BlockGrid, hessian: Tensor) -> Tensor:
        blocks, (groups, inside) = grid.blocks, hessian.shape[:2]

        def spread(numbers: Tensor) -> Tensor:
            wide = numbers.expand(-1, -1, blocks.length).flatten(1)[:, :inside]
            return wide.unflatten(0, (groups, -1))

        rows = as_rows(weight, blocks.axes).unflatten(0, (groups, -1))
        zero = None if grid.zero is None else spread(grid.zero)
        keep = rows != 0 if bool((weight == 0).any()) else None
        rounded = gptq.rounded(rows, hessian, spread(grid.scale), zero, grid.width, keep)
        return from_rows(rounded.flatten(0, 1), blocks.axes, weight.shape)


def _importance(weight: Tensor, blocks: Blocks, hessian: Tensor) -> Tensor:
    """What the squared error of each weight counts, (rows, blocks, length)."""
    diagonal = hessian.diagonal(dim1=1, dim2=2).float()
    rows = as_rows(weight, blocks.axes).shape[0]
    wide = diagonal.repeat_interleave(rows // len(diagonal), 0) if len(diagonal) > 1 else diagonal
    return F.pad(wide, (0, -wide.shape[1] % blocks.length)).unflatten(1, (-1, blocks.length))
