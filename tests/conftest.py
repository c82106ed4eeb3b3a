"""For all tests: signals as in a terminal, a shared folder for `tiny`, the order of files, and nothing left behind."""

import os
import resource
import signal
import sys
import tempfile

import pytest

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it, and child processes would inherit that

if "PYTEST_XDIST_WORKER" not in os.environ:  # workers share the folder of the process that starts them
    FOLDER = tempfile.TemporaryDirectory(prefix="tiny-runs-")
    os.environ["TINY_RUNS"] = FOLDER.name

MEMORY = 1000
"""MB by which a test may raise the peak memory of a process of pytest."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with thorough tests first: what takes long is not left for one worker at the end."""
    thorough = {item.path for item in items if item.get_closest_marker("thorough")}
    items.sort(key=lambda item: item.path not in thorough)


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """Fail a test that leaves parameters in NNabla's global scope, or takes more than `MEMORY`."""
    before = peak()
    yield
    if "nnabla" in sys.modules and (left := list(sys.modules["nnabla"].get_parameters(grad_only=False))):
        sys.modules["nnabla"].clear_parameters()
        pytest.fail(f"parameters are left in the global scope: {', '.join(left)}")
    assert peak() - before <= MEMORY, f"the peak memory rose from {before} to {peak()} MB"


@pytest.fixture(scope="module", autouse=True)
def counts_forgotten():
    """Free the exact counts of the search spaces of a file, hundreds of MB, after its last test."""
    yield
    if counting := sys.modules.get("nnabla_detofa.space.counting"):
        counting._joint.cache_clear()
        counting._masses.cache_clear()
