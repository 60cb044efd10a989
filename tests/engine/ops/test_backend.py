"""The ONNX project's own node tests, for every op of the table: read, run, written, run in ONNX Runtime."""

from collections import defaultdict
from fnmatch import fnmatchcase

import pytest
from onnx.backend.test.case.test_case import TestCase as Case

from benchmarks.backend_tests import (
    LEAST_OPS,
    LEAST_SHARE,
    MISSES,
    Outcome,
    check,
    node_tests,
    ops_of,
    reason,
    table_ops,
)

pytestmark = pytest.mark.slow

TABLE = table_ops()
SEVERAL = "several"


@pytest.fixture(scope="module")
def every_test() -> list[Case]:
    return node_tests()


@pytest.fixture(scope="module")
def tests_of(every_test: list[Case]) -> dict[str, list[Case]]:
    """The tests of one node by its op, and those of several nodes together."""
    by_op = defaultdict(list)
    for case in every_test:
        if ops_of(case) <= TABLE:
            by_op[next(iter(ops_of(case))) if len(ops_of(case)) == 1 else SEVERAL].append(case)
    return by_op


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    """What came of all the tests before."""
    return []


@pytest.mark.parametrize("op", [*sorted(TABLE), SEVERAL])
def test_every_test_of_an_op_passes_or_is_a_known_miss(
    op: str, every_test: list[Case], tests_of: dict[str, list[Case]], outcomes: list[Outcome]
) -> None:
    assert tests_of[op] or not any(op in ops_of(case) for case in every_test)
    found = [check(case) for case in tests_of[op]]
    outcomes.extend(found)
    wrong = {outcome.case: (outcome.read, outcome.write) for outcome in found if not outcome.passed}
    assert not {case: why for case, why in wrong.items() if reason(case) is None}
    healed = [outcome.case for outcome in found if outcome.passed and reason(outcome.case) is not None]
    assert not healed, "take them off the list of misses"


def test_every_known_miss_is_a_test(tests_of: dict[str, list[Case]]) -> None:
    names = {case.name for cases in tests_of.values() for case in cases}
    patterns = [pattern for group in MISSES.values() for pattern in group]
    assert not [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in names)]


def test_enough_ops_and_enough_tests(outcomes: list[Outcome]) -> None:
    assert len(TABLE) >= LEAST_OPS
    assert sum(outcome.passed for outcome in outcomes) >= LEAST_SHARE * len(outcomes) > 0
