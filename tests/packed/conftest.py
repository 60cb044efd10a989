from collections.abc import Callable
from pathlib import Path

import pytest

from modelpress.packed import pack, unpack


@pytest.fixture
def packed_form(tmp_path: Path) -> Callable[[bytes], bytes]:
    def packed_form(data: bytes) -> bytes:
        (tmp_path / "plain").write_bytes(data)
        pack(tmp_path / "plain", tmp_path / "packed")
        return (tmp_path / "packed").read_bytes()

    return packed_form


@pytest.fixture
def unpacked_form(tmp_path: Path) -> Callable[..., bytes]:
    def unpacked_form(data: bytes, **options: int) -> bytes:
        (tmp_path / "given").write_bytes(data)
        unpack(tmp_path / "given", tmp_path / "again", **options)
        return (tmp_path / "again").read_bytes()

    return unpacked_form
