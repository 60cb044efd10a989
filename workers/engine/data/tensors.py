"""`.safetensors` as a dataset. The library checks the header against the file; the tensors stay memory-mapped."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from workers.engine.data.dataset import Arrays
from workers.engine.errors import InvalidDataError


def read_safetensors(path: Path, scratch: Path) -> Arrays:  # noqa: ARG001 (nothing unfolds: all formats read alike)
    """bfloat16, which numpy has not, becomes float32. Raises InvalidDataError for a damaged file."""
    arrays: Arrays = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                tensor = file.get_tensor(name)
                arrays[name] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    except (SafetensorError, TypeError) as error:
        raise InvalidDataError(f"the .safetensors file cannot be read: {error}") from error
    return arrays
