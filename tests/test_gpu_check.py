"""`make test-gpu` compares as it says: what differs, is missing or is no number fails."""

import sys
from pathlib import Path

import gpu_check
import numpy as np
import pytest


def arrays():
    """One array of each kind, twice."""
    found = {kind: np.linspace(1.0, 2.0, 12) for kind in gpu_check.BOUNDS}
    return found | {"untouched": np.array(["a", "b"])}, found | {"untouched": np.array(["a", "b"])}


def failures(one, two) -> int:
    checks = gpu_check.Checks()
    gpu_check.compare(one, two, checks)
    return checks.failed


def test_equal_arrays_pass_and_small_differences_too():
    one, two = arrays()
    assert failures(one, two) == 0
    assert failures(one, two | {"loss": two["loss"] * (1 + 0.9e-4)}) == 0


@pytest.mark.parametrize(
    "change",
    [
        *({kind: np.linspace(1.0, 2.0, 12) * (1 + 1.1 * bound)} for kind, bound in gpu_check.BOUNDS.items()),
        {"gradient": np.full(12, np.nan)},
        {"untouched": np.array(["a"])},
    ],
    ids=lambda change: next(iter(change)),
)
def test_each_larger_difference_fails_once(change):
    one, two = arrays()
    assert failures(one, two | change) == 1


def test_another_order_of_paths_and_a_missing_kind_fail():
    one, two = arrays()
    swapped = two["path losses"].copy()
    swapped[:6] = swapped[:6][::-1]
    assert failures(one, two | {"path losses": swapped}) == 2  # the losses differ as well
    del two["map"]
    assert failures(one, two) == 2


def test_no_file_of_the_tests_hides_one_of_pythons_modules():
    """The null GPU's programs find this folder before the standard library, and Python starts with its module `site`."""
    names = {file.stem for file in Path(__file__).parent.glob("*.py")}
    assert not names & set(sys.stdlib_module_names)
