"""Which exceptions say that a zip archive is damaged: one list for every format that is one."""

import lzma
import zipfile
import zlib

DAMAGED: tuple[type[Exception], ...] = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    ValueError,
    RuntimeError,
)
"""RuntimeError: encrypted members, and methods of compression that Python does not have."""

UNREADABLE: tuple[type[Exception], ...] = (OSError, *DAMAGED)
"""For where nothing is written meanwhile, so that a full disk cannot be taken for a damaged file."""
