"""An array of numbers as runs of symbols: a mask of what is not zero, a codebook, or plane by plane of bytes."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelpress.packed.cursor import Cursor, varint
from modelpress.packed.errors import PackedError
from modelpress.packed.grouping import Placed, Rows
from modelpress.packed.kinds import Kind, Transform, Values, restored, transformed
from modelpress.packed.streams import read_stream, write_stream

WIDTHS = (1, 2, 4, 8)
MOST_VALUES = 4096
"""Of a codebook."""
SAMPLE = 4096
COMMON = 0.25
"""From this share on, one value (zero, as a rule) is told from the rest by a mask."""
DEAR = 0.025
"""What the entropy coder has to save where each single byte is a symbol: zstd decodes 20 times faster."""


class Form(IntEnum):
    PLANES = 0
    CODEBOOK = 1
    MASK_OF_BITS = 2
    MASK_OF_BYTES = 3


def write_values(data: bytes, kind: Kind, rows: tuple[Rows, ...] = ()) -> bytes:
    """`rows` are ways to see the numbers in rows, such as one an output channel and one an input channel."""
    values = np.frombuffer(data, dtype=f"<u{kind.width}")
    placed = tuple(Placed(way, way.of(len(values))) for way in rows)
    return bytes([kind.width]) + _write(values, kind, placed, masked=False)


def _write(values: Values, kind: Kind, placed: tuple[Placed, ...], *, masked: bool) -> bytes:
    if not len(values):
        return _write_planes(values, kind, ())
    sample = values[:: max(1, len(values) // SAMPLE)]
    found, counts = np.unique(sample, return_counts=True)
    common = found[counts.argmax()]
    if not masked and counts.max() > COMMON * len(sample) and (values != common).any():
        return _write_mask(values, common, kind, placed)
    if kind.width > 1 and len(found) <= MOST_VALUES and 2 * len(found) < len(sample):
        coded = _write_codebook(values, found, placed)
        if coded is not None:
            # trained floats shrink to four fifths by planes; only integers may do better so than by a codebook
            floats = kind.transform == Transform.ROTATE and 2 * len(coded) < values.nbytes
            return coded if floats else min(coded, _write_planes(values, kind, placed), key=len)
    return _write_planes(values, kind, placed)


def _write_mask(values: Values, common: Any, kind: Kind, placed: tuple[Placed, ...]) -> bytes:
    mask = values != common
    as_bits = write_stream(mask.view(np.uint8), placed)
    as_bytes = write_stream(np.packbits(mask, bitorder="little"))
    form, stream = min((Form.MASK_OF_BYTES, as_bytes), (Form.MASK_OF_BITS, as_bits), key=lambda item: len(item[1]))
    rest = tuple(way.only(mask) for way in placed)
    head: bytes = bytes([form]) + common.tobytes()
    return head + stream + _write(values[mask], kind, rest, masked=True)


def _write_codebook(values: Values, found: Values, placed: tuple[Placed, ...]) -> bytes | None:
    """None where there are more values than a codebook holds. Frequent values come first: they decode fastest."""
    indices, known = _look_up(values, found)
    if not known.all():
        found = np.union1d(found, values[~known])
        if len(found) > MOST_VALUES:
            return None
        indices, _ = _look_up(values, found)
    order = np.argsort(-np.bincount(indices, minlength=len(found)), kind="stable")
    rank = np.empty(len(found), dtype=f"u{_index_width(len(found))}")
    rank[order] = np.arange(len(found))
    return bytes([Form.CODEBOOK]) + varint(len(found)) + found[order].tobytes() + write_stream(rank[indices], placed)


def _look_up(values: Values, found: Values) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    indices = np.minimum(np.searchsorted(found, values), len(found) - 1)
    return indices, found[indices] == values


def _index_width(size: int) -> int:
    return 1 if size <= 256 else 2


def _write_planes(values: Values, kind: Kind, placed: tuple[Placed, ...]) -> bytes:
    if kind.width <= 2:
        placed = placed[:1]  # a symbol for every byte or two: the time is short for more than one way to see rows
    if kind.width == 1:
        return bytes([Form.PLANES, kind.transform]) + write_stream(values.view(np.uint8), placed, gain=DEAR)
    planes = transformed(values, kind.transform).view(np.uint8).reshape(-1, kind.width)
    streams = (write_stream(np.ascontiguousarray(planes[:, index]), placed) for index in range(kind.width))
    return bytes([Form.PLANES, kind.transform]) + b"".join(streams)


def read_values(cursor: Cursor, size: int) -> bytes:
    """`size` bytes of numbers. Raises PackedError where the payload does not hold them."""
    width = cursor.byte()
    if width not in WIDTHS or size % width:
        raise PackedError("damaged: numbers of a width that cannot be")
    return _read(cursor, size // width, width, None).tobytes()


def _read(cursor: Cursor, count: int, width: int, kept: NDArray[np.bool_] | None) -> Values:
    match cursor.byte():
        case Form.PLANES:
            return _read_planes(cursor, count, width, kept)
        case Form.CODEBOOK:
            return _read_codebook(cursor, count, width, kept)
        case Form.MASK_OF_BITS | Form.MASK_OF_BYTES as form if kept is None:
            return _read_masked(cursor, count, width, in_bits=form == Form.MASK_OF_BITS)
    raise PackedError("damaged: numbers in a form that is not known")


def _read_masked(cursor: Cursor, count: int, width: int, *, in_bits: bool) -> Values:
    common = np.frombuffer(cursor.take(width), dtype=f"<u{width}")
    if in_bits:
        mask = read_stream(cursor, count, 1).astype(np.bool_)
    else:
        mask = np.unpackbits(read_stream(cursor, -(-count // 8), 1), count=count, bitorder="little").view(np.bool_)
    values = np.repeat(common, count)
    values[mask] = _read(cursor, int(np.count_nonzero(mask)), width, mask)
    return values


def _read_codebook(cursor: Cursor, count: int, width: int, kept: NDArray[np.bool_] | None) -> Values:
    size = cursor.varint(MOST_VALUES)
    found = np.frombuffer(cursor.take(size * width), dtype=f"<u{width}")
    indices = read_stream(cursor, count, _index_width(size), kept)
    if count and indices.max() >= size:
        raise PackedError("damaged: an index outside its codebook")
    values: Values = found[indices] if count else np.empty(0, dtype=found.dtype)
    return values


def _read_planes(cursor: Cursor, count: int, width: int, kept: NDArray[np.bool_] | None) -> Values:
    transform = cursor.byte()
    if transform not in tuple(Transform):
        raise PackedError("damaged: numbers in a form that is not known")
    planes = np.empty((count, width), dtype=np.uint8)
    for index in range(width):
        planes[:, index] = read_stream(cursor, count, 1, kept)
    return restored(planes.reshape(-1).view(f"<u{width}"), Transform(transform))
