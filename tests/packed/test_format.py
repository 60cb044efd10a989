"""docs/packed.md is enough to write a decoder: this one is written from it, and uses nothing of ours."""

import hashlib
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import zstandard

from modelpress.packed import PackedError
from modelpress.packed.dictionary import DICTIONARY as DICTIONARY_BYTES
from tests.packed.models import crossed, holding, normal, sparse

DICTIONARY = zstandard.ZstdCompressionDict(DICTIONARY_BYTES)
VERSION_1 = Path(__file__).with_name("version_1.packed")
PAGE = Path(__file__).parents[2] / "docs" / "packed.md"


class Payload:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        self.at += count
        assert self.at <= len(self.data)
        return self.data[self.at - count : self.at]

    def varint(self) -> int:
        value = shift = 0
        while True:
            (byte,) = self.take(1)
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7


def decode_file(packed: bytes) -> bytes:
    magic, version, count, size, digest, check = struct.unpack_from("<8sB3xIQ32sI", packed)
    assert (magic, check) == (b"\x9dMPACK\r\n", zlib.crc32(packed[:56]))
    assert version in {1, 2}
    at, out, aside = 60, b"", [b""] * 16
    for _ in range(count):
        coding, target, before, length, packed_length, check = struct.unpack_from("<BBxxIIII", packed, at)
        payload = packed[at + 20 : at + 20 + packed_length]
        assert check == zlib.crc32(packed[at : at + 16] + payload)
        at += 20 + packed_length
        out, aside[1] = out + aside[1][:before], aside[1][before:]
        data = (
            payload,
            coding == 1 and zstandard.ZstdDecompressor().decompress(payload),
            coding == 2 and decode_numbers(Payload(payload), length),
            coding == 3 and out[int.from_bytes(payload, "little") :][:length],
            coding == 4 and weave(Payload(payload), aside),
            coding == 5 and zstandard.ZstdDecompressor(DICTIONARY).decompress(payload),
        )[coding]
        assert len(data) == length
        if target == 0:
            out += data
        else:
            assert not aside[target]
            aside[target] = data
    out += aside[1]
    assert not any(aside[2:])
    assert at == len(packed)
    assert len(out) == size
    assert hashlib.sha256(out).digest() == digest
    return out


def weave(payload: Payload, aside: list[bytes]) -> bytes:
    out = b""
    while payload.at < len(payload.data):
        buffer, count = payload.varint(), payload.varint()
        out, aside[buffer] = out + aside[buffer][:count], aside[buffer][count:]
    return out


def decode_numbers(payload: Payload, length: int) -> bytes:
    (width,) = payload.take(1)
    values = decode_array(payload, length // width, width, None)
    return b"".join(value.to_bytes(width, "little") for value in values)


def decode_array(payload: Payload, count: int, width: int, kept: list[int] | None) -> list[int]:
    (form,) = payload.take(1)
    if form == 0:
        (transform,) = payload.take(1)
        planes = [decode_stream(payload, count, 1, kept) for _ in range(width)]
        values = [sum(byte << (8 * index) for index, byte in enumerate(bytes_)) for bytes_ in zip(*planes, strict=True)]
        bits = 8 * width
        if transform == 1:
            return [value >> 1 | (value & 1) << (bits - 1) for value in values]
        if transform == 2:
            return [value >> 1 ^ (2**bits - 1 if value & 1 else 0) for value in values]
        return values
    if form == 1:
        size = payload.varint()
        codebook = [int.from_bytes(payload.take(width), "little") for _ in range(size)]
        return [codebook[index] for index in decode_stream(payload, count, 1 if size <= 256 else 2, kept)]
    assert kept is None
    common = int.from_bytes(payload.take(width), "little")
    if form == 2:
        mask = decode_stream(payload, count, 1, None)
    else:
        packed = decode_stream(payload, (count + 7) // 8, 1, None)
        mask = [packed[index // 8] >> index % 8 & 1 for index in range(count)]
    places = [index for index in range(count) if mask[index]]
    values = [common] * count
    for place, value in zip(places, decode_array(payload, len(places), width, places), strict=True):
        values[place] = value
    return values


def decode_stream(payload: Payload, count: int, width: int, kept: list[int] | None) -> list[int]:
    (form,) = payload.take(1)
    if form in {3, 4}:
        return decode_ans(payload, count, kept, ways=form - 2)
    if form == 1:
        return [int.from_bytes(payload.take(width), "little")] * count
    plain = payload.take(count * width) if form == 0 else b""
    if form == 2:
        plain = zstandard.ZstdDecompressor().decompress(payload.take(payload.varint()))
    return [int.from_bytes(plain[at : at + width], "little") for at in range(0, count * width, width)]


def decode_ans(payload: Payload, count: int, kept: list[int] | None, ways: int) -> list[int]:
    sizes = [payload.varint() for _ in range(ways)]
    groups = math.prod(sizes)
    of_symbol = [0] * count
    for size in sizes:
        if size > 1:
            inner, rows = payload.varint(), payload.varint()
            ids = decode_stream(payload, rows, 1, None)
            found = [ids[place // inner % rows] for place in (range(count) if kept is None else kept)]
            of_symbol = [size * group + more for group, more in zip(of_symbol, found, strict=True)]
    first, size = payload.varint(), payload.varint()
    tables = [borders(payload, size) for _ in range(groups)]
    words = list(struct.unpack(f"<{(words := payload.varint())}I", payload.take(4 * words)))
    state = 0
    while words and state < 2**32:
        state = state << 32 | words.pop()
    out = [0] * count
    for group, left in enumerate(tables):
        for place in (index for index in range(count) if of_symbol[index] == group):
            low = state % 2**24
            symbol = int(np.searchsorted(left, low, side="right")) - 1
            state = (state >> 24) * (left[symbol + 1] - left[symbol]) + low - left[symbol]
            if state < 2**32 and words:
                state = state << 32 | words.pop()
            out[place] = first + symbol
    assert state == 0
    assert not words
    return out


def borders(payload: Payload, size: int) -> list[int]:
    weights: list[int] = []
    while len(weights) < size:
        weights.append(payload.varint())
        if weights[-1] == 0:
            weights += [0] * payload.varint()
    sums = [sum(weights[:index]) for index in range(size + 1)]
    return [index + sums[index] * (2**24 - size) // sums[-1] for index in range(size + 1)]


def channels() -> np.ndarray:
    values = sparse(normal(64, 9, 16), zeros=0.5)
    values[np.random.default_rng(0).random(values.shape) < np.linspace(0, 0.99, 64)[:, None, None]] = 0
    return values


def two_in_four(weight: np.ndarray) -> np.ndarray:
    quads = weight.reshape(-1, 4)
    np.put_along_axis(quads, np.abs(quads).argsort(axis=1)[:, :2], 0, axis=1)
    return weight


MODELS = {
    "floats": [normal(40, 50)],
    "sparse": [sparse(normal(60, 70))],
    "zeros alone": [np.where(np.random.default_rng(0).random((50, 60)) < 0.8, 0, normal(50, 60)).astype(np.float32)],
    "channels": [channels()],
    "rows and columns": [crossed()],
    "two zeros in four": [two_in_four(normal(64, 64))],
    "many values": [normal(1000)[np.random.default_rng(0).integers(0, 1000, 9000)]],
    "twice": [normal(60, 80), normal(3), normal(60, 80)],
    "integers": [np.random.default_rng(0).integers(-50, 50, 2000), np.arange(3000, dtype=np.int32)],
    "int8": [np.random.default_rng(0).normal(0, 9, 9000).astype(np.int8)],
    "small": [normal(300 + index) for index in range(9)] + [np.arange(200 + index) for index in range(9)],
    "halves": [normal(40, 50).astype(np.float16)],
    "noise": [np.random.default_rng(0).integers(0, 256, 2000, dtype=np.uint8)],
}


@pytest.mark.parametrize("name", MODELS)
def test_a_decoder_of_the_documented_format_reads_it(name, packed_form):
    data = holding(*MODELS[name])
    assert decode_file(packed_form(data)) == data


def test_every_form_was_there(packed_form, monkeypatch):
    """The models above would prove little if they all packed alike."""
    seen: set[tuple[str, int]] = set()
    original_array, original_stream = decode_array, decode_stream

    def array(payload, count, width, kept):
        seen.add(("numbers", payload.data[payload.at]))
        return original_array(payload, count, width, kept)

    def stream(payload, count, width, kept):
        form = payload.data[payload.at]
        seen.add(("symbols", form))
        if form == 3:
            seen.add(("groups", min(payload.data[payload.at + 1], 2)))
        return original_stream(payload, count, width, kept)

    monkeypatch.setitem(globals(), "decode_array", array)
    monkeypatch.setitem(globals(), "decode_stream", stream)
    for arrays in MODELS.values():
        decode_file(packed_form(holding(*arrays)))
    assert {("numbers", form) for form in range(4)} <= seen
    assert {("symbols", form) for form in range(5)} <= seen
    assert {("groups", 1), ("groups", 2)} <= seen


def test_what_an_earlier_version_packed_is_read(unpacked_form):
    packed, weight = VERSION_1.read_bytes(), normal(60, 20)
    plain = holding(sparse(normal(64, 70)), np.arange(400), weight, normal(3), weight, normal(300))
    assert packed[8] == 1
    assert unpacked_form(packed) == plain
    assert decode_file(packed) == plain


def test_the_page_names_the_dictionary():
    assert f"`{hashlib.sha256(DICTIONARY_BYTES).hexdigest()}`" in PAGE.read_text("utf-8")


def test_a_version_of_the_future_is_named(packed_form, unpacked_form):
    packed = bytearray(packed_form(holding(normal(9))))
    packed[8] = 3
    with pytest.raises(PackedError, match="packed by version 3 of the format; this program reads 1 to 2"):
        unpacked_form(bytes(packed))
