"""From any file to a packed one: tensors block by block, everything between them kept aside and coded together."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from modelpress.packed.container import BLOCK, HEADER_SIZE, VERSION, Coding, Head, Header, Output, Target, write_block
from modelpress.packed.errors import PackedError
from modelpress.packed.placing import placed
from modelpress.packed.squeezing import QUICK, THOROUGH, squeeze
from modelpress.packed.stretches import Stretch, find_stretches
from modelpress.packed.values import write_values

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
        self._seen: dict[tuple[int, int], int] = {}

    def run(self) -> None:
        self._output.seek(HEADER_SIZE)
        stretches = find_stretches(self._file, self._size)
        ends = [0, *(stretch.start + stretch.size for stretch in stretches)]
        starts = [*(stretch.start for stretch in stretches), self._size]
        gaps = [(end, start - end) for end, start in zip(ends, starts, strict=True)]
        aside = self._kept_aside(gaps)
        for stretch, (_, gap) in zip(stretches, gaps, strict=False):
            before = gap
            while before > self._held:
                before -= self._write_aside(next(aside))
            for at in range(0, stretch.size, stretch.block):
                size = min(stretch.block, stretch.size - at)
                self._write_data(self._read(stretch.start + at, size), stretch, stretch.start + at, before)
                before = 0
        for data in aside:
            self._write_aside(data)
        self._finish()

    def _kept_aside(self, gaps: list[tuple[int, int]]) -> Iterator[bytes]:
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

    def _write_aside(self, data: bytes) -> int:
        """Returns how many bytes go out before it: all that were held."""
        before, self._held = self._held, len(data)
        squeezed = squeeze(data, THOROUGH)
        self._write(Head(Coding.ZSTD, Target.ASIDE, before, len(data)), squeezed, data)
        return before

    def _write_data(self, data: bytes, stretch: Stretch, at: int, before: int) -> None:
        self._held -= before
        earlier = self._earlier(data, at)
        if earlier is not None:
            self._write(Head(Coding.COPY, Target.OUTPUT, before, len(data)), earlier.to_bytes(8, "little"), data)
            return
        coding, payload = Coding.VALUES, write_values(data, stretch.kind, stretch.rows(len(data)))
        squeezed = squeeze(data, QUICK)
        if len(squeezed) < REPETITIVE * len(payload):
            squeezed = min(squeezed, squeeze(data, THOROUGH), key=len)
        if len(squeezed) < len(payload):
            coding, payload = Coding.ZSTD, squeezed
        self._write(Head(coding, Target.OUTPUT, before, len(data)), payload, data)

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
