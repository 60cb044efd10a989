"""A model that is a folder, as the one file that is sent: an archive that stores and does not compress."""

import shutil
import zipfile
from pathlib import Path

from modelpress.client.errors import ModelpressError
from modelpress.client.files import PIECE

FIRST_DAY = (1980, 1, 1, 0, 0, 0)
"""Of zip's calendar. With it the same folder is the same archive, which the service stores once."""
OTHER_WEIGHTS = frozenset({".bin", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".pt", ".pth", ".tflite"})
"""The same weights once more, for other programs, where there are safetensors."""


def zip_folder(folder: Path, target: Path) -> None:
    """Every file of the folder that the service reads, streamed. Raises ModelpressError where it is no model's."""
    files = files_of(folder)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for file in files:
            entry = zipfile.ZipInfo(file.name, FIRST_DAY)
            entry.file_size = file.stat().st_size
            with file.open("rb") as source, archive.open(entry, "w") as copy:
                shutil.copyfileobj(source, copy, PIECE)


def files_of(folder: Path) -> list[Path]:
    """Files at its top; a link stands for what it leads to, as in the cache of Hugging Face's hub."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    suffixes = {file.suffix.lower() for file in files}
    if (folder / "config.json").is_file():
        if ".safetensors" in suffixes:
            files = [file for file in files if file.suffix.lower() not in OTHER_WEIGHTS]
    elif ".onnx" not in suffixes:
        raise ModelpressError(
            "no_model", f"{folder} has neither a config.json, as Hugging Face's models do, nor an .onnx file"
        )
    return files
