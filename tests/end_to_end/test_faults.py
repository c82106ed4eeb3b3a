"""Runs whose loss is not finite, whose images vanish, or whose disk is full: one sentence, and nothing is lost."""

import json
import os
import re
import resource
import shutil

import numpy as np
import pytest
import tiny
from faults_by_kill import differing
from faulty import no_room, the_error, with_fault
from small import GEOMETRY

from nnabla_detofa.cli.program import main
from nnabla_detofa.path_filter.evaluated_paths import EvaluatedPath, EvaluatedPaths
from nnabla_detofa.space.search_space import ofa_resnet50
from nnabla_detofa.training import loop as training

pytestmark = pytest.mark.thorough


def test_a_loss_that_is_not_finite_names_the_step_the_path_and_the_checkpoint(tmp_path, monkeypatch, capsys):
    load, calls = training.load, []

    def poisoned(graph, batch):
        calls.append(batch)
        heatmap = np.full_like(batch[1], np.nan) if len(calls) == 6 else batch[1]  # a ReLU makes 0 of a NaN of the images
        load(graph, [batch[0], heatmap, *batch[2:]])

    monkeypatch.setattr(training, "load", poisoned)
    arguments = ["-f", str(tiny.config_file()), "-o", str(tmp_path / "run"), *tiny.SHORT]
    assert main(arguments) == 2
    error = the_error(capsys.readouterr().err)
    assert re.search(r"fullnet: the loss became nan at step 5, .* on the path \{.*checkpoint, of step 4, is .*fullnet", error)


def test_a_photograph_that_vanishes_is_named_and_no_step_is_lost(tmp_path, monkeypatch, capsys):
    root = shutil.copytree(tiny.digits(), tmp_path / "data")
    arguments = ["-f", str(tiny.config_file()), *tiny.SHORT, "hparams.batch_size=2", f"dataloader.voc.root={root}"]
    assert main([*arguments, "-o", str(tmp_path / "whole")]) == 0
    step, hidden = training.step, tmp_path / "hidden"

    def hide(graph):
        if (root / "JPEGImages").exists():
            os.replace(root / "JPEGImages", hidden)
        step(graph)

    monkeypatch.setattr(training, "step", hide)
    capsys.readouterr()
    assert main([*arguments, "-o", str(tmp_path / "run")]) == 2
    monkeypatch.undo()
    assert re.search(r"cannot read the image .*JPEGImages.*: No such file", the_error(capsys.readouterr().err))
    state = json.loads((tmp_path / "run" / "checkpoint" / "fullnet" / "state.json").read_text())
    assert 0 < state["step"] < 8 and state["phase"] == "fullnet" and state["line"] == "2" and state["epoch"] == 0
    os.replace(hidden, root / "JPEGImages")
    assert main([*arguments, "-o", str(tmp_path / "run")]) == 0
    assert f"resumes at step {state['step']}" in capsys.readouterr().out
    assert differing(tmp_path / "whole", tmp_path / "run") == []


@pytest.mark.parametrize(("limit", "named"), [(0, "run"), (9000, r"checkpoint/fullnet.new/weights.h5")])
def test_a_full_disk_is_one_sentence_and_the_run_goes_on(limit, named, tmp_path):
    """Without any room the log fails; with a little, the first checkpoint does."""
    arguments = ["-f", str(tiny.config_file()), "-o", str(tmp_path / "run"), *tiny.SHORT]
    failed = with_fault(f"limit:{limit}", *arguments)
    assert failed.returncode == 2, failed.stderr
    assert re.search(f"{named} cannot be written .File too large.: earlier results are kept", the_error(failed.stderr))
    assert main(arguments) == 0
    assert differing(tiny.short_run(), tmp_path / "run") == []


def test_tensorboard_without_room_is_one_sentence(tmp_path, monkeypatch, capfd):
    from tensorboard.summary.writer.record_writer import RecordWriter

    write, step = RecordWriter.write, training.step

    def full_from_now_on(graph):
        monkeypatch.setattr(RecordWriter, "write", no_room)
        step(graph)

    monkeypatch.setattr(training, "step", full_from_now_on)
    assert main(["-f", str(tiny.config_file()), "-o", str(tmp_path / "run"), *tiny.SHORT]) == 2
    assert "cannot be written (No space left on device)" in the_error(capfd.readouterr().err)
    monkeypatch.setattr(RecordWriter, "write", write)


def test_a_file_where_a_folder_should_be_is_one_sentence(tmp_path, capsys):
    assert main(["-f", str(tiny.config_file()), "-o", str(tmp_path / "run"), *tiny.SHORT, "hparams.fullnet_epochs=0"]) == 0
    shutil.rmtree(tmp_path / "run" / "fullnet")
    shutil.rmtree(tmp_path / "run" / "checkpoint", ignore_errors=True)
    (tmp_path / "run" / "fullnet.new").write_text("a file")
    capsys.readouterr()
    assert main(["-f", str(tiny.config_file()), "-o", str(tmp_path / "run"), *tiny.SHORT, "hparams.fullnet_epochs=0"]) == 2
    assert "fullnet.new cannot be written (File exists)" in the_error(capsys.readouterr().err)


def test_evaluated_paths_without_room_are_named_and_healed(tmp_path, monkeypatch):
    space = ofa_resnet50(GEOMETRY)
    few = list(space.sample_many(np.random.default_rng(0), 3))
    file = tmp_path / "paths.jsonl"
    kept = EvaluatedPaths.open(file, "w", {}, GEOMETRY)
    kept.append(EvaluatedPath(few[0], 0, 1, 1, 0.5))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 10, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            kept.append(EvaluatedPath(few[1], 0, 1, 1, 0.5))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.value.filename == str(file)
    again = EvaluatedPaths.open(file, "w", {}, GEOMETRY)
    assert again.items == kept.items and len(again) == 1
    again.append(EvaluatedPath(few[1], 0, 1, 1, 0.5))
    assert len(EvaluatedPaths.read(file)) == 2
