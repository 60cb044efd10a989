"""What is unpacked is what was packed, byte by byte, whatever it is."""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper, numpy_helper

from modelpress.packed import pack, packed_size, peek, unpack
from modelpress.packed.container import BLOCK
from tests.packed.models import holding, normal, onnx_file, sparse

ALLOWED_GROWTH = 128
"""Bytes that a header and a block take: more than 0.1 % of the smallest files."""


def there_and_back(data: bytes) -> int:
    """Returns the packed size."""
    with tempfile.TemporaryDirectory() as folder:
        plain, packed, again = (Path(folder) / name for name in ("plain", "packed", "again"))
        plain.write_bytes(data)
        pack(plain, packed)
        unpack(packed, again)
        assert again.read_bytes() == data
        assert peek(packed).unpacked_size == len(data)
        size = packed.stat().st_size
        assert size == packed_size(plain)
    assert size <= max(len(data) * 1.001, len(data) + ALLOWED_GROWTH)
    return size


@given(st.binary(max_size=5000))
@settings(deadline=None)
def test_any_bytes(data):
    there_and_back(data)


@given(st.binary(min_size=1, max_size=40), st.integers(1, 6000))
@settings(deadline=None, max_examples=50)
def test_bytes_that_repeat(piece, times):
    there_and_back(piece * times)


DTYPES = st.sampled_from(("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?", "c8"))


@given(
    arrays.arrays(
        dtype=DTYPES,
        shape=arrays.array_shapes(min_dims=0, max_dims=4, max_side=40),
        fill=st.nothing(),
    )
)
@settings(deadline=None, max_examples=60)
def test_any_tensor(array):
    there_and_back(holding(array))


@given(
    dtype=DTYPES,
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 70),
    columns=st.integers(1, 300),
    zeros=st.sampled_from((0, 0.3, 0.9, 0.999, 1)),
    distinct=st.sampled_from((1, 2, 15, 300, 5000, 10**9)),
)
@settings(deadline=None, max_examples=150)
def test_tensors_as_compression_leaves_them(dtype, seed, rows, columns, zeros, distinct):
    dice = np.random.default_rng(seed)
    pool = dice.integers(0, 256, (min(distinct, rows * columns), np.dtype(dtype).itemsize), dtype=np.uint8)
    if dtype == "?":
        pool &= 1
    values = np.ascontiguousarray(pool).view(dtype).reshape(-1)[dice.integers(0, len(pool), (rows, columns))]
    values[dice.random((rows, columns)) < zeros] = 0
    there_and_back(holding(values, normal(3, 400), values))


def test_several_blocks_with_structure_between():
    big = [normal(300, 1000), sparse(normal(1000, 700)), normal(BLOCK // 4 + 1), np.arange(400_000)]
    small = [normal(5 + index) for index in range(300)]
    size = there_and_back(holding(*big, *small, *big[:1]))
    assert size < 0.5 * sum(array.nbytes for array in big)


def test_structure_that_is_larger_than_a_block():
    names = np.random.default_rng(0).integers(0, 2**63, 50_000)
    nodes = [helper.make_node("Identity", [f"value.{name}"], [f"result.{name}"]) for name in names]
    there_and_back(onnx_file([numpy_helper.from_array(normal(100, 100), "w")], nodes))


def test_an_empty_file():
    there_and_back(b"")


@pytest.mark.parametrize("kind", ["FLOAT16", "BFLOAT16", "FLOAT8E4M3FN", "INT4", "UINT4"])
def test_small_types(kind):
    tensor = helper.make_tensor("w", getattr(TensorProto, kind), (60, 100), normal(6000).clip(-8, 7) * 20)
    there_and_back(onnx_file([tensor]))
    raw = numpy_helper.from_array(numpy_helper.to_array(tensor), "w")
    raw.data_type = getattr(TensorProto, kind)
    there_and_back(onnx_file([raw]))


def test_the_same_bytes_every_time(packed_form):
    data = holding(normal(50, 60), sparse(normal(80, 90)))
    assert packed_form(data) == packed_form(data)


@pytest.mark.parametrize("more", [b"", b"a", b"an", b"end"])
def test_other_formats_of_floats_pack_too(more):
    data = b"\x40\x00\x00\x00\x00\x00\x00\x00{a header}".ljust(72) + normal(200, 300).tobytes() + more
    assert there_and_back(data) < 0.87 * len(data)


def test_a_model_stays_a_model(tmp_path):
    (tmp_path / "model.onnx").write_bytes(holding(normal(40, 50)))
    pack(tmp_path / "model.onnx", tmp_path / "packed")
    unpack(tmp_path / "packed", tmp_path / "again.onnx")
    onnx.checker.check_model(tmp_path / "again.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.onnx", "model.onnx", "packed"]
