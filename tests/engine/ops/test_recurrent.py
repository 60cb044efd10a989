"""Recurrent layers with all that ONNX lets them have, against ONNX Runtime."""

import numpy as np
import pytest
from onnx import helper

from tests.engine.onnx.running import assert_same, model_of

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
ACTIVATIONS = {"LSTM": 3, "GRU": 2, "RNN": 1}
STEPS, BATCH, WIDTH, HIDDEN = 5, 2, 3, 4


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def recurrent(op: str, *, computed: bool, **attributes) -> tuple[bytes, dict[str, np.ndarray]]:
    """A model of one layer with lengths and initial states, its weights stored or fed, and what to feed it."""
    directions, rows = 2 if attributes.get("direction") == "bidirectional" else 1, GATES[op] * HIDDEN
    weights = {
        "W": normal(directions, rows, WIDTH), "R": normal(directions, rows, HIDDEN), "B": normal(directions, 2 * rows),
    }  # fmt: skip
    feeds = {"x": normal(STEPS, BATCH, WIDTH), "h0": normal(directions, BATCH, HIDDEN)}
    lengths, names = {"lengths": np.array([5, 3], np.int32)}, ["x", "W", "R", "B", "lengths", "h0"]
    if op == "LSTM":
        feeds["c0"] = normal(directions, BATCH, HIDDEN)
        weights["P"] = normal(directions, 3 * HIDDEN)
        names += ["c0", "P"]
    results = {"y": [STEPS, directions, BATCH, HIDDEN], "y_h": [directions, BATCH, HIDDEN]}
    stored = lengths if computed else {**lengths, **weights}
    if computed:
        feeds |= weights
    node = helper.make_node(op, names, list(results), hidden_size=HIDDEN, **attributes)
    return model_of([node], {name: array.shape for name, array in feeds.items()}, results, stored), feeds


@pytest.mark.parametrize("computed", [False, True])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op", GATES)
def test_lengths_states_and_peepholes(op: str, direction: str, computed: bool) -> None:
    model, feeds = recurrent(op, direction=direction, computed=computed, clip=0.7)
    assert_same(model, feeds)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("Affine", {"activation_alpha": [0.4], "activation_beta": [0.1]}),
        ("LeakyRelu", {"activation_alpha": [0.3]}),
        ("ThresholdedRelu", {"activation_alpha": [0.2]}),
        ("ScaledTanh", {"activation_alpha": [0.9], "activation_beta": [1.3]}),
        ("HardSigmoid", {"activation_alpha": [0.3], "activation_beta": [0.6]}),
        ("HardSigmoid", {}),
        ("Elu", {"activation_alpha": [0.5]}),
        ("Softsign", {}),
        ("Softplus", {}),
        ("Relu", {}),
    ],
)
@pytest.mark.parametrize("op", GATES)
def test_activations_with_their_numbers(op: str, name: str, numbers: dict[str, list[float]]) -> None:
    """The first that has numbers takes the first of them."""
    names = [*["Sigmoid", "Tanh", "Tanh"][: ACTIVATIONS[op] - 1], name]
    model, feeds = recurrent(op, computed=False, activations=names, **numbers)
    assert_same(model, feeds)


def test_options_of_single_ops() -> None:
    assert_same(*recurrent("LSTM", computed=False, input_forget=1))
    assert_same(*recurrent("GRU", computed=False, linear_before_reset=1))
    assert_same(*recurrent("GRU", computed=True, linear_before_reset=1))
