"""What packing is for: each kind of redundancy that compression leaves in a model is found."""

import lzma

import ml_dtypes
import numpy as np
import pytest
import zstandard

from tests.packed.models import holding, normal, sparse


def ratio(packed_form, *weights: np.ndarray) -> float:
    data = holding(*weights)
    return len(data) / len(packed_form(data))


def best_of_others(*weights: np.ndarray) -> float:
    data = holding(*weights)
    return len(data) / min(len(zstandard.ZstdCompressor(level=19).compress(data)), len(lzma.compress(data)))


def test_nine_zeros_in_ten_and_sixteen_values(packed_form):
    weight = sparse(normal(128, 128, 3, 3))
    assert ratio(packed_form, weight) > max(34, 1.5 * best_of_others(weight))


def test_zeros_alone(packed_form):
    weight = normal(256, 512)
    weight[np.random.default_rng(1).random(weight.shape) < 0.9] = 0
    found = ratio(packed_form, weight)
    # 0.47 bits a weight for the places, 26.7 bits for each of the tenth that is left
    assert found > 32 / (0.47 + 2.75)
    assert found > 1.1 * best_of_others(weight)


def test_few_values_without_zeros(packed_form):
    values = np.random.default_rng(1).integers(0, 16, (300, 400))
    assert ratio(packed_form, normal(16)[values]) > 32 / 4.1
    assert ratio(packed_form, normal(4096)[np.random.default_rng(1).integers(0, 2000, (600, 700))]) > 32 / 11.4


@pytest.mark.parametrize(("dtype", "bits"), [(np.float32, 26.7), (np.float16, 13.6), (ml_dtypes.bfloat16, 10.7)])
def test_floats_as_they_are_trained(packed_form, dtype, bits):
    weight = normal(400, 500).astype(dtype)
    assert ratio(packed_form, weight) > 8 * weight.itemsize / bits
    assert ratio(packed_form, weight) > 1.04 * best_of_others(weight)


def test_floats_that_once_were_halves(packed_form):
    assert ratio(packed_form, normal(300, 400).astype(np.float16).astype(np.float32)) > 32 / 14.5


def test_integers_of_a_narrow_range(packed_form):
    dice = np.random.default_rng(0)
    assert ratio(packed_form, dice.normal(0, 4, (300, 400)).round().astype(np.int8)) > 8 / 4.3
    assert ratio(packed_form, dice.integers(-100, 100, 20_000)) > 64 / 8
    assert ratio(packed_form, np.arange(30_000)) > 40


def test_int8_with_zeros(packed_form):
    weight = np.random.default_rng(0).normal(0, 20, (300, 400)).round().astype(np.int8)
    weight[np.random.default_rng(1).random(weight.shape) < 0.8] = 0
    assert ratio(packed_form, weight) > 8 / 2.1


def test_two_zeros_in_four(packed_form):
    weight = normal(256, 256).reshape(-1, 4)
    np.put_along_axis(weight, np.abs(weight).argsort(axis=1)[:, :2], 0, axis=1)
    # log2(6) bits say which two of four: 0.65 a weight
    assert ratio(packed_form, weight.reshape(256, 256)) > 32 / (0.68 + 0.5 * 26.8)


@pytest.mark.parametrize("axis", [0, 1])
def test_channels_of_unlike_sparsity(packed_form, axis):
    """Half of the channels hold 99 % zeros, the others 50 %."""
    values = normal(16)[np.random.default_rng(0).integers(0, 16, (256, 256))]
    zeros = np.where(np.arange(256) % 2, 0.99, 0.5)
    values[np.random.default_rng(1).random(values.shape) < (zeros[:, None] if axis == 0 else zeros)] = 0
    together = 0.819 + 0.255 * 4
    apart = (1 + 0.081) / 2 + 0.255 * 4
    assert 32 / together * 1.05 < ratio(packed_form, values) < 32 / apart


def test_tied_weights_are_stored_once(packed_form):
    weight = normal(300, 400)
    alone = len(packed_form(holding(weight)))
    assert len(packed_form(holding(weight, normal(10, seed=1), weight))) < alone + 200


def test_many_small_tensors_share_their_tables(packed_form):
    assert ratio(packed_form, *[normal(300 + index, seed=index) for index in range(300)]) > 32 / 26.9


def test_what_cannot_shrink_does_not_grow(packed_form):
    noise = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8)
    assert len(packed_form(holding(noise))) < 1.001 * len(holding(noise))
    assert len(packed_form(noise.tobytes())) < 1.001 * len(noise)
