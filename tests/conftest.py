"""For all tests: signals as in a terminal, a shared folder for `tiny`, and the order of files."""

import os
import signal
import tempfile

import pytest

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it, and child processes would inherit that

if "PYTEST_XDIST_WORKER" not in os.environ:  # workers share the folder of the process that starts them
    FOLDER = tempfile.TemporaryDirectory(prefix="tiny-runs-")
    os.environ["TINY_RUNS"] = FOLDER.name


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with thorough tests first: what takes long is not left for one worker at the end."""
    thorough = {item.path for item in items if item.get_closest_marker("thorough")}
    items.sort(key=lambda item: item.path not in thorough)
