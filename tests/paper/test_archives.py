"""Archives of runs: what they hold, what replaces it, and what of it belongs to a run."""

import json
import os
import tarfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from nnabla_detofa.common.errors import UserError
from nnabla_detofa.paper import archives, control_paths, profiles, results, standard_errors
from nnabla_detofa.paper.control_paths import FOUND_BY_DETOFA, LARGEST, RANDOM, ControlPath, RunResults
from nnabla_detofa.paper.controls import training_gain
from nnabla_detofa.paper.run import Run
from nnabla_detofa.space.geometry import OFA_RESNET50
from nnabla_detofa.space.search_space import ofa_resnet50

SPACE = ofa_resnet50()


def test_an_archive_gives_back_what_it_took_and_the_same_bytes_again(tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("config.json", "summary.json", "subnet_1.json", "subnet_1_detections.json", "paths.jsonl", "weights.h5"):
        (tmp_path / "run" / name).write_text(name * 3)
    files = archives.run_files(tmp_path / "run")
    assert sorted(files) == ["config.json", "paths.jsonl", "subnet_1.json", "summary.json"]
    file = archives.archive(tmp_path / "kept", "one")
    assert archives.pack(file, files) and not archives.pack(file, files)
    folder = archives.unpacked(file)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {name: name * 3 for name in files}
    assert not archives.unpacked(tmp_path / "none.tar.xz").exists()


@pytest.mark.parametrize("name", ["/etc/outside", "../outside"])
def test_an_archive_that_would_write_elsewhere_is_refused(tmp_path, name):
    file = tmp_path / "bad.tar.xz"
    with tarfile.open(file, "w:xz") as tar:
        tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(UserError, match="is not a plain file inside the archive"):
        archives.unpacked(file)
    file.write_bytes(b"no archive")
    with pytest.raises(UserError, match="bad.tar.xz is damaged"):
        archives.unpacked(file)


def a_run(folder: Path, subnets=()) -> SimpleNamespace:
    """A finished run, as far as archives know one."""
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps({"subnets": list(subnets), "seconds": 1.0}))
    run = SimpleNamespace(folder=folder, folder_with_weights=folder, profile=SimpleNamespace(name="p"))
    run.is_older_than = partial(Run.is_older_than, run)
    return run


def test_what_was_measured_in_part_or_of_an_earlier_run_replaces_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(results, "training_images", lambda run: None)
    monkeypatch.setattr(standard_errors, "standard_errors_of", lambda run: {})
    run, before = a_run(tmp_path / "run"), a_run(tmp_path / "before").folder
    stored = control_paths.stored_file(run)
    stored.parent.mkdir(parents=True)

    def measured() -> dict[str, int]:
        return {name: len(json.loads(file.read_text())) for name, file in results._measured(run, before)}

    stored.write_text("[1, 2, 3]")
    assert measured() == {control_paths.FILE: 3}
    (before / control_paths.FILE).write_text("[1, 2, 3, 4]")
    assert measured() == {control_paths.FILE: 4}  # the rest was not measured again
    stored.write_text("[1, 2, 3, 4, 5]")
    assert measured() == {control_paths.FILE: 5}
    os.utime(stored, (1, 1))  # older than the run's results
    assert measured() == {control_paths.FILE: 4}
    (before / "summary.json").write_text('{"subnets": [7]}')
    assert measured() == {}


def test_a_filter_study_that_was_only_begun_replaces_no_complete_one(tmp_path, monkeypatch):
    monkeypatch.setattr(profiles.Profile, "results", tmp_path / "results")
    monkeypatch.setattr(results, "known_experiments", lambda profile: [])
    begun = tmp_path / "begun"
    monkeypatch.setattr(results, "study_folder", lambda run: begun)
    for name in ("test.jsonl", "figure4_1234.json", "filter_study/scores.jsonl"):
        (tmp_path / "whole" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "whole" / name).write_text("one\ntwo\n" * ("scores" in name))
    profile = profiles.load("study")
    file = archives.archive(tmp_path / "results" / "runs", results.study_name(Run(profile, "digits", results.DETOFA, 0)))
    archives.pack(file, archives.study_files(tmp_path / "whole"))
    begun.mkdir()
    (begun / "test.jsonl").write_text("new")
    assert results.collect(profile, 1) == []
    (begun / "filter_study").mkdir()
    (begun / "filter_study/scores.jsonl").write_text("a header\n")
    lines = []
    assert results.collect(profile, 1, lines.append) == [] and "is kept, because" in lines[0]
    (begun / "filter_study/scores.jsonl").write_text("a header\na fit\n")
    assert results.collect(profile, 1) == [file]
    assert (archives.unpacked(file) / "test.jsonl").read_text() == "new"


def test_the_filter_study_of_each_seed_is_archived(tmp_path, monkeypatch):
    monkeypatch.setattr(profiles.Profile, "results", tmp_path / "results")
    monkeypatch.setattr(results, "known_experiments", lambda profile: [])
    monkeypatch.setattr(results, "study_folder", lambda run: tmp_path / str(run.seed))
    for seed in (0, 2):
        (tmp_path / str(seed)).mkdir()
        (tmp_path / str(seed) / "test.jsonl").write_text("")
    names = [file.name for file in results.collect(profiles.load("study"), 3)]
    assert names == ["digits-filter.tar.xz", "digits-filter-2.tar.xz"]


def test_only_whole_sets_of_the_present_control_paths_count():
    """Some random paths are no sample of all buckets, and subnets of an earlier run are not those found now."""
    run = SimpleNamespace(config=SimpleNamespace(network=SimpleNamespace(geometry=OFA_RESNET50)))
    largest = SPACE.largest
    smallest = SPACE.sample(np.random.default_rng(0))

    def entry(kind, place, path):
        return {"kind": kind, "place": place, "path": path.to_ofa(OFA_RESNET50), "ap": float(place), "se": 0.5}

    whole = ControlPath(LARGEST, 5, largest)
    random = [ControlPath(RANDOM, 1, smallest), ControlPath(RANDOM, 2, largest)]
    found = [ControlPath(FOUND_BY_DETOFA, 1, smallest)]
    known = [entry(LARGEST, 5, largest), entry(RANDOM, 1, smallest), entry(FOUND_BY_DETOFA, 1, largest)]
    assert control_paths._asked(known, [whole, *random, *found], run) == known[:1]
    known += [entry(RANDOM, 2, largest), entry(FOUND_BY_DETOFA, 1, smallest)]
    assert control_paths._asked(known, [whole, *random, *found], run) == [known[0], known[1], known[3], known[4]]


def test_the_gain_of_training_names_its_seeds():
    def of(seed, *aps):
        paths = [{"kind": RANDOM, "place": 1, "ap": ap} for ap in aps]
        return RunResults("", "", seed, 9, [], 50.0, paths)

    ours, theirs = [of(0), of(1, 71.0, 73.0), of(2, 80.0)], [of(0, 1.0), of(1, 70.0, 72.0), of(2, 80.5)]
    assert training_gain(ours, theirs) == {1: 1.0, 2: -0.5}
