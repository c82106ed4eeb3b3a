"""examples/template is a package of its own: copied elsewhere and installed there, its config runs from another folder."""

import json
import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from small import detofa_config
from tiny import digits

ROOT = Path(__file__).parents[2]
PIP = "install -q --disable-pip-version-check --no-index --no-deps --no-build-isolation"


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> tuple[Path, Path]:
    """A copy of the template, and the Python of an environment in which it is installed beside this one's packages."""
    folder = tmp_path_factory.mktemp("user")
    copy = shutil.copytree(ROOT / "examples/template", folder / "my-space", ignore=shutil.ignore_patterns("__pycache__"))
    venv.create(folder / "env", with_pip=False)
    python = folder / "env/bin/python"
    (packages,) = (folder / "env/lib").glob("python*/site-packages")
    here = [place for place in site.getsitepackages() if Path(place).is_dir()]
    (packages / "outer.pth").write_text("".join(f"import site; site.addsitedir({place!r})\n" for place in here))
    subprocess.run([python, "-m", "pip", *PIP.split(), "-e", copy], check=True)
    return copy, python


@pytest.mark.thorough
def test_a_copy_of_the_template_is_installed_and_its_config_runs(installed, tmp_path):
    copy, python = installed
    small = detofa_config(digits())
    changes = {
        "network.my_space:MyCenterNet.width_scale": 0.0625,
        "network.my_space:MyCenterNet.deconv_channels": [8, 8],
        **{f"dataloader.voc.{key}": small["dataloader"]["voc"][key] for key in ("root", "image_size")},
        **{f"hparams.{key}": value for key, value in small["hparams"].items() if not isinstance(value, dict)},
        **{f"hparams.filter.{key}": value for key, value in small["hparams"]["filter"].items()},
        **{f"hparams.search.{key}": value for key, value in small["hparams"]["search"].items()},
        "optimizer.train.warmup_steps": 0,
        "hparams.buckets": 2,
        "hparams.mini_batch": 2,
        "hparams.epochs": 1,
    }
    words = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    program = Path(sys.executable).parent / "nnabla_nas"
    command = [python, program, "-f", copy / "digits.json", "-c", "cpu", "-o", "run", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["pruned_operations"] > 0
    assert json.loads((tmp_path / "run/config.json").read_text())["network"]["my_space:MyCenterNet"]["depths"] == [0, 1]


def test_without_its_installation_one_sentence_says_what_to_do(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "nnabla_detofa", "-f", ROOT / "examples/template/digits.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "my_space cannot be imported" in done.stderr and "install its package" in done.stderr
