"""What a packed file looks like from outside: a header, then blocks, each with a head and a checksum of its own."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum
from typing import BinaryIO, Protocol

from modelpress.packed.errors import PackedError

MAGIC = b"\x9dMPACK\r\n"
VERSION = 2
"""What is written. Version 1 knew neither dictionary nor crossed groups, and is read too."""
BLOCK = 1 << 20
"""No block holds more bytes than this, packed or unpacked: it bounds what a decoder has to keep in memory."""

_HEADER = struct.Struct("<8sB3xIQ32s")
_HEAD = struct.Struct("<BBxxIII")
_CHECK = struct.Struct("<I")
HEADER_SIZE = _HEADER.size + _CHECK.size
HEAD_SIZE = _HEAD.size + _CHECK.size


class Coding(IntEnum):
    RAW = 0
    ZSTD = 1
    VALUES = 2
    COPY = 3
    """The same bytes as stand somewhere earlier in the output."""
    WEAVE = 4
    """Bytes out of the buffers in turn."""
    PRIMED = 5
    """zstd with the dictionary."""


OUTPUT, STRUCTURE, POOLS = 0, 1, 2
"""Where a block's bytes go: out, or into a buffer that is kept aside. Each block says how much of the structure goes
out before it; pools hold the numbers of many small tensors."""
BUFFERS = 16


def most_blocks(size: int) -> int:
    """Of a file of so many bytes: a decoder's time for each block alone is bounded by it."""
    return 16 + size // 512


@dataclass(frozen=True)
class Header:
    """What a packed file says of itself."""

    version: int
    blocks: int
    unpacked_size: int
    sha256: bytes
    """Of the unpacked file."""

    def to_bytes(self) -> bytes:
        plain = _HEADER.pack(MAGIC, self.version, self.blocks, self.unpacked_size, self.sha256)
        return plain + _CHECK.pack(zlib.crc32(plain))

    @classmethod
    def read(cls, file: BinaryIO) -> Header:
        """Raises PackedError where this is no packed file, a damaged one, or one of a version not known here."""
        data = file.read(HEADER_SIZE)
        if data[: len(MAGIC)] != MAGIC:
            raise PackedError("this is not a packed file")
        if len(data) > len(MAGIC) and not 1 <= data[len(MAGIC)] <= VERSION:
            raise PackedError(f"packed by version {data[len(MAGIC)]} of the format; this program reads 1 to {VERSION}")
        if len(data) < HEADER_SIZE:
            raise PackedError("damaged: the file ends in its header")
        if data[_HEADER.size :] != _CHECK.pack(zlib.crc32(data[: _HEADER.size])):
            raise PackedError("damaged: the header's checksum is wrong")
        _, version, blocks, size, sha256 = _HEADER.unpack(data[: _HEADER.size])
        if blocks > most_blocks(size):
            raise PackedError("damaged: more blocks than a file of this size can have")
        return cls(version, blocks, size, sha256)


@dataclass(frozen=True)
class Head:
    """What a block says of itself. `target`: OUTPUT or a buffer. `before`: bytes of the structure that go out first."""

    coding: Coding
    target: int
    before: int
    size: int


class Output(Protocol):
    def write(self, data: bytes, /) -> int: ...
    def seek(self, place: int, /) -> int: ...


def write_block(file: Output, head: Head, payload: bytes) -> None:
    plain = _HEAD.pack(head.coding, head.target, head.before, head.size, len(payload))
    file.write(plain)
    file.write(_CHECK.pack(zlib.crc32(payload, zlib.crc32(plain))))
    file.write(payload)


def read_block(file: BinaryIO) -> tuple[Head, bytes]:
    """Raises PackedError where the file ends, the checksum is wrong or a length is not allowed."""
    data = file.read(HEAD_SIZE)
    if len(data) < HEAD_SIZE:
        raise PackedError("damaged: the file ends too early")
    plain, check = data[: _HEAD.size], data[_HEAD.size :]
    coding, target, before, size, packed = _HEAD.unpack(plain)
    # no coding makes a block larger, so the payload's own length needs no other limit
    if not 0 < size <= BLOCK or packed > size or before > BLOCK:
        raise PackedError("damaged: a block of a length that cannot be")
    payload = file.read(packed)
    if len(payload) < packed:
        raise PackedError("damaged: the file ends too early")
    if check != _CHECK.pack(zlib.crc32(payload, zlib.crc32(plain))):
        raise PackedError("damaged: a block's checksum is wrong")
    if coding not in tuple(Coding) or target >= BUFFERS:
        raise PackedError("damaged: a block in a coding that is not known")
    return Head(Coding(coding), target, before, size), payload
