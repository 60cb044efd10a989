"""`.parquet`: columns of numbers, or of lists of numbers that are all of one length, as arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from workers.engine.data.dataset import MAX_ARRAYS, MAX_BYTES, MAX_FACTOR, Arrays
from workers.engine.errors import InvalidDataError

WIDTH = 8
"""Bytes of a value, at most."""
ALWAYS_ALLOWED = 64 << 20
"""Bytes that any file may unfold to: a constant column is small, and harmless up to here."""


def read_parquet(path: Path, scratch: Path) -> Arrays:  # noqa: ARG001 (nothing unfolds: all formats read alike)
    """Raises InvalidDataError for nulls, texts, lists of unequal length and damage."""
    try:
        with pq.ParquetFile(path) as file:
            _check(file, path.stat().st_size)
            names = file.schema_arrow.names
            return {name: _column(name, file.read([name], use_threads=False).column(0)) for name in names}
    except (pa.ArrowException, OSError) as error:
        raise InvalidDataError(f"the .parquet file cannot be read: {error}") from error


def _check(file: pq.ParquetFile, size: int) -> None:
    names = file.schema_arrow.names
    if len(names) > MAX_ARRAYS:
        raise InvalidDataError(f"the .parquet file has {len(names)} columns; at most {MAX_ARRAYS} are allowed")
    if len(set(names)) < len(names):
        raise InvalidDataError("the .parquet file has two columns of one name")
    groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
    values = sum(group.column(index).num_values for group in groups for index in range(group.num_columns))
    if values * WIDTH > min(MAX_BYTES, max(ALWAYS_ALLOWED, size * MAX_FACTOR)):
        raise InvalidDataError(
            f"the .parquet file of {size} bytes promises {values} values, more than is allowed: use fewer examples"
        )


def _column(name: str, column: pa.ChunkedArray) -> NDArray:
    chunks = [_array(name, chunk) for chunk in column.chunks if len(chunk)]
    if not chunks:
        return np.empty((0,), np.float32)
    if len({chunk.shape[1:] for chunk in chunks}) > 1:
        raise InvalidDataError(_unequal(name))
    return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)


def _array(name: str, chunk: pa.Array) -> NDArray:
    """A chunk of a column as an array, nested lists as further axes."""
    if chunk.null_count:
        raise InvalidDataError(f"the column {name!r} has missing values: fill them in, or take those rows out")
    kind = chunk.type
    if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inner = chunk.flatten()
        size, rest = divmod(len(inner), len(chunk))
        if rest or not _equal_lengths(chunk, size):
            raise InvalidDataError(_unequal(name))
        values = _array(name, inner) if len(inner) else np.empty((0,), np.float32)
        return values.reshape(len(chunk), size, *values.shape[1:])
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise InvalidDataError(f"the column {name!r} holds {kind}: only numbers and lists of numbers can be used")
    return chunk.to_numpy(zero_copy_only=False)


def _equal_lengths(chunk: pa.Array, size: int) -> bool:
    if pa.types.is_fixed_size_list(chunk.type):
        return True
    return bool((np.diff(chunk.offsets.to_numpy()) == size).all())


def _unequal(name: str) -> str:
    return f"the lists in the column {name!r} are of different lengths: pad them to one length"
