"""Runs that branch off another: they share its phases, and equal runs of their own."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from nnabla_detofa import config as configs
from nnabla_detofa.cli.program import main
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.paper import archives, branching, table2
from nnabla_detofa.paper import run as paper_run
from nnabla_detofa.paper.branching import shared_phases
from nnabla_detofa.paper.experiments import OFA, PATH_PRUNINGS
from nnabla_detofa.paper.run import plan
from nnabla_detofa.runs.phases import phase_names, training_phases

pytestmark = pytest.mark.thorough


def results(folder: Path) -> dict:
    summary = json.loads((folder / "summary.json").read_text())
    del summary["seconds"]
    return summary


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


def test_a_branch_starts_from_the_weights_of_a_run_whose_results_are_read_from_its_archive(done, profile, tmp_path):
    kept = replace(profile, archives=tmp_path)
    files = archives.run_files(done[0].folder)
    (ours, run) = (
        run for run in plan(kept, ("voc",), PATH_PRUNINGS, 1, []) if run.experiment.name in ("detofa", "paths-uniform")
    )
    archives.pack(archives.archive(tmp_path, ours.name), files)
    assert ours.archive and ours.finished and ours.folder != done[0].folder
    assert branching.branch(run, [ours]).phases[-1] == "path filter"
    assert json.loads((run.folder / "shared.json").read_text())["from"] == str(done[0].folder)
    shutil.rmtree(run.folder)


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
