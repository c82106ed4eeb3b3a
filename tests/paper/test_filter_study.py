"""The filter study: fits that repeat themselves, a restart in the middle, refusals, and the two tables."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import small

from nnabla_detofa.common.errors import UserError
from nnabla_detofa.config import Filter
from nnabla_detofa.paper import (
    archives,
    filter_curves,
    filter_scores,
    filter_study,
    filter_tables,
    study_paths,
    table3,
    table_a3,
)
from nnabla_detofa.paper.experiments import DETOFA
from nnabla_detofa.paper.filter_study import EVERYTHING, SETTINGS, StudyInputs, StudyResults, run
from nnabla_detofa.paper.profiles import load
from nnabla_detofa.paper.run import Run
from nnabla_detofa.paper.score_file import stored_fits
from nnabla_detofa.path_filter.evaluated_paths import EvaluatedPath, EvaluatedPaths
from nnabla_detofa.path_filter.metrics import kendall_tau, over_buckets
from nnabla_detofa.path_filter.model import PathFilter

pytestmark = pytest.mark.thorough

TINY = Filter(
    dim=8, heads=2, layers=1, feed_forward=8, epochs=2, lr=2e-3, linear_skip=True, ensemble=2, margin="logit", pairs="both"
)


SAMPLED = small.SPACE.sample_many(np.random.default_rng(0), 400)
PATHS = SAMPLED[np.sort(np.unique(SAMPLED.keys, return_index=True)[1])]


def evaluated(folder, name: str, first: int, n: int, effect: float = 1.0) -> EvaluatedPaths:
    """`n` paths of the small space, from the one numbered `first`, whose loss falls with their depths and widths."""
    batch = PATHS[first : first + n]
    losses = 9 - batch.depths @ [0.3, 1.0, 2.0] - effect * batch.widths @ [0.2, 0.1, 0.5, 1.0]
    paths = EvaluatedPaths.open(folder / f"{name}.jsonl", "made up", {}, small.GEOMETRY)
    for number, (path, loss) in enumerate(zip(batch, losses)):
        paths.append(EvaluatedPath(path, number % 2, flops=1000 + number, params=1, loss=float(loss)))
    return paths


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> StudyInputs:
    folder = tmp_path_factory.mktemp("paths")
    train, test, before = (evaluated(folder, *what) for what in (("train", 0, 50), ("test", 50, 24), ("before", 100, 60, 2.0)))
    return StudyInputs("made up", train, test, TINY, before, buckets=2, paper_epochs=2)


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory) -> tuple[Path, StudyResults]:
    """The folder of a study of two seeds, with pre-trained filters beside it, and its results."""
    folder = tmp_path_factory.mktemp("finished") / "study"
    return folder, run(inputs, (0, 1), folder)


@pytest.fixture
def study(finished, tmp_path) -> Path:
    """A copy of the finished study's folder, with the filters beside it."""
    shutil.copytree(finished[0].parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / "study"


def test_the_four_rows_of_table_3_add_one_part_after_the_other():
    parts = [(s.block_encoding, s.flops_bounded, s.pretraining) for s in SETTINGS[:4]]
    assert parts == [(False, False, False), (True, False, False), (True, True, False), (True, True, True)]
    assert SETTINGS[3] == EVERYTHING and len({s.name for s in SETTINGS}) == len(SETTINGS)


def test_a_study_repeats_itself_and_every_part_changes_the_scores(inputs, finished, tmp_path):
    first, second = finished[1], run(inputs, (0, 1), tmp_path / "again" / "study", processes=2)
    assert first.scores.keys() == {*filter_study.BASELINES, *(s.name for s in SETTINGS)}
    for name, scores in first.scores.items():
        assert scores.shape == (2, 24)
        np.testing.assert_array_equal(scores, second.scores[name])
    distinct = {scores[0].tobytes() for scores in first.scores.values()}
    assert len(distinct) == len(first.scores)
    np.testing.assert_array_equal(first.scores["FLOPs"][0], inputs.test.flops)


def test_a_stopped_study_goes_on_and_settings_share_what_was_pre_trained(inputs, finished, tmp_path):
    heard = []

    def stop(text: str) -> None:
        heard.append(text)
        if len(heard) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(inputs, (0,), tmp_path / "stopped" / "study", stop)
    with open(tmp_path / "stopped" / "study" / "scores.jsonl", "a") as opened:
        opened.write('{"name": "all thr')  # a kill in the middle of a line
    again: list[str] = []
    found = run(inputs, (0,), tmp_path / "stopped" / "study", again.append)
    assert not any(text.startswith("none") for text in again)
    for name, scores in finished[1].scores.items():
        np.testing.assert_array_equal(found.scores[name], scores[:1])
    assert len(again) == len(inputs.settings) - len(heard)
    files = list((tmp_path / "stopped").glob("pretrained_*.h5"))
    assert len(files) == 3  # of "all three", of the usual positions and of our options
    assert run(inputs, (0,), tmp_path / "stopped" / "study", lambda text: pytest.fail(text)).seeds == (0,)
    other = dataclasses.replace(inputs, train=inputs.test, test=inputs.train)  # another study beside it finds the filters
    run(other, (0,), tmp_path / "stopped" / "other")
    assert set((tmp_path / "stopped").rglob("pretrained_*.h5")) == set(files)


def test_all_members_start_from_one_pre_trained_filter(inputs, tmp_path):
    several = dataclasses.replace(inputs, options=dataclasses.replace(TINY, ensemble=3))
    (setting,) = (setting for setting in SETTINGS if setting.name == filter_study.CONFIGURED)
    found = filter_study.pretrained(several, setting, 0, tmp_path)
    logits = found.logits(inputs.test.batch, inputs.test.buckets)
    assert logits.shape == (3, 24) and (logits == logits[0]).all()
    (file,) = tmp_path.glob("pretrained_*.h5")
    assert len(PathFilter.load(file, small.GEOMETRY.__class__).members) == 1


def test_without_pre_training_paths_its_settings_are_left_out(inputs):
    without = StudyInputs("made up", inputs.train, inputs.test, TINY, buckets=2)
    assert [setting.name for setting in without.settings] == [*(s.name for s in SETTINGS[:3]), filter_study.CONFIGURED_FRESH]


def test_scores_of_other_paths_or_options_are_refused(inputs, study):
    for change in ({"pretraining": None}, {"options": Filter(dim=16)}):
        sets = {"train": inputs.train, "test": inputs.test, "options": TINY, "pretraining": inputs.pretraining} | change
        changed = "paths" if "pretraining" in change else "options"
        with pytest.raises(UserError, match=rf"scores\.jsonl has scores of a study with other {changed}"):
            run(StudyInputs("made up", buckets=2, paper_epochs=2, **sets), (0,), study)
    lines = (study / "scores.jsonl").read_text().splitlines()
    lines[2] = lines[2][:-5]
    (study / "scores.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match="line 3 of .* is not a result"):
        run(inputs, (0,), study)


def test_scores_that_are_refused_are_left_as_they_were(inputs, study):
    file = study / "scores.jsonl"
    whole, other = file.read_text(), dataclasses.replace(inputs, options=Filter(dim=16))
    first, *lines = whole.splitlines()
    few = json.dumps(json.loads(lines[0]) | {"scores": [1.0]})
    for content, asked, message in (
        ("my notes", inputs, "is not a file of the filter study's scores"),
        (whole[:-1], other, "scores of a study with other options"),
        (whole + '{"name": "all thr', other, "scores of a study with other options"),
        (f"{first}\n{few}\n{lines[1]}", inputs, "line 2 of .* is not a result"),
        (f"{first}\n[]\n", inputs, "line 2 of .* is not a result"),
        ("{}\n".join(["", ""]), inputs, "is not a file of the filter study's scores"),
    ):
        file.write_text(content)
        with pytest.raises(UserError, match=message):
            filter_study.score_file(file.parent, asked)
        assert file.read_text() == content
    file.write_text(whole[:-1])
    assert len(filter_study.score_file(file.parent, inputs).known) == len(lines) and file.read_text() == whole
    file.write_text(first[:60])
    assert not filter_study.score_file(file.parent, inputs).known and file.read_text() == first + "\n"


def test_a_filter_pre_trained_on_other_paths_is_not_used(inputs, study, tmp_path):
    """Also where the scores are removed, as the refusal says, and the filters are left."""
    (study / "scores.jsonl").unlink()
    other = dataclasses.replace(inputs, pretraining=evaluated(tmp_path, "other", 100, 60, -2.0))
    found, fresh = run(other, (0,), study), run(other, (0,), tmp_path / "fresh" / "study")
    np.testing.assert_array_equal(found.scores[EVERYTHING.name], fresh.scores[EVERYTHING.name])


def test_scores_of_a_setting_that_has_changed_are_not_used(inputs, study, monkeypatch):
    """A row's name may come to mean something else: the line says which parts it had."""
    known = filter_study.score_file(study, inputs).known
    monkeypatch.setattr(filter_study, "SETTINGS", (filter_study.Setting("none", block_encoding=True), *SETTINGS[1:]))
    assert known.keys() - filter_study.score_file(study, inputs).known.keys() == {("none", 0), ("none", 1)}


def test_inputs_that_do_not_fit_are_named(inputs, tmp_path):
    with pytest.raises(UserError, match="24 of the test paths .* are also training paths"):
        StudyInputs("made up", inputs.test, inputs.test, TINY, buckets=2)
    with pytest.raises(UserError, match="FLOPs buckets of .* must be 0 to 0, got 1"):
        StudyInputs("made up", inputs.train, inputs.test, TINY, buckets=1)
    with pytest.raises(UserError, match="must have at least one path"):
        StudyInputs("made up", inputs.train, EvaluatedPaths.open(tmp_path / "none.jsonl", "", {}, small.GEOMETRY), TINY)
    with pytest.raises(UserError, match=r"distinct seeds, got \[1, 1\]"):
        run(inputs, (1, 1), tmp_path / "study")


def results_of(inputs: StudyInputs, **scores) -> StudyResults:
    """Results with these scores (n,) or (seeds, n); rows that are not named rank as FLOPs do."""
    rows = filter_scores.row_names(StudyResults(inputs, (0,), {}))
    given = {name: np.atleast_2d(scores.get(name.replace(" ", "_"), inputs.test.flops.astype(float))) for name in rows}
    return StudyResults(inputs, tuple(range(len(next(iter(scores.values()))))), given)


def test_table_3_from_perfect_and_reversed_scores(inputs, tmp_path):
    right = -inputs.test.losses
    results = results_of(inputs, all_three=np.stack([right, right]), random=np.stack([-right, right]))
    files = table3.write_table(results, tmp_path, "theirs", "make it", np.random.default_rng(0))
    assert [file.name for file in files] == ["table3.md", "table3.csv", "table3.png"] and all(f.stat().st_size for f in files)
    rows = {row["setting"]: row for row in csv.DictReader(files[1].open())}
    found = rows["all three"]
    assert [float(found[key]) for key in ("accuracy", "precision", "recall", "share_of_right")] == [1, 1, 1, 0.25]
    assert [float(found[key]) for key in ("tau_bucket_1", "tau_buckets", "rho_bucket_2", "rho_all")] == pytest.approx([1] * 4)
    assert [float(found[f"paper_{key}"]) for key in ("accuracy", "precision", "recall")] == [0.89, 0.79, 0.212]
    assert (float(rows["random order"]["precision_min"]), float(rows["random order"]["precision_max"])) == (0, 1)
    text = files[0].read_text()
    assert "| all three | 0.890 | 1.000 | 0.790 | 1.000 | 1.00 to 1.00 | 1.000 | 0.212 | 0.250 |" in text
    assert "The filter with all three is better than random order in precision for the weakest 25%: +0.50" in text
    for said in ("check marks", "TP / (TP + TN)", "make it", "50 train, 24 test, 60 pretraining", "2 seeds (0, 1)", "dim 8"):
        assert said in text


def test_table_3_says_where_the_filter_beats_nothing(inputs, tmp_path):
    results = results_of(inputs, all_three=inputs.test.losses[None], random=-inputs.test.losses[None])
    text = table3.write_table(results, tmp_path, "theirs", "make it", np.random.default_rng(0))[0].read_text()
    assert "IS NOT BETTER than random order in precision for the weakest 25%: -1.00" in text
    assert "IS NOT BETTER than FLOPs alone" in text


def test_too_few_test_paths_decide_nothing(inputs, tmp_path):
    """A quarter of one path in each bucket is none: there is no precision, nor who beats whom."""
    few = StudyInputs("made up", inputs.train, evaluated(tmp_path, "few", 50, 2), TINY, inputs.pretraining, buckets=2)
    results = results_of(few, all_three=np.zeros((1, 2)))
    files = table3.write_table(results, tmp_path, "theirs", "make it", np.random.default_rng(0), others={1: results})
    files += table_a3.write_table(results, tmp_path, "theirs", "make it", np.random.default_rng(0))
    assert "over the supernets: precision undecided, tau undecided" in files[0].read_text()
    for file in files:
        if file.suffix != ".png":
            assert "nan" not in file.read_text()
    assert "Undecided" in files[0].read_text() and "better" not in files[0].read_text().lower()


def test_table_3_compares_the_supernets_of_several_seeds(inputs, tmp_path):
    """By hand: perfect and reversed scores have precision 1 and 0, and tau 1 and -1; fits to a supernet are averaged first."""
    right = -inputs.test.losses
    rows = dict.fromkeys((row.name for row in table3.ROWS), right)

    def of(**scores):
        return StudyResults(inputs, (0, 1), {name: np.atleast_2d(row) for name, row in (rows | scores).items()})

    first = results_of(inputs, all_three=right)
    first.scores.update(dict.fromkeys(rows, right[None]))
    others = {1: of(none=-right), 2: of(none=np.stack([right, -right]))}
    files = table3.write_table(first, tmp_path, "theirs", "make it", np.random.default_rng(0), others=others)
    text = files[0].read_text()
    assert "| none | 1.00 | 0.00 | 0.50 | 0.50 | 1.00 | -1.00 | 0.00 | 0.00 |" in text
    gain = "precision +0.50 [-0.74, +1.74] (+0.00, +1.00, +0.50), tau +1.00"
    assert f"- Gain from block encoding, over the supernets: {gain}" in text
    assert "- Gain from pre-training, over the supernets: precision +0.00 [+0.00, +0.00] (+0.00, +0.00, +0.00)" in text
    found = {row["setting"]: row for row in csv.DictReader(files[1].open())}
    assert [found["none"][f"precision_supernet_{seed}"] for seed in (0, 1, 2)] == ["1", "0", "0.5"]
    assert found["FLOPs alone"]["precision_supernet_1"] == ""  # only the paper's rows are fitted to the other supernets
    alone = table3.write_table(first, tmp_path, "theirs", "make it", np.random.default_rng(0))
    assert "over the supernets" not in alone[0].read_text() and "supernet_0" not in alone[1].read_text()


def test_all_seeds_share_what_belongs_to_the_classification_supernet(inputs, tmp_path, monkeypatch):
    first, third = (Run(load("study"), "digits", DETOFA, seed) for seed in (0, 2))
    monkeypatch.setattr(study_paths, "evaluated", lambda run, *_: study_paths.study_name(run))
    assert study_paths.pretraining_paths(third) == study_paths.study_name(first) == "digits-filter"
    assert study_paths.study_name(third) == "digits-filter-2"
    settings = (SETTINGS[3], SETTINGS[7])  # both pre-trained
    for seed in ("digits-filter", "digits-filter-2"):
        run(inputs, (0,), tmp_path / seed / "study", settings=settings, pretrained_in=tmp_path / "digits-filter")
    assert [file.parent.name for file in tmp_path.rglob("pretrained_*.h5")] == ["digits-filter"]


def test_stored_fits_are_counted_by_name_and_seed(inputs, tmp_path, monkeypatch):
    """A study of some settings is complete without the others; as many lines of other settings do not make it so."""
    assert stored_fits(tmp_path / "scores.jsonl") == set()
    store = filter_study.score_file(tmp_path, inputs)
    store.append("none", 1, {}, np.zeros(24))
    with open(store.file, "a") as opened:
        opened.write('{"name": "all three", "se')
    assert stored_fits(store.file) == {("none", 1)}
    monkeypatch.setattr(filter_tables, "study_folder", lambda run: tmp_path.parent)
    one_seed = SimpleNamespace(profile=SimpleNamespace(filter_study=SimpleNamespace(seeds=1)))
    store = filter_study.score_file(tmp_path, inputs)
    for name in [*filter_study.BASELINES, *(row.name for row in table3.ROWS[:-1]), "another", "and another"]:
        store.append(name, 0, {}, np.zeros(24))
    assert not filter_tables.all_fits_stored(one_seed, tmp_path.name, table3.ROWS)
    store.append(table3.ROWS[-1].name, 0, {}, np.zeros(24))
    assert filter_tables.all_fits_stored(one_seed, tmp_path.name, table3.ROWS)
    assert not filter_tables.all_fits_stored(one_seed, tmp_path.name)


def test_table_a3_by_hand(inputs, tmp_path):
    """Of 12 paths in a bucket 2, 3, 4 and 5 are the weakest; scores that swap the two worst cost nothing at any of them."""
    scores = -inputs.test.losses.copy()
    for bucket in range(2):
        members = np.flatnonzero(inputs.test.buckets == bucket)
        worst = members[np.argsort(scores[members], kind="stable")[:2]]
        scores[worst] = scores[worst[::-1]]
    files = table_a3.write_table(
        results_of(inputs, all_three=scores[None]), tmp_path, "theirs", "make it", np.random.default_rng(0)
    )
    rows = [row for row in csv.DictReader(files[1].open()) if row["filter"] == "all three"]
    assert [float(row["r_path"]) for row in rows] == [0.2, 0.25, 0.3, 0.4]
    assert [float(row["share_of_right"]) for row in rows] == pytest.approx([2 / 12, 3 / 12, 4 / 12, 5 / 12], rel=1e-4)
    assert [float(row["precision"]) for row in rows] == [1] * 4
    assert [float(row["paper_precision"]) for row in rows] == [0.7, 0.79, 0.793, 0.792]
    assert "| 0.4 | all three | 0.830 | 1.000 | 0.792 | 1.000 |" in files[0].read_text()
    tau = over_buckets(kendall_tau, scores, inputs.test.losses, inputs.test.buckets)
    assert {row["tau_buckets"] for row in rows} == {f"{tau:.6g}"} and 0.9 < tau < 1
    assert f"| all three | {tau:.2f} |" in files[0].read_text()


def test_the_letter_of_the_paper_has_nothing_of_ours():
    given = Filter(linear_skip=True, ensemble=4, margin="logit", pairs="both", regression=1.0, epochs=7, dropout=0.5)
    letter, ours = EVERYTHING.options(given), filter_study.Setting("x", configured=True).options(given)
    assert letter == Filter() and (ours.ensemble, ours.pairs, ours.epochs, ours.block_encoding) == (4, "both", 7, False)
    assert SETTINGS[0].options(given).pairs == SETTINGS[1].options(given).pairs == "all"


def test_at_equal_stem_depth_a_score_that_is_the_stem_alone_ranks_nothing(inputs, tmp_path):
    """It explains a share of the losses' variance, here all that is between the two groups of a bucket."""
    stem = (inputs.test.batch.depths[:, 0] == 1).astype(float)
    results = results_of(inputs, all_three=(stem + 1e-6 * np.arange(24))[None])
    groups = filter_scores.stem_groups(results)
    assert set(groups % 2) == {0, 1} and (groups // 2 == inputs.test.buckets).all()
    share = filter_scores.stem_share(results)
    between = [np.var([np.mean(inputs.test.losses[groups == g]) for g in groups[groups // 2 == b]]) for b in (0, 1)]
    total = [np.var(inputs.test.losses[inputs.test.buckets == b]) for b in (0, 1)]
    assert share == pytest.approx(np.sum(between) / np.sum(total))  # both buckets hold 12 paths
    with_tau = table_a3.write_table(results, tmp_path, "theirs", "make it", np.random.default_rng(0))
    row = next(csv.DictReader(with_tau[1].open()))
    order = over_buckets(kendall_tau, np.arange(24), inputs.test.losses, groups)
    assert float(row["tau_same_stem"]) == pytest.approx(order, abs=1e-5)
    text = table3.write_table(results, tmp_path, "theirs", "make it", np.random.default_rng(0))[0].read_text()
    assert f"stem alone explains {share:.0%} of the variance" in text and "at equal stem depth" in text


def test_the_runs_own_filter_and_the_ceiling_are_rows(inputs, tmp_path):
    known = dataclasses.replace(inputs, noise=0.2, pruned_by=-inputs.test.losses)
    found = filter_study.given_scores(known)
    assert found[filter_study.CEILING].shape == (filter_study.CEILING_DRAWS, 24)
    results = dataclasses.replace(results_of(inputs, all_three=np.zeros((1, 24))), inputs=known)
    results.scores.update(found)
    files = table3.write_table(results, tmp_path, "theirs", "make it", np.random.default_rng(0))
    files += table_a3.write_table(results, tmp_path, "theirs", "make it", np.random.default_rng(0))
    for file in (files[0], files[3]):
        for said in ("the run's own filter, which pruned", "true order, given the noise", "20% of the variance"):
            assert said in file.read_text()


def test_the_scores_of_the_runs_own_filter_outlive_its_weights(inputs, tmp_path, monkeypatch):
    """Tables that are made from archives have its row, unless the archive is older or of other test paths."""
    own = filter_study.fresh(inputs, EVERYTHING, 3)
    own.save(tmp_path / "path_filter.h5")
    monkeypatch.setattr(study_paths, "study_folder", lambda run: tmp_path / "study")
    live = SimpleNamespace(archive=None, folder=tmp_path, hparams=SimpleNamespace(buckets=2))
    archived = SimpleNamespace(archive=tmp_path / "study.tar.xz")
    assert study_paths.own_scores(archived, inputs.test) is None
    (tmp_path / "study").mkdir()
    expected = own.score(inputs.test.batch, inputs.test.buckets)
    np.testing.assert_array_equal(study_paths.own_scores(live, inputs.test), expected)
    assert [*archives.study_files(tmp_path / "study")] == ["own_filter.json"]
    (tmp_path / "path_filter.h5").unlink()
    np.testing.assert_array_equal(study_paths.own_scores(archived, inputs.test), expected)
    assert study_paths.own_scores(archived, inputs.train) is None


def test_curves_are_written_from_points_of_several_pilots_and_sizes(inputs, tmp_path):
    """A ranking that is right on one pilot and the wrong way round on the other has a mean tau of 0."""
    right, few = -inputs.test.losses, filter_curves.first_of_each_bucket(inputs.train, 7)
    assert np.bincount(few.buckets).tolist() == [7, 7] and few.items == inputs.train.items[:14]
    points = []
    for pilot, sign in ((1, 1), (2, -1)):
        for train in (few, inputs.train):
            given = dataclasses.replace(inputs, train=train, noise=0.1)
            scores = dict.fromkeys(filter_study.BASELINES, (sign * right)[None])
            scores |= {setting.name: right[None] for setting in filter_curves.CHOSEN}
            results = StudyResults(given, (0,), scores | filter_study.given_scores(given))
            points.append(filter_curves.Point(pilot, len(train), results))
    files = filter_curves.write(points, tmp_path, "make it", resamples=5)
    assert [file.name for file in files] == ["filter_study.md", "filter_study.csv", "filter_study.png"]
    rows = {(row["measure"], row["ranking"], row["paths"]): row for row in csv.DictReader(files[1].open())}
    ridge, ours = (rows["Kendall's tau", name, "14"] for name in ("ridge on one-hot tokens", "extended filter, pre-trained"))
    assert [float(ridge[key]) for key in ("mean", "pilot_1", "pilot_2")] == pytest.approx([0, 1, -1])
    assert float(ours["mean"]) == pytest.approx(1) and float(ours["low"]) == pytest.approx(1)
    assert "| extended filter, pre-trained: Kendall's tau | +1.000 (+1.00 to +1.00) |" in files[0].read_text()


def test_the_curves_begin_with_few_paths_of_all_pilots_and_continue_elsewhere(inputs, tmp_path, monkeypatch):
    """The first numbers decide about the options; the archive holds what was evaluated and fitted, and no weights."""
    monkeypatch.chdir(tmp_path)
    profile = load("demo")
    for name in ("digits-filter/pretraining.jsonl", "digits-pilots/11/fit.jsonl", "digits-pilots/11_35/scores.jsonl"):
        file = filter_curves.profile_folder(profile) / name
        file.parent.mkdir(parents=True)
        file.write_text(name)
        file.with_name("weights.h5").write_text("large")
    monkeypatch.setattr(profile.__class__, "check", lambda *arguments: None)
    monkeypatch.setattr(filter_curves, "pretraining_paths", lambda run: None)
    asked = []

    def paths_of(run, per_bucket, device):
        asked.append((per_bucket, run.seed))
        return inputs.train, inputs.test, 0.1

    monkeypatch.setattr(filter_curves, "pilot_paths", paths_of)
    missing = {"11_14", "13_14"}
    monkeypatch.setattr(filter_study, "run", lambda inputs, seeds, where, log, *others: where.name in missing and log("a fit"))
    sizes = []
    points = filter_curves.curves(profile, None, lambda line: None, lambda points: sizes.append(len(points)))
    assert asked[:4] == [(7, 11), (7, 12), (7, 13), (14, 11)] and len(points) == 15
    assert sizes == [3, 15]  # where fits were made, and at the end
    filter_curves.archive_points(profile, tmp_path / "results")
    shutil.rmtree("runs")
    filter_curves.restore_points(profile, tmp_path / "results")
    restored = sorted(str(file.relative_to("runs/profiles/demo")) for file in Path("runs").rglob("*") if file.is_file())
    assert restored == ["digits-filter/pretraining.jsonl", "digits-pilots/11/fit.jsonl", "digits-pilots/11_35/scores.jsonl"]


def test_a_profile_that_starts_no_runs_has_no_curves(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    with pytest.raises(UserError, match="the profile paper does not start runs"):
        filter_curves.curves(load("paper"), None)


def test_the_scores_file_says_what_it_is_of(inputs, study):
    header = json.loads((study / "scores.jsonl").read_text().splitlines()[0])
    assert header["buckets"] == 2 and header["options"]["dim"] == 8 and header["paths"].keys() == inputs.sets.keys()
    assert not {"weights", "block_encoding", "encoding"} & header["options"].keys()
