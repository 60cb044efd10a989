"""Puts an ONNX file together without a copy of its weights: protobuf makes everything else, weights stream after it.

The bytes are those that protobuf itself would write for the whole message.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import SEEK_CUR
from typing import BinaryIO

import torch
from onnx import GraphProto, ModelProto, TensorProto
from torch import Tensor

from workers.engine.dtypes import ONNX_OF_TORCH
from workers.engine.protobuf import varint

GRAPH, INITIALIZER, RAW_DATA = b"\x3a", b"\x2a", b"\x4a"
"""Tags of ModelProto.graph (field 7), GraphProto.initializer (5) and TensorProto.raw_data (9)."""
INLINE = 1024
"""Bytes up to which a tensor stays in the model when others lie in a data file: runtimes look at shapes early."""
PAGE = 4096
"""Tensors in a data file start on pages, so that runtimes can map them."""
PIECE = 1 << 24
"""Bytes that are laid out at once where a weight does not lie in memory as the file has it."""


@dataclass(frozen=True)
class Stored:
    """A tensor that the file holds. `kind`: its ONNX element type; `values` may hold several packed into a byte."""

    name: str
    kind: int
    dims: tuple[int, ...]
    values: Tensor

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> Stored:
        return cls(name, ONNX_OF_TORCH[tensor.dtype], tuple(tensor.shape), tensor)

    @property
    def size(self) -> int:
        return self.values.numel() * self.values.element_size()

    def content(self) -> Iterator[memoryview]:
        """The bytes, in order, without a copy where they lie so in memory already."""
        values = self.values.detach()
        if not values.numel():
            return
        if values.device.type == "cpu" and values.is_contiguous():
            yield _bytes(values)
            return
        rows = values.reshape(1, *values.shape) if values.dim() < 2 else values
        step = max(1, PIECE // max(1, rows[0].numel() * rows.element_size()))
        for start in range(0, len(rows), step):
            yield _bytes(rows[start : start + step].cpu().contiguous())

    def proto(self) -> TensorProto:
        """The whole message, for tensors that are attributes."""
        return TensorProto(name=self.name, data_type=self.kind, dims=self.dims, raw_data=b"".join(self.content()))

    def head(self) -> bytes:
        """What stands in the graph before the bytes of the tensor, which come last in its message."""
        inner = TensorProto(name=self.name, data_type=self.kind, dims=self.dims).SerializeToString()
        inner += RAW_DATA + varint(self.size)
        return INITIALIZER + varint(len(inner) + self.size) + inner

    def reference(self, file: str, offset: int) -> bytes:
        """What stands in the graph where the bytes lie in a data file."""
        proto = TensorProto(name=self.name, data_type=self.kind, dims=self.dims, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", file), ("offset", str(offset)), ("length", str(self.size))):
            proto.external_data.add(key=key, value=value)
        return _initializer(proto)


@dataclass(frozen=True)
class Assembly:
    """A model without initializers, the tensors that it stores, and those of kinds that the engine does not know."""

    model: ModelProto
    tensors: Sequence[Stored]
    others: Sequence[TensorProto]

    @property
    def size(self) -> int:
        """Bytes of the file, to within what lengths of messages take."""
        stored = sum(len(tensor.head()) + tensor.size for tensor in self.tensors)
        return self.model.ByteSize() + stored + sum(proto.ByteSize() for proto in self.others)

    def write(self, file: BinaryIO) -> None:
        file.writelines(self._pieces([(tensor.head(), tensor) for tensor in self.tensors]))

    def write_with_data(self, file: BinaryIO, data: BinaryIO, name: str) -> None:
        """The large tensors go to a data file, which lies beside the model under this name."""
        entries: list[tuple[bytes, Stored | None]] = []
        for tensor in self.tensors:
            if tensor.size <= INLINE:
                entries.append((tensor.head(), tensor))
                continue
            data.seek(-data.tell() % PAGE, SEEK_CUR)
            entries.append((tensor.reference(name, data.tell()), None))
            data.writelines(tensor.content())
        file.writelines(self._pieces(entries))

    def _pieces(self, entries: Sequence[tuple[bytes, Stored | None]]) -> Iterator[bytes | memoryview]:
        others = b"".join(_initializer(proto) for proto in self.others)
        inner_before, inner_after = _split(self.model.graph, GraphProto.DESCRIPTOR.fields_by_name["initializer"].number)
        size = len(inner_before) + len(others) + len(inner_after)
        size += sum(len(head) + (tensor.size if tensor else 0) for head, tensor in entries)
        before, after = _split(self.model, ModelProto.DESCRIPTOR.fields_by_name["graph"].number)
        yield before + GRAPH + varint(size) + inner_before
        for head, tensor in entries:
            yield head
            if tensor is not None:
                yield from tensor.content()
        yield others + inner_after + after


def _split(message: ModelProto | GraphProto, number: int) -> tuple[bytes, bytes]:
    """The message's fields before the one of this number, and those after it."""
    before, after = type(message)(), type(message)()
    before.CopyFrom(message)
    after.CopyFrom(message)
    for field in message.DESCRIPTOR.fields:
        if field.number >= number:
            before.ClearField(field.name)
        if field.number <= number:
            after.ClearField(field.name)
    return before.SerializeToString(deterministic=True), after.SerializeToString(deterministic=True)


def _initializer(proto: TensorProto) -> bytes:
    content = bytes(proto.SerializeToString(deterministic=True))
    return INITIALIZER + varint(len(content)) + content


def _bytes(values: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return values.reshape(-1).view(torch.uint8).numpy().data
