"""From any file to a packed one: tensors block by block, everything between them kept aside and coded together."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from modelpress.packed.container import (
    BLOCK,
    HEADER_SIZE,
    OUTPUT,
    POOLS,
    STRUCTURE,
    VERSION,
    Coding,
    Head,
    Header,
    Output,
    write_block,
)
from modelpress.packed.cursor import varint
from modelpress.packed.errors import PackedError
from modelpress.packed.grouping import Rows
from modelpress.packed.kinds import Kind
from modelpress.packed.placing import placed
from modelpress.packed.squeezing import QUICK, THOROUGH, squeeze, squeeze_structure
from modelpress.packed.stretches import Stretch, find_stretches
from modelpress.packed.values import write_values

SMALL = 8 << 10
"""Bytes of a tensor up to which its own tables and its own call of everything cost more than they gain."""
REPETITIVE = 0.9
"""Where zstd at its quickest makes so much less of a block than all else, a thorough search pays."""
COPIED = 4 << 10
"""Bytes of a block that is worth looking for among the earlier ones."""


def pack(source: Path, target: Path) -> None:
    """Write the packed form of a file, ONNX or any other; the same bytes each time. Takes some megabytes of memory."""
    with source.open("rb") as file, placed(target) as output:
        Packing(file, output).run()


def packed_size(source: Path) -> int:
    """How large the packed form of a file is; nothing is written."""
    counted = Counted()
    with source.open("rb") as file:
        Packing(file, counted).run()
    return counted.size


class Counted:
    """An output that keeps nothing but its size."""

    size = 0
    _at = 0

    def write(self, data: bytes) -> int:
        self.seek(self._at + len(data))
        return len(data)

    def seek(self, place: int) -> int:
        self._at = place
        self.size = max(self.size, place)
        return place


class Packing:
    def __init__(self, file: BufferedReader, output: Output) -> None:
        self._file = file
        self._output = output
        self._size = os.fstat(file.fileno()).st_size
        self._blocks = 0
        self._held = 0
        """Bytes that a decoder has kept aside where it now stands."""
        self._small: list[tuple[int, Stretch]] = []
        """Small tensors that are not written yet, each with the bytes of structure before it."""
        self._small_size = 0
        self._seen: dict[tuple[int, int], int] = {}

    def run(self) -> None:
        self._output.seek(HEADER_SIZE)
        stretches = find_stretches(self._file, self._size)
        ends = [0, *(stretch.start + stretch.size for stretch in stretches)]
        starts = [*(stretch.start for stretch in stretches), self._size]
        gaps = [(end, start - end) for end, start in zip(ends, starts, strict=True)]
        structure = self._structure(gaps)
        for stretch, (_, gap) in zip(stretches, gaps, strict=False):
            self._add(stretch, gap, structure)
        self._write_small()
        for data in structure:
            self._write_structure(data)
        self._finish()

    def _add(self, stretch: Stretch, gap: int, structure: Iterator[bytes]) -> None:
        if stretch.size > SMALL or gap > self._held or self._small_size + gap + stretch.size > BLOCK:
            self._write_small()
        while gap > self._held:
            gap -= self._write_structure(next(structure))
        self._held -= gap
        if stretch.size > SMALL or gap + stretch.size > BLOCK:
            self._write_stretch(stretch, gap)
        else:
            self._small.append((gap, stretch))
            self._small_size += gap + stretch.size

    def _structure(self, gaps: list[tuple[int, int]]) -> Iterator[bytes]:
        """The bytes between the stretches, in blocks."""
        held = bytearray()
        for start, size in gaps:
            for at in range(start, start + size, BLOCK):
                held += self._read(at, min(BLOCK, start + size - at))
                if len(held) >= BLOCK:
                    yield bytes(held[:BLOCK])
                    del held[:BLOCK]
        if held:
            yield bytes(held)

    def _write_structure(self, data: bytes) -> int:
        """Returns how many bytes go out before it: all that were held."""
        before, self._held = self._held, len(data)
        self._write(Head(Coding.PRIMED, STRUCTURE, before, len(data)), squeeze_structure(data), data)
        return before

    def _write_stretch(self, stretch: Stretch, before: int) -> None:
        for at in range(stretch.start, stretch.start + stretch.size, stretch.block):
            data = self._read(at, min(stretch.block, stretch.start + stretch.size - at))
            earlier = self._earlier(data, at)
            if earlier is not None:
                self._write(Head(Coding.COPY, OUTPUT, before, len(data)), earlier.to_bytes(8, "little"), data)
            else:
                self._write_numbers(data, OUTPUT, before, stretch.kind, stretch.rows(len(data)))
            before = 0

    def _write_small(self) -> None:
        """The numbers of each kind in a pool, then how pools and structure are woven together again."""
        small, self._small, self._small_size = self._small, [], 0
        if len(small) == 1:
            self._write_stretch(small[0][1], small[0][0])
        elif small:
            self._write_woven(small)

    def _write_woven(self, small: list[tuple[int, Stretch]]) -> None:
        pools: dict[Kind, list[bytes]] = {}
        for _, stretch in small:
            pools.setdefault(stretch.kind, []).append(self._read(stretch.start, stretch.size))
        buffers = {kind: buffer for buffer, kind in enumerate(pools, POOLS)}
        for kind, parts in pools.items():
            self._write_numbers(b"".join(parts), buffers[kind], 0, kind, ())
        pairs = [pair for gap, one in small for pair in ((STRUCTURE, gap), (buffers[one.kind], one.size))]
        payload = b"".join(varint(buffer) + varint(count) for buffer, count in pairs)
        self._blocks += 1
        write_block(self._output, Head(Coding.WEAVE, OUTPUT, 0, sum(count for _, count in pairs)), payload)

    def _write_numbers(self, data: bytes, target: int, before: int, kind: Kind, rows: tuple[Rows, ...]) -> None:
        coding, payload = Coding.VALUES, write_values(data, kind, rows)
        squeezed = squeeze(data, QUICK)
        if len(squeezed) < REPETITIVE * len(payload):
            squeezed = min(squeezed, squeeze(data, THOROUGH), key=len)
        if len(squeezed) < len(payload):
            coding, payload = Coding.ZSTD, squeezed
        self._write(Head(coding, target, before, len(data)), payload, data)

    def _earlier(self, data: bytes, at: int) -> int | None:
        """Where the same bytes stand, when a block before this one held them: weights that are tied are often twice."""
        if len(data) < COPIED:
            return None
        earlier = self._seen.setdefault((len(data), zlib.crc32(data)), at)
        return earlier if earlier != at and self._read(earlier, len(data)) == data else None

    def _write(self, head: Head, payload: bytes, plain: bytes) -> None:
        self._blocks += 1
        if len(payload) < len(plain):
            write_block(self._output, head, payload)
        else:
            write_block(self._output, Head(Coding.RAW, head.target, head.before, head.size), plain)

    def _finish(self) -> None:
        self._file.seek(0)
        digest = hashlib.file_digest(self._file, "sha256").digest()
        if self._file.tell() != self._size:
            raise PackedError("the file grew while it was packed")
        self._output.seek(0)
        self._output.write(Header(VERSION, self._blocks, self._size, digest).to_bytes())

    def _read(self, start: int, size: int) -> bytes:
        self._file.seek(start)
        data = self._file.read(size)
        if len(data) < size:
            raise PackedError("the file shrank while it was packed")
        return data
