"""The paper's claims from given results of runs, by hand."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nnabla_detofa.methods.build import make_cost
from nnabla_detofa.paper import architectures, claims, claims_page, profiles
from nnabla_detofa.paper.experiments import DETOFA, left_out
from nnabla_detofa.paper.filter_scores import title
from nnabla_detofa.paper.filter_study import PRUNED_BY
from nnabla_detofa.paper.intervals import Values
from nnabla_detofa.paper.run import Run
from nnabla_detofa.paper.run_results import summary_of

REPOSITORY = Path(__file__).parents[2]


class Known(claims.Evidence):
    """Evidence of given APs: experiment -> seed -> AP under each budget."""

    def __init__(self, profile, known):
        super().__init__(profile, "digits", lambda run: {}, lambda experiment: [])
        self.known = known

    def runs(self, experiment):
        return {}

    def aps(self, experiment):
        return {seed: np.array(aps, float) for seed, aps in self.known.get(experiment.name, {}).items()}


def test_claims_are_paired_and_say_what_was_not_run(monkeypatch, tmp_path):
    """By hand: ours above OFA by 2, 3, 4 on average; CompOFA* worse by 4 for small budgets and alike for large ones."""
    monkeypatch.chdir(REPOSITORY)
    profile = profiles.load("study")
    ofa = {seed: [60.0, 62, 64, 66, 68] for seed in (0, 1, 2, 3)}
    ours = {seed: [60.0 + 2 + seed, 64 + seed, 66 + seed, 68 + seed, 70 + seed] for seed in (0, 1, 2)}
    compofa = {seed: np.array(ours[seed]) - [4, 4, 2, 0, 0] for seed in (0, 1)}
    known = Known(profile, {"ofa": ofa, "detofa": ours, "compofa": compofa})
    page, command = tmp_path / "docs" / "page.md", "`make claims`"
    claims_page.write(known, tmp_path / "results", page, command)
    content = json.loads((tmp_path / "results" / "claims.json").read_text())
    one = content["C1"]
    assert one["values"] == [2, 3, 4] and one["seeds"] == [0, 1, 2] and one["mean"] == 3
    assert one["interval"] == pytest.approx([3 - 2.4841, 3 + 2.4841], abs=1e-3) and one["verdict"] == "reproduced"
    small, large, gap = content["C3"]
    assert small["values"] == [-4, -4] and small["verdict"] == "reproduced"
    assert large["values"] == [0, 0] and large["verdict"] == "reproduced"
    assert gap["values"] == [-4, -4] and gap["verdict"] == "reproduced"
    assert [content[name] for name in ("C2", "C5", "C6")] == [[], [], []]
    text = page.read_text()
    assert "| [C1](#c1) |" in text and "| reproduced |" in text and "![C1](../results/C1.png)" in text
    assert "| not measured yet |" in text and text.endswith("Made by `make claims`.\n")
    known = Known(profile, {"ofa": {0: [1.0] * 5}, "detofa": {0: [9.0] * 5}})
    claims_page.write(known, tmp_path / "results", page, command)
    one = json.loads((tmp_path / "results" / "claims.json").read_text())["C1"]
    assert one["interval"] is None and one["verdict"] == "not decidable" and "not decidable: single seed" in page.read_text()


class Studied(Known):
    """Evidence of given filter studies: seed -> title of a row -> precisions of the fits."""

    def __init__(self, profile, studies):
        super().__init__(profile, {})
        self.studies = studies
        self.precisions_of = lambda run: {row: np.array(fits) for row, fits in self.studies[run.seed].items()}

    def runs(self, experiment):
        return {seed: Run(self.profile, "digits", DETOFA, seed) for seed in self.studies}  # have not run


ROWS = [title(name) for name in claims.PAPER_ROWS]
OWN = title(PRUNED_BY)


def test_parts_of_the_filter_are_compared_supernet_by_supernet(monkeypatch):
    """By hand: fits to one supernet are averaged first; a supernet without a study is left out."""
    monkeypatch.chdir(REPOSITORY)
    gains = {90: [0.1, 0.2, 0.3], 91: [0.2, 0.2, 0.3], 92: []}
    spread = np.array([-0.01, 0.01])  # of two fits
    studies = {
        seed: {row: level + number * spread for number, (row, level) in enumerate(zip(ROWS, np.cumsum([0, *each])))}
        if each
        else {}
        for seed, each in gains.items()
    }
    first, second, third = claims.filter_parts(Studied(profiles.load("demo"), studies))
    assert first.name == f"precision: {ROWS[1]} minus {ROWS[0]}" and first.paper == "+0.08" and first.seeds == (90, 91)
    assert first.values.values == pytest.approx((0.1, 0.2)) and first.verdict == "not decidable"
    assert second.verdict == third.verdict == "reproduced"  # the same gain twice
    assert claims.filter_parts(Studied(profiles.load("demo"), {90: {}})) == []


def test_precisions_of_the_filter_study_are_those_of_the_papers_filter_and_of_the_one_that_pruned(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    studies = {90: {ROWS[3]: [0.7, 0.9]}, 91: {ROWS[3]: [np.nan], OWN: [0.6]}, 92: {}}
    both, own = claims.filter_precision(Studied(profiles.load("demo"), studies))
    assert both.name.endswith(f"test paths, {ROWS[3]}") and both.values.values == pytest.approx((0.8,)) and both.seeds == (90,)
    assert both.paper == "0.79" and own.paper == "0.79, with pre-training" and own.seeds == (91,)
    assert own.values.values == (0.6,) and own.direction == "not below" and own.no_effect == 0.79


def test_the_precision_of_the_search_is_that_of_the_archived_held_out_paths(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    profile = replace(profiles.load("study"), starts_runs=False, archives=Path("results/study/runs"))
    (number,) = claims.filter_precision(claims.Evidence(profile, "digits", lambda run: {}, lambda experiment: []))
    assert number.name.endswith("held-out paths, filter of the search") and number.values.values == pytest.approx(
        (0.7, 0.8, 0.8)
    )


def test_pruning_is_compared_under_the_budgets_that_the_paper_names(monkeypatch):
    """By hand: no operation pruning is worse under the smallest budget only."""
    monkeypatch.chdir(REPOSITORY)
    ours, none = [60.0, 62, 64, 66, 68], [58.0, 62, 64, 66, 72]
    known = {"detofa": {0: ours, 1: ours}, "operations-0": {0: none, 1: none}}
    level = {"operations-flops": 1, "operations-flops-score-bucket": 2, "paths-0": 3, "paths-0.75": 4, "operations-0.5": 5}
    known |= {name: {0: np.array(ours) - gain} for name, gain in level.items()}
    found = {
        number.name: (number.values.values, number.direction) for number in claims.pruning(Known(profiles.load("study"), known))
    }
    assert found == {
        "FLOPs & score (all) minus FLOPs & score (per bucket), mean over the budgets": ((2,), "above"),
        "FLOPs & score (all) minus FLOPs, mean over the budgets": ((1,), "above"),
        "FLOPs & score (per bucket) minus FLOPs, mean over the budgets": ((-1,), "above"),
        "paths pruned: r = 0.25 minus r = 0, mean over the budgets": ((3,), "above"),
        "paths pruned: r = 0.25 minus r = 0.75, mean over the budgets": ((4,), "above"),
        "operations pruned: r = 0.3 minus r = 0, mean over the budgets": ((-0.4, -0.4), "above"),
        "operations pruned: r = 0.3 minus r = 0, smallest budget": ((2, 2), "above"),
        "operations pruned: r = 0.3 minus r = 0.5, mean over the budgets": ((5,), "above"),
    }


def test_initial_weights_are_compared_with_equal_steps_too(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    even = {"ofa": 80, "ofa-ps": 90, "fullnet-ofa-ps": 88, "scratch-ofa": 10, "scratch-ofa-ps": 25, "scratch-ofa-long": 24}
    known = {name: {0: [float(ap)] * 5} for name, ap in (even | {"uniform-long": 91}).items()}
    known["fullnet-ofa"] = {0: [74.0, 76, 77, 78, 78]}
    found = {n.name: (n.values.mean, n.direction, n.paper) for n in claims.pretraining(Known(profiles.load("study"), known))}
    mean, steps = ", mean over the budgets", "control, with equal steps"
    gap = "Supernet (w/o PS) minus Fullnet (w/o PS)"
    assert (
        found[gap + mean][0] == pytest.approx(3.4) and found[f"{gap}, two smallest budgets minus two largest"][0] == 3
    )  # 5 - 2
    assert found["Supernet (w/ PS) minus Fullnet (w/ PS)" + mean][:2] == (2, "above")
    assert found["Fullnet (w/o PS) minus Scratch (w/o PS), two largest budgets"][:2] == (68, "above")
    assert found["Scratch (w/ PS) minus Scratch (w/o PS)" + mean][:2] == (15, "above")
    assert found[f"Scratch (w/ PS) minus Scratch, uniform paths, steps of PS{mean}"] == (1, "above", steps)
    assert found["Supernet (w/ PS) minus Supernet (w/o PS)" + mean][:2] == (10, "alike")
    assert found[f"Supernet (w/ PS) minus uniform paths, steps of PS, one schedule{mean}"] == (-1, "alike", steps)
    assert len(found) == 9


def test_parts_of_the_budgets_need_enough_of_them(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    known = {name: {0: [1.0, 2, 3], 1: [1.0, 2, 3]} for name in ("compofa", "detofa", "operations-0")}
    known = Known(profiles.load("study"), known)
    assert claims.small_budgets(known) == []
    assert [number.name for number in claims.pruning(known)] == [
        "operations pruned: r = 0.3 minus r = 0, mean over the budgets"
    ]


def number(values, direction="above", **kwargs):
    return claims.Number("a minus b", "0.85", Values(values), direction, **kwargs)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (number((1.0,)), "not decidable: single seed"),
        (
            number((1.0, 3.0)),
            "not decidable: about 5 seeds for reproduced",
        ),  # 2 - 2.776 sqrt(2 / 5) > 0 > 2 - 3.182 sqrt(2 / 4)
        (number((-9.0, 9.0)), "not decidable: 100 seeds would not decide it"),
        (number((-0.30, -0.31)), "not reproduced: the opposite effect"),
        (number((-2.0, -2.1)), "not reproduced: the opposite effect"),
        (number((2.0, 2.1), "below"), "not reproduced: the opposite effect"),
        (number((0.10, 0.11, 0.09, -0.1)), "not reproduced: within the margin"),
        (number((0.5, 0.51), "not below", no_effect=0.79, margin=0.05), "not reproduced: it is lower"),
        (number((8.0, 8.1), "alike"), "not reproduced: they differ"),
        (number((2.0, 2.1)), "reproduced"),
    ],
)
def test_a_verdict_has_its_reason(given, wanted):
    assert claims_page.verdict_text(given) == wanted


def test_random_architectures_have_the_flops_of_the_found_subnets(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    profile = replace(profiles.load("study"), starts_runs=False, archives=Path("results/study/runs"))
    runs = [Run(profile, "digits", DETOFA, seed) for seed in (0, 1)]
    drawn = []
    of_paths = architectures.Architectures.of_paths
    monkeypatch.setattr(architectures.Architectures, "of_paths", lambda *given: drawn.append(given[2]) or of_paths(*given))
    found = architectures.random_architectures("random", runs)
    samples = architectures.RANDOM_PATHS
    assert found.depths.shape == (2 * samples, 5, 4) and set(np.unique(found.depths)) == {0, 1, 2}
    config = runs[0].config
    flops = make_cost(config, 10, (config.dataloader.image_size,) * 2).flops
    for number, run in enumerate(runs):
        wanted = np.array([subnet["flops"] for subnet in summary_of(run)["subnets"]])
        got = np.array([flops(list(paths)) for paths in drawn[0][number * samples : (number + 1) * samples : 50]])
        assert (abs(got / wanted - 1) <= 0.01).all()


def test_methods_that_a_profile_leaves_out_are_named(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    assert left_out(profiles.load("study")) == "" and left_out(profiles.load("bccd")) == "Not compared here: OFA (w/ PS)."
