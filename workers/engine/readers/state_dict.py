"""Weights that come alone, state dicts and safetensors, put onto another model's architecture.

A pickle is only ever loaded with `weights_only=True`, which builds tensors and containers and calls nothing else.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from workers.engine.errors import InvalidModelError, UnsupportedModelError
from workers.engine.readers.kinds import Kind, kind_of
from workers.engine.zip_errors import UNREADABLE

if TYPE_CHECKING:
    from workers.engine.graph import Graph

PREFERRED = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params")
"""Where training loops keep the weights, the likeliest first."""
DEEPEST = 4
DAMAGED: tuple[type[Exception], ...] = (SafetensorError, *UNREADABLE)
MAX_TENSORS = 1_000_000

HOW = (
    "send it with `architecture`: the id of a model of the same shape that was uploaded before, as .pt2, ONNX or a "
    "Hugging Face folder; or, with its config.json beside it as pytorch_model.bin, as such a folder, zipped"
)


def read_state_dict(path: Path, kind: Kind, architecture: Path | None) -> Graph:
    """The architecture's graph with these weights.

    Raises InvalidModelError that lists every name and shape that does not fit, and UnsupportedModelError where there
    is no architecture.
    """
    weights, notes = load_weights(path, kind)  # first, because a whole pickled model is told something else
    if architecture is None:
        raise UnsupportedModelError(f"the file holds weights alone, without what is computed with them: {HOW}")
    graph = _onto(architecture, weights)
    graph.notes += notes
    return graph


def load_weights(path: Path, kind: Kind) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors by name, and what was assumed. Raises InvalidModelError."""
    if kind == "safetensors":
        try:
            return load_file(path), []
        except DAMAGED as error:
            raise InvalidModelError(f"the safetensors file is damaged ({error}): upload it again") from error
    _check_size(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InvalidModelError(
            f"the file holds more than tensors, and loading the rest could run code ({_reason(error)}): send the "
            "whole model as torch.export.save or torch.onnx.export writes it, or its weights alone, saved with "
            "torch.save(model.state_dict(), path)"
        ) from error
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # a made-up pickle can make torch raise anything
        raise InvalidModelError(f"the file cannot be loaded ({_reason(error)}): upload it again") from error
    found = list(_state_dicts(content, "", DEEPEST))
    if not found:
        raise InvalidModelError(
            "the file holds no weights by name: save them with torch.save(model.state_dict(), path)"
        )
    place, weights = min(found, key=lambda entry: _rank(*entry))
    notes = [f"of the weights in the file, those under {place!r} were taken"] if len(found) > 1 else []
    return weights, notes


def _check_size(path: Path) -> None:
    """torch stores members without compression: more bytes out than in is a bomb."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            declared = sum(member.file_size for member in archive.infolist())
    except UNREADABLE as error:
        raise InvalidModelError(f"the file is damaged ({error}): upload it again") from None
    if declared > path.stat().st_size:
        raise InvalidModelError(
            f"the file of {path.stat().st_size:,} bytes claims to hold {declared:,} bytes; torch.save compresses "
            "nothing: save the weights again with it"
        )


def _onto(architecture: Path, weights: Mapping[str, Tensor]) -> Graph:
    kind = kind_of(architecture)
    if kind == "pt2":
        from workers.engine.readers.pt2 import read_pt2  # noqa: PLC0415 (each format loads only what it needs)

        return read_pt2(architecture, weights)
    if kind == "archive":
        from workers.engine.readers.archive_folder import onnx_file, unpack  # noqa: PLC0415 (as above)

        folder = unpack(architecture)
        if onnx_file(folder) is None and (folder / "config.json").exists():
            from workers.engine.readers.huggingface import read_huggingface  # noqa: PLC0415 (as above)

            return read_huggingface(folder, weights)
    if kind in ("onnx", "archive", "packed"):
        from workers.engine.readers import read_model  # noqa: PLC0415 (it imports this module)
        from workers.engine.readers.onnx_weights import replace_weights  # noqa: PLC0415 (as above)

        _, graph = read_model(architecture)
        replace_weights(graph, weights)
        return graph
    raise InvalidModelError(f"the architecture is a {kind} file, whose layers take no weights by name: {HOW}")


def _state_dicts(content: Any, place: str, depth: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Mappings whose values are tensors, at most so deep, and where each was found."""
    if not isinstance(content, Mapping) or len(content) > MAX_TENSORS or not depth:
        return
    tensors = {name: value.detach() for name, value in content.items() if isinstance(value, Tensor)}
    named = {name: value for name, value in tensors.items() if isinstance(name, str) and value.layout is torch.strided}
    if named and len(named) == len(tensors):
        yield place, named
        return
    for name, value in content.items():
        if isinstance(name, str):
            yield from _state_dicts(value, f"{place}.{name}" if place else name, depth - 1)


def _rank(place: str, weights: dict[str, Tensor]) -> tuple[int, int]:
    first = place.partition(".")[0]
    return PREFERRED.index(first) if first in PREFERRED else len(PREFERRED), -len(weights)


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if "Unsupported" in line or "GLOBAL" in line]
    first = (lines or str(error).strip().splitlines() or [type(error).__name__])[0]
    return first.partition(" Please use ")[0].strip()[:200]  # what follows is how to load it all the same
