"""docs/guide/reproducibility.md: its rows name tests that exist, and what it says of single settings holds for whole runs."""

import json
import re
from pathlib import Path

import pytest
from small import detofa_config

from nnabla_detofa import config as configs
from nnabla_detofa.cli.program import main
from nnabla_detofa.data.digits import write_digits

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/guide/reproducibility.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ")][2:]
NAMED = sorted(set(re.findall(r"`(test_\w+\.py): (test_\w+)`", PAGE)))


def test_every_row_has_its_test():
    assert len(ROWS) > 15
    untested = [row for row in ROWS if not re.search(r"`test_\w+\.py: test_\w+`", row)]
    assert [row.split(" | ")[-1] for row in untested] == ["not tested here |"]


@pytest.mark.parametrize(("file", "test"), NAMED)
def test_a_named_test_is_there(file, test):
    (path,) = (ROOT / "tests").rglob(file)
    assert re.search(rf"^def {test}\(", path.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("name", [f"{section}.{key}" for section, keys in configs.WITHOUT_EFFECT.items() for key in keys])
def test_settings_without_effect_have_their_row(name):
    hardware = ("args.context", "args.device_id")  # one row: where it is computed
    assert name in hardware or any(name in row for row in ROWS)


@pytest.mark.parametrize(
    "entry",
    [
        "mini_batch=2",
        "bn_batch=2",
        "bn_images=4",
        "paths_per_bucket=9",
        "heldout_paths_per_bucket=4",
        "shrinking_sort=false",
        "shrinking_spaces=false",
        "steps_per_epoch=3",
    ],
)
def test_settings_with_an_effect_are_in_the_hash(entry):
    content = json.loads(json.dumps(detofa_config("nowhere")))
    before = configs.from_dict(content, "run").config_hash
    key, _, value = entry.partition("=")
    content["hparams"][key] = json.loads(value)
    assert configs.from_dict(content, "run").config_hash != before


@pytest.mark.thorough
def test_settings_without_effect_leave_every_bit(tmp_path):
    """All of them changed at once, and a dry run before it in the same process."""
    root = write_digits(tmp_path / "digits", train=8, val=4, test=4, image_size=64, crops_train=40, crops_val=20)
    content = detofa_config(root)
    content["args"] |= {"runner": "fullnet", "workers": 2, "evaluation_processes": 2, "print_frequency": 50}
    content["hparams"] |= {"fullnet_epochs": 2, "checkpoint_every_epochs": 1}
    file = tmp_path / "tiny.json"
    file.write_text(json.dumps(content))
    one, other = tmp_path / "one", tmp_path / "other"
    assert main(["-f", str(file), "-o", str(one)]) == 0
    changed = ["args.workers=0", "args.evaluation_processes=1", "args.print_frequency=1", "hparams.checkpoint_every_epochs=2"]
    assert main(["-f", str(file), "--dry-run", *changed]) == 0
    assert main(["-f", str(file), "-o", str(other), *changed]) == 0
    for name in ("fullnet/weights.h5", "fullnet/optim_train.h5", "fullnet.json", "fullnet_detections.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
