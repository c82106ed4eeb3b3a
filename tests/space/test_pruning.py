"""Operation pruning, path thresholds and the samplers of paths."""

import json

import numpy as np
import pytest

from nnabla_detofa.common.errors import UserError
from nnabla_detofa.space.costs import CostModel
from nnabla_detofa.space.counting import Buckets
from nnabla_detofa.space.pruning import (
    HashedPaths,
    KeptPaths,
    OperationScores,
    UniformPaths,
    insert,
    operation_scores,
    operations_of,
    path_thresholds,
    prune_operations,
)
from nnabla_detofa.space.search_space import Operation, ofa_resnet50

SPACE = ofa_resnet50()
COST = CostModel(64, 10, "backbone")
BUCKETS = Buckets(SPACE, COST.flops)


def score(batch):
    """A score that likes depth, and knows nothing of width."""
    return 0.1 * batch.depths[:, 1:].sum(axis=1) + 0.01 * (batch.ratios == 2).sum(axis=1)


def bucket_of(batch):
    return BUCKETS.index(COST.flops(batch))


def table(flops, scores):
    """Hand-made scores of the first operations of A."""
    return OperationScores(tuple(sorted(SPACE.operations))[: len(scores)], np.array(scores, float), np.array(flops, float))


def test_an_inserted_operation_fills_its_stage_and_leaves_the_others():
    paths, operation = SPACE.sample_many(np.random.default_rng(0), 20), Operation(2, 1, 0.8, 0.25)
    for before, after in zip(paths, insert(paths, operation)):
        assert (after.stage_depths[2], after.stage_widths[2], after.expand_ratios[2]) == (1, 0.8, (0.25,) * 5)
        assert after.expand_ratios[:2] == before.expand_ratios[:2] and after.stem_widths == before.stem_widths


def test_operation_scores_are_means_over_the_same_paths():
    scores = operation_scores(SPACE, score, COST.stage_flops, 50, np.random.default_rng(0))
    assert len(scores.operations) == 108
    paths = SPACE.sample_many(np.random.default_rng(0), 50)
    changed = insert(paths, scores.operations[40])
    assert scores.scores[40] == pytest.approx(score(changed).mean())
    assert scores.flops[40] == pytest.approx(COST.stage_flops(changed)[:, scores.operations[40].stage].mean())
    assert json.loads(json.dumps(scores.to_json()))["operations"][0] == [0, 0, 0.65, 0.2]


@pytest.mark.parametrize("depth", [0, 2])
def test_operation_scores_at_one_stem_depth_are_of_paths_with_that_stem(depth):
    seen = []

    def stems(batch):
        seen.append(batch.depths[:, 0])
        return score(batch)

    operation_scores(SPACE, stems, COST.stage_flops, 10, np.random.default_rng(0), depth)
    assert len(seen) == 108 and (np.concatenate(seen) == depth).all()


def test_the_three_strategies_by_hand():
    # Two FLOPs buckets of five operations each; the operations of the largest path are not among them.
    scores = table([1, 1, 1, 1, 1, 9, 9, 9, 9, 9], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    first = scores.operations

    def removed(strategy, **ratios):
        pruned = prune_operations(scores, strategy, SPACE.largest, np.random.default_rng(0), buckets=2, **ratios)
        return {first.index(operation) for operation in pruned.removed}

    assert removed("flops_score_bucket", r_op=0.4) == {0, 1, 5, 6}
    # The worst 20% of all are 0 and 1; then the worst 40% of the three and the five that are left.
    assert removed("flops_score_all", r_op1=0.2, r_op2=0.4) == {0, 1, 2, 5, 6}
    at_random = removed("flops", r_op=0.4)
    assert sorted(index // 5 for index in at_random) == [0, 0, 1, 1]
    assert removed("none") == set()


def test_the_largest_path_always_stays_and_the_rule_says_so():
    scores = operation_scores(SPACE, lambda batch: -score(batch), COST.stage_flops, 10, np.random.default_rng(0))
    pruned = prune_operations(scores, "flops_score_all", SPACE.largest, np.random.default_rng(0), r_op1=0.5, r_op2=0.5)
    space = SPACE.without(pruned.removed)
    assert SPACE.largest in space and pruned.spared
    assert {operation for operation, _ in pruned.spared} <= operations_of(SPACE.largest)
    assert "the largest path stays" in pruned.to_json()["spared"][0]


@pytest.mark.parametrize("name", ["r_op", "r_op1", "r_op2"])
def test_ratios_outside_their_range_are_rejected(name):
    with pytest.raises(UserError, match=rf"{name} must be in \[0, 1\), got 25"):
        prune_operations(table([1, 2], [1, 2]), "flops", SPACE.largest, np.random.default_rng(0), **{name: 25})


def test_thresholds_are_quantiles_of_each_bucket():
    thresholds = path_thresholds(score, SPACE, BUCKETS, 0.25, 400, np.random.default_rng(0))
    for bucket in range(5):
        fresh = score(BUCKETS.sample(bucket, 2000, np.random.default_rng(1)))
        assert np.mean(fresh < thresholds[bucket]) == pytest.approx(0.25, abs=0.12)


def test_scores_and_thresholds_do_not_depend_on_the_order_of_the_work():
    def backwards(function, items):
        return [function(item) for item in list(items)[::-1]][::-1]

    def found(mapped):
        rng = np.random.default_rng(0)
        operations = operation_scores(SPACE, score, COST.stage_flops, 10, rng, map_operations=mapped)
        return operations.to_json(), path_thresholds(score, SPACE, BUCKETS, 0.25, 50, rng, mapped).tolist()

    assert found(map) == found(backwards)


def test_an_empty_bucket_has_no_threshold():
    small = SPACE.without({o for o in SPACE.operations if o.width > 0.65})
    thresholds = path_thresholds(score, small, BUCKETS, 0.25, 50, np.random.default_rng(0))
    assert np.isfinite(thresholds[0]) and thresholds[4] == -np.inf


def test_a_ratio_of_zero_rejects_no_path():
    """Figure 10's r = 0; the least of a few scores would refuse the paths below it."""
    thresholds = path_thresholds(score, SPACE, BUCKETS, 0.0, 5, np.random.default_rng(0))
    assert np.all(thresholds == -np.inf)


def test_kept_paths_are_those_of_sampling_one_by_one():
    thresholds = path_thresholds(score, SPACE, BUCKETS, 0.5, 400, np.random.default_rng(0))
    sampler = KeptPaths(SPACE, score, thresholds, bucket_of, np.random.default_rng(3))
    found = [sampler.next() for _ in range(300)]
    rng, expected, draws = np.random.default_rng(3), [], 0
    while len(expected) < 300:
        batch = SPACE.sample_many(rng, 256)
        keep = score(batch) >= thresholds[bucket_of(batch)]
        for path, kept in zip(batch, keep):
            draws += len(expected) < 300
            if kept and len(expected) < 300:
                expected.append(path)
    assert found == expected
    assert (sampler.sampled, sampler.sampled - sampler.rejected) == (draws, 300)
    assert 0.3 < sampler.rejected_share < 0.7


@pytest.mark.parametrize("taken", [0, 1, 100, 256, 300])
def test_a_restored_sampler_continues_with_the_next_path(taken):
    def make(seed):
        thresholds = np.full(5, 0.4)
        return KeptPaths(SPACE, score, thresholds, bucket_of, np.random.default_rng(seed))

    sampler, other = make(0), make(9)
    while sampler.sampled < taken:
        sampler.next()
    other.restore(json.loads(json.dumps(sampler.state())))
    assert [sampler.next() for _ in range(50)] == [other.next() for _ in range(50)]
    assert (sampler.sampled, sampler.rejected) == (other.sampled, other.rejected)


def test_a_checkpoint_of_an_older_version_restores_the_sampler():
    sampler, other = UniformPaths(SPACE, np.random.default_rng(0)), UniformPaths(SPACE, np.random.default_rng(9))
    sampler.next()
    state = sampler.state()
    other.restore({"refused": state.pop("rejected"), **state})
    assert other.rejected == 0 and other.next() == sampler.next()


def test_uniform_paths_are_all_kept():
    sampler = UniformPaths(SPACE, np.random.default_rng(0))
    for _ in range(300):
        sampler.next()
    assert (sampler.sampled, sampler.rejected, sampler.rejected_share) == (300, 0, 0.0)


def test_hashed_paths_drop_a_fixed_share():
    batch = SPACE.sample_many(np.random.default_rng(0), 4000)
    keep = HashedPaths(SPACE, 0.25, 7, np.random.default_rng(1)).keep(batch)
    assert keep.mean() == pytest.approx(0.75, abs=0.03)
    np.testing.assert_array_equal(keep, HashedPaths(SPACE, 0.25, 7, np.random.default_rng(2)).keep(batch))
    assert (keep != HashedPaths(SPACE, 0.25, 8, np.random.default_rng(1)).keep(batch)).any()


def test_a_sampler_that_rejects_everything_says_so():
    with pytest.raises(UserError, match="10000 consecutive paths of the space A were rejected"):
        KeptPaths(SPACE, score, np.full(5, np.inf), bucket_of, np.random.default_rng(0)).next()


def test_a_block_that_was_used_up_is_not_sampled_again():
    sampler, other = UniformPaths(SPACE, np.random.default_rng(0)), UniformPaths(SPACE, np.random.default_rng(9))
    for _ in range(256):
        sampler.next()
    other.restore(json.loads(json.dumps(sampler.state())))
    assert [sampler.next() for _ in range(5)] == [other.next() for _ in range(5)]
