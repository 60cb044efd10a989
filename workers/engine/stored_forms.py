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
from workers.engine.ops.indexing import gather
from workers.engine.quantization.grid import BiasGrid, IntegerGrid, ShiftedGrid
from workers.engine.quantization.half import Half
from workers.engine.unfolding import MOST_VALUES, BlockForm, FewForm

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
    unfolded: FewForm | BlockForm | None = None
    """Made of something smaller by the nodes of the file, instead of all the above."""

    def transposed(self) -> Form:
        scale, zero_point = (None if part is None else part.t() for part in (self.scale, self.zero_point))
        unfolded = None if self.unfolded is None else self.unfolded.transposed()
        return replace(self, scale=scale, zero_point=zero_point, unfolded=unfolded)

    def constraint(self, weight: Tensor, *, bias: bool) -> Constraint | None:
        if self.unfolded is not None:
            return None if bias else self.unfolded.constraint(weight)
        if self.half is not None:
            return Half(self.half)
        if self.scale is None:
            return None
        if bias:
            return BiasGrid(self.scale.expand(weight.shape))
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
        if id(result) not in self._forms:
            unfolded = self._unfolded(function, sources, result)
            if unfolded is not None:
                self._forms[id(result)] = Form(unfolded=unfolded)
        return id(result) in self._forms

    def _unfolded(
        self, function: Callable[..., Any], sources: Sequence[Any], result: Tensor
    ) -> FewForm | BlockForm | None:
        first, second = sources[0], sources[1] if len(sources) > 1 else None
        before = self._forms.get(id(first))
        form = None if before is None else before.unfolded
        if function is gather and first.dim() == 1 and first.numel() <= MOST_VALUES:
            return FewForm()
        if function is torch.sub and result.dim() == 3:
            return BlockForm(torch.as_tensor(second), result.shape[2])
        if function is not torch.mul:
            moved = form is not None and not any(isinstance(source, Tensor) for source in sources[1:])
            return form if moved else None
        if not isinstance(second, Tensor) or second.numel() >= result.numel():
            return None
        if isinstance(form, FewForm) and form.scale is None:
            return FewForm(_ranked(second, result))
        whole = second.dim() == 3 and second.shape == (*result.shape[:2], 1)
        return replace(form, scale=second) if isinstance(form, BlockForm) and form.scale is None and whole else None

    def unfolds(self, tensor: Tensor) -> bool:
        """Whether nodes of the file make it of something smaller, whose names say little."""
        form = self._forms.get(id(tensor))
        return form is not None and form.unfolded is not None

    def blocks(self, tensor: Tensor, scale: Tensor, zero: Tensor, length: int) -> None:
        """The tensor is multiplied as integers less `zero` times `scale`, both (rows, blocks, 1)."""
        self._forms[id(tensor)] = Form(unfolded=BlockForm(zero, length, scale.float(), product=True))

    def constrain(self, graph: Graph) -> None:
        """Bind every weight and bias to the form that it has in the file."""
        for layer in graph.layers():
            trait = layer.op.quantization
            for name, parameter in list(layer.module.named_parameters(recurse=False)):
                form, bias = self._forms.get(id(parameter)), trait is not None and name == trait.bias
                if form is not None and (bias or name in layer.op.weights):
                    constraint = form.constraint(parameter.detach(), bias=bias)
                    if constraint is not None:
                        layer.constrain(name, constraint)


def _ranked(numbers: Tensor, tensor: Tensor) -> Tensor:
    """The numbers with as many dimensions as the tensor over which they broadcast."""
    return numbers.reshape((1,) * (tensor.dim() - numbers.dim()) + numbers.shape)
