"""The element types that the engine knows: ONNX's number, torch's dtype and numpy's word for each."""

from __future__ import annotations

import torch
from onnx import TensorProto

_TYPES: tuple[tuple[int, torch.dtype, str], ...] = (
    (TensorProto.FLOAT, torch.float32, "float32"),
    (TensorProto.DOUBLE, torch.float64, "float64"),
    (TensorProto.FLOAT16, torch.float16, "float16"),
    (TensorProto.BFLOAT16, torch.bfloat16, "bfloat16"),
    (TensorProto.INT8, torch.int8, "int8"),
    (TensorProto.INT16, torch.int16, "int16"),
    (TensorProto.INT32, torch.int32, "int32"),
    (TensorProto.INT64, torch.int64, "int64"),
    (TensorProto.UINT8, torch.uint8, "uint8"),
    (TensorProto.UINT16, torch.uint16, "uint16"),
    (TensorProto.UINT32, torch.uint32, "uint32"),
    (TensorProto.UINT64, torch.uint64, "uint64"),
    (TensorProto.BOOL, torch.bool, "bool"),
)

TORCH_OF_ONNX: dict[int, torch.dtype] = {number: dtype for number, dtype, _ in _TYPES}
ONNX_OF_TORCH: dict[torch.dtype, int] = {dtype: number for number, dtype, _ in _TYPES}
WORD_OF_TORCH: dict[torch.dtype, str] = {dtype: word for _, dtype, word in _TYPES}
TORCH_OF_WORD: dict[str, torch.dtype] = {word: dtype for _, dtype, word in _TYPES}
