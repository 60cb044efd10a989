"""Labels of dimensions: which elements go together, and along which part products are divided."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.engine.structure.labels import COPIES, HEADS, WIDTH, Labels, components
from workers.engine.structure.reshaping import block, common_factors, shares


def classes(labels, dim):
    """Which elements of a dimension go together, and None for those that stay."""
    resolved = labels.resolve()
    names = {}
    return [
        names.setdefault(int(resolved.roots[label]), len(names)) if label >= 0 and resolved.reasons[label] < 0 else None
        for label in dim
    ]


def test_joined_dimensions_go_together_and_stay_together():
    labels = Labels()
    one, other, third = labels.fresh(3), labels.fresh(3), labels.fresh(3)
    labels.same(one, other)
    labels.same(other, third[::-1])
    labels.keep(third[:1], "because")
    assert classes(labels, one) == [0, 1, None]
    resolved = labels.resolve()
    assert resolved.texts[resolved.reasons[one[2]]] == "because"


def test_the_first_reason_is_told():
    labels = Labels()
    dim = labels.fresh(2)
    labels.keep(dim, "first")
    labels.keep(dim, "second")
    resolved = labels.resolve()
    assert {resolved.texts[reason] for reason in resolved.reasons} == {"first"}


def test_a_product_of_one_free_dimension_follows_it():
    labels = Labels()
    free, fixed = labels.fresh(3), labels.stays(2, "fixed")
    assert classes(labels, labels.merged([free, fixed])) == [0, 0, 1, 1, 2, 2]
    assert classes(labels, labels.merged([fixed, free])) == [0, 1, 2, 0, 1, 2]
    assert classes(labels, labels.merged([fixed, fixed])) == [None] * 4


def test_a_dimension_taken_apart_is_divided_where_it_gives_most():
    labels = Labels()
    whole = labels.fresh(6)
    two, three = labels.factors(whole, [2, 3])
    assert classes(labels, whole) == [0, 1, 2, 0, 1, 2]
    assert classes(labels, two) == [None, None]
    assert classes(labels, three) == [0, 1, 2]


@pytest.mark.parametrize(
    ("preferred", "preference", "expected"),
    [(0, HEADS, [0, 0, 0, 1, 1, 1]), (1, WIDTH, [0, 0, 0, 1, 1, 1]), (1, COPIES, [0, 0, 0, 1, 1, 1])],
)
def test_heads_before_width(preferred, preference, expected):
    labels = Labels()
    whole = labels.fresh(6)
    labels.prefer(labels.factors(whole, [2, 3])[preferred], preference)
    assert classes(labels, whole) == expected


def test_what_is_taken_apart_and_put_together_again_is_what_it_was():
    labels = Labels()
    whole = labels.fresh(12)
    again = labels.merged(labels.factors(whole, [3, -1]))
    labels.same(whole, again)
    assert len(set(classes(labels, whole))) == 4


def test_an_element_that_stays_keeps_its_place_in_every_factor():
    labels = Labels()
    whole = labels.fresh(6)
    two, three = labels.factors(whole, [2, 3])
    labels.keep(two, "fixed")
    labels.keep(whole[4:5], "needed")
    assert classes(labels, three) == [0, None, 1]
    assert classes(labels, whole) == [0, None, 1, 0, None, 1]


def test_elements_that_stay_may_leave_nothing_of_a_product():
    labels = Labels()
    whole = labels.fresh(4)
    labels.factors(whole, [2, 2])
    labels.keep(whole[[0, 3]], "needed")
    assert classes(labels, whole) == [None] * 4


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30))
def test_components_are_those_of_a_search(pairs):
    first, second = (np.array([pair[side] for pair in pairs], dtype=np.int64) for side in (0, 1))
    names = list(range(20))
    for one, other in pairs:
        old, new = max(names[one], names[other]), min(names[one], names[other])
        names = [new if name == old else name for name in names]
    assert components(20, first, second).tolist() == names


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.data())
def test_both_sides_of_a_reshape_are_made_of_common_factors(sizes, data):
    cuts = sorted(data.draw(st.sets(st.integers(1, len(sizes)), max_size=3)) | {0, len(sizes)})
    after = [int(np.prod(sizes[low:high])) for low, high in pairwise(cuts)]
    common = common_factors(sizes, after)
    assert common is not None
    for shape in (sizes, after):
        assert [int(np.prod(own)) for own in shares(common, shape)] == shape
    stop, end = block(sizes, after, 0, 0)
    assert np.prod(sizes[:stop]) == np.prod(after[:end])


def test_reshapes_without_common_factors_are_none():
    assert common_factors([2, 3], [3, 2]) is None
    assert common_factors([0, 3], [0]) is None
