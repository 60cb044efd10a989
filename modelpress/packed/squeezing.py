"""zstd, for what repeats."""

from __future__ import annotations

import zstandard

from modelpress.packed.errors import PackedError

QUICK, THOROUGH = 1, 9


def squeeze(plain: bytes, level: int) -> bytes:
    """One frame, which says how much it holds."""
    return zstandard.ZstdCompressor(level=level).compress(plain)


def unsqueeze(data: memoryview, size: int) -> bytes:
    """Raises PackedError unless the frame says, before anything is allocated, and holds exactly `size` bytes."""
    try:
        if zstandard.get_frame_parameters(data).content_size != size:
            raise PackedError("damaged: a zstd frame of another size")
        plain = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise PackedError(f"damaged: {error}") from None
    if len(plain) != size:
        raise PackedError("damaged: a zstd frame of another size")
    return plain
