"""A file as stretches of numbers of one kind; what lies between them is structure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from modelpress.packed.container import BLOCK
from modelpress.packed.grouping import Rows
from modelpress.packed.kinds import Kind
from modelpress.packed.onnx_tensors import BYTE, FLOAT, HALF, TensorData, Walk
from modelpress.packed.values import write_values

UNKNOWN = 64 << 10
"""Bytes outside all tensors from which on they are looked at as numbers, too."""
GUESSES = (BYTE, HALF, FLOAT)
SAMPLE = 16 << 10


@dataclass(frozen=True)
class Stretch:
    """Bytes of a file that are numbers of one kind. `dims`: their shape where that is certain, else ()."""

    start: int
    size: int
    kind: Kind
    dims: tuple[int, ...] = ()

    @property
    def block(self) -> int:
        """Bytes in one block: whole slices along the first axis, where one fits."""
        inner = self._slice()
        return BLOCK // inner * inner if inner else BLOCK

    def rows(self, size: int) -> tuple[Rows, ...]:
        """Ways to see a block of `size` bytes in rows: along the first axis, and along the second."""
        inner = self._slice()
        if not inner:
            return ()
        by_first = Rows(inner // self.kind.width, size // inner)
        return by_first, Rows(math.prod(self.dims[2:]), self.dims[1])

    def _slice(self) -> int:
        """Bytes along all axes but the first; 0 where there are no such axes or a slice is longer than a block."""
        if len(self.dims) < 2:
            return 0
        inner = math.prod(self.dims[1:]) * self.kind.width
        return inner if inner <= BLOCK else 0


def find_stretches(file: BinaryIO, size: int) -> list[Stretch]:
    """In the order in which they lie; none overlaps another."""
    return list(_find(file, size))


def _find(file: BinaryIO, size: int) -> Iterator[Stretch]:
    at = 0
    for tensor in (*Walk(file).tensors(size), TensorData(size, 0, BYTE, ())):
        gap = tensor.start - at
        if gap >= UNKNOWN:
            kind = _guess(file, at + gap // 2 // 8 * 8)
            yield Stretch(at, gap - gap % kind.width, kind)
        if tensor.size:
            yield Stretch(tensor.start, tensor.size, tensor.kind, _sure_dims(tensor))
        at = tensor.start + tensor.size


def _guess(file: BinaryIO, at: int) -> Kind:
    """What the middle of a run of bytes packs best as: other formats hold floats for the most part, too."""
    file.seek(at)
    sample = file.read(SAMPLE)
    return min(GUESSES, key=lambda kind: len(write_values(sample, kind)))


def _sure_dims(tensor: TensorData) -> tuple[int, ...]:
    """The shape, where it is that of the bytes: hostile files and numbers of four bits say others."""
    numbers = tensor.size // tensor.kind.width
    fits = all(0 < dim <= numbers for dim in tensor.dims) and math.prod(tensor.dims) == numbers
    return tensor.dims if fits else ()
