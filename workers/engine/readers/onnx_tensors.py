"""Stored tensors of an ONNX file: every size is checked against the bytes that are there before memory is taken."""

from __future__ import annotations

import math

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor

from workers.engine.dtypes import TORCH_OF_ONNX, WORD_OF_TORCH
from workers.engine.errors import InvalidModelError, UnsupportedModelError
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
}


def read_tensor(proto: TensorProto, name: str) -> Tensor:
    """A copy. Raises InvalidModelError where sizes disagree, UnsupportedModelError for other types."""
    if proto.data_location == TensorProto.EXTERNAL:
        raise UnsupportedModelError(
            f"tensor {shown(name)} is kept in another file; save the model as one file "
            "(onnx.save_model(model, path, save_as_external_data=False)) and send that"
        )
    dtype = TORCH_OF_ONNX.get(proto.data_type)
    if dtype is None:
        kind = TensorProto.DataType.Name(proto.data_type) if proto.data_type in TensorProto.DataType.values() else "?"
        raise UnsupportedModelError(f"tensor {shown(name)} has elements of type {kind}, which is not supported")
    shape = tuple(proto.dims)
    if any(size < 0 for size in shape):
        raise InvalidModelError(f"tensor {shown(name)} has a negative dimension: {list(shape)}")
    count = math.prod(shape)
    if proto.HasField("raw_data"):
        return _from_bytes(proto.raw_data, dtype, shape, count, name)
    return _from_fields(proto, dtype, shape, count, name)


def _from_bytes(raw: bytes, dtype: torch.dtype, shape: tuple[int, ...], count: int, name: str) -> Tensor:
    if len(raw) != count * dtype.itemsize:
        raise InvalidModelError(
            f"tensor {shown(name)} of {WORD_OF_TORCH[dtype]} {list(shape)} needs {count * dtype.itemsize} bytes "
            f"but the file has {len(raw)}; it may be cut off"
        )
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    if dtype is torch.bool:
        return torch.frombuffer(bytearray(raw), dtype=torch.uint8).ne(0).reshape(shape)
    return torch.frombuffer(bytearray(raw), dtype=dtype).reshape(shape)


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
