"""Match the inner results of a student to those of its teacher, layer by layer of the same name.

Romero et al., 2015 (FitNets), arXiv:1412.6550.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from workers.engine.errors import StepError
from workers.engine.graph import Graph, Layer


class FeatureMatching:
    """A context manager that listens to both graphs; `loss` is that of the latest call of each.

    Where student and teacher differ in one dim, a linear projection of the student along it is trained too and thrown
    away at the end. Layers that differ in more are left out. Raises StepError where no layer is left.
    """

    def __init__(self, student: Graph, teacher: Graph, inputs: tuple[Tensor, ...]) -> None:
        """`inputs`: a few examples, on the graphs' device, from which the shapes are learnt."""
        theirs = {layer.name: layer for layer in teacher.layers()}
        pairs = [(layer, theirs[layer.name]) for layer in student.layers() if layer.name in theirs]
        self._student: dict[str, Tensor] = {}
        self._teacher: dict[str, Tensor] = {}
        self._hooks = []
        for mine, other in pairs:
            self._hooks.append(mine.module.register_forward_hook(_keep(self._student, mine)))
            self._hooks.append(other.module.register_forward_hook(_keep(self._teacher, other)))
        with torch.no_grad():
            student(*inputs)
            teacher(*inputs)
        self._projections = nn.ModuleDict()
        self._axes: dict[str, int | None] = {}
        for name in [mine.name for mine, _ in pairs]:
            self._match(name)
        if not self._axes:
            self.close()
            raise StepError(
                "features: no layer of the model has the name and shape of one of the teacher's: leave features out"
            )

    def _match(self, name: str) -> None:
        mine, other = self._student[name], self._teacher[name]
        if mine.ndim != other.ndim or not other.is_floating_point():
            return
        unlike = [axis for axis in range(1, mine.ndim) if mine.shape[axis] != other.shape[axis]]
        if len(unlike) > 1 or mine.shape[0] != other.shape[0]:
            return
        self._axes[name] = unlike[0] if unlike else None
        if unlike:
            axis = unlike[0]
            projection = nn.Linear(mine.shape[axis], other.shape[axis], device=mine.device)
            self._projections[f"of_{len(self._axes)}"] = projection

    def loss(self) -> Tensor:
        """Mean over the layers of the squared error, each in units of the teacher's variance."""
        projections = iter(self._projections.values())
        losses = []
        for name, axis in self._axes.items():
            mine, other = self._student[name].float(), self._teacher[name].float()
            if axis is not None:
                mine = next(projections)(mine.movedim(axis, -1)).movedim(-1, axis)
            losses.append((mine - other).square().mean() / other.var().clamp_min(1e-12))
        self._student.clear()
        return torch.stack(losses).mean()

    def parameters(self) -> list[nn.Parameter]:
        return list(self._projections.parameters())

    @property
    def layers(self) -> int:
        return len(self._axes)

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _keep(kept: dict[str, Tensor], layer: Layer) -> Callable[[nn.Module, Any, Any], None]:
    """A hook that keeps a layer's result; recurrent layers answer a tuple, the sequence first."""

    def hook(_module: nn.Module, _inputs: Any, result: Any) -> None:
        kept[layer.name] = result[0] if isinstance(result, tuple) else result

    return hook
