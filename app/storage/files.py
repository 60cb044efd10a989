"""Blobs as files below one folder, named by the id of their row: `a4/…a4`, and `….part` while they arrive.

Not by content: a blob that is being removed and a new one with the same bytes would then share a name, and the removal
would take both. That a tenant stores the same content once is the row's unique index's affair.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from uuid import UUID

from sqlalchemy import Engine

from app.storage.base import CHUNK, Data, StorageFullError
from app.storage.staging import StagedWriter, drop_staged, old_staged, stored_size

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PART = ".part"


class FileStore:
    backend = "file"

    def __init__(self, folder: Path, engine: Engine) -> None:
        self._folder = folder
        self._engine = engine
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, blob_id: UUID) -> Path:
        return self._folder / blob_id.hex[-2:] / blob_id.hex

    def writer(self, tenant_id: UUID, expected_size: int | None = None) -> "FileWriter":
        return FileWriter(self._engine, tenant_id, self.path, expected_size or 0)

    def read(self, blob_id: UUID, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        size = stored_size(self._engine, blob_id, self.backend)
        return self._pieces(blob_id, start, size if stop is None else min(stop, size))

    def _pieces(self, blob_id: UUID, start: int, stop: int) -> Iterator[bytes]:
        with self.path(blob_id).open("rb", buffering=0) as file:
            file.seek(start)
            while start < stop:
                piece = file.read(min(CHUNK, stop - start))
                if not piece:
                    raise OSError(errno.EIO, "the file is shorter than its row says", str(self.path(blob_id)))
                start += len(piece)
                yield piece

    def check(self) -> None:
        if not os.access(self._folder, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "cannot be read and written", str(self._folder))

    def remove(self, blob_id: UUID) -> None:
        unlink(self.path(blob_id))

    def sweep(self, older_than_seconds: float) -> int:
        old = old_staged(self._engine, self.backend, older_than_seconds)
        return sum(drop_staged(self._engine, blob_id, partial(self.remove, blob_id)) for blob_id in old)


class FileWriter(StagedWriter):
    def __init__(self, engine: Engine, tenant_id: UUID, place: Callable[[UUID], Path], expected_size: int) -> None:
        super().__init__(engine, tenant_id, FileStore.backend)
        self._path = place(self.blob_id)
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        self._part = self._path.with_suffix(PART)
        self._file = self._part.open("wb", buffering=CHUNK)
        self._expected_size = expected_size
        if expected_size:
            try:
                self._reserve()
            except BaseException:
                self.__exit__()
                raise

    def _reserve(self) -> None:
        # to be refused by the file system, it would first have to fill up, under everybody else's hands
        if shutil.disk_usage(self._path.parent).free < self._expected_size:
            raise StorageFullError("the disk has no room left")
        with full_disk():
            os.posix_fallocate(self._file.fileno(), 0, self._expected_size)

    def _append(self, data: Data) -> None:
        with full_disk():
            self._file.write(data)

    def _flush(self) -> None:
        with full_disk():
            self._file.flush()
            if self.size < self._expected_size:
                self._file.truncate(self.size)
            os.fsync(self._file.fileno())
            self._file.close()
        self._part.rename(self._path)
        sync_folder(self._path.parent)

    def _discard(self) -> None:
        unlink(self._path)

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(OSError):  # what cannot be flushed on a full disk is being dropped anyway
            self._file.close()
        super().__exit__(*exc)


def unlink(path: Path) -> None:
    for name in (path, path.with_suffix(PART)):
        name.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """A new name is on stable storage when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def full_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise StorageFullError("the disk has no room left") from error
        raise
