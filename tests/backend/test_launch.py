"""Signals that stop: what counts as one, what a second one does, and a terminal that is gone."""

import os
import pty
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from nnabla_detofa.backend import launch
from nnabla_detofa.backend.launch import STOP_SIGNALS, handling
from nnabla_detofa.tools import installation
from nnabla_detofa.training.stop import StopRequest


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


PROGRAM = """
import os, signal, sys, time
from nnabla_detofa.backend.launch import handling
def stop(number, frame):
    raise KeyboardInterrupt
with handling(stop):
    try:
        print("ready", flush=True)
        while True:
            time.sleep(0.1)
    except KeyboardInterrupt:
        print("saved", flush=True)
        open(sys.argv[1], "w").close()
"""


def test_what_is_printed_after_the_terminal_is_gone_goes_nowhere(tmp_path):
    """It would raise, and what is to be saved would not be."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "saved")]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    assert b"ready" in os.read(ours, 100)
    os.close(ours)
    os.close(theirs)
    process.send_signal(signal.SIGHUP)
    assert process.wait() == 0 and (tmp_path / "saved").exists()


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
