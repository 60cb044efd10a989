"""How many of the 8 bits a weight uses: without VNNI, products of 8-bit values saturate a 16-bit sum."""

from __future__ import annotations

from typing import Literal

from modelpress.jobs import Runtime


def weight_bits(asked: Literal["auto", 7, 8], runtime: Runtime) -> Literal[7, 8]:
    """The width for this runtime. AVX2's VPMADDUBSW adds two u8 × s8 products in 16 bits; 7 bits cannot overflow it."""
    if asked != "auto":
        return asked
    return 7 if runtime == "cpu-avx2" else 8


def stored_bits(asked: Literal["auto", 7, 8]) -> Literal[7, 8]:
    """The width of weights that are only stored: they compute in float, where nothing overflows on any runtime."""
    return 7 if asked == 7 else 8
