"""Kinds of numbers, and what puts those of their bits that differ little into bytes of their own."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from numpy.typing import NDArray

Values = NDArray[Any]
"""Unsigned integers of 1, 2, 4 or 8 bytes: the bits of numbers of any kind."""


class Transform(IntEnum):
    NONE = 0
    ROTATE = 1
    """A float's sign goes to the end, so that its exponent fills a byte."""
    ZIGZAG = 2
    """0, -1, 1, -2… become 0, 1, 2, 3…"""


@dataclass(frozen=True)
class Kind:
    width: int
    """Bytes of one number."""
    transform: Transform = Transform.NONE


def transformed(values: Values, transform: Transform) -> Values:
    top, one = _constants(values)
    moved = values
    if transform == Transform.ROTATE:
        moved = (values << one) | (values >> top)
    elif transform == Transform.ZIGZAG:
        moved = (values << one) ^ _filled(values >> top)
    return moved.astype(values.dtype, copy=False)


def restored(values: Values, transform: Transform) -> Values:
    top, one = _constants(values)
    moved = values
    if transform == Transform.ROTATE:
        moved = (values >> one) | (values << top)
    elif transform == Transform.ZIGZAG:
        moved = (values >> one) ^ _filled(values & one)
    return moved.astype(values.dtype, copy=False)


def _constants(values: Values) -> tuple[Any, Any]:
    return values.dtype.type(8 * values.itemsize - 1), values.dtype.type(1)


def _filled(bit: Values) -> Values:
    """All ones where the bit is 1."""
    filled: Values = ~bit + bit.dtype.type(1)
    return filled
