"""A packed file is hostile: whatever it holds, a PackedError or the right bytes come of it, soon."""

import contextlib
import os
import random
import resource
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelpress.packed import PackedError, peek, unpack
from modelpress.packed.container import BLOCK, OUTPUT, STRUCTURE, Coding, Head, Header, most_blocks, write_block
from modelpress.packed.cursor import Cursor, varint
from modelpress.packed.values import read_values
from tests.packed.models import crossed, holding, normal, sparse
from tests.packed.mutating import HEAD, HEADER, blocks, mended, mutated

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(packed, plain) of models that use every coding."""
    from modelpress.packed import pack

    folder = tmp_path_factory.mktemp("packed")
    weight = normal(60, 80)
    made = []
    for arrays in (
        [normal(20, 30)],
        [sparse(normal(64, 100)), np.arange(3000), weight, normal(3), weight],
        [normal(260 + index) for index in range(5)] + [np.arange(130 + index) for index in range(5)],
        [crossed(), normal(40)],
        [np.random.default_rng(0).normal(0, 9, (100, 90)).astype(np.int8), normal(40, 50).astype(np.float16)],
    ):
        (folder / "plain").write_bytes(holding(*arrays))
        pack(folder / "plain", folder / "packed")
        made.append(((folder / "packed").read_bytes(), holding(*arrays)))
    return made


def attack(files, folder: Path, seeds: range) -> dict[str, int]:
    outcomes = {"refused": 0, "right": 0}
    for seed in seeds:
        dice = random.Random(seed)
        packed, plain = dice.choice(files)
        (folder / "packed").write_bytes(mutated(packed, dice))
        try:
            unpack(folder / "packed", folder / "again", max_bytes=1 << 22)
        except PackedError:
            outcomes["refused"] += 1
        else:
            assert (folder / "again").read_bytes() == plain, seed
            outcomes["right"] += 1
        assert {path.name for path in folder.iterdir()} <= {"packed", "again"}
    return outcomes


def test_damaged_files(files, tmp_path):
    outcomes = attack(files, tmp_path, range(400))
    assert outcomes["refused"] > 300


@pytest.mark.slow
def test_thousands_of_damaged_files_in_limited_memory(files, tmp_path):
    """In a process of its own, which the kernel stops from taking more."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            resource.setrlimit(resource.RLIMIT_AS, (taken + (64 << 20),) * 2)
            status = 0 if attack(files, tmp_path, range(1000, 6000))["refused"] > 4500 else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_mending_makes_whole_files_of_whole_files(files):
    """Else the mutations with right checksums would be none."""
    for packed, _ in files:
        assert mended(packed) == packed
        assert len(blocks(packed)) > 1


def test_mended_damage_gets_past_the_checksums(files, tmp_path):
    packed = bytearray(files[0][0])
    packed[-1] ^= 255
    (tmp_path / "packed").write_bytes(mended(packed))
    with pytest.raises(PackedError, match=r"entropy-coded|has another checksum than what was packed"):
        unpack(tmp_path / "packed", tmp_path / "again")


def test_truncations(files, tmp_path):
    packed = files[0][0]
    for end in (*range(100), *range(100, len(packed), 11), len(packed) - 1):
        (tmp_path / "packed").write_bytes(packed[:end])
        with pytest.raises(PackedError):
            unpack(tmp_path / "packed", tmp_path / "again")
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]


@given(st.binary(max_size=300), st.integers(0, 5000))
@settings(deadline=None, max_examples=500)
def test_payloads_of_any_bytes(payload, size):
    with contextlib.suppress(PackedError):
        assert len(read_values(Cursor(payload), size)) == size


def test_more_than_is_allowed_is_refused_before_anything_is_written(files, tmp_path):
    packed, plain = files[0]
    (tmp_path / "packed").write_bytes(packed)
    with pytest.raises(PackedError, match=f"unpacks to {len(plain)} bytes, more than the {len(plain) - 1}"):
        unpack(tmp_path / "packed", tmp_path / "again", max_bytes=len(plain) - 1)
    unpack(tmp_path / "packed", tmp_path / "again", max_bytes=len(plain))
    assert (tmp_path / "again").read_bytes() == plain


def test_a_target_that_is_there_stays_when_unpacking_fails(files, tmp_path):
    (tmp_path / "packed").write_bytes(files[0][0][:-1])
    (tmp_path / "again").write_bytes(b"mine")
    with pytest.raises(PackedError):
        unpack(tmp_path / "packed", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == b"mine"


def written(path: Path, size: int, *parts: tuple[Head, bytes]) -> Path:
    """A file with right checksums, but for that of the whole."""
    with path.open("wb") as file:
        file.write(Header(1, len(parts), size, bytes(32)).to_bytes())
        for head, payload in parts:
            write_block(file, head, payload)
    return path


def refused(path: Path, **options: int) -> str:
    with pytest.raises(PackedError) as refusal:
        unpack(path, path.with_name("again"), **options)
    return str(refusal.value)


def numbers(payload: bytes, size: int) -> tuple[Head, bytes]:
    return Head(Coding.VALUES, OUTPUT, 0, size), payload


def ans(weights: bytes, size: int, *, groups: bytes = b"\1", words: bytes = b"\0") -> bytes:
    return b"\3" + groups + b"\0" + varint(size) + weights + words


def test_blocks_hold_no_more_than_the_header_says(tmp_path):
    part = Head(Coding.RAW, OUTPUT, 0, 4), b"abcd"
    assert "more than the header says" in refused(written(tmp_path / "a", 7, part, part))
    assert "less than the header says" in refused(written(tmp_path / "b", 9, part, part))


def test_copies_reach_only_what_is_there(tmp_path):
    first = Head(Coding.RAW, OUTPUT, 0, 4), b"abcd"
    for start in (1, 4, 2**63):
        copy = Head(Coding.COPY, OUTPUT, 0, 8), struct.pack("<Q", start)
        assert "a copy of what is not there yet" in refused(written(tmp_path / "a", 12, first, copy))


def test_what_is_kept_aside_does_not_pile_up(tmp_path):
    aside = Head(Coding.RAW, STRUCTURE, 0, 4), b"abcd"
    assert "not used up" in refused(written(tmp_path / "a", 8, aside, aside))
    more = Head(Coding.RAW, OUTPUT, 5, 4), b"abcd"
    assert "more than was kept aside" in refused(written(tmp_path / "a", 8, aside, more))


def test_weaving_takes_only_what_is_there(tmp_path):
    aside = Head(Coding.RAW, 3, 0, 4), b"abcd"
    weave = Head(Coding.WEAVE, OUTPUT, 0, 8), varint(3) + varint(8)
    assert "more than was kept aside" in refused(written(tmp_path / "a", 8, aside, weave))
    weave = Head(Coding.WEAVE, OUTPUT, 0, 4), varint(3) + varint(2)
    assert "ends before" in refused(written(tmp_path / "a", 4, aside, weave))
    weave = Head(Coding.WEAVE, OUTPUT, 0, 4), varint(16) + varint(4)
    assert "larger than 15" in refused(written(tmp_path / "a", 4, aside, weave))
    assert "not used up" in refused(written(tmp_path / "a", 4, aside))


def test_groups_of_groups_are_refused(tmp_path):
    """A stream that groups its rows by a stream that groups its rows… would exhaust the stack."""
    payload = b"\1\0\0" + (b"\3\2\1" + varint(1000)) * 800
    assert "larger than 1" in refused(written(tmp_path / "a", 4096, numbers(payload, 4096)))


def test_two_ways_together_make_no_more_groups_than_one(tmp_path):
    for ways, reason in (
        (b"\4\5\4", "more groups than there can be"),
        (b"\4\0\2", "more groups"),
        (b"\4\x11\1", "than 16"),
    ):
        assert reason in refused(written(tmp_path / "a", 4096, numbers(b"\1\0\0" + ways, 4096)))


def test_masks_of_masks_are_refused(tmp_path):
    payload = b"\1" + (b"\2\0" + b"\1\1") * 1000
    assert "not known" in refused(written(tmp_path / "a", 4096, numbers(payload, 4096)))


def test_tables_larger_than_what_they_are_for_are_refused(tmp_path):
    """65,536 weights in 4 bytes, and ten of them: minutes of work for a file of some megabytes."""
    payload = b"\4\1" + varint(300) + bytes(1200) + ans(b"\1\0" + varint(65534), 65536)
    assert "more table than symbols" in refused(written(tmp_path / "a", 4096, numbers(payload, 4096)))


@pytest.mark.parametrize("weights", [b"\0\1", b"\0\5", varint(1 << 24) + b"\1", b"\xff" * 9, b"\1"])
def test_weights_that_cannot_be(weights, tmp_path):
    payload = b"\1\0\0" + ans(weights, 2)
    refused(written(tmp_path / "a", 4096, numbers(payload, 4096)))


def test_a_frame_that_claims_to_be_large(tmp_path):
    frame = bytes.fromhex("28b52ffd") + b"\xe0" + struct.pack("<Q", 2**60) + b"\1\0\0"
    tracemalloc.start()
    part = Head(Coding.ZSTD, OUTPUT, 0, 1000), frame
    assert "a zstd frame of another size" in refused(written(tmp_path / "a", 1000, part))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_more_blocks_than_a_file_can_have(tmp_path):
    part = Head(Coding.RAW, OUTPUT, 0, 1), b"a"
    count = most_blocks(100) + 1
    assert "more blocks" in refused(written(tmp_path / "a", 100, *[part] * count))


def test_long_blocks_are_refused(tmp_path):
    for size, packed in ((BLOCK + 1, 10), (0, 0), (10, 11)):
        part = Head(Coding.RAW, OUTPUT, 0, size), bytes(packed)
        assert "of a length that cannot be" in refused(written(tmp_path / "a", 100, part))


def test_a_large_file_unpacks_in_little_memory(tmp_path):
    """A bomb: each megabyte of zeros takes some bytes. All that it gets is its own output, on disk."""
    part = numbers(b"\x08\0\0" + b"\1\0" * 8, BLOCK)
    path = written(tmp_path / "bomb", 64 * BLOCK, *[part] * 64)
    assert path.stat().st_size < 64 * 64
    tracemalloc.start()
    assert "another checksum" in refused(path)
    assert tracemalloc.get_traced_memory()[1] < 8 * BLOCK
    tracemalloc.stop()
    assert "more than the 1048576 that are allowed" in refused(path, max_bytes=BLOCK)


def test_the_header_can_be_looked_at_alone(files, tmp_path):
    packed, plain = files[0]
    (tmp_path / "packed").write_bytes(packed[: HEADER.size])
    header = peek(tmp_path / "packed")
    assert (header.version, header.unpacked_size) == (2, len(plain))
    for data in (b"", b"PK\x03\x04", packed[:7], packed[:20]):
        (tmp_path / "packed").write_bytes(data)
        with pytest.raises(PackedError):
            peek(tmp_path / "packed")
    assert HEAD.size == 20


def test_neither_torch_nor_onnx_is_loaded(files, tmp_path):
    (tmp_path / "packed").write_bytes(files[1][0])
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'onnx', 'google.protobuf', 'pydantic')))\n"
        "from pathlib import Path; from modelpress.packed import pack, unpack\n"
        "unpack(Path(sys.argv[1]), Path(sys.argv[2])); pack(Path(sys.argv[2]), Path(sys.argv[3]))"
    )
    again = tmp_path / "packed again"
    subprocess.run([sys.executable, "-c", code, tmp_path / "packed", tmp_path / "plain", again], check=True, cwd=ROOT)
    assert again.read_bytes() == files[1][0]
