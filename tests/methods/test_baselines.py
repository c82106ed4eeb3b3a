"""The baselines: Table A2's schedule, CompOFA*'s coupling, and that each runs to its end."""

import json
from contextlib import nullcontext
from pathlib import Path as FilePath
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from small import detofa_config

from nnabla_detofa import config as configs
from nnabla_detofa.cli.program import main
from nnabla_detofa.methods import baselines
from nnabla_detofa.runs.phases import training_phases
from nnabla_detofa.space.paths import Path
from nnabla_detofa.space.search_space import compofa
from nnabla_detofa.tools.dry_run import written_files
from nnabla_detofa.tools.report import write_report

VOC = FilePath(__file__).parents[2] / "configs" / "voc_detofa.json"


def schedule(runner: str) -> list[tuple[str, int, int]]:
    """Name, epochs and epochs of the whole schedule of each phase, at the paper's scale."""
    phases = training_phases(configs.load(VOC, [f"args.runner={runner}"]))
    return [(phase.name, len(phase.epochs), phase.schedule_epochs) for phase in phases]


def test_the_schedules_are_the_papers():
    assert schedule("fullnet") == [("fullnet", 70, 70)]
    assert schedule("ofa") == schedule("compofa") == [("fullnet", 70, 70), ("warm-up", 5, 70), ("fine-tuning", 65, 70)]
    stages = schedule("ofa_ps")[1:]
    assert [epochs for _, epochs, _ in stages] == [70, 5, 65, 5, 65]  # Table A2
    assert sum(epochs for _, epochs, _ in stages) == 3 * 70  # "x3 epochs" (section 4.2)
    assert {whole for *_, whole in stages} == {70}


def test_channels_are_sorted_before_a_smaller_w_or_e_is_trained():
    """Within the groups of the stages before: W shrinks first, then E (Table A1)."""
    stages = training_phases(configs.load(VOC, ["args.runner=ofa_ps"]))[1:]
    assert stages[0].sorted_ratios == ()
    assert [stage.sorted_widths for stage in stages[1:]] == [(1.0,), (0.8, 1.0), (0.65, 0.8, 1.0), (0.65, 0.8, 1.0)]
    assert [stage.sorted_ratios for stage in stages[1:]] == [(0.35,), (0.35,), (0.35,), (0.25, 0.35)]
    without = training_phases(configs.load(VOC, ["args.runner=ofa_ps", "hparams.shrinking_sort=false"]))
    assert not any(stage.sorted_ratios for stage in without)
    assert not any(phase.sorted_ratios for phase in training_phases(configs.load(VOC)))


@pytest.mark.parametrize("sorts", [True, False])
def test_channels_are_sorted_right_before_each_stage_with_the_moments_that_it_goes_on_with(sorts, monkeypatch):
    """An optimizer that trains two stages has the channels of both."""
    training = training_phases(configs.load(VOC, ["args.runner=ofa_ps", f"hparams.shrinking_sort={json.dumps(sorts)}"]))
    names, events = [phase.name for phase in training[1:]], []
    run = SimpleNamespace(
        training={phase.name: phase for phase in training},
        optimizer={},
        model="net",
        space=None,
        train_fullnet=lambda space: None,
        new_optimizer=lambda phase: f"optimizer of {phase.name}",
        phase=nullcontext,
        rng=lambda name: np.random.default_rng(0),
        train_phase=lambda phase, paths, optimizer: events.append((phase.name, paths.space, optimizer)),
        find_subnets=lambda space, path_filter: space,
        new_filter=lambda: None,
    )
    monkeypatch.setattr(baselines, "check_sortable", lambda net: None)
    monkeypatch.setattr(baselines, "sort_middle_channels", lambda *arguments: events.append(arguments))
    assert baselines.BaselineSearcher.run(run) == training[-1].space
    optimizers = [f"optimizer of {names[index]}" for index in (0, 1, 1, 3, 3)]
    expected = []
    for phase, optimizer in zip(training[1:], optimizers):
        if sorts and phase.name != names[0]:
            expected.append(("net", phase.sorted_ratios, phase.sorted_widths, optimizer))
        expected.append((phase.name, phase.space, optimizer))
    assert events == expected


def test_the_spaces_are_the_papers():
    spaces = [phase.space for phase in training_phases(configs.load(VOC, ["args.runner=ofa_ps"]))[1:]]
    assert [space.size() for space in spaces] == sorted(space.size() for space in spaces)
    assert spaces[-1].operations == training_phases(configs.load(VOC))[1].space.operations
    assert training_phases(configs.load(VOC, ["args.runner=compofa"]))[1].space == compofa()


@pytest.mark.thorough
@pytest.mark.parametrize("runner", ["fullnet", "compofa", "ofa_ps"])
def test_a_baseline_runs_to_its_end(runner, tmp_path):
    content = detofa_config(tiny.digits()) | {"about": ""}
    content["hparams"]["buckets"] = 2
    file = tmp_path / "tiny.json"
    file.write_text(json.dumps(content))
    run = tmp_path / "run"
    assert main(["-f", str(file), f"args.runner={runner}", "hparams.heldout_paths_per_bucket=0", "-o", str(run)]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["fullnet"]["ap50"] >= 0
    assert len(summary["subnets"]) == (0 if runner == "fullnet" else 2)
    assert write_report(run, tmp_path / "report")
    written = {file.name for file in run.iterdir()}
    assert written == {name.rstrip("/") for name in written_files(configs.load(file, [f"args.runner={runner}"]))}
    if runner != "fullnet":
        assert main(["search", str(run), "-c", "cpu", "--generations", "2"]) == 0
        assert main(["evaluate", str(run), "-c", "cpu", "--detector", "subnet_1"]) == 0
    if runner == "compofa":
        space = compofa(configs.load(file).network.geometry)
        assert all(Path.from_ofa(subnet["path"], space.geometry) in space for subnet in summary["subnets"])
