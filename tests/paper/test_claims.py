"""The paper's claims from given results of runs, by hand."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nnabla_detofa.paper import architectures, claims, claims_page, profiles
from nnabla_detofa.paper.experiments import DETOFA, left_out
from nnabla_detofa.paper.intervals import Values
from nnabla_detofa.paper.run import Run

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


def test_parts_of_the_filter_are_compared_supernet_by_supernet():
    """By hand: fits to one supernet are averaged first; a supernet without a study is left out."""
    rows = ("none", "block encoding", "bounded", "all three")
    gains = {0: [0.1, 0.2, 0.3], 1: [0.2, 0.2, 0.3], 2: []}

    class Studied(Known):
        def runs(self, experiment):
            return {seed: seed for seed in gains}

    def precisions_of(seed):
        levels = np.cumsum([0, *gains[seed]])
        spread = np.array([-0.01, 0.01])  # of two fits
        return {row: level + number * spread for number, (row, level) in enumerate(zip(rows, levels))} if gains[seed] else {}

    found = Studied(None, {})
    found.precisions_of = precisions_of
    first, second, third = claims.filter_parts(found)
    assert first.name == "precision: block encoding minus none" and first.paper == "+0.08" and first.seeds == (0, 1)
    assert first.values.values == pytest.approx((0.1, 0.2)) and first.verdict == "not decidable"
    assert second.verdict == third.verdict == "reproduced"  # the same gain twice
    found.precisions_of = lambda seed: {}
    assert claims.filter_parts(found) == []


def test_precisions_are_those_of_the_search_and_of_the_filter_study(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    rows = {0: {"none": [0.1, 0.3], "block": [0.2], "bounded": [0.2], "all": [0.7, 0.9], "own": [0.6]}, 1: {}}

    class Studied(Known):
        def runs(self, experiment):
            return {seed: Run(self.profile, "digits", DETOFA, 90 + seed) for seed in rows}  # have not run

    found = Studied(profiles.load("demo"), {})
    found.precisions_of = lambda run: {row: np.array(fits) for row, fits in rows[run.seed - 90].items()}
    both, own = claims.filter_precision(found)
    assert both.name.endswith("test paths, all") and both.values.values == pytest.approx((0.8,)) and both.seeds == (0,)
    assert own.values.values == (0.6,) and own.paper == "0.79" and own.direction == "not below" and own.no_effect == 0.79


def test_pruning_is_compared_under_the_budgets_that_the_paper_names(monkeypatch):
    """By hand: no operation pruning is worse under the smallest budget only."""
    monkeypatch.chdir(REPOSITORY)
    ours, none = [60.0, 62, 64, 66, 68], [58.0, 62, 64, 66, 72]
    known = Known(profiles.load("study"), {"detofa": {0: ours, 1: ours}, "operations-0": {0: none, 1: none}})
    mean, smallest = claims.pruning(known)
    assert mean.name == "operations pruned: r = 0.3 minus r = 0, mean over the budgets" and mean.values.values == (-0.4, -0.4)
    assert smallest.name.endswith("r = 0, smallest budget") and smallest.values.values == (2, 2)


def number(values, direction="above", **kwargs):
    return claims.Number("a minus b", "0.85", Values(values), direction, **kwargs)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (number((1.0,)), "not decidable: single seed"),
        (number((1.0, 3.0)), "not decidable: needs about 5 seeds"),  # 2 - 2.776 sqrt(2 / 5) > 0 > 2 - 3.182 sqrt(2 / 4)
        (number((-9.0, 9.0)), "not decidable: needs more than 100 seeds"),
        (number((-2.0, -2.1)), "not reproduced: the opposite effect"),
        (number((2.0, 2.1), "below"), "not reproduced: the opposite effect"),
        (number((0.10, 0.11, 0.09, -0.1)), "not reproduced: within the margin"),
        (number((0.5, 0.51), "not below", no_effect=0.79, margin=0.05), "not reproduced: below"),
        (number((8.0, 8.1), "alike"), "not reproduced: unlike"),
        (number((2.0, 2.1)), "reproduced"),
    ],
)
def test_a_verdict_has_its_reason(given, wanted):
    assert claims_page.verdict_text(given) == wanted


def test_random_architectures_have_the_budgets_of_the_found_subnets(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    profile = replace(profiles.load("study"), starts_runs=False, archives=Path("results/study/runs"))
    found = architectures.random_architectures(Run(profile, "digits", DETOFA, 0))
    assert found.budgets.tolist() == sorted(found.budgets) and found.depths.shape == (architectures.RANDOM_PATHS, 5, 4)
    total = found.depths.sum(axis=2).mean(axis=0)
    assert (np.diff(total) > 0).all() and set(np.unique(found.depths)) == {0, 1, 2}


def test_methods_that_a_profile_leaves_out_are_named(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    assert left_out(profiles.load("study")) == "" and left_out(profiles.load("bccd")) == "Not compared here: OFA (w/ PS)."
