"""Tables and figures made from runs, and what is checked before the runs."""

import json
import os
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from nnabla_detofa.cli.program import main
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.paper import archives, experiments, figure8, profiles, reproduce, table3
from nnabla_detofa.paper.reproduce import TARGETS
from nnabla_detofa.paper.run import plan
from nnabla_detofa.paper.target import Request, data_note
from nnabla_detofa.runs import provenance
from nnabla_detofa.runs.run_folder import run_config

pytestmark = pytest.mark.thorough


def results(folder: Path) -> dict:
    summary = json.loads((folder / "summary.json").read_text())
    del summary["seconds"]
    return summary


def test_tables_made_of_one_run_ask_for_one_however_many_seeds(profile):
    order = Request(profile, profile.results, seeds=3)
    assert [len(order.runs(TARGETS[name])) for name in ("figure4", "tableA3", "figure8")] == [1, 1, 1]
    assert len(order.runs(TARGETS["figure9"])) == 3 * 3


def test_a_file_says_the_seeds_that_it_is_made_of(profile):
    order = Request(profile, profile.results, seeds=3)
    assert order.command(TARGETS["figure9"]).endswith("SEEDS=3") and order.command(TARGETS["tableA3"]).endswith("SEEDS=1")


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


def test_figures_are_made_from_finished_runs(done, profile, tmp_path):
    assert main(["reproduce", "figureA2", "--profile", "small.json", "-o", str(tmp_path)]) == 0
    text = (tmp_path / "figureA2.md").read_text()
    assert "| None |" in text and "Prune (Score)" in text and "Prune (Uniform)" in text
    assert f"`detofa paper figureA2 --profile small.json --seeds 1 -o {tmp_path}` at" in text
    rows = (tmp_path / "figureA2.csv").read_text().splitlines()
    assert len(rows) == 1 + 3 * 2
    ap = [100 * subnet["ap50"] for subnet in results(done[1].folder)["subnets"]]
    ours = [float(row.split(",")[-1]) for row in rows[1:3]]
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
    assert "minus OFA (w/ PS)" in figure and "best subnet minus fullnet" in figure and "the paths of line 4 before" in figure
    kept = (tmp_path / "figure3.md").read_text()
    spared = json.loads((done[0].folder / "operations.json").read_text())["spared"]
    assert all(entry in kept for entry in spared) and ("Kept although the strategy" in kept) == bool(spared)
    out = capsys.readouterr()
    assert "evaluating up to 30 random paths, about" in out.out + out.err
    rows = (tmp_path / "figure6.csv").read_text().splitlines()
    assert sum(",OFA (w/o PS)," in row for row in rows) == 2 * 15 and any(",DetOFA," in row for row in rows)
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
    assert "detection supernet after warm-up" in table and "16 train, 10 test, 16 pretraining" in table
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


def test_supernets_without_a_fitting_study_in_the_archives_end_the_list(monkeypatch, capsys):
    def paths(run):
        if run.seed == 2:
            raise UserError("of another supernet")
        return f"paths of seed {run.seed}"

    monkeypatch.setattr(table3, "prepare_studies", lambda run, names, settings: None)
    monkeypatch.setattr(table3, "detection_paths", paths)
    monkeypatch.setattr(table3, "study", lambda run, name, inputs, settings: (inputs, settings))
    archived = [SimpleNamespace(seed=seed, archive="a", name=f"run-{seed}") for seed in (1, 2, 3)]
    assert table3.studies_of(archived) == {1: ("paths of seed 1", table3.ROWS)}
    assert "without the filter study of run-2 and later seeds: of another supernet" in "".join(capsys.readouterr())
    with pytest.raises(UserError, match="of another supernet"):
        table3.studies_of([SimpleNamespace(seed=2, archive=None)])


@pytest.mark.parametrize("studied", [0, 2])
def test_table_3_names_the_seeds_that_it_has(studied, tmp_path, monkeypatch):
    """Some of the requested seeds may lack a study, and the classification supernet has none of their own."""
    written = []
    for name in ("prepare_studies", "study", "detection_paths", "classification_paths"):
        monkeypatch.setattr(table3, name, lambda *_: None)
    monkeypatch.setattr(table3, "studies_of", lambda runs: dict.fromkeys(range(1, 1 + studied)))
    monkeypatch.setattr(table3, "runs_and_code", lambda runs: f"{len(runs)} runs")
    monkeypatch.setattr(table3, "weights_file", lambda file: "weights")
    monkeypatch.setattr(table3, "write_table", lambda *given: written.append(given[2:4]) or [])
    request = Request(profiles.load("study"), tmp_path, seeds=3)
    table3.write(request, table3.TARGET, request.runs(table3.TARGET))
    (supernets, origin), (_, classification) = written
    assert supernets == f"{1 + studied} runs" and f"--seeds {1 + studied} " in origin and "--seeds 1 " in classification


def test_figure_8_is_made_from_an_archive_without_path_filters(done, tmp_path, monkeypatch):
    monkeypatch.setattr(figure8, "study_folder", lambda run: tmp_path / "study")
    monkeypatch.setattr(figure8, "pretrained_operations", lambda *_: figure8.same_stem_operations(done[0], "before")[0])
    archived = SimpleNamespace(archive=tmp_path, config=done[0].config, profile=done[0].profile, name="tiny")
    with pytest.raises(UserError, match="the archives of small do not have the operation scores of Figure 8 for tiny"):
        figure8.measured_operations(archived)
    live = figure8.measured_operations(done[0])
    assert [*archives.study_files(tmp_path / "study")] == [figure8.FILE] and len(live) == 3
    for one, other in zip(live, figure8.measured_operations(archived), strict=True):
        assert one.title == other.title and one.correlations() == other.correlations()


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
