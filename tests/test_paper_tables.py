"""Table 2's arithmetic, and Tables A1 and A2, by hand."""

from pathlib import Path as FilePath

import numpy as np
import pytest

from nnabla_detofa import config as configs
from nnabla_detofa import ledger
from nnabla_detofa.cost_table import StepTime, cost_of_runs, estimate, table
from nnabla_detofa.space_tables import PAPER_CHOICES, PAPER_EPOCHS, table_a1, table_a2

CONFIGS = FilePath(__file__).parent.parent / "configs"


def of(**seconds: float) -> dict:
    """A ledger with these seconds; names have _ for a space."""
    return {"unit": "core seconds", "phases": {(n := k.replace("_", " ")): ledger.entry(n, v) for k, v in seconds.items()}}


def test_a_ledger_is_summed_by_what_time_is_for():
    content = of(fullnet=1, paths=2, path_filter=4, paths_again=8, search=16, evaluation=32) | {}
    content["phases"]["warm-up"] = ledger.entry("warm-up", 64)
    content["phases"]["PS stage 3"] = ledger.entry("PS stage 3", 128)
    wanted = {"fullnet": 1, "training": 192, "path evaluation": 10, "path filter": 4, "search": 16, "reporting": 32}
    assert ledger.totals(content) == wanted


def test_the_clock_of_the_cpu_counts_work_and_not_waiting():
    clock = ledger.DeviceClock(on_gpu=False)
    start, total = clock(), 0.0
    while clock() - start < 0.05:
        total += np.sum(np.ones(10000))
    assert clock() - start >= 0.05 and clock.unit == "core seconds"
    assert ledger.DeviceClock(on_gpu=True, processes=2).unit == "GPU seconds"


def test_overhead_counts_for_ours_alone_and_the_fullnet_for_none():
    ledgers = [of(fullnet=3600, fine_tuning=7200, paths=3600, path_filter=1800), of(fine_tuning=14400)]
    ours = cost_of_runs("ours", "detofa", "digits", ledgers)
    assert ours.spread == (3.5, 4.0) and ours.total == pytest.approx(3.75) and ours.overhead == pytest.approx(0.75)
    shrinking = cost_of_runs("OFA (w/ PS)", "ofa-ps", "digits", ledgers)
    assert shrinking.total == pytest.approx(3.0) and shrinking.spread == (2.0, 4.0)
    lines = table([shrinking, ours], "core hours")
    assert lines[3].startswith("| ours | 0.800 (0.414) | 0.70 | 0.5 |") and lines[3].endswith(
        "| 3.75 (3.5 to 4) | 0.75 | 1.25 |"
    )


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
    assert costs["detofa"].hours["path evaluation"] == pytest.approx(2 * costs["ofa"].hours["path evaluation"])
    assert costs["ofa"].hours["fullnet"] == pytest.approx(485 * 32 * 70 * 30.33 / 30 / 3600, rel=0.01)


def test_tables_a1_and_a2_are_the_papers_at_its_scale():
    config = configs.load(CONFIGS / "voc_detofa.json", ["args.runner=ofa_ps"])
    _, (_, *stages) = table_a1(config)
    assert [row[1] for row in stages] == [row[2] for row in stages] == list(PAPER_CHOICES)
    assert [int(row[3]) for row in stages] == sorted(int(row[3]) for row in stages)
    _, (_, *epochs) = table_a2(config, "Pascal VOC")
    assert [int(row[2]) for row in epochs] == list(PAPER_EPOCHS)
