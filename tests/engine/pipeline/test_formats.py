"""Results in other formats than ONNX: read back before they are given out, and never absent without a word."""


from modelpress.packed import unpack
from tests.engine.pipeline.models import blobs, compress, inspect_model, mlp

PRUNE = [{"step": "magnitude_pruning", "sparsity": 0.9}]
HALF = [{"step": "half_precision"}]


def test_a_packed_result_is_the_onnx_result_in_less_bytes(tmp_path):
    result, _ = compress(tmp_path / "run", mlp(), PRUNE, formats=["onnx", "packed"])
    assert result.error is None, result.error
    assert [(file.format, file.path) for file in result.files] == [
        ("onnx", "out/model.onnx"),
        ("packed", "out/model.packed"),
    ]
    plain, packed = (tmp_path / "run" / file.path for file in result.files)
    unpack(packed, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == plain.read_bytes()
    assert [file.bytes for file in result.report.files] == [plain.stat().st_size, packed.stat().st_size]
    assert result.report.size[1].bytes == plain.stat().st_size
    assert result.report.files[1].ratio > 3


def test_sizes_are_judged_by_the_first_format(tmp_path):
    result, _ = compress(tmp_path / "run", mlp(), PRUNE, formats=["packed"], targets={"size_ratio": 3})
    assert [file.format for file in result.files] == ["packed"]
    assert result.report.targets_met
    assert result.report.size_ratio == result.report.files[0].ratio > 3
    assert sorted(path.name for path in (tmp_path / "run" / "out").iterdir()) == [
        "model.onnx",
        "model.packed",
        "result.json",
    ]


def test_a_packed_file_is_an_original_too(tmp_path):
    packed, _ = compress(tmp_path / "a", mlp(), PRUNE, formats=["packed"])
    content = (tmp_path / "a" / packed.files[0].path).read_bytes()
    found = inspect_model(tmp_path / "b", content).model
    assert found.format == "packed"
    assert found.stats.nonzeros < 0.2 * found.stats.parameters
    again, events = compress(tmp_path / "c", content, HALF, data={"evaluate": blobs(100, 2)})
    assert again.report.agreement[0].cosine > 0.999
    assert any(event.type == "warning" and "came as packed" in event.message for event in events)
