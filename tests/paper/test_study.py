"""The study of the paper's claims: its rule, its kept files, and two tiny seeds that go from runs to verdicts."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small import detofa_config, pretrain_config

from nnabla_detofa import config as configs
from nnabla_detofa.backend.compat import Device
from nnabla_detofa.cli.program import main
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.data.digits import write_digits
from nnabla_detofa.evaluation.metrics import bootstrap_ap, voc_ap, voc_matches
from nnabla_detofa.paper import (
    archives,
    control_paths,
    controls,
    experiments,
    figure5,
    intervals,
    method_costs,
    pilot,
    profiles,
    results,
    table2,
)
from nnabla_detofa.paper import run as paper_run
from nnabla_detofa.paper.execution import complete
from nnabla_detofa.paper.experiments import COMPOFA, CONTROLS, DETOFA, FROM_SCRATCH, OFA, OFA_PS
from nnabla_detofa.paper.intervals import Values, verdict
from nnabla_detofa.paper.random_paths import random_paths
from nnabla_detofa.paper.run import Run, plan
from nnabla_detofa.runs.phases import training_phases

REPOSITORY = Path(__file__).parents[2]


# --- Numbers ----------------------------------------------------------------------------------------------------------


def test_the_t_interval_by_hand():
    """Of 1, 2, 3: mean 2, deviation 1, t of two degrees of freedom 4.3027."""
    low, high = Values((1.0, 2.0, 3.0)).interval
    assert (low, high) == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-3)
    assert Values((1.0,)).interval is None and Values((1.0,)).text() == "+1.00"
    assert Values((1.0, 2.0, 3.0)).text(1) == "+2.0 [-0.5, +4.5] (+1.0, +2.0, +3.0)"
    assert intervals.differences([3, 5], [1, 2]).values == (2.0, 3.0)
    with pytest.raises(ValueError):
        intervals.differences([1], [1, 2])


@pytest.mark.parametrize(
    "interval, direction, wanted",
    [
        ((0.1, 2.0), "above", "reproduced"),
        ((0.1, 0.3), "above", "reproduced"),
        ((-0.1, 2.0), "above", "not decidable"),
        ((-2.0, -0.1), "above", "not reproduced"),
        ((-0.4, 0.4), "above", "not reproduced"),
        (None, "above", "not decidable"),
        ((-2.0, -0.1), "below", "reproduced"),
        ((0.1, 2.0), "below", "not reproduced"),
        ((-0.4, 3.0), "not below", "reproduced"),
        ((-0.6, 3.0), "not below", "not decidable"),
        ((-3.0, -0.1), "not below", "not reproduced"),
        ((-0.4, 0.4), "alike", "reproduced"),
        ((0.6, 0.9), "alike", "not reproduced"),
        ((0.1, 0.9), "alike", "not decidable"),
    ],
)
def test_the_rule_of_a_verdict(interval, direction, wanted):
    assert verdict(interval, direction, 0.0, 0.5) == wanted
    shifted = interval and tuple(end + 1 for end in interval)
    assert verdict(shifted, direction, 1.0, 0.5) == wanted


@pytest.mark.parametrize("metric", ["area", "11point"])
def test_a_resampled_ap_is_that_of_the_repeated_images(metric):
    rng = np.random.default_rng(0)
    detections, truth = [], []
    for _ in range(12):
        corners, labels = rng.integers(0, 50, (2, 2)), rng.integers(0, 3, 2)
        boxes = np.concatenate([corners, corners + 20], 1).astype(float)
        truth.append((boxes, labels, rng.random(2) < 0.2))
        chosen = rng.integers(0, 2, 4)
        guesses = np.where(rng.random(4) < 0.8, labels[chosen], 0)
        detections.append((boxes[chosen] + rng.normal(0, 4, (4, 1)), rng.random(4), guesses))
    weights = rng.multinomial(12, np.full(12, 1 / 12), 4)
    found = bootstrap_ap(voc_matches(detections, truth, 3), weights, metric)
    for row, ap in zip(weights, found):
        images = np.repeat(np.arange(12), row)
        repeated = voc_ap([detections[i] for i in images], [truth[i] for i in images], 3, metric=metric)
        assert ap == pytest.approx(repeated.mean)


def test_the_length_at_which_the_papers_ratio_is_reached():
    """Ours: 100 steps and 44 of overhead; PS: 300. At 40 steps: (40 + 44) / 120 = 0.7."""
    ours = method_costs.StepCost("ours", "detofa", 100, 100.0, 44.0, 0.0)
    shrinking = method_costs.StepCost("OFA (w/ PS)", "ofa-ps", 300, 300.0, 0.0, 0.0)
    assert method_costs.steps_for_ratio(ours, shrinking, table2.PAPER_RATIO) == pytest.approx(40)
    lines = table2.step_table([shrinking, ours])
    assert lines[3] == "| ours | 100 | 100 | 44 | 0 | 144 | 0.48 |" and "would be reached with 40 training steps" in lines[-1]
    assert method_costs.steps_for_ratio(ours, replace(shrinking, training=140.0), table2.PAPER_RATIO) is None
    cost = method_costs.cost_of_runs("ours", "detofa", "digits", [_ledger(training=7200, overhead=3600)])
    assert method_costs.StepCost.of(cost, 100, 0.02) == method_costs.StepCost("ours", "detofa", 100, 100.0, 50.0, 0.0)
    slower = replace(ours, training=110.0)  # (44 + 44) / 120 = 0.73 at 40 steps
    assert method_costs.steps_for_ratio(slower, shrinking, table2.PAPER_RATIO) == pytest.approx(44)


def _ledger(training, overhead):
    phases = {"fine-tuning": {"seconds": training}, "paths": {"seconds": overhead}}
    return {"unit": "core seconds", "phases": phases}


# --- Configs ----------------------------------------------------------------------------------------------------------


def test_the_study_has_the_papers_proportions(monkeypatch):
    """70, 5 + 65, and PS 70/5/65/5/65, of 14 epochs of 32 steps; the controls have PS' steps."""
    monkeypatch.chdir(REPOSITORY)
    profile = profiles.load("study")

    def steps(experiment):
        run = Run(profile, "digits", experiment, 1)
        assert run.config.hparams.filter.weights is None and run.config.hparams.search.budgets == ()
        return [len(phase.epochs) * phase.steps_per_epoch(1600) for phase in training_phases(run.config)]

    n = 448
    assert steps(DETOFA) == steps(OFA) == steps(COMPOFA) == [n, n // 14, n - n // 14]
    assert steps(OFA_PS) == steps(CONTROLS[0]) == [n, n, n // 14, n - n // 14, n // 14, n - n // 14]
    assert [sum(steps(control)) for control in (*CONTROLS, *FROM_SCRATCH)] == [4 * n] * 3 + [2 * n, 4 * n, 4 * n]
    assert all(Run(profile, "digits", one, 0).config.network.weights is None for one in FROM_SCRATCH)
    uniform = training_phases(Run(profile, "digits", CONTROLS[0], 0).config)
    assert {phase.space.name for phase in uniform} == {"A"} and not any(phase.sorted_ratios for phase in uniform)
    shrinking = training_phases(Run(profile, "digits", OFA_PS, 0).config)
    assert [a.schedule(1600) for a in uniform] == [b.schedule(1600) for b in shrinking]
    rates = [experiment.title for experiment in experiments.path_ratios(profile.path_ratios)]
    assert rates == ["r = 0", "r = 0.25", "r = 0.5", "r = 0.75"]


def test_ratios_of_a_profile_hold_the_methods_own(tmp_path):
    content = json.loads((REPOSITORY / "configs/profiles/study.json").read_text())
    for name, value in (("path_ratios", [0, 0.5]), ("operation_ratios", [0.5, 0.3])):
        (tmp_path / "p.json").write_text(json.dumps(content | {name: value}))
        with pytest.raises(UserError, match=f"{name} must be in ascending order and include"):
            profiles.load(str(tmp_path / "p.json"))


@pytest.mark.parametrize("value", [["ofa", "compofa"], ["detofa", "detofa"], ["detofa", "ofa-long"], "detofa", []])
def test_methods_of_a_profile_are_known_and_hold_our_own(tmp_path, value):
    content = json.loads((REPOSITORY / "configs/profiles/study.json").read_text())
    (tmp_path / "p.json").write_text(json.dumps(content | {"methods": value}))
    with pytest.raises(UserError, match="methods"):
        profiles.load(str(tmp_path / "p.json"))


@pytest.mark.parametrize("target", [figure5.TARGET, table2.TARGET], ids=lambda target: target.name)
def test_a_profile_may_compare_fewer_methods(tmp_path, target):
    content = json.loads((REPOSITORY / "configs/profiles/study.json").read_text())
    (tmp_path / "p.json").write_text(json.dumps(content | {"methods": ["detofa", "ofa"]}))
    names = [experiment.name for experiment in target.of(profiles.load(str(tmp_path / "p.json")))]
    assert names == ["ofa", "detofa"] and set(names) < {experiment.name for experiment in target.of(profiles.load("study"))}


def test_steps_per_epoch_do_not_depend_on_the_images():
    base = REPOSITORY / "configs" / "digits_detofa.json"
    fullnet, *_ = training_phases(configs.load(base, ["hparams.steps_per_epoch=7"]))
    assert [fullnet.steps_per_epoch(images) for images in (8, 400)] == [7, 7] and fullnet.schedule(400).steps == 5 * 7
    assert training_phases(configs.load(base))[0].steps_per_epoch(400) == 50


def test_a_row_of_controls_has_only_the_seeds_whose_paths_were_evaluated_and_names_them():
    def of(seed, found, aps):
        paths = [{"kind": control_paths.RANDOM, "place": 1, "ap": ap} for ap in aps]
        return control_paths.RunResults("DetOFA", "detofa", seed, 9, np.array([found]), 50.0, paths)

    both, one, none = (
        [of(0, 80.0, [70.0, 72.0]), of(1, 90.0, [75.0])],
        [of(0, 80.0, []), of(1, 90.0, [75.0])],
        [of(0, 80.0, [])],
    )
    assert controls.random_table({"detofa": both})[2:] == ["| DetOFA | 72.3; 85.0 |"]
    assert controls.random_table({"detofa": one})[2:] == ["| DetOFA (seed 1) | 75.0; 90.0 |"]
    assert controls.random_table({"detofa": none}) == ["No random paths were evaluated."]
    assert controls.method_table({"detofa": one})[2].endswith("| - | 75.0 (seed 1) |")


# --- From runs to verdicts --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder to work in: data, a config and a profile of its own."""
    folder = tmp_path_factory.mktemp("study")
    root = write_digits(folder / "digits", train=16, val=6, test=6, image_size=64, crops_train=0, crops_val=0)
    content = detofa_config(root)
    search = {"generations": 2, "population": 10, "across_buckets": "score"}
    small = {"epochs": 1, "buckets": 2, "heldout_paths_per_bucket": 4, "steps_per_epoch": 2, "search": search}
    content["hparams"] |= small
    content["args"]["evaluation_processes"] = 1
    (folder / "tiny.json").write_text(json.dumps(content))
    (folder / "p.json").write_text(json.dumps(pretrain_config(root / "classification")))
    pretraining = {"config": "p.json", "supernet": "s.h5", "path_filter": "f.h5", "fullnet": "n.h5"}
    data_set = {"title": "digits", "config": "tiny.json", "pretraining": pretraining}
    (folder / "tinystudy.json").write_text(json.dumps({"data_sets": {"digits": data_set}}))
    return folder


@pytest.fixture
def profile(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return profiles.load("tinystudy.json")


@pytest.mark.slow
def test_two_seeds_go_from_runs_to_claims_and_results_need_no_runs(profile, folder):
    runs = plan(profile, ("voc",), [DETOFA, OFA], 2, ())
    complete(runs, 2, lambda line: None)
    for run, found in zip(runs, control_paths.results_of(runs)):
        kinds = [entry["kind"] for entry in found.measured]
        assert kinds.count("largest") == 1 and kinds.count("random") == 2 * control_paths.RANDOM_PATHS
        assert kinds.count("found by ours") == (2 if run.experiment == OFA else 0) and found.steps == 4
    assert main(["results", "--profile", "tinystudy.json", "--seeds", "2"]) == 0
    kept = sorted(path.name for path in Path("results/tinystudy/runs").iterdir())
    names = ("detofa", "ofa", "scratch-ofa")  # without pre-trained weights OFA is its own variant from scratch
    assert kept == [f"digits-{name}-{seed}.tar.xz" for name in names for seed in (0, 1)]
    content = json.loads(Path("results/tinystudy/claims.json").read_text())
    assert list(content) == [f"C{number}" for number in range(1, 9)] and content["C3"] == []
    first = content["C1"][0]
    aps = {
        (run.experiment.name, run.seed): np.mean(
            [100 * subnet["ap50"] for subnet in json.loads((run.folder / "summary.json").read_text())["subnets"]]
        )
        for run in runs
    }
    gains = [aps["detofa", seed] - aps["ofa", seed] for seed in (0, 1)]
    assert first["values"] == pytest.approx(gains, abs=1e-3) and first["mean"] == pytest.approx(np.mean(gains), abs=1e-3)
    assert first["verdict"] in ("reproduced", "not reproduced", "not decidable") and len(first["interval"]) == 2
    page = Path("results/tinystudy/claims.md").read_text()
    assert "| [C1](#c1) |" in page and "![C1](C1.png)" in page and "not measured yet" in page
    made = {path.name: path.read_bytes() for path in Path("results/tinystudy").glob("*.csv")}
    assert {"architectures.csv", "figure3.csv"} <= set(made)
    for gone in ("runs", "digits"):
        shutil.move(gone, f"{gone}-gone")
    shutil.copytree("results/tinystudy/runs", "kept")
    shutil.rmtree("results")
    shutil.copytree("kept", "results/tinystudy/runs")
    try:
        assert main(["results", "--profile", "tinystudy.json", "--seeds", "2", "--kept"]) == 0
        assert json.loads(Path("results/tinystudy/claims.json").read_text()) == content
        assert {path.name: path.read_bytes() for path in Path("results/tinystudy").glob("*.csv")} == made
    finally:
        for gone in ("runs", "digits"):
            shutil.move(f"{gone}-gone", gone)


def test_a_repeated_run_keeps_the_times_of_its_archive_and_gives_it_control_paths(profile, tmp_path, monkeypatch):
    monkeypatch.setattr(profiles.Profile, "results", tmp_path)
    (run,) = plan(profile, ("voc",), [DETOFA], 1, ())
    complete([run], 1, lambda line: None)
    archived = replace(profile, archives=tmp_path / "runs")
    file = archives.archive(archived.archives, run.name)
    older = tmp_path / "older"
    shutil.copytree(run.folder, older)
    for name in ("summary", "seconds"):
        content = json.loads((older / f"{name}.json").read_text())
        (content["seconds"] if name == "summary" else content)["search"] = 1e6
        (older / f"{name}.json").write_text(json.dumps(content))
    archives.pack(file, archives.run_files(older))
    control_paths.stored_file(run).unlink(missing_ok=True)
    (again,) = plan(archived, ("voc",), [DETOFA], 1, ())
    assert again.archive and again.folder != run.folder
    (elsewhere,) = plan(replace(archived, starts_runs=False), ("voc",), [DETOFA], 1, ())
    assert control_paths.results_of([elsewhere])[0].measured == []
    with pytest.raises(UserError, match=f"the archives of tinystudy do not have the random paths of {run.name}"):
        random_paths(elsewhere)
    (by_hand,) = plan(replace(profile, starts_runs=False), ("voc",), [DETOFA], 1, ())  # as the paper's profile, no archives
    assert len(control_paths.results_of([by_hand])[0].measured) == 1 + 2 * control_paths.RANDOM_PATHS
    control_paths.stored_file(run).unlink()
    assert len(control_paths.results_of([again])[0].measured) == 1 + 2 * control_paths.RANDOM_PATHS
    assert file in results.collect(profile, 1)
    kept = archives.unpacked(file)
    assert json.loads((kept / "seconds.json").read_text())["search"] == 1e6 and (kept / "controls.json").is_file()
    content = json.loads((older / "summary.json").read_text())
    content["subnets"] = []  # another result: the archive is replaced
    (older / "summary.json").write_text(json.dumps(content))
    archives.pack(file, archives.run_files(older))
    assert file in results.collect(profile, 1)
    assert json.loads((archives.unpacked(file) / "seconds.json").read_text())["search"] < 1e6


def test_a_study_continues_on_another_machine_from_the_archives_of_equal_runs(profile, tmp_path, monkeypatch):
    monkeypatch.setattr(paper_run, "RUNS", tmp_path)  # other tests have finished such runs
    kept = replace(profile, archives=tmp_path / "runs")
    (run, other) = plan(kept, ("voc",), [DETOFA], 2, ())
    assert run.archive is None and not run.finished and run.folder == run.usual_folder
    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / "config.json").write_text(json.dumps(run.config.to_dict()))
    files = {name: tmp_path / name for name in ("summary.json", "config.json")}
    for name in (run.name, other.name):  # the second archive is of a run with another config
        archives.pack(archives.archive(tmp_path / "runs", name), files)
    (run, other) = plan(kept, ("voc",), [DETOFA], 2, ())
    assert run.finished and run.location == str(tmp_path / "runs" / f"{run.name}.tar.xz")
    assert not other.finished and other.folder == other.usual_folder
    assert not plan(profile, ("voc",), [DETOFA], 1, ())[0].finished, "archives are read on demand only"
    complete([run], 1)


def test_an_unknown_result_and_a_profile_without_runs_are_named(profile, capsys):
    assert main(["results", "figure77", "--profile", "tinystudy.json"]) == 2
    assert "unknown result figure77; known are table2, " in capsys.readouterr().err
    capsys.readouterr()
    Path("results/few/runs").mkdir(parents=True)
    with pytest.raises(UserError, match="table2 cannot be made: there is no archive file results/few/runs/.*tar.xz of its run"):
        results.make_results(replace(profile, name="few"), ["table2"], collecting=False)
    lines = []
    assert results.make_results(replace(profile, name="few"), collecting=False, log=lines.append)
    assert any(line.startswith("skipping table2: there is no archive file results/few/runs/") for line in lines)
    empty = replace(profile, name="empty")
    with pytest.raises(UserError, match="there are no archives in results/empty/runs"):
        results.make_results(empty, collecting=False)


# --- The pilot --------------------------------------------------------------------------------------------------------


def found(losses, alone, shared, halves):
    buckets = [0, 0, 0]
    content = {"fullnet_losses": losses, "alone": alone, "shared": shared, "halves": halves, "buckets": buckets}
    return content | {"seconds": 20.0, "unit": "core seconds"}


def test_the_criteria_by_hand():
    """Spread: means 1, 2, 3, deviation 1; noise: differences 0, 0.2, -0.2 of the halves, deviation 0.2, half of it."""
    cell = pilot.Cell(400, 32, True)
    halves = [[1, 1], [2.1, 1.9], [2.9, 3.1]]
    outcome = pilot.Outcome.of(cell, found([3, 2, 1], [75.0, 79.0], [72.0, 76.0], halves), 10)
    assert (outcome.room, outcome.spread, outcome.noise) == pytest.approx((3, 1, 0.1)) and outcome.seconds == 2
    assert outcome.met == (True, True, True)
    assert replace(outcome, last=2.0).met == (False, True, True)
    assert replace(outcome, room=1.9).met == (True, False, True)
    assert replace(outcome, noise=0.4).met == (True, True, False)
    larger = replace(outcome, cell=pilot.Cell(400, 64, True))
    assert pilot.chosen([larger, outcome]) is outcome and pilot.chosen([replace(outcome, room=0)]) is None


def test_cells_are_skipped_where_fewer_steps_have_failed_and_the_first_that_meets_all_ends_it(profile, monkeypatch):
    monkeypatch.chdir(Path.cwd())
    cells = (pilot.Cell(400, 32, False), pilot.Cell(400, 64, False), pilot.Cell(1600, 64, True), pilot.Cell(4000, 64, True))
    seen = []

    def measure(profile, grid, cell, device):
        seen.append(cell)
        fails = cell.images == 400
        return pilot.Outcome(cell, 2.0 if fails else 1.0, 1.5, 3.0, 1.0, 0.1, 0.2, "core seconds")

    monkeypatch.setattr(pilot, "measure", measure)
    text = pilot.run_pilot(profile, pilot.Grid(cells), None, log=lambda line: None).read_text()
    assert seen == [cells[0], cells[2]]
    assert "Chosen: 1600 images, hparams.steps_per_epoch=64, with augmentation" in text and "Not run: 1 of 4 cells" in text
    pilot.run_pilot(profile, pilot.Grid(cells), None, everything=True, log=lambda line: None)
    assert seen[2:] == list(cells)


@pytest.mark.thorough
def test_a_cell_is_measured_once(profile, monkeypatch):
    grid = pilot.Grid((pilot.Cell(16, 2, False),), val=6, test=6, image_size=64, folder=Path("pilot-data"))
    file = pilot.run_pilot(profile, grid, Device.open("cpu", "0"), log=lambda line: None)
    (row,) = json.loads(file.with_suffix(".json").read_text())
    assert row["cell"]["images"] == 16 and row["seconds"] > 0 and len(row["met"]) == 3
    content = json.loads((pilot.FOLDER / profile.name / "16-2-plain" / "pilot.json").read_text())
    assert len(content["alone"]) == len(content["shared"]) == 2 and len(content["halves"]) == 2 * pilot.PATHS
    assert len(content["fullnet_losses"]) == 1
    monkeypatch.setattr(pilot.algorithm1, "run", None)
    assert pilot.run_pilot(profile, grid, None, log=lambda line: None) == file
