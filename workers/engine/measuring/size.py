"""What a file weighs, and what the graph in it holds."""

from __future__ import annotations

from pathlib import Path

import zstandard

from modelpress.models import ModelStats
from modelpress.packed import packed_size
from modelpress.report import Size

LEVEL = 19
QUICK_LEVEL = 9
QUICK_FROM = 32 << 20
"""Level 19 takes seconds for so many bytes, and for weights it says little that level 9 does not."""


def measure_size(file: Path, onnx: Path, stats: ModelStats) -> Size:
    """Of a file that is given out, and of the same model as a packed one, which is made of its ONNX file."""
    return Size(
        bytes=file.stat().st_size,
        zstd_bytes=compressed_size(file),
        packed_bytes=packed_size(onnx),
        parameters=stats.parameters,
        nonzeros=stats.nonzeros,
        macs=stats.macs,
    )


def compressed_size(file: Path) -> int:
    """Bytes after zstd, streamed."""
    size = file.stat().st_size
    level = LEVEL if size < QUICK_FROM else QUICK_LEVEL
    with file.open("rb") as source:
        chunks = zstandard.ZstdCompressor(level=level).read_to_iter(source, size=size)
        return sum(len(chunk) for chunk in chunks)
