"""Finds the weights inside of an ONNX file, so that protobuf, which copies everything it reads, never sees them.

A message is a row of fields: a number that says which field and how long it is, and its content. Here the large
`raw_data` of initializers give way to a reference to their place in the very file, as to a data file beside it.
"""

from __future__ import annotations

from collections.abc import Iterator

from onnx import GraphProto, ModelProto, TensorProto

from workers.engine.protobuf import read_varint, varint

OWN = "\0"
"""The location of what lies in the model's file itself; no file of that name can be opened."""
LARGE = 4096
"""Bytes from which on a tensor is left where it is."""


def _number(message: type[ModelProto | GraphProto | TensorProto], field: str) -> int:
    return int(message.DESCRIPTOR.fields_by_name[field].number)


GRAPH = _number(ModelProto, "graph")
INITIALIZER = _number(GraphProto, "initializer")
RAW_DATA = _number(TensorProto, "raw_data")
PLACE = {_number(TensorProto, "external_data"), _number(TensorProto, "data_location")}


def without_weights(data: memoryview) -> bytes:
    """The model with references for its large initializers. What is no ONNX model comes back as it is."""
    try:
        return b"".join(_model(data))
    except (IndexError, ValueError):
        return bytes(data)


def _model(data: memoryview) -> Iterator[bytes | memoryview]:
    for number, start, content, end in _fields(data, 0, len(data)):
        if number == GRAPH and content is not None:
            parts = list(_graph(data, content, end))
            yield data[start : start + _tag_length(data, start)]
            yield varint(sum(map(len, parts)))
            yield from parts
        else:
            yield data[start:end]


def _graph(data: memoryview, begin: int, stop: int) -> Iterator[bytes | memoryview]:
    for number, start, content, end in _fields(data, begin, stop):
        if number == INITIALIZER and content is not None and end - content >= LARGE:
            tensor = b"".join(_tensor(data, content, end))
            yield data[start : start + _tag_length(data, start)]
            yield varint(len(tensor))
            yield tensor
        else:
            yield data[start:end]


def _tensor(data: memoryview, begin: int, stop: int) -> Iterator[bytes | memoryview]:
    """As it is where it says itself that it lies elsewhere, or says twice what its bytes are."""
    fields = list(_fields(data, begin, stop))
    raw = [(content, end) for number, _, content, end in fields if number == RAW_DATA and content is not None]
    placed = any(number in PLACE for number, _, _, _ in fields)
    if len(raw) != 1 or placed or raw[0][1] - raw[0][0] < LARGE:
        yield data[begin:stop]
        return
    yield from (data[start:end] for number, start, _, end in fields if number != RAW_DATA)
    content, end = raw[0]
    reference = TensorProto(data_location=TensorProto.EXTERNAL)
    for key, value in (("location", OWN), ("offset", str(content)), ("length", str(end - content))):
        reference.external_data.add(key=key, value=value)
    yield reference.SerializeToString()


def _fields(data: memoryview, begin: int, stop: int) -> Iterator[tuple[int, int, int | None, int]]:
    """Field number, where it begins, where its content begins (None: it is a plain number), and where it ends.

    Raises IndexError or ValueError where this is no message.
    """
    place = begin
    while place < stop:
        start = place
        tag, place = read_varint(data, place)
        content: int | None = None
        match tag & 7:
            case 0:  # a number
                _, place = read_varint(data, place)
            case 1:  # 64 bits
                place += 8
            case 5:  # 32 bits
                place += 4
            case 2:  # text, bytes or a message
                length, content = read_varint(data, place)
                place = content + length
            case _:  # groups, which ONNX does not use
                raise ValueError(tag)
        if place > stop:
            raise ValueError(place)
        yield tag >> 3, start, content, place


def _tag_length(data: memoryview, start: int) -> int:
    return read_varint(data, start)[1] - start
