"""The nested choice of the path filter's options: disjoint groups, a restart in the middle, and the choice by hand."""

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from test_filter_study import TINY, evaluated

from nnabla_detofa.common.errors import UserError
from nnabla_detofa.paper import filter_choice, filter_curves
from nnabla_detofa.paper.filter_study import StudyInputs, run
from nnabla_detofa.paper.profiles import load

pytestmark = pytest.mark.thorough
SINGLE = "config's options, 1 member"


@pytest.fixture(scope="module")
def pilots(tmp_path_factory) -> dict[int, StudyInputs]:
    """Two pilots; group 0 and 1 have 10 paths in each of two buckets, and 4 paths are in neither."""
    found = {}
    for seed, effect in ((1, 1.0), (2, 2.0)):
        folder = tmp_path_factory.mktemp(f"pilot_{seed}")
        sets = {name: evaluated(folder, name, *which, effect) for name, which in (("fit", (0, 44)), ("test", (44, 24)))}
        found[seed] = StudyInputs("made up", sets["fit"], sets["test"], TINY, buckets=2)
    return found


@pytest.fixture(scope="module")
def few() -> pytest.MonkeyPatch:
    """Fewer candidates, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filter_choice, "CHANGES", ({"margin": "score"}, {"pairs": "both"}))
        patch.setattr(filter_choice, "MEMBERS", (1, 2))
        patch.setattr(filter_choice, "processes", lambda: 1)
        yield patch


def test_groups_are_disjoint_and_the_paths_outside_are_judged(pilots):
    inputs, seen = pilots[1], []
    for group in range(2):
        given, checked = filter_choice._of_group(inputs, 10, group)
        assert np.bincount(given.train.buckets).tolist() == [10, 10] and checked == 24
        assert given.test.items[checked:] == inputs.test.items
        assert not {item.path for item in given.train.items} & {item.path for item in given.test.items}
        seen += given.train.items
    assert seen == inputs.train.items[:40]


def test_the_grid_changes_one_option_of_one_member(few):
    first, *others = filter_choice.candidates(TINY, pretraining=True)
    assert first.options == TINY and first.rows == {SINGLE: 1, "config's options, 2 members": 2}
    assert [(*item.rows,) for item in others] == [("margin score",), ("not pre-trained",)]  # TINY has pairs "both" already
    assert all(item.options.ensemble == 1 for item in others) and not others[-1].setting.pretraining


def test_too_few_pilots_or_paths_give_no_choice(pilots, few, tmp_path):
    with pytest.raises(UserError, match="needs two or more pilots, got 1"):
        filter_choice.choose({1: pilots[1]}, 10, tmp_path)
    with pytest.raises(UserError, match="groups of 30 paths of each FLOPs bucket, which the pilots do not have yet"):
        filter_choice.choose(pilots, 30, tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_stopped_choice_continues_and_repeats_itself(pilots, few, tmp_path):
    lines, parts = [], []

    def stop(line: str) -> None:
        lines.append(line)
        if len(lines) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        filter_choice.choose(pilots, 10, tmp_path / "stopped", stop)
    found = filter_choice.choose(pilots, 10, tmp_path / "stopped", lines.append, lambda known: parts.append(dict(known)))
    assert len(lines) == len(set(lines)) == 2 * 2 * 3 and len(parts) == 2  # groups, pilots, and candidates with references
    assert {values.shape for values in parts[0].values()} == {(1, 2, 2)}
    again = filter_choice.choose(pilots, 10, tmp_path / "whole", lambda line: None)
    assert found.keys() == again.keys() and {values.shape for values in found.values()} == {(2, 2, 2)}
    assert all((found[row] == again[row]).all() for row in found)
    made = []
    filter_choice.choose(pilots, 10, tmp_path / "whole", pytest.fail, made.append)
    assert len(made) == 2


def test_the_config_s_row_is_that_of_the_learning_curves(pilots, few, tmp_path):
    """The first group has the paths of the curves' point, and the filter with all members is the same."""
    found = filter_choice.choose(pilots, 10, tmp_path / "choice", lambda line: None)
    inputs = dataclasses.replace(pilots[2], train=filter_curves.first_of_each_bucket(pilots[2].train, 10))
    scores = run(inputs, (0,), tmp_path / "curves", settings=[filter_choice.FRESH]).scores[filter_choice.FRESH.name][0]
    test = pilots[2].test
    expected = [measure(scores, test.losses, test.buckets) for measure in filter_curves.MEASURES.values()]
    np.testing.assert_allclose(found["config's options, 2 members", 2][0, 1], expected)


def test_a_choice_ignores_the_pilot_on_which_it_is_judged(pilots, few, tmp_path):
    """On pilot 1 the margin between scores is best, on pilot 2 it is worst."""
    names = (*filter_choice.REFERENCES, SINGLE, "config's options, 2 members", "margin score")
    found = {(name, seed): np.full((2, 2, 2), 0.5) for name in names for seed in pilots}
    found["margin score", 1] = np.full((2, 2, 2), [[0.9, 0.9], [0.8, 0.7]])
    found["margin score", 2] = np.full((2, 2, 2), [[0.1, 0.1], [0.2, 0.3]])
    assert filter_choice.chosen(found, (SINGLE, "margin score"), 1, 0) == SINGLE
    assert filter_choice.chosen(found, (SINGLE, "margin score"), 2, 0) == "margin score"
    files = filter_choice.write(found, pilots, 10, tmp_path, "make it")
    text = files[0].read_text()
    assert f"| 1 | {SINGLE} | 0.500 / 0.500 |" in text and "| 2 | margin score | 0.200 / 0.300 |" in text
    assert "| margin score | 0.900 | 0.100 | 0.800 | 0.200 | 0.500 | +0.000 (2 of 4 above 0) |" in text
    rows = [row for row in csv.DictReader(files[1].open()) if row["ranking"] == "margin score" and row["pilot"] == "2"]
    assert [(row["validation"], row["test"]) for row in rows] == [("0.1", "0.2"), ("0.1", "0.3")] * 2


def test_the_archive_of_the_demo_has_all_that_a_choice_needs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    profile, asked = load("demo"), []
    filter_curves.restore_points(profile, Path(__file__).parents[2] / "results" / "demo")
    monkeypatch.setattr(filter_choice, "choose", lambda *arguments, on_group: asked.extend(arguments))
    filter_choice.choose_and_write(profile, tmp_path, "make it", pytest.fail)
    given, per_bucket, folder = asked
    assert {seed: (len(each.train), len(each.test), len(each.pretraining)) for seed, each in given.items()} == dict.fromkeys(
        profile.filter_study.pilots, (560, 200, 500)
    )
    assert per_bucket == 28 and (folder / "11" / "fit.jsonl").is_file()
