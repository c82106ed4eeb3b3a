"""Our classification supernet in NNablaNAS' own searcher, from a checkout: `make test UPSTREAM=<folder>`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import digits

ROOT = Path(__file__).parents[2]
PROGRAM = """
import inspect, sys
from pathlib import Path
sys.path.insert(0, {examples!r})
import numpy as np
import in_nnablanas
result = in_nnablanas.main(Path({checkout!r}), Path({data!r}), Path("out"), epochs=1)
from nnabla_nas.runner import OFASearcher
assert inspect.getfile(OFASearcher).startswith({checkout!r})
net = result["net"]
assert net.path == net.space.largest and len(net.found) == 10  # batches of NNablaNAS' re-estimation
layers = 1 + 1 + 1 + sum(4 if place == 0 else 3 for most in net.space.geometry.layers_per_stage for place in range(most))
assert len(net.found[0]) == layers
from nnabla_detofa.networks import weights
fresh = type(net)(num_classes=10, width_scale=0.0625, strides=(1, 2, 2, 1))
weights.load(fresh, Path("out/checkpoint/weights.h5"), adapt=True)
"""


@pytest.mark.thorough
@pytest.mark.skipif("UPSTREAM" not in os.environ, reason="UPSTREAM=<checkout of NNablaNAS> is not given")
def test_its_searcher_trains_and_validates_our_supernet(tmp_path):
    values = {"examples": ROOT / "examples", "checkout": Path(os.environ["UPSTREAM"]), "data": digits() / "classification"}
    program = PROGRAM.format(**{name: str(place) for name, place in values.items()})
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "out/log.txt").read_text()
    assert "loss/train" in log and log.count("error/valid=") == 2  # before and after training


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    command = [sys.executable, ROOT / "examples/in_nnablanas.py", tmp_path]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and f"{tmp_path} is not a checkout of NNablaNAS" in done.stderr
    (tmp_path / "nnabla_nas/runner").mkdir(parents=True)
    done = subprocess.run([*command, "--data", "nothing"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "the folder of images nothing does not exist" in done.stderr
