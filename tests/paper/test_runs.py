"""The runs of an experiment: which they are, where they lie, and when a finished one is used."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nnabla_detofa import config as configs
from nnabla_detofa.cli.program import main
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.data import content
from nnabla_detofa.paper import branching, budget_figures, execution, experiments, profiles
from nnabla_detofa.paper.budget_curves import Curve
from nnabla_detofa.paper.experiments import DETOFA, OFA, PATH_PRUNINGS, STRATEGIES, operation_ratios, path_ratios
from nnabla_detofa.paper.run import Run, plan
from nnabla_detofa.paper.study_paths import study_folder
from nnabla_detofa.runs.run_folder import searched_space
from nnabla_detofa.space.search_space import ofa_resnet50

pytestmark = pytest.mark.thorough


def test_every_experiment_is_one_change_of_ours(profile):
    """Overrides are accepted by the schema, no two experiments are the same run, and equal titles mean equal runs."""
    groups = (STRATEGIES, path_ratios(profile.path_ratios), PATH_PRUNINGS, operation_ratios(profile.operation_ratios))
    runs = plan(profile, ("voc",), [experiment for group in groups for experiment in group], 2, [])
    hashes = [run.config.config_hash for run in runs]
    assert len(set(hashes)) == len(hashes) == 2 * 12
    assert runs[0].experiment == DETOFA and runs[0].config.config_hash == configs.load("tiny.json").config_hash
    assert {run.config.args.seed for run in runs} == {0, 1}


def test_what_experiments_and_seeds_differ_in_cannot_be_replaced(profile):
    """Or the curve "r = 0.25" would be of another r, and two seeds would be one."""
    for override in ("hparams.r_path=0.3", "hparams.operation_pruning.r_op=0.2", "args.seed=1", "args.runner=ofa"):
        key, value = override.split("=")
        with pytest.raises(UserError, match=rf"{key} must be .* got {value}"):
            plan(profile, ("voc",), STRATEGIES, 2, [override])


def test_what_changes_no_result_changes_no_folder(profile):
    """Or other workers, or -c cpu, would do everything again."""

    def name(*overrides):
        return plan(profile, ("voc",), [], 1, overrides)[0].name

    assert name("args.workers=0", "args.context=cpu") == name() == "digits-detofa-0"
    assert name("args.workers=0", "hparams.epochs=3") == name("hparams.epochs=3") != name()


def test_entries_of_one_data_set_are_not_those_of_the_other(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    paper = profiles.load("paper")
    voc, coco = plan(paper, ("voc", "coco"), [DETOFA], 1, ["dataloader.voc.root=elsewhere", "hparams.epochs=2"])
    assert (voc.config.dataloader.root, coco.config.dataloader.root) == ("elsewhere", "data/coco")
    assert {run.config.hparams.epochs for run in (voc, coco)} == {2}
    paper.check(replace(paper.data_sets["coco"], needs=()), ["dataloader.voc.root=elsewhere"])
    with pytest.raises(UserError, match="dataloader"):
        _ = plan(paper, ("voc",), [DETOFA], 1, ["dataloader.vocc.root=elsewhere"])[0].config


@pytest.mark.parametrize("content", ["null", "5", "[" * 2000, "{}"])
def test_foreign_folders_beside_the_runs_are_none_of_ours(profile, content):
    folder = Path("runs/foreign")
    folder.mkdir(parents=True)
    (folder / "summary.json").touch()
    (folder / "config.json").write_text(content)
    (run,) = plan(profile, ("voc",), [], 1, ["hparams.epochs=9"])
    assert run.folder == run.usual_folder and not run.folder.exists()
    shutil.rmtree(folder)


def test_a_finished_run_is_used_wherever_it_lies(done, profile, monkeypatch):
    """No process is started for runs that are there, in the profile's folder or beside it, whatever they are called."""
    monkeypatch.setattr(execution.subprocess, "Popen", None)
    execution.complete(done, 2, lambda line: None)
    other = profiles.load("small.json").__class__(**{**profile.__dict__, "name": "other"})
    Path("runs/elsewhere").symlink_to(done[0].folder.resolve())
    (run, _) = plan(other, ("voc",), [OFA], 1, [])
    assert run.folder == Path("runs/elsewhere") and run.finished
    Path("runs/elsewhere").unlink()
    (run, _) = plan(other, ("voc",), [OFA], 1, [])
    assert run.folder == done[0].folder and run.finished, "in another profile's folder"


def test_changed_data_and_a_changed_config_have_folders_of_their_own(done, profile, tmp_path):
    """The run that is there is not used, not gone on with and not lost; with what there was it is used again."""

    def ours() -> Run:
        content.forget_digests()
        return plan(profiles.load("small.json"), ("voc",), [], 1, [])[0]

    annotation = next(Path("digits", "Annotations").glob("train*"))
    text, config = annotation.read_text(), Path("tiny.json").read_text()
    assert ours().folder == ours().usual_folder == done[0].folder
    annotation.write_text(text.replace("<xmax>", "<xmax>1", 1))
    changed = ours()
    assert not changed.finished and changed.folder.name.startswith(f"{changed.name}-") and not changed.folder.exists()
    assert study_folder(changed) != study_folder(done[0]) and branching.branch(changed, [done[0]]) is not None
    shutil.rmtree(changed.folder)
    annotation.write_text(text)
    Path("tiny.json").write_text(config.replace('"epochs": 2', '"epochs": 3', 1))
    assert config != Path("tiny.json").read_text() and ours().folder not in (done[0].folder, changed.folder)
    lines = []
    with pytest.raises(UserError, match="does not start runs"):
        execution.complete([replace(ours(), profile=replace(profile, starts_runs=False))], 2, lines.append)
    assert lines[0].startswith(
        f"{done[0].folder} holds a run with another config, weights or data and is kept; the new run is "
    )
    Path("tiny.json").write_text(config)
    assert ours().finished


@pytest.mark.parametrize("name", ["demo", "bccd", "paper"])
def test_every_baseline_has_a_config_of_its_own(name, monkeypatch):
    """That of the run which the tables and figures take for it."""
    monkeypatch.chdir(Path(__file__).parents[2])
    profile = profiles.load(name)
    fullnet = experiments.Experiment("fullnet", "fullnet", ("args.runner=fullnet",))
    for key in profile.data_sets:
        for experiment in (fullnet, experiments.OFA, experiments.OFA_PS, experiments.COMPOFA, *experiments.PRETRAININGS[2:]):
            run = Run(profile, key, experiment, 0)
            file = Path("configs/baselines", f"{key}_{experiment.name.replace('-', '_')}.json")
            assert configs.load(file).config_hash == run.config.config_hash, file


def test_a_damaged_file_of_a_run_is_named(done, tmp_path, capsys):
    ours, _ = done
    damaged = tmp_path / "damaged"
    shutil.copytree(ours.folder, damaged)
    (damaged / "summary.json").unlink()
    (damaged / "seconds.json").write_text("")
    assert main(["-f", "tiny.json", "-o", str(damaged)]) == 2
    assert f"{damaged / 'seconds.json'} is damaged (" in capsys.readouterr().err


def test_budgets_that_differ_are_refused():
    subnet = {"flops": 1, "ap50": 0.5}

    def curve(*budgets):
        return Curve.of("one", [{"subnets": [{**subnet, "budget": b}], "fullnet": subnet} for b in budgets])

    budget_figures.check_budgets([curve(2), curve(2, 2)])
    with pytest.raises(UserError, match="the runs of one must have the same budgets for all seeds"):
        curve(2, 3)
    with pytest.raises(UserError, match="one has 2 and one has 3"):
        budget_figures.check_budgets([curve(2), curve(3)])


def test_a_subnet_of_a_where_pruning_left_none_is_named(done):
    ours, ofa = done
    summary = json.loads((ours.folder / "summary.json").read_text())
    space = searched_space(ours.folder, ours.config)
    outside = next(path for path in ofa_resnet50(space.geometry).sample_many(np.random.default_rng(0), 99) if path not in space)
    assert budget_figures.searched_in_a([ofa]) == []
    before = (ours.folder / "summary.json").read_text()
    summary["subnets"][0]["path"] = outside.to_ofa(space.geometry)
    (ours.folder / "summary.json").write_text(json.dumps(summary))
    try:
        assert f"so the whole space A was searched: {ours.name} (≤ " in budget_figures.searched_in_a(done)[0]
    finally:
        (ours.folder / "summary.json").write_text(before)
