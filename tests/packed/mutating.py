"""Damage to packed files: blind, or by somebody who knows the format and mends every checksum afterwards."""

import random
import struct
import zlib

HEADER = struct.Struct("<8sB3xIQ32sI")
HEAD = struct.Struct("<BBxxIIII")


def blocks(packed: bytes) -> list[tuple[int, int]]:
    """Where each block's head and its payload end lie, as far as lengths make sense."""
    found, at = [], HEADER.size
    while at + HEAD.size <= len(packed):
        size = HEAD.unpack_from(packed, at)[4]
        end = at + HEAD.size + size
        if end > len(packed):
            break
        found.append((at, end))
        at = end
    return found


def mended(packed: bytes, *, recount: bool = True) -> bytes:
    """The same file with right checksums, and the right number of blocks."""
    out = bytearray(packed)
    found = blocks(packed)
    for at, end in found:
        head = bytes(out[at : at + HEAD.size - 4])
        out[at + HEAD.size - 4 : at + HEAD.size] = struct.pack(
            "<I", zlib.crc32(out[at + HEAD.size : end], zlib.crc32(head))
        )
    if recount and len(out) >= HEADER.size:
        out[12:16] = struct.pack("<I", len(found))
    if len(out) >= HEADER.size:
        out[HEADER.size - 4 : HEADER.size] = struct.pack("<I", zlib.crc32(out[: HEADER.size - 4]))
    return bytes(out)


def flip(data: bytearray, dice: random.Random) -> None:
    for _ in range(dice.choice((1, 1, 1, 2, 8))):
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)


def overwrite(data: bytearray, dice: random.Random) -> None:
    at = dice.randrange(len(data))
    filling = dice.choice((b"\0", b"\xff", b"\x80", b"\x7f", b"\x01"))
    data[at : at + dice.choice((1, 2, 4, 8, 64))] = filling * dice.choice((1, 2, 4, 8, 64))


def truncate(data: bytearray, dice: random.Random) -> None:
    del data[dice.randrange(len(data)) :]


def splice(data: bytearray, dice: random.Random) -> None:
    start, target = dice.randrange(len(data)), dice.randrange(len(data))
    piece = data[start : start + dice.choice((1, 4, 20, 200, 5000))]
    if dice.random() < 0.5:
        data[target : target + len(piece)] = piece
    else:
        data[target:target] = piece


def remove(data: bytearray, dice: random.Random) -> None:
    at = dice.randrange(len(data))
    del data[at : at + dice.choice((1, 4, 20, 200))]


def edit_header(data: bytearray, dice: random.Random) -> None:
    at = dice.choice((8, 9, 12, 13, 16, 17, 20, 23, 24, 30))
    data[at : at + 1] = bytes([dice.randrange(256)])


def edit_head(data: bytearray, dice: random.Random) -> None:
    """A field of a block's head: its coding, its lengths."""
    found = blocks(bytes(data))
    if found:
        at, _ = dice.choice(found)
        field, width = dice.choice(((0, 1), (1, 1), (4, 4), (8, 4), (12, 4)))
        value = dice.choice((0, 1, 2, 3, 4, 255, 1 << 20, (1 << 20) + 1, (1 << 32) - 1, dice.randrange(1 << 16)))
        data[at + field : at + field + width] = (value % 256**width).to_bytes(width, "little")


def edit_payload_start(data: bytearray, dice: random.Random) -> None:
    """The first bytes of a payload say how the rest is read: forms, widths, counts, alphabets."""
    found = blocks(bytes(data))
    if found:
        at, end = dice.choice(found)
        start = at + HEAD.size
        for _ in range(dice.choice((1, 1, 2, 3))):
            place = start + dice.randrange(min(48, max(1, end - start)))
            if place < len(data):
                data[place] = dice.choice((0, 1, 2, 3, 4, 7, 8, 127, 128, 255, dice.randrange(256)))


def shuffle_blocks(data: bytearray, dice: random.Random) -> None:
    found = blocks(bytes(data))
    if len(found) > 1:
        parts = [bytes(data[at:end]) for at, end in found]
        first, second = dice.sample(range(len(parts)), 2)
        if dice.random() < 0.5:
            parts[first], parts[second] = parts[second], parts[first]
        else:
            parts.insert(second, parts[first])
        data[HEADER.size :] = b"".join(parts)


MUTATIONS = (
    flip,
    overwrite,
    truncate,
    splice,
    remove,
    edit_header,
    edit_head,
    edit_payload_start,
    shuffle_blocks,
)


def mutated(packed: bytes, dice: random.Random) -> bytes:
    """Half of them with right checksums."""
    data = bytearray(packed)
    for _ in range(dice.choice((1, 1, 2))):
        if data:
            dice.choice(MUTATIONS)(data, dice)
    return mended(bytes(data), recount=dice.random() < 0.8) if dice.random() < 0.5 else bytes(data)
