import math
import time
from dataclasses import replace

import numpy as np
import pytest
from parity import FLOPS, failed, flops_check, parameter_checks
from scipy.stats import chi2_contingency, chisquare, ks_2samp
from small import GEOMETRY, PRUNED, SPACE, every_path, probabilities, random_geometry

from nnabla_detofa.common.errors import UserError
from nnabla_detofa.space.costs import CostModel, cost_range
from nnabla_detofa.space.counting import Buckets, count_within, sample_within, share_within
from nnabla_detofa.space.geometry import Geometry, HeadGeometry
from nnabla_detofa.space.paths import Path
from nnabla_detofa.space.search_space import Operation, compofa, ofa_resnet50, shrinking_stages

A = ofa_resnet50()

# One stage of one or two layers. Channels: stem 3 -> 8 (-> 8) -> 16, stage 16 -> 32 with 8 in the middle.
TINY = Geometry(
    depths=(0, 1), widths=(1.0,), ratios=(0.25,), base_depths=(1,), stage_channels=(32,), strides=(2,), stem_channels=16
)
SMALLEST = Path(0, (1.0, 1.0), (0,), (1.0,), ((0.25,),))
LARGEST = Path(1, (1.0, 1.0), (1,), (1.0,), ((0.25, 0.25),))
# Input 9 x 7: 5 x 4 after the stem's first convolution, 3 x 2 after the max-pool, 2 x 1 after the stage.
STEM = 9 * 3 * 8 * 20 + 9 * 8 * 16 * 20
RESIDUAL = 9 * 8 * 8 * 20
FIRST = 16 * 8 * 6 + 9 * 8 * 8 * 2 + 8 * 32 * 2 + 16 * 32 * 2
SECOND = 32 * 8 * 2 + 9 * 8 * 8 * 2 + 8 * 32 * 2


@pytest.mark.parametrize("entry", FLOPS, ids=lambda entry: str(entry["image_size"]))
def test_flops_are_those_of_the_reference(entry):
    assert flops_check(entry).ok


def test_parameters_of_the_fullnet_are_those_of_the_reference():
    checks = parameter_checks()
    assert failed(checks) == []
    assert checks[0].reference == 46077482


def test_flops_by_hand():
    model = CostModel((9, 7), scope="backbone", backbone=TINY)
    assert model.flops([SMALLEST, LARGEST]).tolist() == [STEM + FIRST, STEM + RESIDUAL + FIRST + SECOND]
    assert model.stage_flops([SMALLEST, LARGEST]).tolist() == [[FIRST], [FIRST + SECOND]]
    classifier = CostModel((9, 7), num_classes=3, backbone=TINY)
    assert classifier.flops([SMALLEST])[0] == STEM + FIRST + 32 * 3


def test_parameters_by_hand():
    model = CostModel((9, 7), num_classes=3, backbone=TINY)
    stem = (9 * 3 * 8 + 16) + (9 * 8 * 16 + 32)
    first = (16 * 8 + 16) + (9 * 8 * 8 + 16) + (8 * 32 + 64) + (16 * 32 + 64)
    second = (32 * 8 + 16) + (9 * 8 * 8 + 16) + (8 * 32 + 64)
    linear = 32 * 3 + 3
    assert model.params([SMALLEST, LARGEST]).tolist() == [
        stem + first + linear,
        stem + (9 * 8 * 8 + 16) + first + second + linear,
    ]


def test_the_detector_by_hand():
    head = HeadGeometry(num_classes=3, deconv_channels=(8, 16), head_channels=4)
    model = CostModel((9, 7), scope="detector", backbone=TINY, head=head)
    # The up-convolutions see 2 x 1 and 4 x 2 pixels; the heads work on 8 x 4.
    flops = 16 * 32 * 8 * 2 + 16 * 8 * 16 * 8 + 3 * (9 * 16 * 4 * 32) + (4 * 3 + 4 * 2 + 4 * 2) * 32
    params = (16 * 32 * 8 + 16) + (16 * 8 * 16 + 32) + 3 * (9 * 16 * 4 + 4) + (4 * 3 + 3) + 2 * (4 * 2 + 2)
    backbone = CostModel((9, 7), scope="backbone", backbone=TINY)
    assert model.flops([SMALLEST])[0] - backbone.flops([SMALLEST])[0] == flops
    assert model.params([SMALLEST])[0] - backbone.params([SMALLEST])[0] == params


def test_memory_by_hand():
    """4 bytes for each value alive in the largest layer; TINY on 9 x 7: 63, 20, 6 and 2 pixels."""
    backbone = CostModel((9, 7), scope="backbone", backbone=TINY)
    # Of the smallest path: 8 and 16 channels in and out of the stem's last convolution; its max-pool would need 16 * 26.
    assert backbone.memory([SMALLEST, LARGEST]).tolist() == [4 * (8 + 16) * 20] * 2
    # The first layer: three convolutions with the input beside; then the branch, the pooled input and its projection.
    first = max(
        (16 + 8) * 6, 16 * 6 + 8 * 6 + 8 * 2, 16 * 6 + 8 * 2 + 32 * 2, 32 * 2 + 16 * 6 + 16 * 2, 32 * 2 + 16 * 2 + 32 * 2
    )
    assert backbone.memory.stages([SMALLEST]).tolist() == [[4 * first]] == [[4 * 192]]
    # Three heads of 200 channels on 2 x 1 pixels: the last reads the map of 32 while two outputs of 2 + 2 wait.
    head = HeadGeometry(num_classes=2, deconv_channels=(), head_channels=200)
    detector = CostModel((9, 7), scope="detector", backbone=TINY, head=head)
    assert detector.memory.head.tolist() == [4 * (2 + 2 + 32 + 200) * 2]


def test_a_stage_may_be_one_layer():
    one = CostModel((9, 7), scope="backbone", backbone=replace(TINY, depths=(0,)))
    whole = CostModel((9, 7), scope="backbone", backbone=TINY)
    for cost, same in ((one.flops, whole.flops), (one.memory, whole.memory)):
        assert cost.stages([SMALLEST]).tolist() == same.stages([SMALLEST]).tolist()


def test_a_hundred_thousand_paths_cost_a_second_or_less():
    batch, model = A.sample_many(np.random.default_rng(0), 100_000), CostModel(384, 20, "detector")
    start = time.process_time()
    model.flops(batch), model.params(batch), model.memory(batch)
    assert time.process_time() - start < 1  # 0.09 on the machine it was written on


def test_ten_thousand_paths_of_the_top_bucket_take_ten_seconds_or_less():
    buckets = Buckets(A, CostModel(384, 20, "detector"))
    start = time.process_time()
    assert len(buckets.sample(4, 10_000, np.random.default_rng(0))) == 10_000
    assert time.process_time() - start < 10  # 0.1 on the machine it was written on, tables included


def test_memory_cannot_be_sampled_as_if_it_added_up():
    with pytest.raises(TypeError, match="memory does not add up over layers"):
        count_within(SPACE, CostModel(64, backbone=GEOMETRY).memory, 0, 1e6)


def test_the_default_head_has_the_models_classes():
    named = CostModel(384, 20, "detector"), CostModel(384, scope="detector", head=HeadGeometry(20))
    assert named[0].flops([A.largest]) == named[1].flops([A.largest])


def test_many_paths_cost_what_each_costs():
    model, batch = CostModel([96, 128], scope="detector"), A.sample_many(np.random.default_rng(0), 50)
    assert hash(model) == hash(CostModel((96, 128), scope="detector"))
    for cost in (model.flops, model.params, model.memory):
        assert cost(batch).dtype == np.int64
        assert cost(batch).tolist() == cost(list(batch)).tolist() == [cost([path])[0] for path in batch]
    assert (model.stage_flops(batch).sum(axis=1) < model.flops(batch)).all()
    assert len(model.flops([])) == 0


def test_paths_of_another_supernet_are_rejected():
    with pytest.raises(ValueError, match="FLOPs are known for"):
        CostModel().flops(SPACE.sample_many(np.random.default_rng(0), 2))
    with pytest.raises(ValueError, match="FLOPs are known for"):
        cost_range(SPACE, CostModel())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scope": "heads"}, "scope must be classifier, backbone or detector, got 'heads'"),
        ({"image_size": 0}, "image_size must be a positive integer or .*, got 0"),
        ({"image_size": (1, 2, 3)}, "image_size must be"),
        ({"num_classes": 0}, "num_classes must be an integer of 1 or more, got 0"),
        ({"num_classes": 2.5}, "num_classes must be an integer of 1 or more, got 2.5"),
    ],
)
def test_cost_model_errors(arguments, message):
    with pytest.raises(UserError, match=message):
        CostModel(**arguments)


SMALL_MODEL = CostModel(64, backbone=GEOMETRY)


SMALL_SPACES = [SPACE, PRUNED, compofa(GEOMETRY), *shrinking_stages(GEOMETRY)]


@pytest.mark.parametrize("space", SMALL_SPACES, ids=lambda space: space.name)
@pytest.mark.parametrize("cost", [SMALL_MODEL.flops, SMALL_MODEL.params], ids=lambda cost: cost.name)
def test_counts_and_shares_are_those_of_the_enumeration(space, cost):
    paths = every_path(space)
    costs, chances = cost(paths), probabilities(space)
    assert cost_range(space, cost) == (costs.min(), costs.max())
    assert count_within(space, cost, -math.inf, math.inf) == space.size()
    # Bounds on, just above and just below costs that exist, and between them.
    points = np.quantile(costs, [0, 0.1, 0.5, 0.51, 1], method="nearest")
    for low in (*points, *(points + 0.5), *(points + 1)):
        for high in (*points, *(points + 1), math.inf):
            inside = (costs >= low) & (costs < high)
            assert count_within(space, cost, low, high) == inside.sum()
            assert share_within(space, cost, low, high) == pytest.approx(chances[inside].sum(), abs=1e-12)


@pytest.mark.thorough
@pytest.mark.parametrize("seed", range(12))
def test_random_spaces_are_counted_as_their_enumeration_is(seed):
    """Odd supernets, pruned at random: bounds on FLOPs and memory that are costs of paths."""
    rng = np.random.default_rng(seed)
    space = ofa_resnet50(random_geometry(rng), bool(rng.integers(2)))
    free = sorted(space.operations)
    kept = {next(op for op in free if op.stage == stage) for stage in range(space.geometry.stages)}
    space = space.without(op for op in free if op not in kept and rng.random() < 0.3)
    model = CostModel(tuple(rng.integers(5, 70, 2).tolist()), 3, str(rng.choice(("backbone", "detector"))), space.geometry)
    paths = every_path(space)
    assert len(paths) == space.size()
    memory, chances = model.memory(paths), probabilities(space)
    assert cost_range(space, model.memory) == (memory.min(), memory.max())
    for cost in (model.flops, model.params):
        costs = cost(paths)
        assert cost_range(space, cost) == (costs.min(), costs.max())
        found = Buckets(space.parent, cost, 3).index(costs)
        for bucket in range(3):
            assert Buckets(space.parent, cost, 3).count(bucket, space) == (found == bucket).sum()
        for most in rng.choice(memory, 3):
            low, high = np.sort(rng.choice(costs, 2))
            inside = (costs >= low) & (costs <= high) & (memory <= most)
            both = model.memory.forbid(cost, most)
            assert count_within(space, both, low, high + 1) == inside.sum()
            assert share_within(space, both, low, high + 1) == pytest.approx(chances[inside].sum(), abs=1e-12)
            if inside.any():
                drawn = sample_within(space, both, low, high + 1, 200, rng)
                assert set(drawn.keys.tolist()) <= set(paths[inside].keys.tolist())


@pytest.mark.parametrize("space", [SPACE, PRUNED, compofa(GEOMETRY)], ids=lambda space: space.name)
@pytest.mark.parametrize("bucket", [0, 2, 4])
def test_bucket_sampling_is_uniform_sampling_given_the_bucket(space, bucket):
    buckets = Buckets(SPACE, SMALL_MODEL)
    inside = buckets.index(SMALL_MODEL.flops(every_path(space))) == bucket
    paths, chances = every_path(space)[inside], probabilities(space)[inside]
    if not len(paths):
        assert buckets.count(bucket, space) == 0
        return
    assert buckets.count(bucket, space) == len(paths)
    assert buckets.share(bucket, space) == pytest.approx(chances.sum())
    n = 20 * len(paths)
    drawn = buckets.sample(bucket, n, np.random.default_rng(bucket), space)
    row = {key: index for index, key in enumerate(paths.keys.tolist())}
    seen = np.bincount([row[key] for key in drawn.keys.tolist()], minlength=len(paths))
    assert chisquare(seen, chances / chances.sum() * n).pvalue > 1e-3


def test_paths_that_keep_a_bound_on_memory_too_are_sampled_uniformly():
    paths = every_path(SPACE)
    flops, memory = SMALL_MODEL.flops(paths), SMALL_MODEL.memory(paths)
    most, (low, high) = np.median(memory), np.quantile(flops, [0.3, 0.7])
    cost = SMALL_MODEL.memory.forbid(SMALL_MODEL.flops, most)
    inside = (flops >= low) & (flops < high) & (memory <= most)
    chances = probabilities(SPACE)[inside]
    assert 0 < count_within(SPACE, cost, low, high) == inside.sum() < ((flops >= low) & (flops < high)).sum()
    n = 20 * inside.sum()
    drawn = sample_within(SPACE, cost, low, high, n, np.random.default_rng(0))
    row = {key: index for index, key in enumerate(paths[inside].keys.tolist())}
    seen = np.bincount([row[key] for key in drawn.keys.tolist()], minlength=len(row))
    assert chisquare(seen, chances / chances.sum() * n).pvalue > 1e-3


BACKBONE = CostModel(224, scope="backbone")


@pytest.fixture(scope="module")
def rejected():
    """Uniform draws of A, and their FLOPs."""
    drawn = A.sample_many(np.random.default_rng(0), 500_000)
    return drawn, BACKBONE.flops(drawn)


@pytest.mark.parametrize("bucket", [1, 2, 3])
def test_the_middle_buckets_of_a_agree_with_rejection(bucket, rejected):
    """Two samples of the same distribution: costs by Kolmogorov and Smirnov, every choice by a contingency table."""
    drawn, flops = rejected
    buckets = Buckets(A, BACKBONE)
    inside = buckets.index(flops) == bucket
    share = buckets.share(bucket)
    assert inside.mean() == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / len(drawn)))
    kept = drawn[np.flatnonzero(inside)[:20_000]]
    assert len(kept) > 800
    exact = buckets.sample(bucket, 20_000, np.random.default_rng(1))
    assert ks_2samp(BACKBONE.flops(exact), BACKBONE.flops(kept)).pvalue > 1e-3
    for ours, theirs in ((exact.depths, kept.depths), (exact.widths, kept.widths), (exact.ratios, kept.ratios)):
        for one, other in zip(ours.T, theirs.T):
            table = np.array([np.bincount(column + 1, minlength=4) for column in (one, other)])
            table = table[:, table.sum(axis=0) >= 10]
            if table.shape[1] > 1:
                assert chi2_contingency(table).pvalue > 1e-5  # 87 tables over the three buckets


SPACES = [A, compofa(), *shrinking_stages(), A.without([Operation(2, 0, 0.65, 0.2), Operation(0, 2, 0.8, 0.35)])]


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
def test_buckets_cut_the_space_into_five(space):
    model, rng = CostModel(384, 20, "detector"), np.random.default_rng(0)
    buckets = Buckets(space, model)
    assert np.diff(buckets.edges) == pytest.approx((buckets.edges[-1] - buckets.edges[0]) / 5)
    assert sum(buckets.count(bucket) for bucket in range(5)) == space.size()
    assert sum(buckets.share(bucket) for bucket in range(5)) == pytest.approx(1, abs=1e-9)
    for bucket in range(5):
        if buckets.count(bucket):
            batch = buckets.sample(bucket, 200, rng)
            assert (buckets.index(model.flops(batch)) == bucket).all() and space.contains_many(batch).all()
    assert buckets.index(model.flops([space.largest])) == [4]


@pytest.mark.parametrize("space", [SPACE, PRUNED, compofa(GEOMETRY)], ids=lambda space: space.name)
def test_the_range_of_memory_is_that_of_the_enumeration(space):
    memory = SMALL_MODEL.memory(every_path(space))
    assert cost_range(space, SMALL_MODEL.memory) == (memory.min(), memory.max())


def test_the_extremes_of_a_are_its_smallest_and_largest_paths():
    model = CostModel(224)
    smallest = Path.from_ofa({"d": [0] * 5, "e": [0.2] * 18, "w": [0] * 6})
    assert cost_range(A, model) == tuple(model.flops([smallest, A.largest]))
    assert cost_range(A, model.params) == tuple(model.params([smallest, A.largest]))


def test_edges_stay_when_the_space_is_pruned():
    model = CostModel(224)
    buckets = Buckets(A, model)
    pruned = A.without(op for op in A.operations if op.depth == 2)
    assert buckets.count(4, pruned) == 0 and buckets.share(4, pruned) == 0
    with pytest.raises(UserError, match=r"bucket 4 \(.* GFLOPs\) holds no path of the space A pruned"):
        buckets.sample(4, 1, np.random.default_rng(0), pruned)
    batch = buckets.sample(1, 100, np.random.default_rng(0), pruned)
    assert pruned.contains_many(batch).all() and (buckets.index(model.flops(batch)) == 1).all()


def test_a_budget_names_the_buckets_that_it_reaches():
    """A path's cost is whole: half a unit below one leaves it out, half a unit above adds nothing."""
    buckets, costs = Buckets(SPACE, SMALL_MODEL), np.unique(SMALL_MODEL.flops(every_path(SPACE)))
    found = buckets.index(costs)
    for first in (costs[found == bucket].min() for bucket in np.unique(found)):
        for budget in (first - 0.5, first, first + 0.5):
            intervals = buckets.below(budget)
            assert len(intervals) == len(np.unique(found[costs <= budget]))
            assert all(((least <= costs) & (costs <= most)).any() for least, most in intervals)
            assert all(most == np.floor(most) <= budget for _, most in intervals)


def test_costs_outside_the_edges_are_clipped():
    buckets = Buckets(A, CostModel(224))
    edges = buckets.edges
    assert buckets.index([0, edges[0], edges[1] - 1, edges[1] + 1, edges[5], 2 * edges[5]]).tolist() == [0, 0, 0, 1, 4, 4]
    assert buckets.interval(0)[0] == -math.inf and buckets.interval(4)[1] == math.inf
    with pytest.raises(ValueError, match="bucket must be from 0 to 4, got 5"):
        buckets.share(5)
    with pytest.raises(UserError, match="number of buckets must be 1 or more, got 0"):
        Buckets(A, CostModel(224), 0)


def test_sampling_depends_on_the_generator_alone():
    buckets = Buckets(A, CostModel(224))
    first, second = (buckets.sample(3, 50, np.random.default_rng(5)) for _ in range(2))
    assert (first.keys == second.keys).all()


def test_an_empty_interval_names_what_is_reachable():
    with pytest.raises(UserError, match=r"no path from 0 GFLOPs up to .* 0.1 GFLOPs; reachable are 0.9609 to 7.49 GFLOPs"):
        sample_within(A, CostModel(224), 0, 1e8, 1, np.random.default_rng(0))


def test_a_space_of_one_path():
    space = shrinking_stages()[0].without(op for op in shrinking_stages()[0].operations if op.depth < 2)
    fixed = space.without([])
    assert fixed.size() == 2  # the stem's depth is still free
    buckets = Buckets(fixed, CostModel(224))
    assert [buckets.count(bucket) for bucket in range(5)] == [1, 0, 0, 0, 1]
    assert list(buckets.sample(4, 3, np.random.default_rng(0))) == [A.largest] * 3


@pytest.mark.parametrize("wrong", [None, 5, [1, 2, 3], [-1, 2], [float("nan"), 1], "ab", [None, 1]])
@pytest.mark.parametrize("method", ["middle_cost", "head_cost"])
def test_a_method_of_a_subclass_that_returns_nonsense_is_named(method, wrong):
    wrong = wrong if method == "middle_cost" or wrong != [1, 2, 3] else [1, 2]
    model = type("Odd", (CostModel,), {method: lambda self, *arguments: wrong})(64, 3, "detector")
    with pytest.raises(UserError, match=rf"^{method} of the cost model must return \[MACs, parameters.*, got "):
        _ = model.flops


@pytest.mark.thorough
def test_the_rarest_costs_are_sampled_in_their_proportions():
    """The last bucket has 1e-14 of the paths: a difference of two sums near 1 would leave a few of its costs."""
    deep = Geometry(base_depths=(6, 6, 8, 6), width_scale=1 / 16)
    model = CostModel(32, 10, "backbone", deep)
    buckets = Buckets(ofa_resnet50(deep), model, 12)
    assert 0 < buckets.share(11) < 1e-12 and sum(map(buckets.share, range(12))) == pytest.approx(1)
    costs = model.flops(buckets.sample(11, 400, np.random.default_rng(0)))
    assert (buckets.index(costs) == 11).all() and len(np.unique(costs)) > 200
