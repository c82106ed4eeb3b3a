"""Runs that are killed or stopped: they lose nothing, and resume to the same bits."""

import json
import os
import shutil
import signal

import h5py
import pytest
import tiny
from faults_by_kill import differing
from faulty import with_fault

from nnabla_detofa.cli.program import main
from nnabla_detofa.methods import algorithm1, build, detectors, subnet_search
from nnabla_detofa.path_filter import evaluated_paths
from nnabla_detofa.training import filter_fitting
from nnabla_detofa.training import loop as training

pytestmark = pytest.mark.thorough


def test_a_run_that_was_killed_at_bad_moments_goes_on_to_the_same_bits(tmp_path):
    arguments = ["-f", str(tiny.config_file()), "-o", str(tmp_path / "run"), "args.evaluation_processes=2"]
    for fault, status in (
        ("half:paths.jsonl", -signal.SIGKILL),
        ("stop:1", 130),
        ("after:checkpoint/fine_tuning.old", -signal.SIGKILL),
        ("before:run/fine_tuning", -signal.SIGKILL),
    ):
        assert with_fault(fault, *arguments).returncode == status
        assert not (tmp_path / "run" / "summary.json").exists()
    folders = tiny.detofa_run(), tmp_path / "run" / "checkpoint"
    steps = [json.loads((folder / "fine_tuning" / "state.json").read_text())["step"] for folder in folders]
    assert steps[0] - steps[1] == 4, "the last step is saved once, as the complete phase"
    assert with_fault("stop:4", *arguments).returncode == 130, "in the last step"
    assert with_fault("before:subnet_2.json", *arguments).returncode == -signal.SIGKILL
    assert main(arguments) == 0
    assert differing(tiny.detofa_run(), tmp_path / "run") == []
    assert not list((tmp_path / "run" / "checkpoint").iterdir())


def test_results_that_differ_are_told(tmp_path):
    shutil.copytree(tiny.detofa_run(), tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    (tmp_path / "run" / "summary.json").write_text(json.dumps(summary | {"seconds": {}}))
    assert differing(tiny.detofa_run(), tmp_path / "run") == []
    (tmp_path / "run" / "summary.json").write_text(json.dumps(summary | {"rejected_share": 0.5}))
    with h5py.File(tmp_path / "run" / "fine_tuning" / "weights.h5", "r+") as weights:
        weights[next(iter(weights))].attrs["index"] = 99  # only values count
    with h5py.File(tmp_path / "run" / "fine_tuning" / "optim_train.h5", "r+") as moments:
        moments.visititems(lambda name, item: item.__setitem__(..., 7) if name.endswith("/t") else None)
    os.remove(tmp_path / "run" / "scores.json")
    assert differing(tiny.detofa_run(), tmp_path / "run") == ["fine_tuning/optim_train.h5", "scores.json", "summary.json"]


def test_sigterm_stops_in_every_kind_of_phase_with_status_130(tmp_path, monkeypatch, capsys):
    arguments = ["-f", str(tiny.config_file()), "-o", str(tmp_path / "run")]
    for owner, name in (
        (build, "open_sets"),
        (detectors, "average_precision"),
        (training, "step"),
        (evaluated_paths, "_write_line"),
        (filter_fitting, "fit"),
        (algorithm1, "operation_scores"),
        (algorithm1, "path_thresholds"),
        (subnet_search, "search"),
    ):
        original = getattr(owner, name)

        def stopped(*args, original=original, **options):
            os.kill(os.getpid(), signal.SIGTERM)
            return original(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, stopped)
            assert main(arguments) == 130, name
        assert "Run the same command again to resume." in capsys.readouterr().err
    assert main(arguments) == 0
    assert differing(tiny.detofa_run(), tmp_path / "run") == []
