"""An aten node of an exported program, as the op table reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from workers.engine.builder import GraphBuilder, Value
from workers.engine.errors import UnsupportedModelError
from workers.engine.ops.shapes import concat, unsqueeze


@dataclass(frozen=True)
class Symbol:
    """A size that is known only at run time: its value (0-d int64), and its expression to tell equal ones apart."""

    expression: str
    value: Value


@dataclass(frozen=True)
class AtenNode:
    """`target` without `torch.ops.aten.`; arguments by the names of the op's schema, values already looked up."""

    target: str
    name: str
    scope: str
    """Path of the module it was traced in, in the user's words, such as `layer1.conv1`."""
    arguments: Mapping[str, Any]
    names: Mapping[str, tuple[str, ...]]
    """For arguments that are weights: the user's names of the tensors."""
    sizes: Mapping[str, tuple[int | str, ...]]
    """For arguments that are tensors: their sizes, symbolic ones as expressions."""
    dtypes: Mapping[str, torch.dtype | None]
    output_sizes: tuple[tuple[int | str, ...], ...]
    """Of the outputs that are tensors, in order."""
    output_dtypes: tuple[torch.dtype | None, ...]
    """Of the same."""
    item_dtypes: Mapping[str, tuple[torch.dtype | None, ...]]
    """For arguments that are lists of tensors: of those that are not None."""
    known: Callable[[Any], Any]
    """The tensor that a value computes from stored ones alone; other values as they are."""

    @property
    def dtype(self) -> torch.dtype | None:
        """Of the first tensor among the arguments."""
        return next(iter(self.dtypes.values()), None)

    def get(self, argument: str, default: Any = None) -> Any:
        return self.arguments.get(argument, default)

    def value(self, argument: str) -> Value:
        """Raises UnsupportedModelError where the argument is no tensor."""
        value = self.plain(self.get(argument))
        if not isinstance(value, (Tensor, fx.Node)):
            raise self.unsupported(f"its {argument} is no tensor")
        return value

    def weight(self, argument: str) -> Tensor:
        """A weight. Raises UnsupportedModelError where the argument is computed."""
        value = self.known(self.get(argument))
        if not isinstance(value, Tensor):
            raise self.unsupported(f"its {argument} is computed by the graph, not stored")
        return value

    def optional_weight(self, argument: str) -> Tensor | None:
        return None if self.get(argument) is None else self.weight(argument)

    def rank(self, argument: str) -> int:
        return len(self.sizes[argument])

    def axis(self, argument: str, of: str, default: int = 0) -> int:
        """A dimension of the tensor `of`, counted from the front."""
        return int(self.get(argument, default)) % max(self.rank(of), 1)

    def spatial(self, argument: str, rank: int, default: int) -> tuple[int, ...]:
        """A number for each of `rank` dimensions; PyTorch takes a single one for all."""
        numbers = self.get(argument)
        numbers = [default] if numbers is None or numbers == [] else numbers if isinstance(numbers, list) else [numbers]
        return tuple(numbers * rank if len(numbers) == 1 else numbers)

    def plain(self, value: Any) -> Any:
        return self.plain_value(value)

    @staticmethod
    def plain_value(value: Any) -> Any:
        """A size as the tensor of one number that it is; everything else as it is."""
        return value.value if isinstance(value, Symbol) else value

    def sizes_like(self, wanted: Sequence[Any], like: str, graph: GraphBuilder) -> tuple[int, ...] | Value:
        """Sizes for a Reshape of the tensor `like`: plain numbers wherever they say the same.

        A symbol that `like` has at the same place is 0 (keep); the only other one is -1 (infer).
        """
        sizes, known = list(wanted), self.sizes[like]
        for place, size in enumerate(sizes):
            if isinstance(size, Symbol) and place < len(known) and known[place] == size.expression:
                sizes[place] = 0
        unknown = [place for place, size in enumerate(sizes) if not isinstance(size, int)]
        if len(unknown) == 1 and -1 not in sizes:
            sizes[unknown[0]] = -1
        return self.vector(sizes, graph)

    def vector(self, sizes: Sequence[Any], graph: GraphBuilder) -> tuple[int, ...] | Value:
        """Sizes as plain numbers, or as one int64 vector where some are computed."""
        if all(isinstance(size, int) for size in sizes):
            return tuple(sizes)
        values = [self.plain(size) for size in sizes]
        parts = [
            graph.keep(torch.tensor([value])) if isinstance(value, int) else graph.call(unsqueeze, value, (0,))
            for value in values
        ]
        return graph.call(concat, *parts, axis=0)

    def layer(self, *weights: str) -> str:
        """The user's name for the layer: the module path of its weights, else the scope it was traced in.

        Of tied weights, the path that is the scope too.
        """
        paths = [name.rpartition(".")[0] or name for weight in weights for name in self.names.get(weight, ())]
        if not paths or self.scope in paths:
            return self.scope or self.name
        return paths[0]

    def unsupported(self, reason: str) -> UnsupportedModelError:
        where = f" in {self.scope}" if self.scope else ""
        return UnsupportedModelError(
            f"aten.{self.target}{where} cannot be read: {reason}. Upload the model as ONNX instead."
        )
