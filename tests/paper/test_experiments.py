"""The runs of tables and figures: what they share, that a branch equals a run of its own, and that faults are named."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from small import detofa_config, pretrain_config

from nnabla_detofa import config as configs
from nnabla_detofa.cli.program import main
from nnabla_detofa.common import version
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.common.version import __version__
from nnabla_detofa.data import content
from nnabla_detofa.data.digits import write_digits
from nnabla_detofa.paper import branching, budget_figures, execution, experiments, profiles, reproduce, table2
from nnabla_detofa.paper import run as paper_run
from nnabla_detofa.paper.branching import shared_phases
from nnabla_detofa.paper.budget_curves import Curve
from nnabla_detofa.paper.experiments import DETOFA, OFA, PATH_PRUNINGS, PATH_RATIOS, STRATEGIES
from nnabla_detofa.paper.reproduce import TARGETS
from nnabla_detofa.paper.run import Run, plan
from nnabla_detofa.paper.study_paths import study_folder
from nnabla_detofa.paper.target import Request, data_note
from nnabla_detofa.runs import provenance
from nnabla_detofa.runs.phases import phase_names, training_phases
from nnabla_detofa.runs.run_folder import run_config, searched_space
from nnabla_detofa.space.search_space import ofa_resnet50

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder to work in: data, a config and a profile of its own."""
    folder = tmp_path_factory.mktemp("work")
    root = write_digits(folder / "digits", train=16, val=6, test=6, image_size=64, crops_train=40, crops_val=20)
    (folder / "tiny.json").write_text(json.dumps(detofa_config(root)))
    pretraining = {"config": "p.json", "supernet": "pretrained/supernet.h5", "path_filter": "pretrained/path_filter.h5"}
    pretraining["fullnet"] = "nowhere.h5"
    (folder / "p.json").write_text(json.dumps(pretrain_config(root / "classification")))
    needs = [{"path": str(root), "command": "make it"}]
    sizes = {"seeds": 2, "test_paths_per_bucket": 5, "pretraining_paths_per_bucket": 8}
    data_set = {"title": "digits", "config": "tiny.json", "pretraining": pretraining, "needs": needs}
    profile = {"data_sets": {"digits": data_set}, "filter_study": sizes}
    (folder / "small.json").write_text(json.dumps(profile))
    return folder


@pytest.fixture
def profile(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return profiles.load("small.json")


def results(folder: Path) -> dict:
    summary = json.loads((folder / "summary.json").read_text())
    del summary["seconds"]
    return summary


def test_every_experiment_is_one_change_of_ours(profile):
    """Overrides are accepted by the schema, no two experiments are the same run, and equal titles mean equal runs."""
    groups = (STRATEGIES, PATH_RATIOS, PATH_PRUNINGS, experiments.OPERATION_RATIOS)
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
            plan(profile, ("voc",), PATH_RATIOS, 2, [override])


def test_tables_made_of_one_run_ask_for_one_however_many_seeds(profile):
    order = Request(profile, profile.results, seeds=3)
    assert [len(order.runs(TARGETS[name])) for name in ("table3", "tableA3", "figure8")] == [1, 1, 1]
    assert len(order.runs(TARGETS["figure9"])) == 3 * 3


def test_what_changes_no_result_changes_no_folder(profile):
    """Or other workers, or -c cpu, would do everything again."""

    def name(*overrides):
        return plan(profile, ("voc",), [], 1, overrides)[0].name

    assert name("args.workers=0", "args.context=cpu") == name() == "digits-detofa-0"
    assert name("args.workers=0", "hparams.epochs=3") == name("hparams.epochs=3") != name()


def test_a_file_says_the_seeds_that_it_is_made_of(profile):
    order = Request(profile, profile.results, seeds=3)
    assert order.command(TARGETS["figure9"]).endswith("SEEDS=3") and order.command(TARGETS["table3"]).endswith("SEEDS=1")


def test_the_papers_data_sets_are_named_where_ours_are_others(profile):
    assert data_note(Request(profile, profile.results), TARGETS["figure5"]) == [
        "Data set in the paper: Pascal VOC and COCO; here: digits.",
        "",
    ]
    titles = {"voc": "Pascal VOC", "coco": "COCO"}
    papers = replace(profile, data_sets={key: replace(profile.data_sets["digits"], title=titles[key]) for key in titles})
    assert data_note(Request(papers, papers.results), TARGETS["figure5"]) == []
    mine = replace(profile, data_sets={"voc": replace(profile.data_sets["digits"], title="my cells")})
    assert data_note(Request(mine, mine.results), TARGETS["figureA1"])[0] == "Data set in the paper: COCO; here: my cells."
    assert data_note(Request(mine, mine.results), TARGETS["figure9"])[0].startswith("The paper does not name the data set")


def test_a_folder_that_cannot_be_written_is_refused_before_the_runs(profile, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "complete", None)
    Path("taken").touch()
    assert main(["reproduce", "figure9", "--profile", "small.json", "-o", "taken"]) == 2
    assert "got taken: taken is a file" in capsys.readouterr().err


def test_a_full_disk_is_one_sentence(profile, tmp_path, capsys):
    (tmp_path / "tableA1.csv").symlink_to("/dev/full")
    assert main(["reproduce", "tableA1", "--profile", "small.json", "-o", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith(": No space left on device\n")


def test_missing_data_are_named_before_runs_that_are_only_welcome(profile, monkeypatch):
    need = profiles.Need("nowhere", "make it")
    data_set = profile.data_sets["digits"]
    poor = replace(profile, name="poor", data_sets={"digits": replace(data_set, needs=(need,))})
    monkeypatch.setattr(reproduce, "complete", None)
    with pytest.raises(UserError, match=r"needs files for digits that are missing: nowhere \(make it\)"):
        reproduce.reproduce(["table2"], Request(poor, Path("poor")))


def test_where_no_runs_are_started_what_can_be_made_is_made_first(profile, tmp_path):
    silent = replace(profile, name="silent", starts_runs=False)
    lines = []
    with pytest.raises(UserError, match="3 of 3 runs are missing, and the profile silent does not start runs"):
        reproduce.reproduce(["figure9", "tableA1"], Request(silent, tmp_path, 1, ("hparams.epochs=4",)), lines.append)
    assert f"written: {tmp_path / 'tableA1.md'}" in lines and not (tmp_path / "figure9.md").exists()
    assert sum("nnabla_nas -f tiny.json" in line for line in lines) == 3


def test_replaced_entries_may_hold_spaces_and_quotes(profile, monkeypatch):
    """And the command that a file says made it gives the same entries again."""
    orders = []
    monkeypatch.setattr(reproduce, "reproduce", lambda names, order: orders.append(order) or [])
    entries = ('hparams.search.budgets=["58M", "70M"]', "dataloader.voc.root=/a folder", "hparams.epochs=3")
    given = " ".join(entries)
    for _ in range(2):
        assert main(["reproduce", "figure9", "--profile", "small.json", "--set", given]) == 0
        assert orders[-1].overrides == entries and orders[-1].command(TARGETS["figure9"]).startswith(
            "make figure9 PROFILE=small.json "
        )
        given = shlex.split(orders[-1].command(TARGETS["figure9"]))[-1].removeprefix("SET=")


def test_changes_beside_the_code_are_told(tmp_path, monkeypatch):
    for file in ("nnabla_detofa/file", "configs/file"):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).touch()
    who = ["-c", "user.name=n", "-c", "user.email=e"]
    for arguments in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "m"]):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)
    monkeypatch.setattr(version, "REPOSITORY", tmp_path)
    assert provenance.revision().startswith("commit ") and "changes" not in provenance.revision()
    (tmp_path / "configs" / "file").write_text("changed")
    assert provenance.revision().endswith(" with changes")


def test_another_projects_commit_is_not_ours(tmp_path, monkeypatch):
    """An environment may lie in the repository of whoever uses the package."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "nnabla_detofa").mkdir()
    monkeypatch.setattr(version, "REPOSITORY", tmp_path)
    assert provenance.revision() == f"version {__version__}"


def test_shared_phases_follow_from_the_differing_entries():
    def shared(*overrides):
        base = Path(__file__).parents[2] / "configs" / "digits_detofa.json"
        found = shared_phases(configs.load(base), configs.load(base, overrides))
        return found and found.phases[-1]

    assert shared("hparams.r_path=0.4") == "path filter"
    assert shared("hparams.operation_pruning.strategy=flops", "args.workers=0") == "path filter"
    assert shared("hparams.shrinking_sort=false") == shared("hparams.shrinking_spaces=false") == "path filter"
    assert shared("hparams.filter.lr=0.5") == "warm-up"
    assert shared("args.runner=ofa", "hparams.r_path=0.4") == "warm-up"
    assert shared("args.runner=compofa") == shared("args.runner=ofa_ps") == shared("args.runner=fullnet") == "fullnet"
    assert shared("hparams.epochs=9") == "fullnet"
    assert shared("hparams.fullnet_epochs=9") is None
    assert shared("args.seed=1") is None
    assert shared("hparams.bn_images=32") is None


@pytest.fixture
def done(profile):
    """Our method and the ofa baseline, run as a figure has them run: the baseline as a branch."""
    runs = plan(profile, ("voc",), [OFA], 1, [])
    execution.complete(runs, 2, lambda line: None)
    return runs


def test_a_branch_gives_the_bits_of_a_run_of_its_own(done, tmp_path):
    ours, ofa = done
    assert ofa.finished and (ofa.folder / "shared.json").exists()
    alone = tmp_path / "alone"
    assert main(["-f", "tiny.json", *ofa.arguments, "-o", str(alone)]) == 0
    assert results(alone) == results(ofa.folder) != results(ours.folder)
    again = (alone / "paths_again.jsonl").read_text()
    assert again == (ofa.folder / "paths_again.jsonl").read_text()
    assert json.loads((ofa.folder / "summary.json").read_text())["seconds"].keys() >= {"fullnet", "warm-up", "search"}


def test_no_branch_starts_from_a_run_whose_files_are_gone(done, profile):
    """Who removed a finished run's weights to save room gets a run from the start, not an error."""
    ours, _ = done
    (run,) = [run for run in plan(profile, ("voc",), PATH_PRUNINGS, 1, []) if run.experiment.name == "paths-uniform"]
    weights = ours.folder / "warm_up"
    weights.rename(ours.folder / "elsewhere")
    assert branching.branch(run, [ours]) is None and not run.folder.exists()
    (ours.folder / "elsewhere").rename(weights)
    assert branching.branch(run, [ours]).phases[-1] == "path filter"
    shutil.rmtree(run.folder)


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


def test_entries_of_one_data_set_are_not_those_of_the_other(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    paper = profiles.load("paper")
    voc, coco = plan(paper, ("voc", "coco"), [DETOFA], 1, ["dataloader.voc.root=elsewhere", "hparams.epochs=2"])
    assert (voc.config.dataloader.root, coco.config.dataloader.root) == ("elsewhere", "data/coco")
    assert {run.config.hparams.epochs for run in (voc, coco)} == {2}
    paper.check(replace(paper.data_sets["coco"], needs=()), ["dataloader.voc.root=elsewhere"])
    with pytest.raises(UserError, match="dataloader"):
        _ = plan(paper, ("voc",), [DETOFA], 1, ["dataloader.vocc.root=elsewhere"])[0].config


def test_needs_are_those_of_what_is_asked_for(profile, tmp_path):
    needs = (profiles.Need("gone", "make it", ("table3",)),)
    with pytest.raises(UserError, match=r"missing: gone \(make it\)"):
        profile.check(replace(profile.data_sets["digits"], needs=needs), (), ["figure5", "table3"])
    profile.check(replace(profile.data_sets["digits"], needs=needs), (), ["figure5"])


def test_a_profile_has_a_name_of_its_own(profile, capsys):
    Path("configs/profiles").mkdir(parents=True)
    shutil.copy("small.json", "configs/profiles/taken.json")
    shutil.copy("small.json", "taken.json")
    assert main(["reproduce", "tableA1", "--profile", "taken.json"]) == 2
    assert "taken.json must not have the name of one in configs/profiles" in capsys.readouterr().err
    assert profiles.load("taken").name == profiles.load("configs/profiles/taken.json").name == "taken"
    shutil.rmtree("configs")


def test_figure_8_needs_a_pretrainings_config(profile):
    with pytest.raises(UserError, match="must have args.runner=pretrain, got tiny.json"):
        replace(profile.data_sets["digits"].pretraining, config="tiny.json").load()


@pytest.mark.parametrize("content", ["null", "5", "[" * 2000, "{}"])
def test_foreign_folders_beside_the_runs_are_none_of_ours(profile, content):
    folder = Path("runs/foreign")
    folder.mkdir(parents=True)
    (folder / "summary.json").touch()
    (folder / "config.json").write_text(content)
    (run,) = plan(profile, ("voc",), [], 1, ["hparams.epochs=9"])
    assert run.folder == run.usual_folder and not run.folder.exists()
    shutil.rmtree(folder)


def test_budgets_that_differ_are_refused():
    subnet = {"flops": 1, "ap50": 0.5}

    def curve(*budgets):
        return Curve.of("one", [{"subnets": [{**subnet, "budget": b}], "fullnet": subnet} for b in budgets])

    budget_figures.check_budgets([curve(2), curve(2, 2)])
    with pytest.raises(UserError, match="the runs of one must have the same budgets for all seeds"):
        curve(2, 3)
    with pytest.raises(UserError, match="one has 2 and one has 3"):
        budget_figures.check_budgets([curve(2), curve(3)])


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


def test_figures_are_made_from_finished_runs(done, profile, tmp_path):
    assert main(["reproduce", "figureA2", "--profile", "small.json", "-o", str(tmp_path)]) == 0
    text = (tmp_path / "figureA2.md").read_text()
    assert "| None |" in text and "Prune (Score)" in text and "Prune (Uniform)" in text
    assert f"`detofa paper figureA2 --profile small.json --seeds 1 -o {tmp_path}` at" in text
    rows = (tmp_path / "figureA2.csv").read_text().splitlines()
    assert len(rows) == 1 + 3 * 5
    ap = [100 * subnet["ap50"] for subnet in results(done[1].folder)["subnets"]]
    ours = [float(row.split(",")[-1]) for row in rows[1:6]]
    assert np.allclose(ours, ap, atol=0.006) and (tmp_path / "figureA2.png").stat().st_size > 5000


def test_table_2_and_figures_3_to_6(done, folder, tmp_path, capsys):
    """The other baselines are run first; random paths get an AP each."""
    targets = ["table2", "figure3", "figure4", "figure5", "figure6", "tableA1"]
    assert main(["reproduce", *targets, "--profile", "small.json", "-o", str(tmp_path)]) == 0
    costs = (tmp_path / "table2.md").read_text()
    assert (
        "ESTIMATE" not in costs and "total [core hours]" in costs and costs.count("| OFA (w/") == 4
    )  # in core hours, and in training steps
    assert "Data set in the paper: Pascal VOC and COCO; here: digits." in costs and "GPU days, Pascal VOC" in costs
    figure = (tmp_path / "figure5.md").read_text()
    assert [title in figure for title in ("| OFA (w/ PS) |", "| OFA (w/o PS) |", "| CompOFA* |", "| DetOFA |")] == [True] * 4
    assert (
        "compared with OFA (w/ PS)" in figure
        and "compared with its fullnet" in figure
        and "the paths of line 4 before" in figure
    )
    kept = (tmp_path / "figure3.md").read_text()
    spared = json.loads((done[0].folder / "operations.json").read_text())["spared"]
    assert all(entry in kept for entry in spared) and ("Kept although the strategy" in kept) == bool(spared)
    out = capsys.readouterr()
    assert "evaluating up to 75 random paths, about" in out.out + out.err
    rows = (tmp_path / "figure6.csv").read_text().splitlines()
    assert sum(",OFA (w/o PS)," in row for row in rows) == 5 * 15 and any(",DetOFA," in row for row in rows)
    assert "Mean AP of DetOFA minus OFA (w/o PS)" in (tmp_path / "figure6.md").read_text()
    operations = json.loads((done[0].folder / "operations.json").read_text())
    rows = [row.split(",") for row in (tmp_path / "figure3.csv").read_text().splitlines()[1:]]
    assert len(rows) == len(operations["operations"]) and sum(row[-1] == "1" for row in rows) == len(operations["removed"])
    rows = [row.split(",") for row in (tmp_path / "figure4.csv").read_text().splitlines()[1:]]
    thresholds = results(done[0].folder)["thresholds"]
    for bucket, _, score, kept, *_ in rows:
        threshold = thresholds[int(bucket) - 1]
        assert int(kept) == (threshold is None or float(score) >= threshold - 1e-6)
    assert {row[3] for row in rows} == {"0", "1"}, "some are kept, some pruned"
    assert (tmp_path / "tableA1.csv").exists()


def test_the_filters_tables_and_figure_8(done, folder, tmp_path):
    """From nothing but the run and a pre-training: the paths are measured and the filter fitted once for all tables."""
    assert main(["-f", "p.json", "-o", "pretrained"]) == 0
    command = ["reproduce", "table3", "tableA3", "figure8", "--profile", "small.json", "-o", str(tmp_path)]
    assert main(command) == 0
    table = (tmp_path / "table3.md").read_text()
    assert "detection supernet after warm-up" in table and "40 train, 25 test, 40 pretraining" in table
    assert "paper table3 --profile small.json --seeds 1 -o" in table and "2 seeds (0, 1)" in table
    assert "classification supernet" in (tmp_path / "table3_classification.md").read_text()
    row = next(line for line in (tmp_path / "tableA3.md").read_text().splitlines() if line.startswith("| 0.4 |"))
    assert [row.split(" | ")[place] for place in (2, 4, 8)] == ["0.830", "0.792", "0.360"]
    figure = (tmp_path / "figure8.md").read_text()
    assert figure.count("| digits, after warm-up |") == 4 and "Here rho of score and FLOPs" in figure
    assert len((tmp_path / "figure8.csv").read_text().splitlines()) == 1 + 2 * 108
    study = folder / "runs" / "profiles" / "small" / "digits-filter"
    before = {file: file.stat().st_mtime_ns for file in study.rglob("*") if file.is_file()}
    assert len(before) > 8
    assert main(["reproduce", "tableA3", "--profile", "small.json", "-o", str(tmp_path)]) == 0
    assert before == {file: file.stat().st_mtime_ns for file in study.rglob("*") if file.is_file()}


def test_figure_7_starts_from_the_fullnets_weights(done, folder, tmp_path):
    """Those that `export-weights` copies from a pre-training of which only the largest path was trained."""
    assert main(["-f", "p.json", "hparams.fullnet_epochs=1", "hparams.epochs=0", "hparams.paths=0", "-o", "largest"]) == 0
    assert main(["export-weights", "largest", "weights", "--name", "tiny"]) == 0
    assert [file.name for file in Path("weights").iterdir()] == ["tiny_fullnet.h5"]
    content = json.loads(Path("small.json").read_text())
    content["data_sets"]["digits"]["pretraining"]["fullnet"] = "weights/tiny_fullnet.h5"
    Path("with_fullnet.json").write_text(json.dumps(content))
    assert main(["reproduce", "figure7", "--profile", "with_fullnet.json", "-o", str(tmp_path)]) == 0
    rows = [row.split(",") for row in (tmp_path / "figure7.csv").read_text().splitlines()[1:]]
    assert {row[0].split(": ")[-1] for row in rows} == {experiment.title for experiment in experiments.PRETRAININGS}
    runs = plan(profiles.load("with_fullnet.json"), ("voc",), experiments.PRETRAININGS[2:], 1, [])
    configured = {run.experiment.name: run_config(run.folder).network.weights for run in runs}
    assert (configured["fullnet-ofa"], configured["scratch-ofa"]) == ("weights/tiny_fullnet.h5", None)
    assert "detofa-0`" not in (tmp_path / "figure7.md").read_text(), "no curve is of it"
    text = (tmp_path / "figure7.md").read_text()
    assert f"(seed 0), computed by {provenance.revision()}." in text and "so each starts from random weights" in text
    shutil.copy("largest/supernet.h5", "weights/tiny_fullnet.h5")  # in single precision now
    again = plan(profiles.load("with_fullnet.json"), ("voc",), experiments.PRETRAININGS[2:], 1, [])
    for before, now in zip(runs, again):
        changed = before.experiment.needs_fullnet
        assert before.finished == now.finished == (not changed) and (now.folder != before.folder) == changed


def test_a_pretraining_without_a_fullnet_leaves_none(folder, monkeypatch):
    """What its supernet starts from lay in fullnet/, and would have been taken for Figure 7's."""
    monkeypatch.chdir(folder)
    assert main(["-f", "p.json", "hparams.fullnet_epochs=0", "hparams.epochs=1", "hparams.paths=0", "-o", "none"]) == 0
    assert not Path("none/fullnet").exists() and Path("none/start/weights.h5").is_file()


def test_finished_runs_are_drawn_again_without_the_data(done, folder, tmp_path, capsys):
    os.rename("digits", "gone")
    try:
        assert main(["reproduce", "figure3", "--profile", "small.json", "-o", str(tmp_path)]) == 0
        capsys.readouterr()
        assert main(["reproduce", "figure4", "--profile", "small.json", "-o", str(tmp_path)]) == 2
        assert "needs files for digits that are missing" in capsys.readouterr().err
    finally:
        os.rename("gone", "digits")


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


def test_a_damaged_file_of_a_run_is_named(done, tmp_path, capsys):
    ours, _ = done
    damaged = tmp_path / "damaged"
    shutil.copytree(ours.folder, damaged)
    (damaged / "summary.json").unlink()
    (damaged / "seconds.json").write_text("")
    assert main(["-f", "tiny.json", "-o", str(damaged)]) == 2
    assert f"{damaged / 'seconds.json'} is damaged (" in capsys.readouterr().err


def test_times_that_a_ledger_lost_are_said_and_nothing_fails_for_them(profile, tmp_path, monkeypatch):
    monkeypatch.setattr(paper_run, "RUNS", tmp_path)
    trunk, run = plan(profile, ("voc",), [OFA], 1, [])
    trunk.folder.mkdir(parents=True)
    for name in (*branching.FULLNET_FILES, "warm_up"):
        (trunk.folder / name).touch()
    ledger = {"unit": "core seconds", "phases": {"warm-up": {"kind": "training", "seconds": 3.0}, "search": {"seconds": 1.0}}}
    (trunk.folder / "seconds.json").write_text('{"fullnet": 1}')
    (trunk.folder / "ledger.json").write_text("[]")
    with pytest.raises(UserError, match="ledger.json is damaged"):
        branching.branch(run, [trunk])
    assert [folder.name for folder in trunk.folder.parent.iterdir()] == [trunk.folder.name]
    (trunk.folder / "ledger.json").write_text(json.dumps(ledger))
    assert branching.branch(run, [trunk]).phases == ("fullnet", "warm-up")
    kept = json.loads((run.folder / "ledger.json").read_text())
    assert kept["phases"] == {"warm-up": ledger["phases"]["warm-up"]}
    assert json.loads((run.folder / "seconds.json").read_text()) == {"fullnet": 1}
    said = table2.missing_phases(run, kept)
    assert said.startswith(f"{run.name} lacks fullnet, fine-tuning, paths again, ") and "warm-up" not in said
    whole = {"phases": dict.fromkeys(phase_names(run.config, training_phases(run.config)), {"seconds": 1.0})}
    assert table2.missing_phases(run, whole) == ""


def test_a_run_that_fails_is_named_with_its_last_words(profile):
    runs = plan(profile, ("voc",), [], 1, ["network.centernet_ofa_resnet50.weights=none.h5"])
    with pytest.raises(UserError, match=r"nnabla_nas -f tiny.json .* failed with status 2: .*none.h5 does not exist"):
        execution.complete(runs, 1, lambda line: None)


def test_runs_side_by_side_share_the_cores_and_the_last_one_has_all(profile, monkeypatch):
    shares, done = [], SimpleNamespace(poll=lambda: 0, returncode=0)
    monkeypatch.setattr(execution, "_start", lambda run, share, trunks: shares.append(share) or done)
    runs = plan(profile, ("voc",), [DETOFA, OFA, experiments.OFA_PS], 1, [])
    assert len(list(execution._execute(runs, runs, 2, 4, lambda line: None))) == 3
    assert shares == [2, 2, 4]


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
    stopped = Path(f"stopped-{int(number)}.json")
    stopped.write_text(Path("small.json").read_text())
    command = [sys.executable, "-m", "nnabla_detofa", "reproduce", "figure8", "--profile", str(stopped)]
    command += ["--set", "hparams.warmup_epochs=300"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    folder = Path("runs", "profiles", stopped.stem)

    def printed() -> str:
        return "".join(log.read_text() for log in folder.glob("digits-detofa-0*.txt"))

    while "warm-up:" not in printed() and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 130 and "Run the same command again to resume." in errors
    assert "checkpoint saved" in printed()


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


def test_profiles_are_checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def error(content) -> str:
        Path("p.json").write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(UserError) as caught:
            profiles.load("p.json")
        return str(caught.value)

    pretraining = {"config": "a", "supernet": "b", "path_filter": "c", "fullnet": "d"}
    entry = {"title": "t", "config": "c", "pretraining": pretraining}
    assert "does not parse" in error("{")
    assert "data_sets must map" in error({})
    assert "must have one key, or voc and coco, got a and b" in error({"data_sets": {"a": entry, "b": entry}})
    assert "data_sets.a.config is missing" in error({"data_sets": {"a": {"title": "t"}}})
    assert "minutes.branch must be in (0, inf), got 0" in error({"data_sets": {"a": entry}, "minutes": {"branch": 0}})
    assert "did you mean starts_runs?" in error({"data_sets": {"a": entry}, "start_runs": True})
    with pytest.raises(UserError, match="must be a name in configs/profiles"):
        profiles.load("nowhere")


def test_the_profiles_beside_the_configs_load():
    repository = Path(__file__).parents[2]
    for file in sorted((repository / "configs" / "profiles").glob("*.json")):
        profile = profiles.load(str(file))
        for data_set in profile.data_sets.values():
            assert configs.load(repository / data_set.config) and configs.load(repository / data_set.pretraining.config)
