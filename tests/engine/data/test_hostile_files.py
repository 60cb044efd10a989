"""Files made to hurt: nothing in them is executed, and nothing is unpacked that was not announced."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.engine.data import read_dataset
from workers.engine.errors import InvalidDataError


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def npy(array=None, header=None, body=b""):
    stream = io.BytesIO()
    if array is not None:
        np.lib.format.write_array(stream, array, allow_pickle=True)
    else:
        np.lib.format.write_array_header_1_0(stream, header)
        stream.write(body)
    return stream.getvalue()


def archive(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def refused(path, sentence):
    with pytest.raises(InvalidDataError, match=sentence):
        read_dataset(path, path.parent)


def test_pickled_objects_are_never_loaded(tmp_path):
    proof = tmp_path / "executed"
    array = np.empty(1, object)
    array[0] = Touch(proof)
    refused(archive(tmp_path / "a.npz", {"x.npy": npy(array)}), "pickled Python objects")

    bare = tmp_path / "b.npz"
    bare.write_bytes(pickle.dumps(Touch(proof)))
    refused(bare, "no dataset")
    assert not proof.exists()


def test_a_bomb_is_refused_before_it_unfolds(tmp_path):
    bomb = archive(tmp_path / "a.npz", {"x.npy": npy(np.zeros(1 << 20))})
    data = bytearray(bomb.read_bytes())
    position = data.rfind(b"PK\x01\x02")
    data[position + 24 : position + 28] = (0xFFFFFF00).to_bytes(4, "little")  # the promised size
    bomb.write_bytes(data)
    refused(bomb, "more than is allowed")


def test_a_header_that_promises_more_than_the_member_holds(tmp_path):
    header = {"descr": "<f4", "fortran_order": False, "shape": (1 << 40,)}
    refused(archive(tmp_path / "a.npz", {"x.npy": npy(header=header, body=b"0000")}), "damaged")
    header["shape"] = (1 << 62, 1 << 62)
    refused(archive(tmp_path / "a.npz", {"x.npy": npy(header=header, body=b"0000")}), "damaged")
    header["shape"] = (-1, -4)
    refused(archive(tmp_path / "a.npz", {"x.npy": npy(header=header, body=b"0" * 16)}), "damaged")


def test_other_things_in_the_archive(tmp_path):
    x = npy(np.zeros(2))
    refused(archive(tmp_path / "a.npz", {"x.npy": x, "run.py": b"x"}), "no array")
    refused(archive(tmp_path / "a.npz", {f"{i}.npy": x for i in range(300)}), "at most 256")
    refused(archive(tmp_path / "a.npz", {"x.npy": x}, zipfile.ZIP_LZMA), "unusual way")
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as file:
        file.writestr("x.npy", x)
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("x.npy", x)
    refused(tmp_path / "b.npz", "twice")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "empty"),
        (b"hello, this is no dataset at all", "no dataset"),
        (npy(np.zeros(3)), "single .npy"),
        (b"PK\x03\x04 and then nothing", "damaged"),
        (b"PAR1 and then nothing PAR1", "parquet file cannot be read"),
        ((1 << 40).to_bytes(8, "little") + b"{}", "safetensors file cannot be read"),
        ((2).to_bytes(8, "little") + b"{}", "no array"),
    ],
)
def test_files_that_are_none(tmp_path, content, sentence):
    (tmp_path / "x").write_bytes(content)
    refused(tmp_path / "x", sentence)


@settings(max_examples=150, deadline=None)
@given(
    position=st.integers(0, 10_000),
    value=st.integers(0, 255),
    cut=st.integers(0, 10_000),
    which=st.sampled_from([0, 1, 2]),
)
def test_damage_anywhere_is_a_refusal_or_harmless(tmp_path_factory, position, value, cut, which):
    folder = tmp_path_factory.mktemp("damage")
    data = bytearray(samples(tmp_path_factory)[which])
    data[position % len(data)] = value
    del data[len(data) - cut % 64 :]
    (folder / "x").write_bytes(data)
    try:
        read_dataset(folder / "x", folder)
    except InvalidDataError as error:
        assert str(error)  # noqa: PT017 (either outcome is fine, but no other)


SAMPLES = []


def samples(tmp_path_factory):
    if not SAMPLES:
        import pyarrow as pa
        import pyarrow.parquet as pq
        from safetensors.numpy import save

        x, y = np.linspace(0, 1, 24, dtype=np.float32).reshape(6, 4), np.arange(6)
        stream = io.BytesIO()
        np.savez_compressed(stream, x=x, y=y)
        table = io.BytesIO()
        pq.write_table(pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 4), "y": y}), table)
        SAMPLES.extend([stream.getvalue(), save({"x": x, "y": y}), table.getvalue()])
    return SAMPLES


def test_a_column_that_run_lengths_blow_up_is_refused_before_it_unfolds(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"x": pa.array(np.zeros(12_000_000))}), tmp_path / "x", compression="zstd")
    refused(tmp_path / "x", "more than is allowed")
