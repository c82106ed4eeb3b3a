"""Launchers and the signals that they send: ranks, cores and what stops a run."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny

from nnabla_detofa import config as configs
from nnabla_detofa.backend import launch
from nnabla_detofa.backend.launch import STOP_SIGNALS, handling, launched, launched_here
from nnabla_detofa.cli.program import main
from nnabla_detofa.tools import installation
from nnabla_detofa.training import mini_batch
from nnabla_detofa.training.stop import StopRequest

ROOT = Path(__file__).parents[2]


def test_every_stop_signal_is_handled_but_an_ignored_hang_up(monkeypatch):
    heard = []
    with handling(lambda number, frame: heard.append(number)):
        for number in STOP_SIGNALS:
            os.kill(os.getpid(), number)
    assert heard == list(STOP_SIGNALS)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup has it
    try:
        with handling(lambda number, frame: heard.append("again")):
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN and "again" not in heard
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("order", [(signal.SIGHUP, signal.SIGTERM), (signal.SIGTERM, signal.SIGHUP)])
def test_a_hang_up_beside_another_signal_is_no_second_one(order):
    stop = StopRequest(SimpleNamespace(n_procs=2, gather=lambda value: [value]))
    with stop:
        for number in order:
            os.kill(os.getpid(), number)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


INTERRUPTED = """
import os, signal, sys
import nnabla as nn
from nnabla.function import PythonFunction
from nnabla_detofa.cli.program import _terminated_as_interrupted
class Twice(PythonFunction):
    name = property(lambda self: "Twice")
    min_outputs = lambda self: 1
    def grad_depends_output_data(self, i, o):
        return False
    def grad_depends_input_data_impl(self, i, j):
        return False
    def setup_impl(self, inputs, outputs):
        outputs[0].reset_shape(inputs[0].shape, True)
    def forward_impl(self, inputs, outputs):
        os.kill(os.getpid(), signal.SIGTERM)
        for i in range(1000):
            pass
    def backward_impl(self, inputs, outputs, propagate_down, accum):
        pass
try:
    with _terminated_as_interrupted():
        Twice()(nn.Variable((1,))).forward()
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_a_signal_inside_a_callback_of_nnabla_is_a_stop():
    """NNabla passes the KeyboardInterrupt on as a SystemError or RuntimeError."""
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True)
    assert done.returncode == 130, done.stderr


def test_an_error_without_a_signal_stays_itself():
    with pytest.raises(ZeroDivisionError), handling(lambda number, frame: None):
        1 / 0  # noqa: B018


needs_mpi = pytest.mark.skipif(not launch.can_launch(), reason="needs mpirun and mpi4py: make setup")


@needs_mpi
def test_ranks_are_launched_without_a_home_folder(monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    assert launch.launch(2, [sys.executable, "-c", "import mpi4py.MPI"]) == 0
    assert "HOME" not in os.environ


def test_a_module_that_ends_the_process_is_a_finding_of_the_doctor(monkeypatch, tmp_path):
    (tmp_path / "ending.py").write_text("import os; os._exit(14)")
    (tmp_path / "failing.py").write_text("raise ImportError('no such library')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = [installation._error_in_another_process(name) for name in ("ending", "failing", "json")]
    assert found == ["status 14", "ImportError: no such library", ""]


# --- Launchers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "rank", "size", "here"),
    [
        ({}, 0, 1, 1),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, 3, 4, 2),
        ({"PMI_SIZE": "2", "PMI_RANK": "1", "MPI_LOCALNRANKS": "2"}, 1, 2, 2),
        # a batch script and what it starts without srun
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_TASKS_PER_NODE": "4(x2)", "SLURM_JOB_ID": "7"}, 0, 1, 1),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_STEP_TASKS_PER_NODE": "4(x2)", "PMIX_RANK": "5"}, 5, 8, 4),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_TASKS_PER_NODE": "1"}, 0, 1, 1),
        # mpirun inside a Slurm job starts a daemon on each of two machines with srun
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_RANK": "6"}, 6, 8, 1),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}, 0, 1, 1),
    ],
)
def test_launchers_are_known_by_what_they_say(environ, rank, size, here):
    assert (*launched(environ), launched_here(environ)) == (rank, size, here)


def test_tools_and_the_dry_run_are_one_process(monkeypatch, capsys):
    """The error ends the rank at once, so that no other one waits for it."""

    def end(message, status):
        raise SystemExit(message)

    monkeypatch.setattr(launch, "end", end)
    for name in os.environ:
        if name.startswith(("OMPI_", "PMI", "SLURM_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PMI_SIZE", "2")
    for line, message in (
        (["table1"], "2 ranks were launched, but only train runs on several: start paper table1 as one process"),
        (["-f", str(tiny.config_file()), "--dry-run"], "2 ranks were launched, and --dry-run is one process"),
        (["-f", str(tiny.config_file()), "--processes", "3"], "2 ranks were launched, and --processes is 3"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(line)
    monkeypatch.delenv("PMI_SIZE")
    monkeypatch.setattr(launch.shutil, "which", lambda name: None)
    monkeypatch.setattr(launch.sys, "executable", "/nowhere/python")
    assert main(["-f", str(tiny.config_file()), "--processes", "2"]) == 2
    assert "2 processes need mpirun, which is neither beside" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 4), ("200000 100000", 2), ("50000 100000", 1), ("900000 100000", 4)]
)
def test_cores_are_those_of_the_container(quota, cores, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(4)))
    monkeypatch.setattr(launch, "QUOTA", tmp_path / "cpu.max")
    assert launch.cores() == 4
    launch.QUOTA.write_text(quota + "\n")
    assert launch.cores() == cores


@needs_mpi
def test_nnabla_finds_the_mpi_of_set_up():
    """nnabla loads it by this name; what Open MPI's wheel has there is a text for linkers."""
    library = Path(sys.prefix, "lib", "libmpi.so")
    if not library.with_name("libmpi.so.40").exists():
        pytest.skip("MPI is not the wheel's")
    command = [sys.executable, "-c", f"import ctypes; ctypes.CDLL({str(library)!r}).MPI_Init"]
    assert subprocess.run(command, capture_output=True, text=True).stderr == ""


def test_the_script_for_slurm_names_what_is_there(monkeypatch, capsys):
    script = ROOT / "examples" / "slurm_detofa.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text()
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    config = re.search(r"^config=\$\{CONFIG:-(\S+)\}", text, re.MULTILINE)[1]
    monkeypatch.chdir(ROOT)
    entries = re.findall(r"hparams\.\w+=(?=\S)", "\n".join(lines))
    assert entries == ["hparams.mini_batch="]
    loaded = configs.load(config, ["hparams.mini_batch=8"])
    ranks = int(re.search(r"^#SBATCH --ntasks-per-node=(\d+)", text, re.MULTILINE)[1])
    assert int(re.search(r"^#SBATCH --gpus-per-node=(\d+)", text, re.MULTILINE)[1]) == ranks
    assert mini_batch.mini_batch(loaded, ranks, Path("runs/none")) == 8
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    usage = capsys.readouterr().out
    for option in re.findall(r" (-[a-z]) ", next(line for line in lines if "nnabla_nas" in line)):
        assert f"{option} " in usage
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(script)], check=True)
