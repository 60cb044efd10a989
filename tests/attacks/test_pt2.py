"""Hostile `.pt2` files: the reader runs nothing of them and says what is wrong."""

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.attacks.programs import PROBES, sound_program, write
from workers.engine.errors import InvalidModelError, UnsupportedModelError
from workers.engine.readers.pt2 import read_pt2

STOPPED_BY_TORCH = {"node_target"}
"""Probes that torch.export.load itself refuses by now; kept because older versions ran them."""


@pytest.fixture(scope="module")
def members() -> dict[str, bytes]:
    return sound_program()


def test_the_program_the_probes_start_from_is_read(members: dict[str, bytes], tmp_path: Path) -> None:
    graph = read_pt2(write(tmp_path / "model.pt2", members))
    assert [tensor.name for tensor in graph.inputs] == ["x"]
    assert [layer.name for layer in graph.layers()] == ["linear"]


@pytest.mark.parametrize("probe", PROBES)
def test_nothing_is_executed_and_the_file_is_rejected(probe: str, members: dict[str, bytes], tmp_path: Path) -> None:
    canary = tmp_path / f"canary_{probe}"
    planted = dict(members)
    PROBES[probe](planted, canary)
    path = write(tmp_path / "model.pt2", planted)
    sys.path.insert(0, str(tmp_path))  # what an import in the file would find
    try:
        with pytest.raises((InvalidModelError, UnsupportedModelError)) as rejection:
            read_pt2(path)
    finally:
        sys.path.remove(str(tmp_path))
    assert not canary.exists()
    assert len(str(rejection.value)) > 40, "a rejection says what is wrong and what to do"
    assert str(tmp_path) not in str(rejection.value).replace(str(canary), "")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("member", ["archive_format", "data/sample_inputs/model.pt"])
def test_a_damaged_compressed_member_is_refused(
    method: int, member: str, members: dict[str, bytes], tmp_path: Path
) -> None:
    """PyTorch compresses nothing, an attacker may: in the archive, and in the archive that is within it."""
    if member == "archive_format":
        content = spoilt("x/archive_format", b"pt2", method)
        (tmp_path / "model.pt2").write_bytes(content)
    else:
        name = next(name for name in members if name.endswith(member))
        write(tmp_path / "model.pt2", members | {name: spoilt("x/data.pkl", bytes(300), method)})
    with pytest.raises(InvalidModelError):
        read_pt2(tmp_path / "model.pt2")


def spoilt(name: str, data: bytes, method: int) -> bytes:
    """A zip archive whose one member's compressed bytes are wrong, padded so that it promises nothing impossible."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, data, method)
        archive.writestr("x/padding", bytes(500))
        info = archive.infolist()[0]
    content = bytearray(buffer.getvalue())
    start = info.header_offset + 30 + len(name)
    content[start + 4 : start + info.compress_size] = b"\xff" * (info.compress_size - 4)
    return bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("probe", sorted(set(PROBES) - STOPPED_BY_TORCH))
def test_the_probe_is_a_real_attack(probe: str, members: dict[str, bytes], tmp_path: Path) -> None:
    """What the reader is there for: torch.export.load runs each of these files."""
    canary = tmp_path / f"canary_{probe}"
    planted = dict(members)
    PROBES[probe](planted, canary)
    path = write(tmp_path / "model.pt2", planted)
    code = f"import torch; torch.export.load({str(path)!r}).module()(torch.zeros(3, 4))"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, timeout=120, check=False)
    assert canary.exists()
