"""Dataset files of all three formats, as people save them, become named arrays with shapes, types and ranges."""

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from workers.engine.data import read_dataset
from workers.engine.errors import InvalidDataError

X = np.random.default_rng(0).normal(size=(6, 2, 3)).astype(np.float32)
Y = np.array([0, 3, 1, 2, 2, 1])


def save_npz(path):
    np.savez(path, x=X, y=Y)


def save_compressed_npz(path):
    np.savez_compressed(path, x=X, y=Y)


def save_safetensors(path):
    save_file({"x": X, "y": Y}, path)


def save_parquet(path):
    images = pa.FixedSizeListArray.from_arrays(pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), 3), 2)
    pq.write_table(pa.table({"x": images, "y": pa.array(Y)}), path)


def save_parquet_of_lists(path):
    pq.write_table(pa.table({"x": pa.array(X.tolist(), pa.list_(pa.list_(pa.float32()))), "y": pa.array(Y)}), path)


@pytest.mark.parametrize(
    "save",
    [save_npz, save_compressed_npz, save_safetensors, save_parquet, save_parquet_of_lists],
    ids=lambda f: f.__name__,
)
def test_every_format_reads_alike(tmp_path, save):
    path = tmp_path / "data.npz"  # the suffix says nothing
    with path.open("wb") as file:
        if save in (save_npz, save_compressed_npz):
            save(file)
    if path.stat().st_size == 0:
        save(path)

    dataset = read_dataset(path, tmp_path)

    np.testing.assert_array_equal(dataset.arrays["x"], X)
    np.testing.assert_array_equal(dataset.arrays["y"], Y)
    assert dataset.spec.examples == 6
    x, y = dataset.spec.arrays
    assert (x.name, x.dtype, x.shape, x.minimum) == ("x", "float32", (6, 2, 3), None)
    assert (y.name, y.dtype, y.shape, y.minimum, y.maximum) == ("y", "int64", (6,), 0, 3)


def test_large_compressed_arrays_are_mapped_and_leave_no_file_behind(tmp_path):
    path = tmp_path / "data.npz"
    large = np.arange(3 << 20, dtype=np.float64).reshape(-1, 8)
    np.savez_compressed(path, x=large, y=np.asfortranarray(large))

    dataset = read_dataset(path, tmp_path)

    assert isinstance(dataset.arrays["x"], np.memmap)
    np.testing.assert_array_equal(dataset.arrays["x"], large)
    np.testing.assert_array_equal(dataset.arrays["y"], large)
    assert [file.name for file in tmp_path.iterdir()] == ["data.npz"]


def test_other_byte_orders_and_half_floats_are_read(tmp_path):
    np.savez(tmp_path / "a.npz", x=X.astype(">f4"), half=X.astype(np.float16))
    dataset = read_dataset(tmp_path / "a.npz", tmp_path)
    np.testing.assert_array_equal(dataset.arrays["x"], X)
    assert {array.dtype for array in dataset.spec.arrays} == {"float32", "float16"}

    save_torch({"x": torch.from_numpy(X).bfloat16()}, tmp_path / "b.safetensors")
    brain = read_dataset(tmp_path / "b.safetensors", tmp_path)
    np.testing.assert_array_equal(brain.arrays["x"], X.astype(ml_dtypes.bfloat16).astype(np.float32))


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"x": np.array([[1.0], [np.nan]])}, "'x' holds NaN"),
        ({"x": np.array([[1.0], [np.inf]])}, "'x' holds infinite"),
        ({"x": X, "y": Y[:5]}, "differ in their number of examples"),
        ({"x": np.float32(1)}, "single number"),
        ({"x": X[:0]}, "no example"),
        ({"x": np.array(["a", "b"])}, "only booleans, integers and floats"),
        ({"x": np.array([1j])}, "only booleans, integers and floats"),
        ({"x": np.zeros(2, [("a", "f4")])}, "records"),
        ({"x": np.array([{}, {}], dtype=object)}, "save with numpy.savez without objects"),
        ({}, "holds no array"),
        ({"a\nb": X}, "no name for an array"),
    ],
)
def test_unusable_arrays_are_refused_by_name(tmp_path, arrays, sentence):
    np.savez(tmp_path / "data.npz", allow_pickle=True, **arrays)
    with pytest.raises(InvalidDataError, match=sentence):
        read_dataset(tmp_path / "data.npz", tmp_path)


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"x": pa.array([1.0, None])}, "missing values"),
        ({"x": pa.array(["a", "b"])}, "only numbers"),
        ({"x": pa.array([[1.0], [1.0, 2.0]])}, "different lengths"),
        ({"x": pa.array([[1.0, 2.0, 3.0], [2.0]])}, "different lengths"),
        ({"x": pa.array([[1.0], None])}, "missing values"),
        ({"x": pa.array([], pa.float32())}, "no example"),
    ],
)
def test_unusable_columns_are_refused_by_name(tmp_path, columns, sentence):
    pq.write_table(pa.table(columns), tmp_path / "data.parquet")
    with pytest.raises(InvalidDataError, match=sentence):
        read_dataset(tmp_path / "data.parquet", tmp_path)


def test_one_hot_arrays_and_probabilities_are_told(tmp_path):
    np.savez(tmp_path / "a.npz", hot=np.eye(4)[Y], soft=np.full((6, 4), 0.25, np.float32), yes=np.ones((6, 4)), x=X)
    told = {array.name for array in read_dataset(tmp_path / "a.npz", tmp_path).spec.arrays if array.distribution}
    assert told == {"hot", "soft"}
