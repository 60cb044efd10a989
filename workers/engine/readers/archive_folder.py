"""A model of several files comes as a zip: an ONNX file with its data, or a Hugging Face folder. It is hostile.

Only plain files of one folder are unpacked. Entries that would lie deeper are left out (repositories hold much else),
and nothing is ever written outside of the folder that is made.
"""

from __future__ import annotations

import errno
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from workers.engine.errors import InvalidModelError, UnsupportedModelError
from workers.engine.zip_errors import DAMAGED, UNREADABLE

MAX_ENTRIES = 20_000
"""Exporters that keep each tensor in a file of its own make thousands."""
MAX_BYTES = 64 << 30
MAX_NAME = 255
MAX_GROWTH = 50
"""Weights of which nine in ten are zero compress about ten times."""
ALLOWANCE = 64 << 20
"""So much may always come out: a small model of equal numbers compresses a thousand times."""
CHUNK = 1 << 20


def unpack(path: Path) -> Path:
    """The folder with the archive's files, made beside it once for each archive that lies there.

    Raises InvalidModelError for archives that are damaged or not what an honest one is, before or while unpacking;
    OSError where they would take more than half of the room that is left, which other runs share.
    """
    folder = path.with_name(f"{path.name}.{path.stat().st_mtime_ns}.unpacked")
    if folder.is_dir():
        return folder
    try:
        archive = zipfile.ZipFile(path)
    except UNREADABLE as error:
        raise InvalidModelError(f"the zip archive is damaged ({error}): upload it again") from None
    with archive:
        members = _members(archive, path.stat().st_size)
        if sum(entry.file_size for entry in members.values()) > shutil.disk_usage(path.parent).free // 2:
            raise OSError(errno.ENOSPC, "no room to unpack the archive")
        made = Path(tempfile.mkdtemp(prefix="unpacking-", dir=path.parent))
        try:
            for name, member in members.items():
                _extract(archive, member, made / name)
            made.rename(folder)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
    return folder


def onnx_file(folder: Path) -> Path | None:
    """The one ONNX file of an unpacked folder, None where it holds none. Raises UnsupportedModelError for several."""
    found = sorted(file for file in folder.iterdir() if file.suffix.lower() == ".onnx")
    if len(found) > 1:
        raise UnsupportedModelError(
            f"the archive holds {len(found)} ONNX files ({', '.join(file.name for file in found[:3])}): send each "
            "model as an archive of its own, with its data files beside it"
        )
    return found[0] if found else None


def _members(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """What is unpacked, by its name in the new folder."""
    entries = archive.infolist()
    if len(entries) > MAX_ENTRIES:
        raise InvalidModelError(f"the archive has {len(entries)} entries; at most {MAX_ENTRIES} are read")
    members: dict[str, zipfile.ZipInfo] = {}
    for name, entry in _flat(list(_files(entries))):
        if name in members:
            raise InvalidModelError(f"the archive holds {name[:80]!r} twice")
        members[name] = entry
    if not members:
        raise InvalidModelError("the archive holds no files: send the model's files in one folder, zipped")
    total = sum(entry.file_size for entry in members.values())
    if total > MAX_BYTES or total > ALLOWANCE + MAX_GROWTH * size:
        raise InvalidModelError(
            f"the archive of {size:,} bytes claims to hold {total:,} bytes, which no model does: zip it without "
            "compression"
        )
    return members


def _files(entries: list[zipfile.ZipInfo]) -> Iterator[tuple[PurePosixPath, zipfile.ZipInfo]]:
    for entry in entries:
        name = entry.filename
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or not name.isprintable():
            raise InvalidModelError(f"the archive has an entry with an unsafe name: {name[:80]!r}")
        if any(len(part.encode()) > MAX_NAME for part in path.parts):
            raise InvalidModelError(f"the archive has an entry with a name that is too long: {name[:80]!r}")
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise InvalidModelError(f"{name[:80]!r} in the archive is a link or a device; zip the files themselves")
        if not entry.is_dir() and path.parts:
            yield path, entry


def _flat(files: list[tuple[PurePosixPath, zipfile.ZipInfo]]) -> Iterator[tuple[str, zipfile.ZipInfo]]:
    """Files at the top; of one folder, where the archive holds nothing beside it. Hidden ones stay away."""
    shown = [(path, entry) for path, entry in files if not any(p.startswith((".", "__MACOSX")) for p in path.parts)]
    top = 0 if any(len(path.parts) == 1 for path, _ in shown) else 1
    if top and len({path.parts[0] for path, _ in shown}) > 1:
        raise InvalidModelError("the archive holds several folders: send the model's files in one folder, zipped")
    for path, entry in shown:
        if len(path.parts) == top + 1:
            yield path.name, entry


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    """No more than what the entry declares, which was counted before."""
    left = member.file_size
    with target.open("xb") as file:
        try:
            with archive.open(member) as content:
                while chunk := content.read(CHUNK):
                    left -= len(chunk)
                    if left < 0:
                        break
                    file.write(chunk)
        except DAMAGED as error:
            raise InvalidModelError(f"{target.name!r} in the archive is damaged ({error}): upload it again") from None
    if left:
        raise InvalidModelError(f"{target.name!r} in the archive does not have the size that it declares")
