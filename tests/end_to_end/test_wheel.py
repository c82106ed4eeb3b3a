"""A wheel in an empty environment, used from a folder that is no clone."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from docs import TINY_DETECTION

ROOT = Path(__file__).parents[2]
SMALL = ["--train", "24", "--val", "16", "--test", "8"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder bin of an environment with the versions of requirements.lock and the wheel, and nothing of the clone."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), str(ROOT)]
    subprocess.run(pip, check=True, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=True)
    install = [folder / "env/bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-build-isolation"]
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    tools = [line for line in lines if line.startswith(("pip==", "setuptools==", "wheel=="))]
    subprocess.run([*install, *tools], check=True)
    subprocess.run([*install, "-r", ROOT / "requirements.lock"], check=True)
    subprocess.run([*install, "--no-deps", wheel], check=True)
    return folder / "env/bin"


@pytest.mark.slow
def test_a_wheel_works_without_the_clone(installed, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def run(program, *arguments, status=0):
        command = [installed / program, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    said = run("detofa", "doctor")
    assert "in the versions of requirements.lock" in said and "make setup" not in said
    assert "detofa data digits --root data/digits" in run("detofa", "paper", "figure5", status=2)
    run("detofa", "data", "digits", "--root", "data/digits", *SMALL)
    run("nnabla_nas", "-f", "digits_detofa", "--dry-run")
    run("nnabla_nas", "-f", "digits_detofa", *TINY_DETECTION.split())
    assert (tmp_path / "runs/digits_detofa/summary.json").is_file()
    run("detofa", "report", "runs/digits_detofa")
    run("detofa", "paper", "figure5", *(word for entry in TINY_DETECTION.split()[2:] for word in ("--set", entry)))
    assert (tmp_path / "results/demo/figure5.md").is_file()
    where = "import nnabla_detofa; print(nnabla_detofa.__file__)"
    assert str(ROOT) not in run("python", "-c", where)
