"""Local files: hashed before they are sent, and written so that half a download is never taken for a whole one."""

import base64
import hashlib
import os
from pathlib import Path
from typing import BinaryIO

from modelpress.client.errors import ModelpressError

PIECE = 1 << 20


def repr_digest(path: Path) -> str:
    """The value of the header Repr-Digest (RFC 9530) for a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
    return f"sha-256=:{base64.b64encode(digest).decode()}:"


class PartFile:
    """A download on its way, beside its target. Its name tells the content: what is found there can be gone on with."""

    def __init__(self, target: Path, sha256: str) -> None:
        self.target = target
        self.sha256 = sha256
        self.path = target.with_name(f"{target.name}.{sha256[:12]}.part")
        self.size = 0

    def open(self) -> None:
        self._hash = hashlib.sha256()
        self._file: BinaryIO = self.path.open("a+b")
        self._file.seek(0)
        while piece := self._file.read(PIECE):
            self._hash.update(piece)
            self.size += len(piece)

    def close(self) -> None:
        self._file.close()

    def begin(self, *, resumed: bool) -> None:
        """An answer's body is about to come: the rest of the file, or all of it."""
        if not resumed:
            self._file.truncate(0)
            self._hash = hashlib.sha256()
            self.size = 0

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.size += len(data)

    def finish(self) -> None:
        """Give it its name. Raises ModelpressError, and leaves nothing, where it is not what the service announced."""
        self._file.flush()
        os.fsync(self._file.fileno())
        if self._hash.hexdigest() != self.sha256:
            self.path.unlink()
            raise ModelpressError(
                "digest_mismatch", f"the bytes received for {self.target.name} are not those announced"
            )
        self.path.replace(self.target)
