"""The element types that the engine knows: ONNX's number, torch's dtype and numpy's word for each."""

from __future__ import annotations

from itertools import chain

import torch
from onnx import TensorProto

_NUMBERS: tuple[tuple[int, torch.dtype, str], ...] = (
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
_BYTES: tuple[tuple[int, torch.dtype, str], ...] = (
    (TensorProto.FLOAT8E4M3FN, torch.float8_e4m3fn, "float8_e4m3fn"),
    (TensorProto.FLOAT8E4M3FNUZ, torch.float8_e4m3fnuz, "float8_e4m3fnuz"),
    (TensorProto.FLOAT8E5M2, torch.float8_e5m2, "float8_e5m2"),
    (TensorProto.FLOAT8E5M2FNUZ, torch.float8_e5m2fnuz, "float8_e5m2fnuz"),
    (TensorProto.FLOAT8E8M0, torch.float8_e8m0fnu, "float8_e8m0fnu"),
)
_HELD: tuple[tuple[int, torch.dtype, str], ...] = (
    (TensorProto.INT4, torch.int8, "int4"),
    (TensorProto.UINT4, torch.uint8, "uint4"),
    (TensorProto.INT2, torch.int8, "int2"),
    (TensorProto.UINT2, torch.uint8, "uint2"),
    (TensorProto.FLOAT4E2M1, torch.float8_e4m3fn, "float4_e2m1fn"),
)
"""Types that torch has no operations for: here a value takes a byte, and only inputs and outputs are called so."""

NUMBERS: frozenset[int] = frozenset(number for number, _, _ in _NUMBERS)
"""What every part of the engine and of ONNX Runtime takes; the narrower types are there to be cast."""
NARROW: dict[int, int] = {
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
    TensorProto.INT2: 2,
    TensorProto.UINT2: 2,
    TensorProto.FLOAT4E2M1: 4,
}
"""Bits of the types that files pack several to a byte."""

TORCH_OF_ONNX: dict[int, torch.dtype] = {number: dtype for number, dtype, _ in chain(_NUMBERS, _BYTES, _HELD)}
ONNX_OF_TORCH: dict[torch.dtype, int] = {dtype: number for number, dtype, _ in chain(_NUMBERS, _BYTES)}
WORD_OF_TORCH: dict[torch.dtype, str] = {dtype: word for _, dtype, word in chain(_NUMBERS, _BYTES)}
TORCH_OF_WORD: dict[str, torch.dtype] = {word: dtype for _, dtype, word in chain(_NUMBERS, _BYTES, _HELD)}
WORD_OF_ONNX: dict[int, str] = {number: word for number, _, word in chain(_NUMBERS, _BYTES, _HELD)}
ONNX_OF_WORD: dict[str, int] = {word: number for number, word in WORD_OF_ONNX.items()}
