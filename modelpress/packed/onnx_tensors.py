"""Where an ONNX file's tensors lie: a walk over the protobuf wire format that believes nothing it reads.

What does not look like ONNX is not an error: its bytes are simply nobody's tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from modelpress.packed.kinds import Kind, Transform

SMALLEST = 128
"""Bytes of a tensor from which on its numbers are told from the structure. Shorter messages are not looked into."""
MOST_FIELDS = 1 << 18
"""Fields that are looked at before the rest of a file is left as it is."""

VARINT, BYTES = 0, 2

INTO: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
}
"""Message: the fields in which tensors may lie, and the message that each holds."""

DEEPEST = 32

DIMS, DATA_TYPE = 1, 2
FLOAT_DATA, INT32_DATA, INT64_DATA, RAW_DATA, DOUBLE_DATA, UINT64_DATA = 4, 5, 7, 9, 10, 11
HOLDING = {FLOAT_DATA, INT32_DATA, INT64_DATA, RAW_DATA, DOUBLE_DATA, UINT64_DATA}

BYTE = Kind(1)
FLOAT, DOUBLE, HALF = Kind(4, Transform.ROTATE), Kind(8, Transform.ROTATE), Kind(2, Transform.ROTATE)
KINDS = {
    1: FLOAT,
    4: Kind(2),
    5: Kind(2, Transform.ZIGZAG),
    6: Kind(4, Transform.ZIGZAG),
    7: Kind(8, Transform.ZIGZAG),
    10: HALF,
    11: DOUBLE,
    12: Kind(4),
    13: Kind(8),
    14: FLOAT,
    15: DOUBLE,
    16: HALF,
}
"""By TensorProto.DataType, of those that take more than a byte each."""


@dataclass(frozen=True)
class TensorData:
    """The data of one tensor: where it lies, of what kind its numbers are, and the shape that the file claims."""

    start: int
    size: int
    kind: Kind
    dims: tuple[int, ...]


@dataclass
class Walk:
    file: BinaryIO
    fields_left: int = field(default=MOST_FIELDS)

    def tensors(self, size: int) -> Iterator[TensorData]:
        """In the order in which they lie; none overlaps another."""
        yield from self._message("Model", 0, size, 0)

    def _message(self, name: str, start: int, end: int, depth: int) -> Iterator[TensorData]:
        into = INTO[name]
        for number, wire, at, length in self._fields(start, end):
            if wire == BYTES and length >= SMALLEST and number in into and depth < DEEPEST:
                if into[number] == "Tensor":
                    yield from self._tensor(at, at + length)
                else:
                    yield from self._message(into[number], at, at + length, depth + 1)

    def _tensor(self, start: int, end: int) -> Iterator[TensorData]:
        dims: list[int] = []
        data_type = 0
        held: list[tuple[int, int, int]] = []
        for number, wire, at, length in self._fields(start, end):
            if number == DIMS:
                dims += self._numbers(at, length)
            elif number == DATA_TYPE and wire == VARINT:
                data_type = next(self._numbers(at, length), 0)
            elif number in HOLDING and wire == BYTES and length >= SMALLEST:
                held.append((number, at, length))
        for number, at, length in held:
            yield TensorData(at, length, _kind(number, data_type, length), tuple(dims) if number == RAW_DATA else ())

    def _fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """(number, wire type, where its content lies, how long it is) of a message's fields, until one is not sound."""
        at = start
        while at < end and self.fields_left > 0:
            self.fields_left -= 1
            self.file.seek(at)
            head = self.file.read(min(20, end - at))
            tag, used = _varint(head, 0)
            number, wire = tag >> 3, tag & 7
            if not used or not number:
                return
            match wire:
                case 0:  # VARINT
                    content, length = at + used, _varint(head, used)[1] - used
                case 2:  # BYTES
                    length, used = _varint(head, used)
                    content = at + used
                case 1 | 5:  # FIXED64, FIXED32
                    content, length = at + used, 8 if wire == 1 else 4
                case _:
                    return
            if not used or length < 0 or content + length > end:
                return
            yield number, wire, content, length
            at = content + length

    def _numbers(self, at: int, length: int) -> Iterator[int]:
        self.file.seek(at)
        data = self.file.read(min(length, 200))
        place = 0
        while place < len(data):
            value, place = _varint(data, place)
            if not place:
                return
            yield value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(value, where it ends); (0, 0) where there is none."""
    value = 0
    for index, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    return 0, 0


def _kind(number: int, data_type: int, length: int) -> Kind:
    kind = {FLOAT_DATA: FLOAT, DOUBLE_DATA: DOUBLE, RAW_DATA: KINDS.get(data_type, BYTE)}.get(number, BYTE)
    return kind if length % kind.width == 0 else BYTE
