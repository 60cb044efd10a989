"""Stored tensors of an ONNX file: every size is checked against the bytes that are there before memory is taken."""

from __future__ import annotations

import ctypes
import math

import numpy as np
import torch
from onnx import SparseTensorProto, TensorProto
from torch import Tensor

from workers.engine.dtypes import NARROW, TORCH_OF_ONNX, WORD_OF_TORCH
from workers.engine.errors import InvalidModelError, UnsupportedModelError
from workers.engine.ops.base import MOST
from workers.engine.readers.onnx_external import ExternalFiles
from workers.engine.readers.onnx_node import shown

_IN_INT32: dict[int, type[np.generic]] = {
    TensorProto.INT32: np.int32,
    TensorProto.INT16: np.int16,
    TensorProto.INT8: np.int8,
    TensorProto.UINT16: np.uint16,
    TensorProto.UINT8: np.uint8,
    TensorProto.BOOL: np.bool_,
    TensorProto.FLOAT16: np.uint16,
    TensorProto.BFLOAT16: np.uint16,
    TensorProto.FLOAT8E4M3FN: np.uint8,
    TensorProto.FLOAT8E4M3FNUZ: np.uint8,
    TensorProto.FLOAT8E5M2: np.uint8,
    TensorProto.FLOAT8E5M2FNUZ: np.uint8,
    TensorProto.FLOAT8E8M0: np.uint8,
}


FLOAT4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""What 4-bit floats can be, by the number that their bits without the sign are."""


def read_tensor(proto: TensorProto, name: str, external: ExternalFiles | None = None) -> Tensor:
    """A copy, or a window into a data file.

    Raises InvalidModelError where sizes disagree, UnsupportedModelError for other types and missing files.
    """
    dtype = TORCH_OF_ONNX.get(proto.data_type)
    if dtype is None:
        kind = TensorProto.DataType.Name(proto.data_type) if proto.data_type in TensorProto.DataType.values() else "?"
        raise UnsupportedModelError(f"tensor {shown(name)} has elements of type {kind}, which is not supported")
    shape = tuple(proto.dims)
    if any(size < 0 for size in shape):
        raise InvalidModelError(f"tensor {shown(name)} has a negative dimension: {list(shape)}")
    count = math.prod(shape)
    if proto.data_type in NARROW:
        return _unpacked(proto, dtype, shape, count, name, external)
    if proto.data_location == TensorProto.EXTERNAL:
        window = (external or ExternalFiles()).window(proto, name, count * dtype.itemsize)
        aligned = not ctypes.addressof(ctypes.c_char.from_buffer(window)) % dtype.itemsize if count else True
        return _over(window if aligned else bytearray(window), dtype, shape)
    if proto.HasField("raw_data"):
        return _from_bytes(proto.raw_data, dtype, shape, count, name)
    return _from_fields(proto, dtype, shape, count, name)


def read_sparse(proto: SparseTensorProto, name: str) -> Tensor:
    """The dense form of a sparse tensor. Raises InvalidModelError where its parts do not fit each other."""
    shape = tuple(proto.dims)
    if any(size < 0 for size in shape) or math.prod(shape) > MOST:
        raise InvalidModelError(f"the sparse tensor {shown(name)} has an impossible or too large shape: {list(shape)}")
    values, places = read_tensor(proto.values, name), read_tensor(proto.indices, name)
    if (
        values.dim() != 1
        or places.dtype != torch.int64
        or places.shape not in ((len(values),), (len(values), len(shape)))
    ):
        raise InvalidModelError(f"the sparse tensor {shown(name)} needs one place for each value")
    if places.dim() == 2:
        bounds = torch.tensor(shape, dtype=torch.int64)
        inside = bool(((places >= 0) & (places < bounds)).all())
        steps = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        places = (places * torch.tensor(steps, dtype=torch.int64)).sum(1)
    else:
        inside = bool(((places >= 0) & (places < math.prod(shape))).all())
    if not inside:
        raise InvalidModelError(f"the sparse tensor {shown(name)} has values outside of its shape")
    dense = torch.zeros(math.prod(shape), dtype=values.dtype)
    dense[places] = values
    return dense.reshape(shape)


def _from_bytes(raw: bytes, dtype: torch.dtype, shape: tuple[int, ...], count: int, name: str) -> Tensor:
    if len(raw) != count * dtype.itemsize:
        raise InvalidModelError(
            f"tensor {shown(name)} of {WORD_OF_TORCH[dtype]} {list(shape)} needs {count * dtype.itemsize} bytes "
            f"but the file has {len(raw)}; it may be cut off"
        )
    return _over(bytearray(raw), dtype, shape)


def _unpacked(
    proto: TensorProto,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    count: int,
    name: str,
    external: ExternalFiles | None,
) -> Tensor:
    """Values of 4 or 2 bits, the first in the lowest bits of its byte; each takes a byte here."""
    bits = NARROW[proto.data_type]
    packed = TensorProto(data_type=TensorProto.UINT8, dims=[-(-count * bits // 8)])
    if proto.data_location == TensorProto.EXTERNAL:
        packed.data_location = proto.data_location
        packed.external_data.extend(proto.external_data)
    elif proto.HasField("raw_data"):
        packed.raw_data = proto.raw_data
    else:
        packed.int32_data.extend(proto.int32_data)
    together = read_tensor(packed, name, external)
    parts = torch.stack([together >> shift & (1 << bits) - 1 for shift in range(0, 8, bits)], 1)
    values = parts.flatten()[:count].reshape(shape)
    if dtype is torch.uint8:
        return values
    if dtype.is_floating_point:
        return torch.tensor([*FLOAT4, *(-value for value in FLOAT4)])[values.long()].to(dtype)
    sign = 1 << bits - 1
    return (values.to(torch.int8) ^ sign) - sign


def _over(raw: bytearray | memoryview, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """A tensor of these bytes, not copied where that can be."""
    if not len(raw):
        return torch.empty(shape, dtype=dtype)
    if dtype is torch.bool:
        return torch.frombuffer(raw, dtype=torch.uint8).ne(0).reshape(shape)
    return torch.frombuffer(raw, dtype=dtype).reshape(shape)


def _from_fields(proto: TensorProto, dtype: torch.dtype, shape: tuple[int, ...], count: int, name: str) -> Tensor:
    kind = proto.data_type
    if kind in _IN_INT32:
        values, narrow = proto.int32_data, _IN_INT32[kind]
    elif kind == TensorProto.FLOAT:
        values, narrow = proto.float_data, np.float32
    elif kind == TensorProto.DOUBLE:
        values, narrow = proto.double_data, np.float64
    elif kind == TensorProto.INT64:
        values, narrow = proto.int64_data, np.int64
    else:
        values, narrow = proto.uint64_data, np.uint32 if kind == TensorProto.UINT32 else np.uint64
    if len(values) != count:
        raise InvalidModelError(
            f"tensor {shown(name)} of shape {list(shape)} needs {count} values but the file has {len(values)}"
        )
    wide = np.array(values, dtype=np.int64 if kind in _IN_INT32 else narrow)
    tensor = torch.from_numpy(wide.astype(narrow)).reshape(shape)
    return tensor.view(dtype) if tensor.dtype != dtype else tensor
