"""One run of small symbols: as it is, as one constant, by zstd, or by an entropy coder (ANS), whichever is smallest."""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

from modelpress.packed.cursor import Cursor, varint
from modelpress.packed.errors import PackedError
from modelpress.packed.frequencies import Alphabet, bits, model, quantize, read_weights, write_weights
from modelpress.packed.grouping import Grouping, Placed, Rows, cross, group
from modelpress.packed.squeezing import QUICK, THOROUGH, squeeze, unsqueeze

MOST_GROUPS = 16
VARIED = 0.98
"""Of the plain size: what has more entropy stays as it is, unless it repeats itself."""

Symbols = NDArray[Any]
"""Numbers of 1 or 2 bytes."""
Counted = tuple[NDArray[np.int32], NDArray[np.int64]]
"""Symbols from 0 on, and how often each occurs."""


class Form(IntEnum):
    RAW = 0
    CONSTANT = 1
    ZSTD = 2
    ANS = 3
    ANS_CROSSED = 4
    """In groups by two ways to see rows."""


def write_stream(symbols: Symbols, placed: tuple[Placed, ...] = (), *, gain: float = 0) -> bytes:
    """The smallest form of a run of symbols; `read_stream` needs their number and type to read it.

    `placed` are ways to see the symbols in rows. The entropy coder is taken where it saves more than the share `gain`
    of what zstd makes: it is the slower one to decode.
    """
    plain = symbols.astype(symbols.dtype.newbyteorder("<"), copy=False).tobytes()
    if not len(symbols):
        return bytes([Form.RAW])
    low, high = int(symbols.min()), int(symbols.max())
    if low == high:
        return bytes([Form.CONSTANT]) + plain[: symbols.itemsize]
    alphabet = Alphabet(low, high - low + 1)
    shifted = symbols.astype(np.int32)
    shifted -= low
    counts = np.bincount(shifted, minlength=alphabet.size)
    entropy = bits(counts) / 8
    best = min(bytes([Form.RAW]) + plain, _write_zstd(plain, entropy), key=len)
    if entropy > VARIED * len(plain):
        return best
    grouping = _grouping(shifted, placed, alphabet.size)
    if grouping and grouping.saved > max(0, entropy - (1 - gain) * len(best)):
        coded = _write_grouped(shifted, alphabet, grouping)
    elif entropy < (1 - gain) * len(best):
        coded = _write_ans(bytes([Form.ANS]) + varint(1), alphabet, [(shifted, counts)])
    else:
        return best
    return coded if len(coded) < (1 - gain) * len(best) else best


def _write_zstd(plain: bytes, entropy: float) -> bytes:
    """Less than the counts alone allow means that there are repetitions, for which a thorough search pays."""
    squeezed = squeeze(plain, QUICK)
    if len(squeezed) < 0.95 * entropy:
        squeezed = min(squeezed, squeeze(plain, THOROUGH), key=len)
    return bytes([Form.ZSTD]) + varint(len(squeezed)) + squeezed


def _grouping(shifted: NDArray[np.int32], placed: tuple[Placed, ...], size: int) -> Grouping | None:
    """The one that saves most, of each way to see rows and of both together."""
    found = [grouping for way in placed if (grouping := group(shifted, way, size)) is not None]
    useful = [grouping for grouping in found if grouping.saved > 0 and grouping.groups > 1]
    if len(useful) == 2:
        crossed = cross(shifted, useful[0], useful[1], size)
        found += [crossed] if crossed is not None and all(way.groups > 1 for way in crossed.ways) else []
    return max(found, key=lambda grouping: grouping.saved, default=None)


def _write_grouped(shifted: NDArray[np.int32], alphabet: Alphabet, grouping: Grouping) -> bytes:
    of_symbol = grouping.of_symbol()
    parts = [shifted[of_symbol == index] for index in range(grouping.groups)]
    counted = [(part, np.bincount(part, minlength=alphabet.size)) for part in parts]
    sizes = b"".join(varint(way.groups) for way in grouping.ways)
    rows = (
        varint(way.placed.rows.inner) + varint(way.placed.rows.count) + write_stream(way.of_row)
        for way in grouping.ways
        if way.groups > 1
    )
    form = Form.ANS if len(grouping.ways) == 1 else Form.ANS_CROSSED
    return _write_ans(bytes([form]) + sizes + b"".join(rows), alphabet, counted)


def _write_ans(head: bytes, alphabet: Alphabet, parts: list[Counted]) -> bytes:
    """A group that is empty has a table, too."""
    tables = [
        quantize(counts if len(symbols) else np.eye(1, alphabet.size, dtype=np.int64)[0]) for symbols, counts in parts
    ]
    coder = constriction.stream.stack.AnsCoder()
    for (symbols, _), weights in zip(reversed(parts), reversed(tables), strict=True):
        coder.encode_reverse(symbols, model(weights))
    words = coder.get_compressed().astype("<u4", copy=False).tobytes()
    return b"".join((head, alphabet.write(), *map(write_weights, tables), varint(len(words) // 4), words))


def read_stream(
    cursor: Cursor, count: int, width: int, kept: NDArray[np.bool_] | None = None, most_groups: int = MOST_GROUPS
) -> Symbols:
    """`count` symbols of `width` bytes. `kept`: which elements of the block they stand for, where not for all.

    Raises PackedError where the stream does not hold them.
    """
    match cursor.byte():
        case Form.RAW:
            return _symbols(cursor.take(count * width), width)
        case Form.CONSTANT:
            return np.repeat(_symbols(cursor.take(width), width), count)
        case Form.ZSTD:
            return _symbols(unsqueeze(cursor.take(cursor.varint()), count * width), width)
        case Form.ANS | Form.ANS_CROSSED as form:
            ways = [cursor.varint(most_groups) for _ in range(2 if form == Form.ANS_CROSSED else 1)]
            if not 1 <= math.prod(ways) <= most_groups:
                raise PackedError("damaged: more groups than there can be")
            return _read_ans(cursor, count, width, kept, ways)
    raise PackedError("damaged: a run of symbols in a form that is not known")


def _symbols(data: memoryview | bytes, width: int) -> Symbols:
    return np.frombuffer(data, dtype=f"<u{width}").astype(f"u{width}", copy=False)


def _read_ans(cursor: Cursor, count: int, width: int, kept: NDArray[np.bool_] | None, ways: list[int]) -> Symbols:
    """`ways`: into how many groups each way to see rows divides them."""
    groups, of_symbol = math.prod(ways), None
    for size in ways:
        if size > 1:
            found = _read_groups(cursor, size, count if kept is None else len(kept))
            found = found if kept is None else found[kept]
            of_symbol = found if of_symbol is None else of_symbol * np.uint8(size) + found
    alphabet = Alphabet.read(cursor, 256**width - 1)
    if groups * alphabet.size > 4 * max(256, count):
        raise PackedError("damaged: more table than symbols")  # a few bytes would keep a decoder busy for long
    models = [model(read_weights(cursor, alphabet.size)) for _ in range(groups)]
    words = np.frombuffer(cursor.take(4 * cursor.varint()), dtype="<u4").astype(np.uint32, copy=False)
    if len(words) and words[-1] == 0:
        raise PackedError("damaged: an entropy-coded run that cannot be")
    coder = constriction.stream.stack.AnsCoder(words)
    out = np.empty(count, dtype=f"u{width}")
    for index, table in enumerate(models):
        _fill(out, None if of_symbol is None else of_symbol == index, coder, table, alphabet.first)
    if not coder.is_empty():
        raise PackedError("damaged: an entropy-coded run does not end with its last symbol")
    return out


def _fill(out: Symbols, where: NDArray[np.bool_] | None, coder: Any, table: Any, first: int) -> None:
    if where is None:
        out[:] = coder.decode(table, len(out))
        out += out.dtype.type(first)
    else:
        out[where] = coder.decode(table, int(np.count_nonzero(where))) + first


def _read_groups(cursor: Cursor, groups: int, elements: int) -> NDArray[np.uint8]:
    """The group of each element of the block."""
    rows = Rows(cursor.varint(), cursor.varint())
    if rows.inner < 1 or rows.count < 1 or (rows.count - 1) * rows.inner >= elements:
        raise PackedError("damaged: more rows than a block has elements")
    # one group alone for the groups themselves: nothing nests without end
    ids = read_stream(cursor, rows.count, 1, most_groups=1)
    if ids.max() >= groups:
        raise PackedError("damaged: a row in a group that there is not")
    return rows.spread(ids, elements)
