"""Finished runs that take seconds, made once for all test files that look at runs."""

import json
import tempfile
from functools import cache
from pathlib import Path

from small import detofa_config

from nnabla_detofa.cli.program import main
from nnabla_detofa.data.digits import write_digits

FOLDER = tempfile.TemporaryDirectory(prefix="tiny-runs-")


@cache
def digits() -> Path:
    """16, 6 and 6 photographs of 64 pixels in VOC's layout, and crops."""
    return write_digits(Path(FOLDER.name, "digits"), train=16, val=6, test=6, image_size=64, crops_train=40, crops_val=20)


@cache
def config_file() -> Path:
    """Of a run of Algorithm 1 with two budgets."""
    content = detofa_config(digits())
    search = {"generations": 2, "population": 10, "budgets": [3e6, 5e6], "across_buckets": "score"}
    content["hparams"] |= {"epochs": 1, "buckets": 2, "heldout_paths_per_bucket": 2, "search": search}
    content["args"]["evaluation_processes"] = 1
    file = Path(FOLDER.name, "tiny.json")
    file.write_text(json.dumps(content))
    return file


@cache
def detofa_run() -> Path:
    """The folder of a finished run of Algorithm 1: do not write into it."""
    folder = Path(FOLDER.name, "runs", "detofa")
    assert main(["-f", str(config_file()), "-o", str(folder)]) == 0
    return folder


@cache
def fullnet_run() -> Path:
    """The folder of a finished run of the baseline that trains the largest path alone."""
    folder = Path(FOLDER.name, "runs", "fullnet")
    assert main(["-f", str(config_file()), "-o", str(folder), "args.runner=fullnet"]) == 0
    return folder
