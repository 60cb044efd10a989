"""zstd, for what repeats, and with a dictionary for what ONNX files have in common."""

from __future__ import annotations

from functools import cache

import zstandard

from modelpress.packed.dictionary import DICTIONARY
from modelpress.packed.errors import PackedError

QUICK, THOROUGH, UTMOST = 1, 9, 19
SHORT = 128 << 10
"""Bytes up to which the utmost takes no time."""


def squeeze(plain: bytes, level: int) -> bytes:
    """One frame, which says how much it holds."""
    return zstandard.ZstdCompressor(level=level).compress(plain)


def squeeze_structure(plain: bytes) -> bytes:
    """One frame that is read with the dictionary."""
    level = UTMOST if len(plain) <= SHORT else THOROUGH
    parameters = zstandard.ZstdCompressionParameters.from_level(level, source_size=len(plain), write_dict_id=False)
    return zstandard.ZstdCompressor(compression_params=parameters, dict_data=_dictionary()).compress(plain)


@cache
def _dictionary() -> zstandard.ZstdCompressionDict:
    return zstandard.ZstdCompressionDict(DICTIONARY)


def unsqueeze(data: memoryview, size: int, *, structure: bool = False) -> bytes:
    """Raises PackedError unless the frame says, before anything is allocated, and holds exactly `size` bytes."""
    decompressor = zstandard.ZstdDecompressor(dict_data=_dictionary() if structure else None)
    try:
        if zstandard.get_frame_parameters(data).content_size != size:
            raise PackedError("damaged: a zstd frame of another size")
        plain = decompressor.decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise PackedError(f"damaged: {error}") from None
    if len(plain) != size:
        raise PackedError("damaged: a zstd frame of another size")
    return plain
