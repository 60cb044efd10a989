"""Packed uploads: what is in them is read; damage and other contents are refused in words."""

import pytest

from modelpress.packed import pack
from tests.packed.models import holding, normal
from workers.engine.errors import InvalidModelError, UnsupportedModelError
from workers.engine.readers import read_model
from workers.engine.readers.packed import ALLOWANCE, unpacked


def packed(tmp_path, content: bytes):
    (tmp_path / "plain").write_bytes(content)
    pack(tmp_path / "plain", tmp_path / "packed")
    return tmp_path / "packed"


def test_the_onnx_file_in_it_is_read(tmp_path):
    path = packed(tmp_path, holding(normal(20, 30)))
    format_, graph = read_model(path)
    assert format_ == "packed"
    assert [spec.name for spec in graph.inputs] == ["x"]
    assert unpacked(path).read_bytes() == holding(normal(20, 30))


def test_another_file_in_its_place_is_unpacked_anew(tmp_path):
    unpacked(packed(tmp_path, holding(normal(20, 30))))
    (tmp_path / "packed").unlink()
    assert unpacked(packed(tmp_path, holding(normal(30, 20)))).read_bytes() == holding(normal(30, 20))


def test_damage_is_the_users_to_know(tmp_path):
    path = packed(tmp_path, holding(normal(20, 30)))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InvalidModelError, match=r"cannot be unpacked \(damaged: .*\): upload it again"):
        read_model(path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["packed", "plain"]


def test_only_onnx_is_read_from_it(tmp_path):
    path = packed(tmp_path, holding(normal(20, 30)))
    with pytest.raises(UnsupportedModelError, match="holds no ONNX file"):
        read_model(packed(tmp_path, path.read_bytes()))


def test_growth_without_measure_is_refused(tmp_path):
    path = packed(tmp_path, bytes(2 * ALLOWANCE))
    with pytest.raises(InvalidModelError, match=r"more than the .* that are allowed"):
        read_model(path)
