"""Runs as processes: how many at once, what is said of those that fail, and what a stop does."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from nnabla_detofa.common.errors import UserError
from nnabla_detofa.paper import execution, experiments
from nnabla_detofa.paper.experiments import COMPOFA, DETOFA, OFA, OFA_PS
from nnabla_detofa.paper.run import Run, plan

pytestmark = pytest.mark.thorough


def test_a_stop_waits_until_a_started_process_is_known(tmp_path):
    """It would outlive us otherwise."""
    started = {}
    with pytest.raises(KeyboardInterrupt), execution._stopping_all(started) as stop:
        with stop.held():
            process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True)
            os.kill(os.getpid(), signal.SIGHUP)
            started["it"] = process
        raise AssertionError("the stop was not honored")
    assert process.poll() is not None


def test_a_run_that_fails_is_named_with_its_last_words(profile):
    runs = plan(profile, ("voc",), [], 1, ["network.centernet_ofa_resnet50.weights=none.h5"])
    with pytest.raises(UserError, match=r"nnabla_nas -f tiny.json .* failed with status 2: .*none.h5 does not exist"):
        execution.complete(runs, 1, lambda line: None)


def test_runs_side_by_side_share_the_cores_and_a_run_alone_has_all(profile, monkeypatch):
    shares, done = [], SimpleNamespace(poll=lambda: 0, returncode=0)
    monkeypatch.setattr(execution, "_start", lambda run, share, trunks: shares.append(share) or done)
    runs = plan(profile, ("voc",), [OFA, OFA_PS, COMPOFA], 1, [])
    assert len(list(execution._execute(runs, runs, 2, 4, lambda line: None))) == 4
    assert shares == [4, 2, 2, 4]


@pytest.mark.parametrize(
    "jobs, expected",
    [
        (1, [(0, DETOFA), (0, OFA), (0, OFA_PS), (1, DETOFA), (1, OFA), (1, OFA_PS)]),
        (2, [(0, DETOFA), (1, DETOFA), (0, OFA), (0, OFA_PS), (1, OFA), (1, OFA_PS)]),
    ],
)
def test_algorithm_1_comes_first_and_a_free_core_takes_the_next_seed(profile, monkeypatch, jobs, expected):
    order, done = [], SimpleNamespace(poll=lambda: 0, returncode=0)
    monkeypatch.setattr(Run, "finished", False)
    monkeypatch.setattr(execution, "_start", lambda run, share, trunks: order.append((run.seed, run.experiment)) or done)
    execution.complete(plan(profile, ("voc",), [OFA, DETOFA, OFA_PS], 2, []), jobs, lambda line: None)
    assert order == expected


def test_a_run_takes_its_cores_as_processes_where_the_numbers_stay_the_same(profile, monkeypatch):
    commands = []
    monkeypatch.setattr(execution.subprocess, "Popen", lambda command, **options: commands.append(command))
    for can_launch, mini_batch, ending in (
        (True, 2, ["--processes", "2"]),
        (True, 4, ["args.evaluation_processes=2"]),
        (False, 2, ["args.evaluation_processes=2"]),
    ):
        monkeypatch.setattr(execution, "can_launch", lambda can_launch=can_launch: can_launch)
        (run,) = plan(profile, ("voc",), [], 1, ["hparams.batch_size=4", f"hparams.mini_batch={mini_batch}"])
        execution._start(run, 2)
        assert commands[-1][-2 - len(ending) : -2] == ending


def test_what_mpirun_adds_is_not_the_last_words(profile):
    (run,) = plan(profile, ("voc",), [], 1, ["hparams.epochs=7"])
    rule = "-" * 74
    execution.console(run).parent.mkdir(parents=True, exist_ok=True)
    execution.console(run).write_text(
        f"[1/2] fullnet\nerror: no room\n{rule}\nprterun detected an error\n\n  Code: 2\n{rule}\n"
    )
    assert execution._last_line(run) == "no room"


def test_a_run_that_another_process_does_is_not_done_twice(profile):
    """A process that outlives what started it still writes into the run's folder."""
    (run,) = plan(profile, ("voc",), [], 1, ["hparams.epochs=5"])
    with pytest.MonkeyPatch.context() as patch:
        sleeping = Path("sleeper")
        sleeping.write_text("#!/bin/sh\nexec sleep 3600\n")
        sleeping.chmod(0o755)
        patch.setattr(execution.sys, "executable", str(sleeping.resolve()))
        process = execution._start(run, 1)
    try:
        with pytest.raises(UserError, match=r"another process is executing digits-detofa-0"):
            execution.complete([run], 1, lambda line: None)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_profile_that_starts_nothing_prints_commands(profile):
    silent = replace(profile, name="silent", starts_runs=False)
    lines = []
    runs = plan(silent, ("voc",), [DETOFA, OFA], 1, ["hparams.epochs=3"])
    with pytest.raises(UserError, match="2 of 2 runs are missing, and the profile silent does not start runs"):
        execution.complete(runs, 1, lines.append)
    assert len(lines) == 2 and lines[0].startswith("  nnabla_nas -f tiny.json hparams.epochs=3 ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopping_stops_the_runs_and_the_command_goes_on(profile, number):
    """The run of the signal before is resumed, and stopped again."""
    stopped = Path("stopped.json")
    stopped.write_text(Path("small.json").read_text())
    command = [sys.executable, "-m", "nnabla_detofa", "reproduce", "figure8", "--profile", str(stopped)]
    command += ["--set", "hparams.warmup_epochs=300"]
    folder = Path("runs", "profiles", stopped.stem)

    def printed() -> str:
        return "".join(log.read_text() for log in folder.glob("digits-detofa-0*.txt"))

    before = printed()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    while "warm-up:" not in printed()[len(before) :] and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 130 and "Run the same command again to resume." in errors
    assert "checkpoint saved" in printed()[len(before) :]


def test_the_time_that_runs_will_take_is_said_or_that_it_is_not_known(profile, monkeypatch):
    monkeypatch.setattr(execution, "_execute", lambda *_: iter(()))
    Path("start.h5").touch()
    pretraining = profile.data_sets["digits"].pretraining
    pretraining = pretraining.__class__(**{**pretraining.__dict__, "fullnet": "start.h5"})
    data_set = profile.data_sets["digits"]
    data_set = data_set.__class__(**{**data_set.__dict__, "pretraining": pretraining})
    timed = {**profile.__dict__, "name": "timed", "data_sets": {"digits": data_set}}
    runs = plan(profile.__class__(**timed), ("voc",), experiments.PRETRAININGS, 1, ["hparams.epochs=7"])
    lines = []
    execution.complete(runs, 1, lines.append)
    assert "starting 7 of 7 runs, duration unknown to the profile timed: digits-detofa-0" in lines[0]
    timed["minutes"] = {"whole run": 100, "branch": 1}
    runs = plan(profile.__class__(**timed), ("voc",), experiments.PRETRAININGS, 1, ["hparams.epochs=7"])
    execution.complete(runs, 1, lines.append)
    assert "about 304 minutes on two cores" in lines[1], "ours, and two from other weights, which share nothing with it"


def test_missing_weights_are_named_before_anything_starts(profile):
    runs = plan(profile, ("voc",), experiments.PRETRAININGS, 1, ["hparams.epochs=3"])
    with pytest.raises(UserError, match=r"digits-fullnet-ofa-0\S* needs .* does not exist: train it, and set"):
        execution.complete([run for run in runs if run.name.startswith("digits-fullnet")], 1, lambda line: None)
