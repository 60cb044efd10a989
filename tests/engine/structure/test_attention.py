"""Attention heads, however attention is written out, and the widths of feed-forward layers."""

import pytest
import torch

from tests.engine.structure.nets import net, pruned_exactly
from workers.engine.structure.groups import find_groups

WIDTH, HEADS, EACH = 8, 4, 6
INNER = HEADS * EACH

LITERAL = """
    apart = Constant<value_ints=[0, 0, 4, 6]>() together = Constant<value_ints=[0, 0, 24]>()
    {name}4 = Reshape({name}, apart)
"""
COUNTED = """
    {name}s = Shape({name}) {name}n = Gather({name}s, zero) {name}l = Gather({name}s, one)
    {name}w = Gather({name}s, two)
    {name}h = Div({name}w, heads) {name}to = Concat<axis=0>({name}n, {name}l, heads, {name}h)
    {name}4 = Reshape({name}, {name}to)
"""
NUMBERS = """
    zero = Constant<value_ints=[0]>() one = Constant<value_ints=[1]>() two = Constant<value_ints=[2]>()
    heads = Constant<value_ints=[4]>() inner = Constant<value_ints=[24]>()
"""
ATTEND = """
    qt = Transpose<perm=[0, 2, 1, 3]>(q4) kt = Transpose<perm=[0, 2, 3, 1]>(k4) vt = Transpose<perm=[0, 2, 1, 3]>(v4)
    scores = MatMul(qt, kt) scaled = Mul(scores, factor) shares = Softmax<axis=-1>(scaled)
    mixed = MatMul(shares, vt) back = Transpose<perm=[0, 2, 1, 3]>(mixed)
"""
SIGNATURE = "(float[N, T, 8] x) => (float[N, T, 8] y)"
WEIGHTS = {"wq": (8, 24), "wk": (8, 24), "wv": (8, 24), "bq": (24,), "bv": (24,), "wo": (24, 8), "factor": (1,)}
PROJECT = "q0 = MatMul(x, wq) q = Add(q0, bq) k = MatMul(x, wk) v0 = MatMul(x, wv) v = Add(v0, bv)"


def test_heads_of_literal_shapes():
    views = LITERAL.format(name="q") + "k4 = Reshape(k, apart) v4 = Reshape(v, apart)"
    text = f"{SIGNATURE} {{ {PROJECT} {views} {ATTEND} z = Reshape(back, together) o = MatMul(z, wo) y = Add(x, o) }}"
    groups, pruned = pruned_exactly(net(text, WEIGHTS), frozen=("wo",))
    heads = groups["wq"]
    assert (heads.kind, heads.units, heads.layers) == ("heads", 4, ("wq", "wk", "wv"))
    assert heads.slots[0].positions.tolist()[1] == [6, 7, 8, 9, 10, 11]
    shapes = [node.args[1] for node in pruned.module.graph.nodes if node.name.startswith("reshape")]
    assert shapes == [(0, 0, 2, 6)] * 3 + [(0, 0, 12)]


def test_heads_of_shapes_that_the_model_computes():
    """The number of heads is one constant, by which the model also divides the width."""
    views = "".join(COUNTED.format(name=name) for name in "qkv")
    after = "bs = Shape(back) bn = Gather(bs, zero) bl = Gather(bs, one) bto = Concat<axis=0>(bn, bl, inner)"
    text = f"{SIGNATURE} {{ {NUMBERS} {PROJECT} {views} {ATTEND} {after} z = Reshape(back, bto) y = MatMul(z, wo) }}"
    groups, _ = pruned_exactly(net(text, WEIGHTS))
    assert (groups["wq"].kind, groups["wq"].units) == ("heads", 4)


def test_heads_that_are_folded_into_the_batch():
    """As `torch.nn.MultiheadAttention` does: (length, batch × heads, width)."""
    text = """(float[T, N, 8] x) => (float[T, N, 8] y) {
        one = Constant<value_ints=[1]>() s = Shape(x) n = Gather(s, one) four = Constant<value_ints=[4]>()
        zero = Constant<value_ints=[0]>() t = Gather(s, zero) six = Constant<value_ints=[6]>()
        all = Mul(n, four) apart = Concat<axis=0>(t, all, six)
        q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
        q3 = Reshape(q, apart) k3 = Reshape(k, apart) v3 = Reshape(v, apart)
        qt = Transpose<perm=[1, 0, 2]>(q3) kt = Transpose<perm=[1, 2, 0]>(k3) vt = Transpose<perm=[1, 0, 2]>(v3)
        scores = MatMul(qt, kt) shares = Softmax<axis=-1>(scores) mixed = MatMul(shares, vt)
        back = Transpose<perm=[1, 0, 2]>(mixed)
        rows = Mul(t, n) inner = Constant<value_ints=[24]>() flat = Concat<axis=0>(rows, inner) z = Reshape(back, flat)
        o = Gemm(z, wo) wide = Constant<value_ints=[8]>() to = Concat<axis=0>(t, n, wide) y = Reshape(o, to)
    }"""
    groups, _ = pruned_exactly(net(text, WEIGHTS))
    assert (groups["wq"].kind, groups["wq"].units) == ("heads", 4)


def test_heads_in_shapes_of_which_the_model_infers_a_part():
    """(batch × heads, -1, width) with a computed batch; then the length is asked of what has heads in its batch."""
    text = """(float[N, T, 8] x) => (float[N, T, 8] y) {
        zero = Constant<value_int=0>() first = Constant<value_ints=[0]>() one = Constant<value_int=1>()
        s = Shape(x) n = Gather(s, zero) four = Constant<value_int=4>() all = Mul(n, four) rows = Unsqueeze(all, first)
        rest = Constant<value_ints=[-1, 6]>() fold = Concat<axis=0>(rows, rest)
        q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) apart = Constant<value_ints=[0, 0, 4, 6]>()
        q4 = Reshape(q, apart) k4 = Reshape(k, apart) v4 = Reshape(v, apart)
        qt = Transpose<perm=[0, 2, 1, 3]>(q4) kt = Transpose<perm=[0, 2, 1, 3]>(k4)
        vt = Transpose<perm=[0, 2, 1, 3]>(v4)
        q3 = Reshape(qt, fold) k3 = Reshape(kt, fold) v3 = Reshape(vt, fold)
        turned = Transpose<perm=[0, 2, 1]>(k3) scores = MatMul(q3, turned) shares = Softmax<axis=-1>(scores)
        mixed = MatMul(shares, v3) ms = Shape(mixed) length = Gather(ms, one) t = Unsqueeze(length, first)
        heads = Constant<value_ints=[4]>() m = Unsqueeze(n, first) six = Constant<value_ints=[6]>()
        to = Concat<axis=0>(m, heads, t, six) m4 = Reshape(mixed, to)
        back = Transpose<perm=[0, 2, 1, 3]>(m4) together = Constant<value_ints=[0, 0, 24]>() z = Reshape(back, together)
        y = MatMul(z, wo)
    }"""
    groups, _ = pruned_exactly(net(text, {"wq": (8, 24), "wk": (8, 24), "wv": (8, 24), "wo": (24, 8)}))
    assert (groups["wq"].kind, groups["wq"].units) == ("heads", 4)


def test_heads_of_one_matrix_that_is_split():
    text = f"""{SIGNATURE} {{ apart = Constant<value_ints=[0, 0, 4, 6]>() together = Constant<value_ints=[0, 0, 24]>()
        packed = MatMul(x, w) sum = Add(packed, b) q, k, v = Split<axis=-1>(sum)
        q4 = Reshape(q, apart) k4 = Reshape(k, apart) v4 = Reshape(v, apart) {ATTEND}
        z = Reshape(back, together) y = MatMul(z, wo) }}"""
    groups, _ = pruned_exactly(net(text, {"w": (8, 72), "b": (72,), "wo": (24, 8), "factor": (1,)}))
    assert (groups["w"].kind, groups["w"].units) == ("heads", 4)
    assert groups["w"].slots[0].positions.shape == (4, 18)


def test_heads_of_one_matrix_that_is_viewed():
    """As in vision transformers: (batch, length, 3, heads, width), then one of the three by index."""
    text = f"""{SIGNATURE} {{
        apart = Constant<value_ints=[0, 0, 3, 4, 6]>() together = Constant<value_ints=[0, 0, 24]>()
        zero = Constant<value_int=0>() one = Constant<value_int=1>() two = Constant<value_int=2>()
        packed = MatMul(x, w) sum = Add(packed, b) view = Reshape(sum, apart)
        five = Transpose<perm=[2, 0, 1, 3, 4]>(view)
        q4 = Gather<axis=0>(five, zero) k4 = Gather<axis=0>(five, one) v4 = Gather<axis=0>(five, two) {ATTEND}
        z = Reshape(back, together) y = MatMul(z, wo) }}"""
    groups, _ = pruned_exactly(net(text, {"w": (8, 72), "b": (72,), "wo": (24, 8), "factor": (1,)}))
    assert (groups["w"].kind, groups["w"].units) == ("heads", 4)


@pytest.mark.parametrize(("shared", "units"), [(2, 2), (1, 4)])
def test_queries_that_share_keys(shared, units):
    """Heads of one group of keys go together; where there is only one such group its queries go one by one."""
    text = f"""{SIGNATURE} {{
        q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
        many = Constant<value_ints=[0, 0, 4, 6]>() few = Constant<value_ints=[0, 0, {shared}, 6]>()
        q4 = Reshape(q, many) kf = Reshape(k, few) vf = Reshape(v, few)
        qt = Transpose<perm=[0, 2, 1, 3]>(q4) k3 = Transpose<perm=[0, 2, 1, 3]>(kf)
        v3 = Transpose<perm=[0, 2, 1, 3]>(vf)
        place = Constant<value_ints=[2]>() k5 = Unsqueeze(k3, place) v5 = Unsqueeze(v3, place)
        copies = Constant<value_ints=[1, 1, {4 // shared}, 1, 1]>() ke = Expand(k5, copies) ve = Expand(v5, copies)
        four = Constant<value_ints=[0, 4, -1, 6]>() kr = Reshape(ke, four) vt = Reshape(ve, four)
        kt = Transpose<perm=[0, 1, 3, 2]>(kr) scores = MatMul(qt, kt) shares = Softmax<axis=-1>(scores)
        mixed = MatMul(shares, vt) back = Transpose<perm=[0, 2, 1, 3]>(mixed)
        together = Constant<value_ints=[0, 0, 24]>() z = Reshape(back, together) y = MatMul(z, wo)
    }}"""
    weights = {"wq": (8, 24), "wk": (8, 6 * shared), "wv": (8, 6 * shared), "wo": (24, 8)}
    groups, _ = pruned_exactly(net(text, weights), frozen=() if shared > 1 else ("wk", "wv"))
    assert (groups["wq"].kind, groups["wq"].units) == ("heads", units)
    assert ("wk" in groups["wq"].layers) == (shared > 1)


def test_a_bias_of_positions_belongs_to_the_heads():
    views = LITERAL.format(name="q") + "k4 = Reshape(k, apart) v4 = Reshape(v, apart)"
    biased = ATTEND.replace("Mul(scores, factor)", "Add(scores, positions)")
    text = f"""(float[N, 5, 8] x, int64[5, 5] distance) => (float[N, 5, 8] y) {{ {PROJECT} {views}
        found = Gather(table, distance) first = Transpose<perm=[2, 0, 1]>(found)
        zero = Constant<value_ints=[0]>() positions = Unsqueeze(first, zero)
        {biased} z = Reshape(back, together) y = MatMul(z, wo) }}"""
    weights = {name: shape for name, shape in WEIGHTS.items() if name != "factor"}
    groups, _ = pruned_exactly(net(text, {**weights, "table": (3, 4)}))
    assert groups["wq"].layers == ("wq", "wk", "wv", "table")


def test_one_head_loses_single_places_of_queries_and_keys():
    text = f"""{SIGNATURE} {{ q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
        kt = Transpose<perm=[0, 2, 1]>(k) scores = MatMul(q, kt) shares = Softmax<axis=-1>(scores)
        mixed = MatMul(shares, v) y = MatMul(mixed, wo) }}"""
    weights = {"wq": (8, 6), "wk": (8, 6), "wv": (8, 10), "wo": (10, 8)}
    groups, _ = pruned_exactly(net(text, weights))
    assert {name: (group.units, group.kind) for name, group in groups.items() if not group.frozen} == {
        "wq": (6, "neurons"),
        "wv": (10, "neurons"),
    }


def test_sums_by_letters():
    text = f"""{SIGNATURE} {{
        q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) apart = Constant<value_ints=[0, 0, 4, 6]>()
        q4 = Reshape(q, apart) k4 = Reshape(k, apart) v4 = Reshape(v, apart)
        scores = Einsum<equation="nqhd,nkhd->nhqk">(q4, k4) shares = Softmax<axis=-1>(scores)
        mixed = Einsum<equation="nhqk,nkhd->nqhd">(shares, v4)
        together = Constant<value_ints=[0, 0, 24]>() z = Reshape(mixed, together) y = MatMul(z, wo)
    }}"""
    groups, _ = pruned_exactly(net(text, {"wq": (8, 24), "wk": (8, 24), "wv": (8, 24), "wo": (24, 8)}))
    assert (groups["wq"].kind, groups["wq"].units) == ("heads", 4)


def test_the_width_between_norms_stays_and_that_of_feed_forward_layers_does_not():
    text = """(int64[N, T] tokens) => (float[N, T, 20] y) {
        x = Gather(table, tokens) n = LayerNormalization<axis=-1>(x, scale, shift)
        h = MatMul(n, w1) g = Add(h, b1) e = Sigmoid(g) m = MatMul(e, w3) a = Add(x, m) y = MatMul(a, w2)
    }"""
    weights = {"table": (20, 8), "scale": (8,), "shift": (8,), "w1": (8, 12), "b1": (12,), "w3": (12, 8), "w2": (8, 20)}
    graph = net(text, weights)
    groups, _ = pruned_exactly(graph, frozen=("table",))
    assert groups["table"].frozen == "scale normalizes across it"
    assert (groups["w1"].units, groups["w1"].kind, groups["w1"].frozen) == (12, "neurons", None)


def test_a_tied_table_keeps_its_rows_and_loses_columns_on_both_sides():
    text = """(int64[N, T] tokens) => (float[N, T, 20] y) {
        x = Gather(table, tokens) r = Relu(x) back = Transpose(table) y = MatMul(r, back)
    }"""
    graph = net(text, {"table": (20, 8)})
    groups, pruned = pruned_exactly(graph, frozen=("table",))
    assert [(group.units, group.frozen) for group in groups.values()] == [
        (20, "the rows of table are picked by index"),
        (8, None),
    ]
    assert len(list(pruned.module.parameters())) == 1


def test_nothing_is_found_where_all_is_frozen():
    graph = net("(float[N, 4] x) => (float[N, 6] y) { y = Gemm(x, w) }", {"w": (4, 6)})
    assert [(group.units, group.frozen) for group in find_groups(graph)] == [(6, "it is part of the output 'y'")]


@pytest.mark.parametrize(("shared", "units"), [(4, 4), (2, 2), (1, 4)])
def test_attention_of_one_op(shared, units):
    """Opset 23; the numbers of heads are attributes."""
    text = f"""(float[N, 5, 8] x, int64[N, 5] places) => (float[N, 5, 8] y) {{
        q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
        r = RotaryEmbedding<num_heads=4>(q, cosines, sines, places)
        s = RotaryEmbedding<num_heads={shared}>(k, cosines, sines, places)
        z = Attention<q_num_heads=4, kv_num_heads={shared}>(r, s, v, mask) y = MatMul(z, wo)
    }}"""
    weights = {"wq": (8, 24), "wk": (8, 6 * shared), "wv": (8, 6 * shared), "wo": (24, 8), "mask": (4, 5, 5)}
    tables = {name: torch.rand(5, 3) for name in ("cosines", "sines")}
    graph = net(text, weights, tables, opset=23)
    groups, _ = pruned_exactly(graph, frozen=() if shared > 1 else ("wk", "wv"))
    assert (groups["wq"].kind, groups["wq"].units) == ("heads", units)
