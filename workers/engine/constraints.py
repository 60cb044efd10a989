"""Weight steps as parametrizations: trainable, chained in order, kept by every later step, known to the writers.

A constraint maps the raw weight to the weight that the layer uses. Gradients reach the raw weight (straight through
where the map has none), so that fine-tuning and distillation train what is there and keep the form.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

if TYPE_CHECKING:
    from workers.engine.encodings import Encoding


class Constraint(nn.Module):
    """A map of one weight to its constrained form, of the same shape."""

    bits: float = 32.0
    """Bits a stored value takes once the writers have encoded it."""
    rates: Mapping[str, float] = MappingProxyType({})
    """Own parameters that learn at another pace than the weights: name, and the factor of the learning rate."""

    def forward(self, weight: Tensor) -> Tensor:  # noqa: ARG002 (of every constraint)
        raise TypeError(type(self).__name__)

    def encode(self, weight: Tensor) -> Encoding | None:  # noqa: ARG002 (a mask stores plain floats)
        """How the constrained weight is stored; None where this constraint does not change the stored form."""
        return None

    def narrow(self, axis: int, index: Tensor) -> None:
        """Only these places along an axis of the weight are left; to be overridden where something has its shape."""


class Mask(Constraint):
    """Zeroes of a pruning step. `keep`: bool, of the weight's shape."""

    keep: Tensor

    def __init__(self, keep: Tensor) -> None:
        super().__init__()
        self.register_buffer("keep", keep)

    def forward(self, weight: Tensor) -> Tensor:
        return torch.where(self.keep, weight, torch.zeros((), dtype=weight.dtype, device=weight.device))

    def narrow(self, axis: int, index: Tensor) -> None:
        self.keep = self.keep.index_select(axis, index)


def constrain(module: nn.Module, name: str, constraint: Constraint) -> None:
    """Chain a constraint onto a parameter, after those it already has."""
    parametrize.register_parametrization(module, name, constraint)


def constraints_of(module: nn.Module, name: str) -> list[Constraint]:
    """The constraints of a parameter, in the order in which they act."""
    if not parametrize.is_parametrized(module, name):
        return []
    chain = module.parametrizations[name]  # type: ignore[index]
    return [constraint for constraint in chain if isinstance(constraint, Constraint)]


def stored_bits(module: nn.Module, name: str) -> float:
    """Bits that a value of a parameter takes in files; 32 where no constraint stores it in fewer."""
    return min((constraint.bits for constraint in constraints_of(module, name)), default=32.0)


def told_bits(module: nn.Module, name: str) -> str | None:
    """In how few bits earlier steps store a parameter, if those are its final values: 16-bit floats are none yet."""
    bits = stored_bits(module, name)
    return f"{bits:.3g} bits" if bits < 16 else None


def raw_parameter(module: nn.Module, name: str) -> nn.Parameter:
    """The trainable tensor behind a parameter, before its constraints."""
    holder: Any = module
    if parametrize.is_parametrized(module, name):
        return holder.parametrizations[name].original
    return getattr(holder, name)


def tied_parameters(module: fx.GraphModule) -> frozenset[nn.Parameter]:
    """The raw parameters that more than one call uses: what changes them for one layer changes them for another."""
    uses: Counter[nn.Parameter] = Counter()
    for node in module.graph.nodes:
        if node.op == "call_module":
            uses.update(module.get_submodule(str(node.target)).parameters())
    return frozenset(parameter for parameter, count in uses.items() if count > 1)
