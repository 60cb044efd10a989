"""The per-layer table, on a graph whose layers were changed in ways that are known."""

import pytest
import torch

from tests.engine.pipeline.models import convolutional, residual
from workers.engine.constraints import Mask
from workers.engine.measuring.layers import layer_table
from workers.engine.readers import read_model


@pytest.fixture
def graphs(tmp_path):
    (tmp_path / "model").write_bytes(convolutional())
    _, graph = read_model(tmp_path / "model")
    return graph, graph.copy()


def test_what_did_not_change(graphs):
    rows = layer_table(*graphs, {"layer2": "a reason"})
    assert [row.type for row in rows] == ["Conv", "Conv", "Gemm"]
    assert all((row.snr_db, row.bits, row.parameters_before) == (None, 32, row.parameters_after) for row in rows)
    assert [row.note for row in rows if row.name == "layer2"] == ["a reason"]


def test_masked_weights_are_sparse_and_noisy(graphs):
    original, result = graphs
    first = next(result.layers())
    keep = first.weights["weight"].abs() > first.weights["weight"].abs().median()
    first.constrain("weight", Mask(keep))
    row = layer_table(original, result, {})[0]
    assert row.sparsity == pytest.approx(0.5, abs=0.02)
    assert row.nonzeros == int(keep.sum())
    assert 3 < row.snr_db < 20


def test_noise_of_a_known_size(graphs):
    original, result = graphs
    *_, last = result.layers()
    weight = last.module.weight
    torch.manual_seed(0)
    noise = torch.randn_like(weight)
    noise *= weight.norm() / noise.norm() / 100  # 40 dB
    with torch.no_grad():
        weight += noise
    assert layer_table(original, result, {})[2].snr_db == pytest.approx(40, abs=0.3)


def test_the_scale_of_a_channel_is_no_loss(graphs):
    original, result = graphs
    weight = next(result.layers()).module.weight
    with torch.no_grad():
        weight *= torch.linspace(0.5, 2, len(weight)).reshape(-1, 1, 1, 1)
    assert layer_table(original, result, {})[0].snr_db is None


def test_layers_that_are_gone_and_layers_that_are_new_say_so(graphs, tmp_path):
    original, _ = graphs
    (tmp_path / "other").write_bytes(residual())
    _, result = read_model(tmp_path / "other")
    rows = {row.name: row for row in layer_table(original, result, {"layer2": "and a reason"})}
    before, after = ({layer.name for layer in graph.layers()} for graph in (original, result))
    assert before - after, "the nets have layers of their own"
    assert after - before
    for name in before - after:
        assert rows[name].note.startswith("gone: ")
        assert (rows[name].parameters_after, rows[name].bits, rows[name].snr_db) == (0, 0, None)
    for name in after - before:
        assert rows[name].note == "added by a step"
        assert rows[name].parameters_before == 0
    total = sum(weight.numel() for layer in result.layers() for weight in layer.weights.values())
    assert sum(row.parameters_after for row in rows.values()) == total
