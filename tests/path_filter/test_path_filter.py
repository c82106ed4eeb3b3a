"""The path filter: tokens, positional encodings, invariances, gradients, files."""

import json
from dataclasses import replace

import h5py
import nnabla as nn
import numpy as np
import pytest

from nnabla_detofa.common.errors import UserError
from nnabla_detofa.config import Filter
from nnabla_detofa.path_filter.model import PathFilter, PathScorer
from nnabla_detofa.path_filter.tokens import Tokenizer, positional_encoding
from nnabla_detofa.space.geometry import OFA_RESNET50
from nnabla_detofa.space.paths import Path
from nnabla_detofa.space.search_space import ofa_resnet50
from nnabla_detofa.training.filter_fitting import TRANSFERRED_SETTINGS, given_filter

SPACE = ofa_resnet50()
SMALL = {"dim": 16, "heads": 2, "layers": 1, "feed_forward": 16}


def make(seed=0, **settings) -> PathFilter:
    return PathFilter(**SMALL | settings, rng=np.random.default_rng(seed))


def test_the_papers_own_example():
    """(D, W, E) = (0, 1.0, (0.25, 0.35)) is "W1.0_E0.25 W1.0_E0.35 SC SC"."""
    arch = {"d": [0] * 5, "e": [0.25, 0.35] + [0.2] * 16, "w": [0, 2, 2, 0, 0, 0]}
    words = Tokenizer(stem_tokens=False).words(Path.from_ofa(arch))
    assert words[:4] == ["W1.0_E0.25", "W1.0_E0.35", "SC", "SC"]
    assert len(words) == 18 and len(Tokenizer(stem_tokens=False).vocabulary) == 10
    with_stem = Tokenizer().words(Path.from_ofa(arch))
    assert with_stem[3:] == words and len(set(with_stem[:3])) == 3
    assert with_stem[1] == "SC"  # the stem's residual convolution is skipped at depth 0


def test_equal_tokens_are_equal_paths():
    batch = SPACE.sample_many(np.random.default_rng(0), 3000)
    tokens = Tokenizer()(batch)
    assert len(np.unique(tokens, axis=0)) == len(np.unique(batch.keys))


def test_positional_encodings_by_hand():
    found = positional_encoding(np.arange(4), 6)
    np.testing.assert_allclose(found[2, :2], [np.sin(2), np.cos(2)], rtol=1e-5)
    np.testing.assert_allclose(found[2, 2:4], [np.sin(2 / 10000 ** (2 / 3)), np.cos(2 / 10000 ** (2 / 3))], rtol=1e-5)
    usual = positional_encoding(np.arange(4), 6, "transformer")
    np.testing.assert_allclose(usual[3, 2], np.sin(3 / 10000 ** (2 / 6)), rtol=1e-5)


@pytest.mark.parametrize("ensemble", [1, 3])
def test_scores_do_not_depend_on_the_chunk(ensemble):
    path_filter, batch = make(ensemble=ensemble), SPACE.sample_many(np.random.default_rng(0), 300)
    buckets = np.arange(300) % 5
    scores = path_filter.score(batch, buckets)
    alone = np.concatenate([path_filter.score(batch[i : i + 1], buckets[i : i + 1]) for i in (0, 17, 299)])
    np.testing.assert_allclose(scores[[0, 17, 299]], alone, rtol=1e-5)
    assert len(np.unique(scores)) > 250


def test_the_bucket_and_the_block_encoding_change_scores():
    batch = SPACE.sample_many(np.random.default_rng(0), 20)
    path_filter, without = make(), make(block_encoding=False)
    without.set_weights(path_filter.get_weights())
    zeros = np.zeros(20, int)
    assert not np.allclose(path_filter.score(batch, zeros), path_filter.score(batch, zeros + 3))
    assert not np.allclose(path_filter.score(batch, zeros), without.score(batch, zeros))


@pytest.mark.parametrize("settings", [{"pooling": "mean"}, {"pooling": "concat", "linear_skip": True}, {"ensemble": 2}])
def test_every_parameter_gets_a_gradient(settings):
    path_filter, batch = make(**settings), SPACE.sample_many(np.random.default_rng(0), 64)
    inputs = (Tokenizer()(batch), np.arange(64) % 5)
    scores = path_filter(*map(nn.Variable.from_numpy_array, inputs))
    trained = {name: p for member in path_filter.members for name, p in member.get_parameters().items()}
    for parameter in trained.values():
        parameter.grad.zero()
    scores.forward()
    scores.backward(np.random.default_rng(1).normal(size=64))
    assert [name for name, p in trained.items() if not np.abs(p.g).sum() > 0] == []


@pytest.mark.parametrize("pooling, ensemble, linear_skip", [("mean", 1, False), ("concat", 1, True), ("mean", 3, True)])
def test_a_saved_filter_scores_alike_and_names_a_mismatch(tmp_path, pooling, ensemble, linear_skip):
    path_filter = make(pooling=pooling, ensemble=ensemble, linear_skip=linear_skip)
    batch = SPACE.sample_many(np.random.default_rng(0), 10)
    path_filter.standardize(batch, np.zeros(10, int))
    path_filter.save(tmp_path / "f.h5")
    buckets = np.zeros(10, int)
    for other in (PathFilter.load(tmp_path / "f.h5"), path_filter.copy()):
        np.testing.assert_array_equal(other.score(batch, buckets), path_filter.score(batch, buckets))
    with pytest.raises(UserError, match=r"f\.h5 was made with dim 16; this run has 128"):
        PathFilter.load(tmp_path / "f.h5", dim=128)
    with pytest.raises(UserError, match=rf"was made with pooling {pooling}; this run has max"):
        PathFilter.load(tmp_path / "f.h5", pooling="max")
    (tmp_path / "bad.h5").write_text("no")
    with pytest.raises(UserError, match=r"bad\.h5"):
        PathFilter.load(tmp_path / "bad.h5")


def test_a_score_is_the_mean_of_the_standardized_logits():
    """By hand: in a bucket each member's logits have mean 0 and variance 1, whatever their own spread."""
    path_filter, batch = make(ensemble=2, linear_skip=True), SPACE.sample_many(np.random.default_rng(0), 40)
    path_filter.members[1].scale(100.0)
    buckets = np.arange(40) % 4  # the fifth bucket is empty
    path_filter.standardize(batch, buckets)
    logits, scores = path_filter.logits(batch, buckets), path_filter.score(batch, buckets)
    for bucket in range(4):
        inside = logits[:, buckets == bucket]
        expected = np.mean([(row - row.mean()) / row.std() for row in inside], axis=0)
        np.testing.assert_allclose(scores[buckets == bucket], expected, atol=1e-4)
    assert np.isfinite(path_filter.score(batch, np.full(40, 4))).all()


def test_equal_logits_have_no_spread(monkeypatch):
    """The deviation of seven times 0.1 in single precision is 7.5e-9; divided by that, a new path would get a huge score."""
    path_filter = make(ensemble=2)
    logits = np.repeat([[0.1] * 7 + [1.0, 3.0]], 2, axis=0).astype(np.float32)
    monkeypatch.setattr(path_filter, "logits", lambda batch, buckets: logits)
    path_filter.standardize(None, np.array([0] * 7 + [1] * 2))
    np.testing.assert_allclose(path_filter._spreads.d[:, :2], 1.0)


def test_a_filter_without_the_skip_that_it_was_trained_with_is_refused(tmp_path):
    """Its transformer was trained for what the skip leaves over, and ranks nothing alone."""
    make(linear_skip=True).save(tmp_path / "f.h5")
    options = Filter(weights=str(tmp_path / "f.h5"), **{name: make().settings[name] for name in TRANSFERRED_SETTINGS})
    with pytest.raises(UserError, match=r"f\.h5 has a linear skip.*: set hparams\.filter\.linear_skip=true"):
        given_filter(options, 5, OFA_RESNET50)
    assert given_filter(replace(options, linear_skip=True), 5, OFA_RESNET50).settings["linear_skip"]


def test_a_filter_begins_with_the_weights_of_one_with_fewer_members_and_no_skip():
    path_filter, batch, buckets = make(), SPACE.sample_many(np.random.default_rng(0), 10), np.arange(10) % 5
    extended = path_filter.extended(ensemble=3, linear_skip=True)
    for logits in extended.logits(batch, buckets):
        np.testing.assert_array_equal(logits, path_filter.score(batch, buckets))
    two = make(ensemble=2).extended(ensemble=1, linear_skip=False)
    np.testing.assert_array_equal(two.score(batch, buckets), make(ensemble=2).logits(batch, buckets)[0])


def test_the_skip_is_one_weight_for_each_token_at_each_place():
    path_filter, batch = make(linear_skip=True), SPACE.sample_many(np.random.default_rng(0), 20)
    buckets, (member,) = np.arange(20) % 5, path_filter.members
    before, values = path_filter.score(batch, buckets), np.random.default_rng(1).normal(size=member.skip.shape)
    member.skip.d = values
    tokens = path_filter.tokenizer(batch)
    words = len(path_filter.tokenizer.vocabulary)
    rows = np.column_stack([buckets, 5 + words * np.arange(tokens.shape[1]) + tokens])
    np.testing.assert_allclose(path_filter.score(batch, buckets) - before, values[rows, 0].sum(1), atol=1e-4)


def test_an_older_file_is_of_one_member_with_the_mean_and_no_skip(tmp_path):
    path_filter, batch = make(), SPACE.sample_many(np.random.default_rng(0), 10)
    path_filter.save(tmp_path / "f.h5")
    with h5py.File(tmp_path / "f.h5", "r+") as opened:
        settings = json.loads(opened.attrs["path_filter"])
        for name in ("pooling", "linear_skip", "ensemble"):
            del settings[name]
        opened.attrs["path_filter"] = json.dumps(settings)
    loaded, buckets = PathFilter.load(tmp_path / "f.h5", pooling="mean"), np.zeros(10, int)
    np.testing.assert_array_equal(loaded.score(batch, buckets), path_filter.score(batch, buckets))


@pytest.mark.parametrize("wrong", [{"heads": 3}, {"encoding": "usual"}, {"pooling": "max"}, {"ensemble": 0}])
def test_settings_that_are_not_allowed_are_named(wrong):
    (name,) = wrong
    with pytest.raises(UserError, match=name):
        make(**wrong)


def test_the_scorer_finds_the_buckets_itself():
    path_filter, batch = make(), SPACE.sample_many(np.random.default_rng(0), 10)
    scorer = PathScorer(path_filter, lambda paths: np.arange(len(paths)), lambda flops: flops % 5)
    np.testing.assert_array_equal(scorer(batch), path_filter.score(batch, np.arange(10) % 5))


@pytest.mark.parametrize("pooling", ["mean", "concat"])
def test_scores_start_almost_equal(pooling):
    """From a wide spread the pair loss of one seed in four drove every score to one end of the sigmoid, for good."""
    for seed in range(3):
        path_filter = PathFilter(pooling=pooling, rng=np.random.default_rng(seed))
        scores = path_filter.score(SPACE.sample_many(np.random.default_rng(seed), 100), np.arange(100) % 5)
        assert 0 < scores.std() < 0.2 and np.abs(scores).max() < 1
