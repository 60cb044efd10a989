"""Reading numbers and bytes out of a payload that may say anything."""

from __future__ import annotations

from modelpress.packed.errors import PackedError

LARGEST_VARINT = 2**32 - 1
"""Nothing inside a block counts higher."""


class Cursor:
    """A place in a payload. Every read raises PackedError where the payload ends before it does."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._at = 0

    def take(self, count: int) -> memoryview:
        end = self._at + count
        if end > len(self._data):
            raise PackedError("damaged: a block ends before what it holds does")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self, most: int = LARGEST_VARINT) -> int:
        """An unsigned LEB128 number of at most `most`."""
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if value > most or shift > 28:
                raise PackedError(f"damaged: a number in a block is larger than {most}")
            if byte < 0x80:
                return value
            shift += 7

    def finish(self) -> None:
        if self._at != len(self._data):
            raise PackedError("damaged: a block holds more than it should")


def varint(value: int) -> bytes:
    """An unsigned number as LEB128: seven bits a byte, the lowest first, the top bit set on all but the last."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
