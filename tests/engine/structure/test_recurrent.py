"""Hidden units of recurrent layers: in every gate, in both directions, and in what takes them."""

import pytest

from tests.engine.structure.nets import net, pruned_exactly

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_two_layers_in_both_directions(kind):
    gates = GATES[kind]
    text = f"""(float[T, N, 5] x) => (float[T, N, 3] y) {{
        a = {kind}<hidden_size=6, direction="bidirectional">(x, w1, r1, b1)
        t = Transpose<perm=[0, 2, 1, 3]>(a) shape = Constant<value_ints=[0, 0, -1]>() z = Reshape(t, shape)
        c = {kind}<hidden_size=4>(z, w2, r2, b2) one = Constant<value_ints=[1]>() d = Squeeze(c, one)
        y = MatMul(d, head)
    }}"""
    weights = {
        "w1": (2, 6 * gates, 5),
        "r1": (2, 6 * gates, 6),
        "b1": (2, 12 * gates),
        "w2": (1, 4 * gates, 12),
        "r2": (1, 4 * gates, 4),
        "b2": (1, 8 * gates),
        "head": (4, 3),
    }
    groups, pruned = pruned_exactly(net(text, weights))
    assert [(group.kind, group.units) for group in groups.values()] == [
        ("hidden units", 6),
        ("hidden units", 4),
        ("neurons", 3),
    ]
    assert [module.hidden for module in pruned.module.modules() if hasattr(module, "weight_hh")] == [3, 2]


def test_states_and_peepholes_shrink_with_their_units():
    """The last states of one layer are the first of another, and its first ones are computed and stored."""
    text = """(float[T, N, 5] x, float[N, 4] given) => (float[T, N, 3] y) {
        zero = Constant<value_ints=[0]>() one = Constant<value_ints=[1]>() first = MatMul(given, start)
        s = Relu(first) h0 = Unsqueeze(s, zero) n = Shape<start=1, end=2>(x) six = Constant<value_ints=[6]>()
        to = Concat<axis=0>(one, n, six) c0 = Expand(cells, to)
        a, h, c = LSTM<hidden_size=6>(x, w1, r1, b1, , h0, c0, peep)
        b = LSTM<hidden_size=6>(x, w2, r2, b2, , h, c) d = Squeeze(b, one) y = MatMul(d, head)
    }"""
    weights = {
        "start": (4, 6),
        "cells": (1, 1, 6),
        "peep": (1, 18),
        "head": (6, 3),
        **{f"w{layer}": (1, 24, 5) for layer in (1, 2)},
        **{f"r{layer}": (1, 24, 6) for layer in (1, 2)},
        **{f"b{layer}": (1, 48) for layer in (1, 2)},
    }
    groups, _ = pruned_exactly(net(text, weights))
    assert groups["start"].layers == ("start", "w1", "w2")
    assert groups["start"].units == 6


def test_states_of_zeros_tie_no_layers():
    """Exporters fill the states of all layers at once."""
    text = """(float[T, N, 5] x) => (float[T, N, 3] y) {
        n = Shape<start=1, end=2>(x) two = Constant<value_ints=[2]>() six = Constant<value_ints=[6]>()
        to = Concat<axis=0>(two, n, six) nothing = Constant<value_float=0.0>() states = Expand(nothing, to)
        zero = Constant<value_ints=[0]>() one = Constant<value_ints=[1]>()
        h1 = Slice(states, zero, one, zero) h2 = Slice(states, one, two, zero)
        a = GRU<hidden_size=6, linear_before_reset=1>(x, w1, r1, b1, , h1) m = Squeeze(a, one)
        b = GRU<hidden_size=6, linear_before_reset=1>(m, w2, r2, b2, , h2) d = Squeeze(b, one) y = MatMul(d, head)
    }"""
    weights = {
        "head": (6, 3),
        "w1": (1, 18, 5),
        "w2": (1, 18, 6),
        **{f"r{layer}": (1, 18, 6) for layer in (1, 2)},
        **{f"b{layer}": (1, 36) for layer in (1, 2)},
    }
    groups, _ = pruned_exactly(net(text, weights))
    assert [group.kind for group in groups.values()].count("hidden units") == 2
