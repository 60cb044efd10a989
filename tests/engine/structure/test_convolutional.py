"""Channels of convolutional nets, through everything that such nets are made of."""

import pytest
import torch

from tests.engine.structure.nets import net, pruned_exactly, run
from workers.engine.shapes import example_inputs
from workers.engine.structure.groups import find_groups, remove_units

HEAD = "p = GlobalAveragePool(last) f = Flatten(p) y = Gemm<transB=1>(f, head, head_bias)"


def picture_net(body, weights, channels, constants=None, opset=17):
    """`body` goes from `x`, of three channels, to `last`, of `channels` channels."""
    text = f"(float[N, 3, 8, 8] x) => (float[N, 5] y) {{ {body} {HEAD} }}"
    return net(text, {**weights, "head": (5, channels), "head_bias": (5,)}, constants, opset)


def test_channels_of_a_residual_block_go_together():
    groups, pruned = pruned_exactly(
        picture_net(
            """
            a = Conv<pads=[1,1,1,1]>(x, stem) n = BatchNormalization(a, scale, shift, mean, var) r = Relu(n)
            b = Conv<pads=[1,1,1,1]>(r, first, first_bias) s = Sigmoid(b)
            c = Conv<pads=[1,1,1,1]>(s, second, second_bias) last = Add(r, c)
            """,
            {
                "stem": (8, 3, 3, 3),
                "scale": (8,),
                "shift": (8,),
                "mean": (8,),
                "var": (8,),
                "first": (6, 8, 3, 3),
                "first_bias": (6,),
                "second": (8, 6, 3, 3),
                "second_bias": (8,),
            },
            8,
        )
    )
    assert {name: (group.units, group.kind) for name, group in groups.items()} == {
        "stem": (8, "channels"),
        "first": (6, "channels"),
        "head": (5, "neurons"),
    }
    assert groups["stem"].layers == ("stem", "second")
    assert groups["head"].frozen == "it is part of the output 'y'"
    norm = next(module for module in pruned.module.modules() if hasattr(module, "running_var"))
    assert norm.num_features == 4
    assert norm.running_var.shape == (4,)


def test_depthwise_channels_are_groups():
    groups, pruned = pruned_exactly(
        picture_net(
            """
            a = Conv(x, wide) b = Conv<group=12, pads=[1,1,1,1]>(a, depthwise, depthwise_bias) r = HardSwish(b)
            last = Conv(r, narrow)
            """,
            {"wide": (12, 3, 1, 1), "depthwise": (12, 1, 3, 3), "depthwise_bias": (12,), "narrow": (4, 12, 1, 1)},
            4,
        )
    )
    assert groups["wide"].layers == ("wide", "depthwise")
    assert sorted(module.groups for module in pruned.module.modules() if hasattr(module, "groups")) == [1, 1, 6]


@pytest.mark.parametrize(("of_groups", "units"), [(2, 6), (6, 6)])
def test_grouped_convolutions_lose_channels_of_every_group_or_whole_groups(of_groups, units):
    """Whichever there are more of."""
    groups, _ = pruned_exactly(
        picture_net(
            f"a = Conv(x, wide) r = Relu(a) b = Conv<group={of_groups}>(r, grouped, bias) last = Relu(b)",
            {"wide": (12, 3, 1, 1), "grouped": (12, 12 // of_groups, 3, 3), "bias": (12,)},
            12,
        )
    )
    assert groups["wide"].units == units


def test_transposed_convolutions_shrink_on_both_sides():
    groups, _ = pruned_exactly(
        picture_net(
            """
            a = Conv(x, down, down_bias) r = Relu(a) b = ConvTranspose<strides=[2,2]>(r, up, up_bias) s = Relu(b)
            c = ConvTranspose<group=4>(s, grouped, grouped_bias) last = Relu(c)
            """,
            {
                "down": (6, 3, 2, 2),
                "down_bias": (6,),
                "up": (6, 8, 2, 2),
                "up_bias": (8,),
                "grouped": (8, 1, 3, 3),
                "grouped_bias": (4,),
            },
            4,
        )
    )
    assert {"down": 6, "up": 4}.items() <= {name: group.units for name, group in groups.items()}.items()


def test_concatenated_channels_go_one_by_one():
    groups, _ = pruned_exactly(
        picture_net(
            "a = Conv(x, one) b = Conv(x, two) r = Relu(b) c = Concat<axis=1>(a, r, a) last = Conv(c, three)",
            {"one": (4, 3, 1, 1), "two": (6, 3, 1, 1), "three": (8, 14, 1, 1)},
            8,
        )
    )
    assert (groups["one"].units, groups["two"].units) == (4, 6)
    columns = next(slot for slot in groups["one"].slots if slot.role == "takes")
    assert columns.positions.tolist() == [[0, 10], [1, 11], [2, 12], [3, 13]]


@pytest.mark.parametrize(
    "cut",
    [
        "b, c = Split<axis=1>(a)",
        "sizes = Constant<value_ints=[5, 3]>() b, c = Split<axis=1>(a, sizes)",
        """
        zero = Constant<value_ints=[0]>() five = Constant<value_ints=[-3]>() along = Constant<value_ints=[1]>()
        far = Constant<value_ints=[9223372036854775807]>()
        b = Slice(a, zero, five, along) c = Slice(a, five, far, along)
        """,
    ],
    ids=["halves", "sizes", "slices"],
)
def test_parts_of_channels_shrink_by_themselves(cut):
    sizes = (4, 4) if "Split<axis=1>(a)" in cut and "sizes" not in cut else (5, 3)
    groups, _ = pruned_exactly(
        picture_net(
            f"a = Conv(x, stem) {cut} d = Conv(b, one) e = Conv(c, two) r = Relu(e) last = Mul(d, r)",
            {"stem": (8, 3, 1, 1), "one": (6, sizes[0], 1, 1), "two": (6, sizes[1], 1, 1)},
            6,
        )
    )
    assert [groups[name].units for name in ("stem", "stem#2")] == list(sizes)


def test_shuffled_channels_go_with_their_counterparts():
    groups, _ = pruned_exactly(
        picture_net(
            """
            a = Conv(x, stem) view = Constant<value_ints=[0, 2, 6, 8, 8]>() v = Reshape(a, view)
            t = Transpose<perm=[0, 2, 1, 3, 4]>(v) back = Constant<value_ints=[0, 12, 8, 8]>() b = Reshape(t, back)
            r = Relu(b) last = Conv<group=2>(r, grouped)
            """,
            {"stem": (12, 3, 1, 1), "grouped": (8, 6, 3, 3)},
            8,
        )
    )
    assert groups["stem"].units == 3
    assert groups["stem"].slots[0].positions.tolist() == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]


def test_excited_channels_and_constants_along_channels_shrink():
    groups, _ = pruned_exactly(
        picture_net(
            """
            a = Conv(x, stem) b = Add(a, offset) c = PRelu(b, slope) d = Div(c, scale)
            m = ReduceMean<axes=[2, 3]>(d) s = Conv(m, squeeze) r = Relu(s) e = Conv(r, excite, excite_bias)
            g = HardSigmoid(e) last = Mul(d, g)
            """,
            {
                "stem": (8, 3, 3, 3),
                "offset": (1, 8, 1, 1),
                "slope": (8, 1, 1),
                "scale": (8, 1, 1),
                "squeeze": (4, 8, 1, 1),
                "excite": (8, 4, 1, 1),
                "excite_bias": (8,),
            },
            8,
        )
    )
    assert (groups["stem"].units, groups["squeeze"].units) == (8, 4)
    assert groups["stem"].layers == ("stem", "excite")


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_becomes_space(mode):
    groups, _ = pruned_exactly(
        picture_net(
            f'a = Conv(x, stem) b = DepthToSpace<blocksize=2, mode="{mode}">(a) last = Conv(b, next)',
            {"stem": (24, 3, 1, 1), "next": (4, 6, 1, 1)},
            4,
        )
    )
    assert groups["stem"].units == 6
    assert groups["stem"].slots[0].positions.shape == (6, 4)


def test_space_becomes_depth():
    groups, _ = pruned_exactly(
        picture_net(
            "a = Conv(x, stem) b = SpaceToDepth<blocksize=2>(a) last = Conv(b, next)",
            {"stem": (6, 3, 1, 1), "next": (4, 24, 1, 1)},
            4,
        )
    )
    assert groups["stem"].units == 6


def test_shortcuts_padded_with_channels():
    """The residual nets of small pictures pad where they widen (He et al., 2015, arXiv:1512.03385, option A)."""
    groups, _ = pruned_exactly(
        picture_net(
            """
            a = Conv<pads=[1,1,1,1]>(x, stem) b = Conv<pads=[1,1,1,1]>(a, wider)
            amounts = Constant<value_ints=[0, 2, 0, 0, 0, 2, 0, 0]>() padded = Pad(a, amounts)
            s = Add(b, padded) last = Relu(s)
            """,
            {"stem": (4, 3, 3, 3), "wider": (8, 4, 3, 3)},
            8,
        )
    )
    assert (groups["stem"].units, groups["wider"].units) == (4, 4)


def test_channels_that_are_flattened_take_their_pictures_along():
    groups, pruned = pruned_exactly(
        net(
            """(float[N, 3, 8, 8] x) => (float[N, 5] y) {
            a = Conv(x, stem) r = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a)
            view = Constant<value_ints=[-1, 96]>() f = Reshape(r, view) y = Gemm<transB=1>(f, head)
            }""",
            {"stem": (6, 3, 1, 1), "head": (5, 96)},
        )
    )
    assert groups["stem"].slots[-1].positions.shape == (6, 16)
    assert any(
        48 in node.args[1] for node in pruned.module.graph.nodes if len(node.args) > 1 and node.name == "reshape"
    )


def test_channels_that_the_model_counts():
    """Sizes taken from the value itself, and a mean that divides by the number of channels it was trained with."""
    graph = net(
        """(float[N, 3, H, W] x) => (float[N, 5] y) {
        a = Conv(x, stem) s = Shape(a) zero = Constant<value_ints=[0]>() one = Constant<value_ints=[1]>()
        n = Gather(s, zero) c = Gather(s, one) rest = Constant<value_ints=[-1]>() to = Concat<axis=0>(n, c, rest)
        v = Reshape(a, to) amount = Cast<to=1>(c) m = Div(v, amount)
        k = ReduceMean<axes=[2], keepdims=0>(m) y = Gemm<transB=1>(k, head)
        }""",
        {"stem": (6, 3, 3, 3), "head": (5, 6)},
    )
    groups, _ = pruned_exactly(graph)
    assert groups["stem"].units == 6


def test_norms_by_groups_lose_whole_groups():
    groups, pruned = pruned_exactly(
        picture_net(
            """
            a = Conv(x, stem) n = GroupNormalization<num_groups=4>(a, scale, shift) r = Relu(n)
            last = InstanceNormalization(r, scale_2, shift_2)
            """,
            {"stem": (12, 3, 1, 1), "scale": (12,), "shift": (12,), "scale_2": (12,), "shift_2": (12,)},
            12,
            opset=21,
        ),
        runtime=False,
    )
    assert groups["stem"].units == 4
    assert [module.groups for module in pruned.module.modules() if type(module).__name__ == "GroupNorm"] == [2]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("a = Conv(x, stem) last = LRN<size=3>(a)", "LRN works across it"),
        ("a = Conv(x, stem) last = Softmax<axis=1>(a)", "Softmax works across it"),
        (
            "a = Conv(x, stem) m = ReduceMax<axes=[1]>(a) last = Sub(a, m)",
            "ReduceMax works across it",
        ),
        (
            "a = Conv(x, stem) i = Constant<value_ints=[3, 2, 1, 0, 5, 4]>() last = Gather<axis=1>(a, i)",
            "single elements are picked from it by index",
        ),
        ("a = Conv(x, stem) last = Add(a, a_picture)", None),
    ],
)
def test_what_couples_channels_keeps_them(body, reason):
    graph = picture_net(body, {"stem": (6, 3, 1, 1), "a_picture": (6, 8, 8)}, 6)
    stem = next(group for group in find_groups(graph) if group.name == "stem")
    assert stem.frozen == reason


def test_a_batch_written_into_the_file_stays():
    graph = net(
        """(float[2, 3, 8, 8] x) => (float[2, 5] y) {
        a = Conv(x, stem) view = Constant<value_ints=[2, 6, 64]>() v = Reshape(a, view)
        k = ReduceMean<axes=[2], keepdims=0>(v) y = Gemm<transB=1>(k, head)
        }""",
        {"stem": (6, 3, 1, 1), "head": (5, 6)},
    )
    remove_units(graph, {"stem": torch.tensor([True, False] * 3)})
    assert run(graph, example_inputs(graph, 2, 1))[0].shape == (2, 5)
