"""For all tests: signals as in a terminal, a shared folder for `tiny`, the order of files, and nothing left behind."""

import ctypes
import gc
import os
import resource
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it, and child processes would inherit that
os.fsync = lambda descriptor: None  # no test crashes the machine, and a run waits for the disk a hundred times

if "PYTEST_XDIST_WORKER" not in os.environ:  # workers share the folder of the process that starts them
    FOLDER = tempfile.TemporaryDirectory(prefix="tiny-runs-")
    os.environ["TINY_RUNS"] = FOLDER.name

MEMORY = 700
"""MB by which a test may raise the peak memory of a process of pytest."""
HELD_AFTER_TEST, HELD_AFTER_FILE = 800, 500
"""MB that such a process may hold after a test, and after a file: above that, memory is freed."""
CACHES = {"nnabla_detofa.space.counting": ("_joint", "_masses"), "parity": ("reference_tensors", "reference_net")}
"""Module -> cached functions whose results take hundreds of MB: counts of search spaces, networks of full size."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with thorough tests first, in turn one of each folder.

    What takes long is then not left for one worker at the end, and two workers seldom wait for the same run of `tiny`.
    """
    thorough = {item.path for item in items if item.get_closest_marker("thorough")}
    places: dict[Path, int] = {}
    files = Counter()
    for path in dict.fromkeys(item.path for item in items):
        places[path] = files[path.parent, path in thorough]
        files[path.parent, path in thorough] += 1
    items.sort(key=lambda item: (item.path not in thorough, places[item.path]))


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def resident() -> int:
    """MB that the process holds now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() >> 20


def free_above(most: int) -> None:
    """Free NNabla's unused arrays where the process holds more than `most` MB, and `CACHES` where that is not enough."""
    if resident() > most:
        free_unused()
    if resident() > most:
        for module, functions in CACHES.items():
            for name in functions if module in sys.modules else ():
                getattr(sys.modules[module], name).cache_clear()
        free_unused()


def free_unused() -> None:
    gc.collect()
    if extension := sys.modules.get("nnabla_ext.cpu"):
        extension.clear_memory_cache()
    ctypes.CDLL(None).malloc_trim(0)  # returns memory to the system


@pytest.fixture(scope="module", autouse=True)
def caches_freed():
    yield
    free_above(HELD_AFTER_FILE)


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """Fail a test that leaves parameters in NNabla's global scope, or takes more than `MEMORY`."""
    before = peak()
    yield
    if "nnabla" in sys.modules and (left := list(sys.modules["nnabla"].get_parameters(grad_only=False))):
        sys.modules["nnabla"].clear_parameters()
        pytest.fail(f"parameters are left in the global scope: {', '.join(left)}")
    assert peak() - before <= MEMORY, f"the peak memory rose from {before} to {peak()} MB"
    free_above(HELD_AFTER_TEST)
