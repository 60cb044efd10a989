"""A dataset file as named arrays: which format it is, what it may hold, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modelpress.matching import usual_class_axis
from modelpress.models import ArraySpec, DatasetSpec
from workers.engine.errors import InvalidDataError

Arrays = dict[str, NDArray]

MAX_ARRAYS = 256
MAX_BYTES = 64 << 30
"""Of all arrays together, unpacked."""
MAX_FACTOR = 1100
"""Of the file's size. Deflate cannot do more than 1032 to 1, so that a larger promise is a lie; no real data does."""
MAX_NAME = 255
KINDS = "biuf"
"""Booleans, integers, floats. The rest (objects, strings, dates, complex numbers) no model input takes."""
SCANNED_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Dataset:
    """Named arrays whose first axis counts the examples; memory-mapped where the file allows it."""

    arrays: Arrays
    spec: DatasetSpec


def read_dataset(path: Path, scratch: Path) -> Dataset:
    """Read `.npz`, `.safetensors` or `.parquet`, told apart by content. Large compressed arrays unfold in `scratch`.

    Raises InvalidDataError with what is wrong and what to do.
    """
    arrays = _reader(path)(path, scratch)
    if not arrays:
        raise InvalidDataError("the dataset holds no array: save at least the model's inputs, one array an input")
    _check_names(list(arrays))
    arrays = {name: _plain(name, array) for name, array in arrays.items()}
    return Dataset(
        arrays, DatasetSpec(examples=_examples(arrays), arrays=tuple(map(_describe, arrays, arrays.values())))
    )


def _reader(path: Path) -> Callable[[Path, Path], Arrays]:
    with path.open("rb") as file:
        head = file.read(9)
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        from workers.engine.data.npz import read_npz  # noqa: PLC0415 (each format loads only what it needs)

        return read_npz
    if head[:4] == b"PAR1":
        from workers.engine.data.parquet import read_parquet  # noqa: PLC0415 (pyarrow takes long to load)

        return read_parquet
    if len(head) == 9 and head[8:] == b"{":
        from workers.engine.data.tensors import read_safetensors  # noqa: PLC0415 (as above)

        return read_safetensors
    if head[:6] == b"\x93NUMPY":
        raise InvalidDataError(
            "this is a single .npy array without a name: save with numpy.savez(file, x=inputs, labels=labels), "
            "each array named as the model input that it feeds"
        )
    raise InvalidDataError(
        "this is no dataset that can be read: it must be an .npz (numpy.savez), .safetensors or .parquet file"
        if head
        else "the file is empty"
    )


def _check_names(names: list[str]) -> None:
    if len(names) > MAX_ARRAYS:
        raise InvalidDataError(f"the dataset holds {len(names)} arrays; at most {MAX_ARRAYS} are allowed")
    for name in names:
        if not name or len(name) > MAX_NAME or not name.isprintable():
            raise InvalidDataError(
                f"{name[:40]!r} is no name for an array: it must be 1 to {MAX_NAME} printable characters"
            )


def _plain(name: str, array: NDArray) -> NDArray:
    """The array in this machine's byte order. Raises InvalidDataError for kinds that are no numbers."""
    if array.dtype.kind not in KINDS or array.dtype.itemsize > 8:
        raise InvalidDataError(
            f"the array {name!r} holds {array.dtype}: only booleans, integers and floats of up to 64 bits can be used"
        )
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _examples(arrays: Arrays) -> int:
    lengths = {}
    for name, array in arrays.items():
        if array.ndim == 0:
            raise InvalidDataError(f"the array {name!r} is a single number: the first axis must count the examples")
        lengths[name] = array.shape[0]
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name!r} {length}" for name, length in lengths.items())
        raise InvalidDataError(f"the arrays differ in their number of examples, which the first axis counts: {listed}")
    examples = next(iter(lengths.values()))
    if examples == 0:
        raise InvalidDataError("the dataset holds no example: the first axis of its arrays is empty")
    return examples


def _describe(name: str, array: NDArray) -> ArraySpec:
    """Shape, type and, for integers, range. Raises InvalidDataError where floats are not finite."""
    low = high = None
    for part in _parts(array):
        if array.dtype.kind == "f":
            if not np.isfinite(part).all():
                kind = "NaN" if np.isnan(part).any() else "infinite values"
                raise InvalidDataError(f"the array {name!r} holds {kind}: take those examples out, or fill them in")
        else:
            smallest, largest = int(part.min()), int(part.max())
            low = smallest if low is None else min(low, smallest)
            high = largest if high is None else max(high, largest)
    return ArraySpec(
        name=name,
        dtype=array.dtype.name,
        shape=array.shape,
        minimum=low,
        maximum=high,
        distribution=_is_distribution(array),
    )


def _is_distribution(array: NDArray) -> bool:
    """Whether it is one-hot, or probabilities, over the axis where classes stand."""
    if array.ndim < 2 or array.shape[axis := usual_class_axis(array.ndim)] < 2:
        return False
    return all((part >= 0).all() and np.allclose(part.sum(axis, np.float64), 1, atol=1e-3) for part in _parts(array))


def _parts(array: NDArray) -> list[NDArray]:
    """Pieces along the first axis of a few megabytes each, none of them empty."""
    width = max(1, array[:1].size)
    rows = max(1, SCANNED_AT_ONCE // width)
    return [array[start : start + rows] for start in range(0, len(array), rows)] if array.size else []
