"""`make test-gpu` compares as it says: what differs, is missing or is no number fails."""

import subprocess
import sys
from pathlib import Path

import gpu_check
import numpy as np
import pytest

from nnabla_detofa import config as configs
from nnabla_detofa.training import mini_batch


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


@pytest.mark.parametrize(("context", "expected"), [("cpu", "cpu"), ("cudnn", "auto")])
def test_the_ranks_of_the_check_of_a_gpu_can_share_their_batches(context, expected, tmp_path, monkeypatch, capsys):
    """And each takes a GPU of its own; on a machine with one, the check is left out."""
    commands, checks = [], gpu_check.Checks()
    error = "error: 2 ranks need 2 GPUs on this machine, usable: 1\n--------\nprterun detected\n"
    monkeypatch.setattr(
        gpu_check, "python", lambda *line: commands.append(line) or subprocess.CompletedProcess(line, 2, stderr=error)
    )
    gpu_check.two_ranks(context, tmp_path, checks)
    assert checks.failed == 0 and "not checked, two ranks against one: error: 2 ranks need 2 GPUs" in capsys.readouterr().out
    for line, processes in zip(commands, (2, 1), strict=True):
        config = configs.load(line[line.index("-f") + 1], line[-1:])
        assert mini_batch.mini_batch(config, processes, tmp_path) == 2 and line[line.index("-c") + 1] == expected
