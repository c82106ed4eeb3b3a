"""Table 2's arithmetic, and Tables A1 and A2, by hand."""

import json
from pathlib import Path as FilePath

import numpy as np
import pytest
from small import detofa_config

from nnabla_detofa import config as configs
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.data.digits import write_digits
from nnabla_detofa.paper import table_a1, table_a2
from nnabla_detofa.paper.method_costs import StepTime, cost_of_runs, estimate
from nnabla_detofa.paper.table2 import table
from nnabla_detofa.runs import cost_ledger as ledger
from nnabla_detofa.runs.phases import training_phases

CONFIGS = FilePath(__file__).parents[2] / "configs"


def of(**seconds: float) -> dict:
    """A ledger with these seconds; names have _ for a space."""
    return {"unit": "core seconds", "phases": {(n := k.replace("_", " ")): ledger.entry(n, v) for k, v in seconds.items()}}


def test_a_ledger_is_summed_by_what_time_is_for():
    content = of(fullnet=1, paths=2, path_filter=4, paths_again=8, search=16, evaluation=32) | {}
    content["phases"]["warm-up"] = ledger.entry("warm-up", 64)
    content["phases"]["PS stage 3"] = ledger.entry("PS stage 3", 128)
    wanted = {"fullnet": 1, "training": 192, "path evaluation": 2, "path filter": 4, "search's filter": 8, "search": 16}
    assert ledger.totals(content) == wanted | {"reporting": 32}
    content["phases"]["paths again"]["kind"] = "path evaluation"  # as older ledgers have it
    assert ledger.totals(content) == wanted | {"reporting": 32}


def test_the_clock_of_the_cpu_counts_work_and_not_waiting():
    clock = ledger.DeviceClock(on_gpu=False)
    start, total = clock(), 0.0
    while clock() - start < 0.05:
        total += np.sum(np.ones(10000))
    assert clock() - start >= 0.05 and clock.unit == "core seconds"
    assert ledger.DeviceClock(on_gpu=True, processes=2).unit == "GPU seconds"


def test_the_overhead_is_line_4_and_what_every_method_needs_for_its_search_stands_apart():
    ours = of(fullnet=3600, fine_tuning=7200, paths=3600, path_filter=1800, paths_again=9000, path_filter_again=1800)
    costs = cost_of_runs("ours", "detofa", "digits", [ours, of(fine_tuning=14400)])
    assert costs.spread == (3.5, 4.0) and costs.total == pytest.approx(3.75) and costs.overhead == pytest.approx(0.75)
    assert costs.everything == pytest.approx((1 + 2 + 1 + 0.5 + 2.5 + 0.5 + 4) / 2)
    shrinking = cost_of_runs("OFA (w/ PS)", "ofa-ps", "digits", [of(warm_up=10800, paths_again=9000)])
    assert shrinking.total == pytest.approx(3.0) and shrinking.overhead == 0
    lines = table([shrinking, costs], ["voc", "coco"])
    assert "paper's GPU days, Pascal VOC (overhead)" in lines[0] and "total [core hours]" in lines[0]
    assert lines[3].startswith("| ours | 0.800 (0.414) | 0.70 | 5.260 (0.456) | 0.37 | 0.5 |")
    assert lines[3].endswith("| 3.75 (3.5 to 4) | 0.75 | 1.25 | 5.75 |")


def test_hours_of_two_kinds_of_device_have_no_mean():
    seeds = [of(fine_tuning=3600), of(fine_tuning=3600) | {"unit": "GPU seconds"}]
    with pytest.raises(UserError, match="the runs of ours count GPU hours and core hours, which cannot be averaged"):
        cost_of_runs("ours", "detofa", "digits", seeds)


def test_a_step_is_timed_by_the_clock_of_the_ledgers(monkeypatch, tmp_path):
    """Seconds in which others had the machine do not count."""
    ticks = iter(range(0, 100, 7))
    monkeypatch.setattr(ledger.DeviceClock, "__call__", lambda clock: next(ticks))
    root = write_digits(tmp_path / "digits", train=16, val=6, test=6, image_size=64, crops_train=40, crops_val=20)
    config = tmp_path / "tiny.json"
    config.write_text(json.dumps(detofa_config(root)))
    step = StepTime.measure(configs.load(config))
    assert step.seconds == 7 and step.unit == "core seconds" and step.flops > 0


def test_no_ratio_of_a_run_and_an_estimate():
    """They are of two devices."""
    run = cost_of_runs("ours", "detofa", "coco", [of(fine_tuning=3600)])
    step, config = (
        StepTime(seconds=1.0, flops=30_000_000_000),
        configs.load(CONFIGS / "coco_detofa.json", ["args.runner=ofa_ps"]),
    )
    guess = estimate("OFA (w/ PS)", "ofa-ps", "coco", config, step, np.random.default_rng(0))
    lines = table([guess, run], ["coco"])
    assert "GPU days, COCO" in lines[0] and "total [estimated core hours or core hours]" in lines[0]
    assert lines[2].startswith("| OFA (w/ PS) (ESTIMATE) | 14.410 | 1.00 |") and "| 1.00 |" in lines[2][-30:]
    assert lines[3].endswith("| 1 | 0 | - | 1 |")


def test_an_estimate_follows_epochs_and_flops():
    """At the paper's scale, without data: the ratio of epochs, and of the paths' FLOPs, is what separates the methods."""
    step = StepTime(seconds=1.0, flops=30_000_000_000)
    costs = {
        runner: estimate(runner, runner, "voc", configs.load(CONFIGS / "voc_detofa.json", [f"args.runner={runner}"]), step,
                         np.random.default_rng(0))
        for runner in ("ofa", "ofa_ps", "detofa")
    }  # fmt: skip
    assert all(cost.estimated for cost in costs.values())
    assert costs["ofa"].hours["training"] == pytest.approx(costs["detofa"].hours["training"], rel=0.03)
    assert 3 < costs["ofa_ps"].hours["training"] / costs["ofa"].hours["training"] < 4  # x3 epochs, of larger paths at first
    assert costs["detofa"].hours["path evaluation"] == pytest.approx(costs["ofa"].hours["search's filter"]) != 0
    assert costs["detofa"].hours["search's filter"] == costs["ofa"].hours["search's filter"]
    assert costs["ofa"].hours["path evaluation"] == 0
    assert costs["ofa"].hours["fullnet"] == pytest.approx(485 * 32 * 70 * 30.33 / 30 / 3600, rel=0.01)


def test_tables_a1_and_a2_are_the_papers_at_its_scale():
    config = configs.load(CONFIGS / "voc_detofa.json", ["args.runner=ofa_ps"])
    phases = training_phases(config)[1:]
    _, (_, *stages) = table_a1.table(phases)
    assert [row[1] for row in stages] == [row[2] for row in stages] == list(table_a1.PAPER_CHOICES)
    assert [int(row[3]) for row in stages] == sorted(int(row[3]) for row in stages)
    _, (_, *epochs) = table_a2.table(phases, "Pascal VOC")
    assert [int(row[2]) for row in epochs] == list(table_a2.PAPER_EPOCHS)
