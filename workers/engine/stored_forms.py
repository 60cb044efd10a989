"""How a file stores the weights that the graph has as 32-bit floats, so that they are stored in that form again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from workers.engine.constraints import Constraint
from workers.engine.graph import Graph
from workers.engine.ops.casting import cast
from workers.engine.quantization.grid import BiasGrid, IntegerGrid, ShiftedGrid
from workers.engine.quantization.half import Half

HALVES = (torch.float16, torch.bfloat16)
LARGEST = torch.iinfo(torch.int8).max


@dataclass(frozen=True)
class Form:
    """16-bit floats of a type; or integers × `scale`, of the tensor's rank (None: the scale is not known yet)."""

    half: torch.dtype | None = None
    scale: Tensor | None = None
    zero_point: Tensor | None = None
    """Of the shape of the scale, where it is not zero or the integers use all of their type."""
    folded: bool = False
    """Behind a cast and a product, not behind `DequantizeLinear`."""

    def transposed(self) -> Form:
        scale, zero_point = (None if part is None else part.t() for part in (self.scale, self.zero_point))
        return replace(self, scale=scale, zero_point=zero_point)

    def constraint(self, *, bias: bool, shape: torch.Size) -> Constraint | None:
        if self.half is not None:
            return Half(self.half)
        if self.scale is None:
            return None
        if bias:
            return BiasGrid(self.scale.expand(shape))
        axes = tuple(axis for axis, size in enumerate(self.scale.shape) if size > 1)
        if self.zero_point is not None:
            return ShiftedGrid(self.scale, self.zero_point, axes)
        return IntegerGrid(self.scale, axes, folded=self.folded)


class StoredForms:
    """By the identity of tensors, which must outlive this."""

    def __init__(self) -> None:
        self._forms: dict[int, Form] = {}

    def integers(self, tensor: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> None:
        """The tensor is (integers - zero point) × scale; without a zero point -127 to 127, or a bias in 32 bits."""
        scale = _ranked(scale, tensor)
        zeros = None if zero_point is None else _ranked(zero_point, tensor).expand(scale.shape)
        self._forms[id(tensor)] = Form(scale=scale, zero_point=zeros)

    def copied(self, tensor: Tensor, other: Tensor, *, transposed: bool = False) -> None:
        """The other has the same values, or those of the transposed matrix."""
        form = self._forms.get(id(tensor))
        if form is not None:
            self._forms[id(other)] = form.transposed() if transposed else form

    def computed(self, function: Callable[..., Any], sources: Sequence[Any], result: Tensor) -> bool:
        """Whether a function of constants only unfolds what the file stores: its result is known in that form then."""
        first = sources[0] if sources else None
        if not isinstance(first, Tensor) or result.dtype is not torch.float32:
            return False
        if function is cast and first.dtype in HALVES:
            self._forms[id(result)] = Form(half=first.dtype)
        elif function is cast and first.dtype is torch.int8 and first.numel() and int(first.min()) >= -LARGEST:
            self._forms[id(result)] = Form(folded=True)
        elif function is torch.mul:
            form, scale = self._forms.get(id(first)), sources[1]
            if form is not None and form.folded and isinstance(scale, Tensor) and scale.numel() < result.numel():
                self._forms[id(result)] = replace(form, scale=_ranked(scale, result))
        return id(result) in self._forms

    def constrain(self, graph: Graph) -> None:
        """Bind every weight and bias to the form that it has in the file."""
        for layer in graph.layers():
            trait = layer.op.quantization
            for name, parameter in list(layer.module.named_parameters(recurse=False)):
                form, bias = self._forms.get(id(parameter)), trait is not None and name == trait.bias
                if form is not None and (bias or name in layer.op.weights):
                    constraint = form.constraint(bias=bias, shape=parameter.shape)
                    if constraint is not None:
                        layer.constrain(name, constraint)


def _ranked(numbers: Tensor, tensor: Tensor) -> Tensor:
    """The numbers with as many dimensions as the tensor over which they broadcast."""
    return numbers.reshape((1,) * (tensor.dim() - numbers.dim()) + numbers.shape)
