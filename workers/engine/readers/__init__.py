"""Ways in: each reader turns one file format, all of it hostile input, into the one representation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from workers.engine.errors import InvalidModelError, UnsupportedModelError
from workers.engine.readers.kinds import ZIP, kind_of

if TYPE_CHECKING:
    from workers.engine.graph import Graph

__all__ = ["ZIP", "read_model"]


def read_model(path: Path, architecture: Path | None = None) -> tuple[str, Graph]:
    """The format, told by content and never by name, and the graph.

    `architecture` is another model's file, for files that hold weights alone.

    Raises InvalidModelError or UnsupportedModelError with what is wrong and what to do.
    """
    format_, graph = _read(path, architecture)
    if not graph.inputs:
        raise UnsupportedModelError("the model has no inputs: there is nothing to run it on, or to compress it for")
    return format_, graph


def _read(path: Path, architecture: Path | None) -> tuple[str, Graph]:
    """Each format loads only what it needs."""
    kind = kind_of(path)
    if kind in ("state_dict", "safetensors"):
        from workers.engine.readers.state_dict import read_state_dict  # noqa: PLC0415 (as the docstring says)

        return "state_dict", read_state_dict(path, kind, architecture)
    if architecture is not None:
        raise InvalidModelError(
            "an architecture goes with weights alone, a state dict of torch.save or safetensors; this file is neither"
        )
    if kind == "pt2":
        from workers.engine.readers.pt2 import read_pt2  # noqa: PLC0415 (as the docstring says)

        return "pt2", read_pt2(path)
    if kind == "torchscript":
        from workers.engine.readers.torchscript import read_torchscript  # noqa: PLC0415 (as the docstring says)

        return "torchscript", read_torchscript(path)
    if kind == "archive":
        return _read_archive(path)
    from workers.engine.readers.onnx import read_onnx  # noqa: PLC0415 (as the docstring says)

    if kind == "packed":
        from workers.engine.readers.packed import unpacked  # noqa: PLC0415 (as the docstring says)

        return "packed", read_onnx(unpacked(path))
    return "onnx", read_onnx(path)


def _read_archive(path: Path) -> tuple[str, Graph]:
    from workers.engine.readers.archive_folder import onnx_file, unpack  # noqa: PLC0415 (as above)

    folder = unpack(path)
    file = onnx_file(folder)
    if file is not None:
        from workers.engine.readers.onnx import read_onnx  # noqa: PLC0415 (as above)

        return "onnx", read_onnx(file)
    if (folder / "config.json").exists():
        from workers.engine.readers.huggingface import read_huggingface  # noqa: PLC0415 (as above)

        return "huggingface", read_huggingface(folder)
    raise InvalidModelError(
        "the archive holds neither an ONNX file nor a Hugging Face folder (config.json and safetensors): send one of "
        "these, zipped, or a single model file as it is"
    )
