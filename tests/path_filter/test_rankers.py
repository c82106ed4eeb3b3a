"""Rankings beside the path filter's, by hand and on made-up paths."""

import numpy as np
import pytest

from nnabla_detofa.path_filter.metrics import kendall_tau
from nnabla_detofa.path_filter.rankers import (
    ENTROPY,
    GAUSSIAN,
    PAIRWISE,
    SKIP,
    TREES,
    entropy,
    pairwise_ridge,
    rival_scores,
    true_orders,
)
from nnabla_detofa.path_filter.tokens import Tokenizer, one_hot
from nnabla_detofa.space.paths import Path, PathBatch
from nnabla_detofa.space.search_space import ofa_resnet50

SPACE = ofa_resnet50()


def test_every_ranking_learns_an_additive_performance():
    batch = SPACE.sample_many(np.random.default_rng(0), 240)
    losses = 5 - 2.0 * (batch.depths[:, 0] == 2) - batch.depths[:, 1:] @ [0.2, 0.3, 0.5, 0.8]
    found = rival_scores(Tokenizer(), batch[:160], losses[:160], batch[160:])
    assert found.keys() == {SKIP, PAIRWISE, TREES, GAUSSIAN, ENTROPY}
    for name in (SKIP, PAIRWISE, TREES, GAUSSIAN):
        assert kendall_tau(found[name], losses[160:]) > 0.75, name


def test_the_pairwise_ridge_learns_a_product_and_equals_the_explicit_one():
    """Its kernel is the inner product of the columns and of their products: with the same penalty, the same prediction."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 2, (60, 3))
    columns = one_hot(tokens, 2)
    goodness = (tokens[:, 0] ^ tokens[:, 1]) + rng.normal(0, 0.01, 60)
    goodness -= goodness.mean()
    predicted = pairwise_ridge(columns[:40], goodness[:40], columns[40:], 3)
    assert np.corrcoef(predicted, goodness[40:])[0, 1] > 0.99
    products = np.einsum("ni,nj->nij", columns, columns).reshape(60, -1) / 3
    explicit = np.column_stack([columns / np.sqrt(3), products])
    np.testing.assert_allclose(explicit @ explicit.T, columns @ columns.T / 3 + (columns @ columns.T / 3) ** 2)


def test_the_entropy_by_hand():
    """One residual convolution in the stem multiplies the variance by 9 * 32 / 2; nothing else differs."""
    arch = {"d": [0] * 5, "e": [0.2] * 18, "w": [2] * 6}
    paths = [Path.from_ofa(arch | {"d": depths}) for depths in ([0] * 5, [2, 0, 0, 0, 0], [0, 1, 0, 0, 0])]
    plain, with_stem, deeper = entropy(PathBatch.from_paths(paths, SPACE.geometry))
    assert with_stem - plain == pytest.approx(np.log(9 * 32 / 2))
    middle = SPACE.geometry.middle(256, 0.2)
    assert deeper - plain == pytest.approx(np.log(256 / 2) + np.log(9 * middle / 2) + np.log(middle / 2))


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.3])
def test_true_orders_have_the_requested_noise(noise):
    """Truth and measured loss correlate as they must: the squared correlation is 1 - noise."""
    rng = np.random.default_rng(0)
    buckets = np.repeat([0, 1], 2000)
    losses = rng.normal(size=4000) + 10 * buckets
    truth = true_orders(losses, buckets, noise, 3, rng)
    for bucket in (0, 1):
        inside = buckets == bucket
        for draw in truth[:, inside]:
            assert np.corrcoef(-draw, losses[inside])[0, 1] ** 2 == pytest.approx(1 - noise, abs=0.03)
            assert draw.var() == pytest.approx((1 - noise) * losses[inside].var(), rel=0.1)
