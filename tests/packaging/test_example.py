"""The example files are what their README says, and tell nothing of the machine that made them."""

import json
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "fashion_mnist"
TRACES = (b".py", b"/home", b"/root", b"/tmp", b"/usr", b'File "')


@pytest.mark.parametrize(("use", "count"), [("train", 6000), ("calibrate", 500), ("evaluate", 2000)])
def test_data(use: str, count: int) -> None:
    with np.load(EXAMPLE / f"{use}.npz", allow_pickle=False) as data:
        x, labels = data["x"], data["labels"]
    assert (x.shape, x.dtype) == ((count, 1, 28, 28), np.float32)
    assert (labels.shape, labels.dtype) == ((count,), np.int64)
    assert set(labels.tolist()) == set(range(10))
    assert abs(float(x.mean())) < 0.05
    assert abs(float(x.std()) - 1) < 0.05


@pytest.mark.parametrize(("name", "accuracy", "parameters"), [("resnet", 0.9280, 173_842), ("lenet5", 0.9115, 61_706)])
def test_networks(name: str, accuracy: float, parameters: int) -> None:
    path = EXAMPLE / f"{name}.onnx"
    session = onnxruntime.InferenceSession(path)
    with np.load(EXAMPLE / "evaluate.npz", allow_pickle=False) as data:
        (logits,) = session.run(["logits"], {"x": data["x"]})
        right = float((logits.argmax(1) == data["labels"]).mean())
    assert right == pytest.approx(accuracy, abs=0.001)
    weights = sum(int(np.prod(tensor.dims)) for tensor in onnx.load(path).graph.initializer if tensor.data_type == 1)
    assert weights == pytest.approx(parameters, rel=0.005)  # batch norms are folded: two figures a channel less
    assert not [trace for trace in TRACES if trace in path.read_bytes()]


def test_the_program_keeps_its_batch_norms_and_no_traces() -> None:
    with zipfile.ZipFile(EXAMPLE / "resnet.pt2") as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    program = next(content for name, content in contents.items() if name.endswith("models/model.json"))
    targets = [node["target"] for node in json.loads(program)["graph_module"]["graph"]["nodes"]]
    assert sum("batch_norm" in target for target in targets) == 9
    assert not [(name, trace) for name, content in contents.items() for trace in TRACES if trace in content]


def test_all_of_it_is_a_few_megabytes() -> None:
    kept = ("*.npz", "*net*.onnx", "*.pt2")
    files = [path for pattern in kept for path in EXAMPLE.glob(pattern) if "compressed" not in path.name]
    assert 5e6 < sum(path.stat().st_size for path in files) < 10e6
