"""From a packed file to the bytes it was made of, block by block."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO

from modelpress.packed.container import BUFFERS, OUTPUT, STRUCTURE, Coding, Head, Header, read_block
from modelpress.packed.cursor import Cursor
from modelpress.packed.errors import PackedError
from modelpress.packed.placing import placed
from modelpress.packed.squeezing import unsqueeze
from modelpress.packed.values import read_values

MAX_BYTES = 2**31
"""What one ONNX file may hold, and so what is unpacked unless more is asked for."""


def peek(source: Path) -> Header:
    """The header alone. Raises PackedError where there is none."""
    with source.open("rb") as file:
        return Header.read(file)


def unpack(source: Path, target: Path, *, max_bytes: int = MAX_BYTES) -> None:
    """Write the file that was packed. Takes some megabytes of memory, whatever the file says.

    Raises PackedError, and leaves no target behind, where the file is damaged or unpacks to more than `max_bytes`.
    """
    with source.open("rb") as packed, placed(target) as output:
        header = Header.read(packed)
        if header.unpacked_size > max_bytes:
            raise PackedError(
                f"the file unpacks to {header.unpacked_size} bytes, more than the {max_bytes} that are allowed here"
            )
        Unpacking(header, output).run(packed)


class Unpacking:
    def __init__(self, header: Header, output: BinaryIO) -> None:
        self._header = header
        self._output = output
        self._written = 0
        self._aside = [memoryview(b"")] * BUFFERS
        self._hash = hashlib.sha256()

    def run(self, packed: BinaryIO) -> None:
        for _ in range(self._header.blocks):
            self._take(*read_block(packed))
        self._put(self._taken(STRUCTURE, len(self._aside[STRUCTURE])))
        if any(self._aside):
            raise PackedError("damaged: what was kept aside is not used up")
        if packed.read(1):
            raise PackedError("damaged: there is more in the file than its blocks")
        if self._written != self._header.unpacked_size:
            raise PackedError("damaged: the blocks hold less than the header says")
        if self._hash.digest() != self._header.sha256:
            raise PackedError("damaged: what was unpacked has another checksum than what was packed")

    def _take(self, head: Head, payload: bytes) -> None:
        self._put(self._taken(STRUCTURE, head.before))
        data = self._decoded(head, payload)
        if head.target == OUTPUT:
            self._put(data)
        elif self._aside[head.target]:
            raise PackedError("damaged: what was kept aside is not used up")
        else:
            self._aside[head.target] = memoryview(data)

    def _taken(self, buffer: int, count: int) -> memoryview:
        held = self._aside[buffer]
        if count > len(held):
            raise PackedError("damaged: a block asks for more than was kept aside")
        self._aside[buffer] = held[count:]
        return held[:count]

    def _decoded(self, head: Head, payload: bytes) -> bytes:
        match head.coding:
            case Coding.ZSTD:
                return unsqueeze(memoryview(payload), head.size)
            case Coding.PRIMED:
                return unsqueeze(memoryview(payload), head.size, structure=True)
            case Coding.COPY:
                return self._copied(payload, head.size)
            case Coding.WEAVE:
                return self._woven(Cursor(payload), head.size)
            case Coding.VALUES:
                cursor = Cursor(payload)
                data = read_values(cursor, head.size)
                cursor.finish()
                return data
        if len(payload) != head.size:
            raise PackedError("damaged: a plain block of another length")
        return payload

    def _copied(self, payload: bytes, size: int) -> bytes:
        start = int.from_bytes(payload, "little")
        if len(payload) != 8 or start + size > self._written:
            raise PackedError("damaged: a copy of what is not there yet")
        self._output.seek(start)
        data = self._output.read(size)
        self._output.seek(self._written)
        return data

    def _woven(self, cursor: Cursor, size: int) -> bytes:
        woven = bytearray()
        while len(woven) < size:
            buffer, count = cursor.varint(BUFFERS - 1), cursor.varint(size - len(woven))
            woven += self._taken(buffer, count)
        cursor.finish()
        return bytes(woven)

    def _put(self, data: bytes | memoryview) -> None:
        self._written += len(data)
        if self._written > self._header.unpacked_size:
            raise PackedError("damaged: the blocks hold more than the header says")
        self._output.write(data)
        self._hash.update(data)
