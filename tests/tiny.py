"""Data and finished runs that take seconds, made once for all tests, also of several processes of pytest."""

import fcntl
import json
import os
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path

from small import detofa_config

from nnabla_detofa.cli.program import main
from nnabla_detofa.data.digits import write_digits

OWN = None if "TINY_RUNS" in os.environ else tempfile.TemporaryDirectory(prefix="tiny-runs-")  # set by conftest.py
FOLDER = Path(OWN.name if OWN else os.environ["TINY_RUNS"])
SHORT = ("args.runner=fullnet", "hparams.fullnet_epochs=2")
"""Overrides that leave one phase of training and its evaluation."""


def made_once(name: str) -> Callable[[Callable[[Path], object]], Callable[[], Path]]:
    """Turn a function that makes a file or a folder into one that returns its path, and makes it in the first call."""

    def decorated(make: Callable[[Path], object]) -> Callable[[], Path]:
        @cache
        def path() -> Path:
            with open(FOLDER / f"{Path(name).stem}.lock", "a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not lock.tell():  # empty until it is made
                    make(FOLDER / name)
                    lock.write("made")
            return FOLDER / name

        return path

    return decorated


@made_once("digits")
def digits(folder: Path) -> None:
    """16, 6 and 6 images of 64 pixels in VOC's layout, and crops."""
    write_digits(folder, train=16, val=6, test=6, image_size=64, crops_train=40, crops_val=20)


@made_once("tiny.json")
def config_file(file: Path) -> None:
    """Of a run of Algorithm 1 with two FLOPs buckets and two budgets."""
    content = detofa_config(digits())
    search = {"generations": 2, "population": 10, "budgets": [3e6, 5e6], "across_buckets": "score"}
    content["hparams"] |= {"buckets": 2, "heldout_paths_per_bucket": 2, "search": search}
    content["args"]["evaluation_processes"] = 1
    file.write_text(json.dumps(content))


def trained(folder: Path, *overrides: str) -> None:
    """Make a run without printing, since the test that needs it first may check what its own command prints."""
    with redirect_stdout(StringIO()) as output, redirect_stderr(output):
        status = main(["-f", str(config_file()), "-o", str(folder), *overrides])
    assert status == 0, output.getvalue()


@made_once("runs/detofa")
def detofa_run(folder: Path) -> None:
    """The folder of a finished run of Algorithm 1: do not write into it."""
    trained(folder)


@made_once("runs/fullnet")
def fullnet_run(folder: Path) -> None:
    """The folder of a finished run of the baseline that trains the largest path alone: do not write into it."""
    trained(folder, "args.runner=fullnet")


@made_once("runs/short")
def short_run(folder: Path) -> None:
    """The folder of a finished run with `SHORT`: do not write into it."""
    trained(folder, *SHORT)
