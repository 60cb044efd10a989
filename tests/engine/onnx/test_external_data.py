"""Weights in files beside the model: read where an honest exporter put them, and nowhere else."""

import os
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from tests.engine.onnx.odd_models import floats, made
from tests.engine.onnx.running import in_engine, in_runtime, model_of
from workers.engine.errors import EngineError, InvalidModelError, UnsupportedModelError
from workers.engine.readers import read_model
from workers.engine.readers.onnx import read_onnx
from workers.engine.writers.onnx import write_onnx

WEIGHT = floats(64, 48)
BIAS = floats(48)
X = floats(3, 64)


def two_layers() -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Add", ["h", "b"], ["y"])]
    return onnx.load_from_string(
        model_of(nodes, {"x": ["N", 64]}, {"y": ["N", 48]}, {"w": WEIGHT, "b": BIAS}, metadata={"by": "Ada"})
    )


def saved(folder: Path, *, together: bool = True) -> Path:
    path = folder / "model.onnx"
    location = "weights.bin" if together else None
    onnx.save_model(
        two_layers(), path, save_as_external_data=True, all_tensors_to_one_file=together, location=location,
        size_threshold=0,
    )  # fmt: skip
    return path


@pytest.mark.parametrize("together", [True, False], ids=["one file", "a file each"])
def test_data_files_in_the_folder_are_read(tmp_path: Path, together: bool) -> None:
    path = saved(tmp_path, together=together)
    assert len(list(tmp_path.iterdir())) == (2 if together else 3)
    graph = read_onnx(path)
    np.testing.assert_allclose(in_engine(graph, {"x": X})[0], X @ WEIGHT + BIAS, atol=1e-4)
    (written,) = in_runtime(write_onnx(graph), {"x": X})
    np.testing.assert_allclose(written, X @ WEIGHT + BIAS, atol=1e-4)


def test_training_leaves_the_data_file_alone(tmp_path: Path) -> None:
    path = saved(tmp_path)
    before = (tmp_path / "weights.bin").read_bytes()
    for parameter in read_onnx(path).module.parameters():
        parameter.data.zero_()
    assert (tmp_path / "weights.bin").read_bytes() == before


def test_a_zip_of_the_folder_is_a_model(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    saved(tmp_path / "model")
    upload = tmp_path / "upload"
    with zipfile.ZipFile(upload, "w") as archive:
        for file in (tmp_path / "model").iterdir():
            archive.write(file, f"model/{file.name}")
    format_, graph = read_model(upload)
    assert format_ == "onnx"
    assert graph.metadata == {"by": "Ada"}
    np.testing.assert_allclose(in_engine(graph, {"x": X})[0], X @ WEIGHT + BIAS, atol=1e-4)


def test_data_of_branches_is_taken_in(tmp_path: Path) -> None:
    model = made("m (float[N, 64] x, bool which) => (float[N, 48] y) { a = Relu(x) }")
    branches = {}
    for name in ("then", "else"):
        branch = onnx.parser.parse_graph(f"{name} () => (float[N, 48] out) {{ out = MatMul(a, w) }}")
        branch.initializer.append(external(offset=0 if name == "then" else WEIGHT.nbytes))
        branches[f"{name}_branch"] = branch
    model.graph.node.append(helper.make_node("If", ["which"], ["y"], **branches))
    (tmp_path / "weights.bin").write_bytes(WEIGHT.tobytes() + (2 * WEIGHT).tobytes())
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    graph = read_onnx(tmp_path / "model.onnx")
    for which, weight in ((True, WEIGHT), (False, 2 * WEIGHT)):
        (answer,) = in_engine(graph, {"x": X, "which": np.array(which)})
        np.testing.assert_allclose(answer, np.maximum(X, 0) @ weight, rtol=1e-4, atol=1e-3)


def test_a_single_file_that_needs_others_says_so() -> None:
    with pytest.raises(UnsupportedModelError, match=r"^tensor 'w' is kept .* send a zip"):
        read_onnx(with_external())


def external(**fields: object) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=WEIGHT.shape, data_location=TensorProto.EXTERNAL)
    for key, value in ({"location": "weights.bin"} | fields).items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def with_external(**fields: object) -> bytes:
    model = two_layers()
    model.graph.initializer[0].CopyFrom(external(**fields))
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"location": "../secret"}, "only read from the folder"),
        ({"location": "/etc/passwd"}, "only read from the folder"),
        ({"location": "."}, "only read from the folder"),
        ({"location": ".."}, "only read from the folder"),
        ({"location": ""}, "only read from the folder"),
        ({"location": "a\\b"}, "only read from the folder"),
        ({"location": "weights.bin\0"}, "only read from the folder"),
        ({"location": "link"}, "is not there"),
        ({"location": "folder"}, "not a plain file"),
        ({"location": "pipe"}, "not a plain file"),
        ({"location": "nowhere.bin"}, "is not there"),
        ({"location": "empty"}, "cut off"),
        ({"location": "short"}, "cut off"),
        ({"location": "n" * 5000}, "is not there"),
        ({"offset": "1"}, "cut off"),
        ({"offset": "-4"}, "is no number"),
        ({"offset": "1e3"}, "is no number"),
        ({"offset": "٣"}, "is no number"),
        ({"offset": str(1 << 63)}, "is no number"),
        ({"offset": str(10**17)}, "cut off"),
        ({"length": "12"}, "needs 12288 bytes"),
        ({"length": str(1 << 40)}, "needs 12288 bytes"),
        ({"length": ""}, "is no number"),
    ],
)
def test_places_that_no_exporter_writes(tmp_path: Path, fields: dict[str, str], sentence: str) -> None:
    (tmp_path / "secret").write_bytes(WEIGHT.tobytes())
    folder = tmp_path / "in"
    (folder / "folder").mkdir(parents=True)
    (folder / "weights.bin").write_bytes(WEIGHT.tobytes())
    (folder / "short").write_bytes(WEIGHT.tobytes()[:-1])
    (folder / "empty").touch()
    (folder / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(folder / "pipe")
    (folder / "model.onnx").write_bytes(with_external(**fields))
    with pytest.raises((InvalidModelError, UnsupportedModelError), match=sentence):
        read_onnx(folder / "model.onnx")


def test_many_tensors_over_the_same_bytes(tmp_path: Path) -> None:
    """A small file that would fill the memory: each tensor is a copy of the whole data file."""
    model = two_layers()
    nodes = [helper.make_node("MatMul", ["x", f"w{n}"], [f"y{n}"]) for n in range(50)]
    model.graph.node.extend(nodes)
    model.graph.output.extend(helper.make_tensor_value_info(f"y{n}", TensorProto.FLOAT, ["N", 48]) for n in range(50))
    for n in range(50):
        tensor = external()
        tensor.name = f"w{n}"
        model.graph.initializer.append(tensor)
    (tmp_path / "weights.bin").write_bytes(WEIGHT.tobytes())
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InvalidModelError, match="more bytes than its data files hold"):
        read_onnx(tmp_path / "model.onnx")


def test_tensors_of_unknown_types_in_data_files(tmp_path: Path) -> None:
    """Their bytes come into the model: ONNX Runtime never opens a file for a part that is kept as it is."""
    model = made(
        """m (float[N, 4] x) => (float[N, 4] y) {
            s = DequantizeLinear(q, scale)
            y = Mul(x, s)
        }""",
        scale=np.float32(0.5),
    )
    model.opset_import[0].version = 23
    packed = TensorProto(name="q", data_type=TensorProto.FLOAT8E4M3FN, dims=[4], data_location=TensorProto.EXTERNAL)
    packed.external_data.add(key="location", value="weights.bin")
    model.graph.initializer.append(packed)
    (tmp_path / "weights.bin").write_bytes(bytes([0x38, 0x40, 0x44, 0x48]))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    graph = read_onnx(tmp_path / "model.onnx")
    (tmp_path / "weights.bin").unlink()
    x = floats(2, 4)
    expected = x * 0.5 * np.array([1, 2, 3, 4], np.float32)
    np.testing.assert_allclose(in_engine(graph, {"x": x})[0], expected, rtol=1e-6)
    np.testing.assert_allclose(in_runtime(write_onnx(graph), {"x": x})[0], expected, rtol=1e-6)


ENTRIES = st.dictionaries(
    st.sampled_from(["location", "offset", "length", "checksum", "basepath", "x"]),
    st.one_of(
        st.text(max_size=8),
        st.integers(-(2**66), 2**66).map(str),
        st.sampled_from(["weights.bin", "0", "12288", "4096", "../in/weights.bin"]),
    ),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(entries=ENTRIES, size=st.integers(0, 3 * WEIGHT.nbytes))
def test_whatever_stands_there_nothing_else_happens(tmp_path: Path, entries: dict[str, str], size: int) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(size))
    model = two_layers()
    tensor = model.graph.initializer[0]
    tensor.CopyFrom(external())
    del tensor.external_data[:]
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    try:
        graph = read_onnx(tmp_path / "model.onnx")
    except EngineError:
        return
    assert entries["location"] == "weights.bin"
    assert size >= WEIGHT.nbytes
    assert graph.outputs[0].name == "y"
