"""Choices of a path beside those of its stem and stages, in counts, samples, costs, tokens, pruning and evolution."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from small import every_path, probabilities

from nnabla_detofa.common.errors import UserError
from nnabla_detofa.evolution import front, search
from nnabla_detofa.evolution.operators import crossover_many, mutate_many
from nnabla_detofa.path_filter.tokens import Tokenizer
from nnabla_detofa.space import counting
from nnabla_detofa.space.convolution import Convolution
from nnabla_detofa.space.costs import CostModel, PeakCost, cost_range
from nnabla_detofa.space.counting import Buckets, count_within, sample_within, share_within
from nnabla_detofa.space.geometry import Choices, Geometry, HeadGeometry
from nnabla_detofa.space.operations import Option
from nnabla_detofa.space.paths import Path, PathBatch
from nnabla_detofa.space.pruning import operation_scores, operations_of, prune_operations
from nnabla_detofa.space.search_space import SearchSpace, ofa_resnet50, shrinking_stages

GEOMETRY = Geometry(
    depths=(0, 1),
    widths=(0.5, 1.0),
    ratios=(0.2, 0.35),
    base_depths=(1, 1),
    stage_channels=(32, 64),
    strides=(1, 2),
    stem_channels=16,
    width_scale=0.5,
    named=(("image", (32, 64)), ("up1", (0.5, 1.0)), ("heads", (0.5, 0.75, 1.0)), ("label", ("a", "b"))),
)
SPACE = ofa_resnet50(GEOMETRY)
PRUNED = SPACE.without([Option("up1", 1.0), Option("heads", 0.75)])


class AnySize(CostModel):
    """Costs at the path's own image size, on which every layer depends."""

    def at(self, named):
        return replace(super().at(named), image_size=named["image"])


COST = AnySize(64, 3, "detector", GEOMETRY, HeadGeometry(3, (16, 8), 8))


def test_every_value_is_an_axis_only_where_it_matters():
    assert COST.flops.stem.shape == (2, 2, 2, 2, 1, 1, 1) and COST.flops.head.shape == (2, 2, 2, 3, 1)
    assert COST.params.stem.shape == (2, 2, 2, 1, 1, 1, 1), "parameters do not depend on the image"


@pytest.mark.thorough
@pytest.mark.parametrize("space", [SPACE, PRUNED])
@pytest.mark.parametrize("limit", [counting.FEW_PARTS, 0])
def test_counts_and_samples_are_those_of_all_paths(space, limit, monkeypatch):
    monkeypatch.setattr(counting, "FEW_PARTS", limit)
    counting._joint.cache_clear()
    batch, rng = every_path(space), np.random.default_rng(0)
    assert len(batch) == space.size() and space.contains_many(batch).all()
    mass = probabilities(space)
    for cost in (COST.flops, COST.params):
        costs = cost(batch)
        assert cost_range(space, cost) == (costs.min(), costs.max())
        kinds = {type(part) for part in counting._joint(space, cost).parts}
        assert kinds == {Convolution if limit == 0 else counting._Joint}
        for low, high in np.quantile(costs, [[0, 0.1], [0.3, 0.31], [0.5, 0.9]]):
            inside = (low <= costs) & (costs < high)
            assert count_within(space, cost, low, high) == inside.sum()
            assert share_within(space, cost, low, high) == pytest.approx(mass[inside].sum())
        low, high = np.quantile(costs, [0.4, 0.402])
        inside = (low <= costs) & (costs < high)
        sampled = sample_within(space, cost, low, high, 20_000, rng)
        found = Counter(sampled.keys.tolist())
        assert set(found) == set(batch[inside].keys.tolist()), "nothing outside, and everything inside"
        expected = mass[inside] / mass[inside].sum() * len(sampled)
        deviation = [(found[key] - n) / np.sqrt(n) for key, n in zip(batch[inside].keys.tolist(), expected)]
        assert np.abs(deviation).max() < 5
    counting._joint.cache_clear()


def test_counts_of_more_than_2_to_the_63_paths_are_exact():
    ratios = tuple(n / 16 for n in range(1, 17))  # these and the widths give layers few different costs
    net = Geometry(widths=(0.5, 1.0), ratios=ratios, width_scale=0.0625, named=(("heads", (0.5, 1.0)),))
    space = ofa_resnet50(net)
    cost = CostModel(64, 3, "detector", net, HeadGeometry(3, (8, 8), 8)).flops
    assert space.size() > 2**70
    least, most = cost_range(space, cost)
    middle = (least + most) // 2
    parts = [count_within(space, cost, *edges) for edges in ((-np.inf, middle), (middle, np.inf))]
    assert sum(parts) == space.size() and min(parts) > 0
    sampled = sample_within(space, cost, least, least + (most - least) // 20, 100, np.random.default_rng(0))
    assert (cost(sampled) < least + (most - least) // 20).all() and len(set(sampled.keys.tolist())) > 90


@pytest.mark.thorough
def test_costs_with_too_many_values_are_sampled_but_not_counted(monkeypatch):
    monkeypatch.setattr(counting, "MAX_PARTS", 0)
    monkeypatch.setattr("nnabla_detofa.space.convolution.MAX_CELLS", 300)
    counting._joint.cache_clear()
    batch, cost = every_path(SPACE), COST.flops
    low, high = np.quantile(cost(batch), [0.3, 0.31])
    inside = (low <= cost(batch)) & (cost(batch) < high)
    sampled = sample_within(SPACE, cost, low, high, 5000, np.random.default_rng(0))
    assert set(sampled.keys.tolist()) == set(batch[inside].keys.tolist())
    assert share_within(SPACE, cost, low, high) >= probabilities(SPACE)[inside].sum()
    with pytest.raises(UserError, match="too many choices to count paths exactly by this cost.*round its tables"):
        count_within(SPACE, cost, low, high)
    counting._joint.cache_clear()


def test_a_forbidden_peak_is_not_sampled(monkeypatch):
    monkeypatch.setattr(counting, "FEW_PARTS", 0)
    counting._joint.cache_clear()
    peak = COST.memory
    assert isinstance(peak, PeakCost)
    batch = every_path(SPACE)
    limit = float(np.quantile(peak(batch), 0.2))
    both = peak.forbid(COST.flops, limit)
    sampled = sample_within(SPACE, both, -np.inf, 2**52, 500, np.random.default_rng(0))
    assert (peak(sampled) <= limit).all()
    counting._joint.cache_clear()


def test_files_and_batches_keep_them():
    path = PRUNED.sample(np.random.default_rng(1))
    notation = json.loads(json.dumps(path.to_ofa(GEOMETRY)))
    assert Path.from_ofa(notation, GEOMETRY) == path and dict(path.named)["up1"] == 0.5
    assert list(PathBatch.from_paths([path], GEOMETRY)) == [path]
    for space in (SPACE, PRUNED):
        again = SearchSpace.from_json(json.loads(json.dumps(space.to_json())))
        assert again == space and again.size() == space.size()
    assert "up1: 0.5" in str(PRUNED) and "label: *" in str(PRUNED)
    plain = ofa_resnet50(replace(GEOMETRY, named=()))
    assert "named" not in plain.to_json()["geometry"] and "named" not in plain.largest.to_ofa(plain.geometry)


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"image": 32, "up1": 1.0, "heads": 1.0}, "the choice label of a path must be a or b, got no value"),
        ({"image": 32, "up1": 0.7, "heads": 1.0, "label": "a"}, "the choice up1 of a path must be 0.5 or 1.0, got 0.7"),
        ({"upp": 1.0}, "must hold only image, up1, heads and label, got 'upp'; did you mean up1"),
        ([1.0], "named of a path must be an object of names and values"),
    ],
)
def test_a_wrong_choice_is_one_sentence(named, words):
    notation = SPACE.largest.to_ofa(GEOMETRY)
    with pytest.raises(UserError, match=words):
        Path.from_ofa(notation | {"named": named}, GEOMETRY)
    with pytest.raises(UserError, match="must be left out, since its space has no named choices, got"):
        Path.from_ofa(notation, replace(GEOMETRY, named=()))


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ((("a", (1, 2)), ("a", (1, 2))), "must have a different name for each choice, got a, a"),
        ((("a", ()),), "must be 1 to 100, in ascending order"),
        ((("a", (2, 1)),), "must be 1 to 100, in ascending order"),
        (("ab",), "must be pairs of a name and its values"),
        ((("a", (1, "b")),), "must be pairs of a name and its values"),
    ],
)
def test_wrong_choices_of_a_geometry_are_one_sentence(named, words):
    with pytest.raises(UserError, match=words):
        Geometry(named=named)
    assert Geometry(named=[["a", [1, 2]]]).named == (Choices("a", (1, 2)),)


def test_a_space_needs_a_value_of_each():
    with pytest.raises(UserError, match="has no value left of the choice up1; each needs one"):
        SPACE.without([Option("up1", 0.5), Option("up1", 1.0)])
    with pytest.raises(UserError, match="up1 0.7 is not an operation of the space"):
        SPACE.without([Option("up1", 0.7)])
    with pytest.raises(UserError, match="combinations; costs allow at most 10000"):
        CostModel(64, 3, "detector", Geometry(named=tuple((f"c{n}", tuple(range(50))) for n in range(3)))).flops  # noqa: B018


def test_tokens_determine_the_path():
    batch = every_path(SPACE)
    tokenizer = Tokenizer(GEOMETRY)
    tokens = tokenizer(batch)
    assert tokens.shape == (len(batch), tokenizer.length) and len(np.unique(tokens, axis=0)) == len(batch)
    assert tokens.max() < len(tokenizer.vocabulary)
    assert tokenizer.words(SPACE.largest)[-4:] == ["image_64", "up1_1.0", "heads_1.0", "label_b"]
    plain = Tokenizer(replace(GEOMETRY, named=()))
    assert tokenizer.vocabulary[: len(plain.vocabulary)] == plain.vocabulary, "tokens of older filters keep their numbers"


def test_scores_and_pruning_find_the_worse_values():
    rng = np.random.default_rng(0)

    def score(paths: PathBatch) -> np.ndarray:
        return paths.named[:, 1] * 2.0 - paths.named[:, 2] + 0.01 * paths.depths.sum(axis=1)

    scores = operation_scores(SPACE, score, COST.stage_flops, 30, rng)
    assert scores.operations[-9:] == tuple(
        Option(name, value) for name, values in sorted(GEOMETRY.named) for value in values
    ), "options follow the operations of the stages"
    found = dict(zip(scores.operations, scores.scores))
    assert found[Option("up1", 1.0)] - found[Option("up1", 0.5)] == pytest.approx(2)
    pruned = prune_operations(scores, "flops_score_bucket", SPACE.largest, rng, r_op=0.3)
    assert Option("up1", 0.5) in pruned.removed and not pruned.removed & operations_of(SPACE.largest)
    assert SPACE.without(pruned.removed).contains_many(SPACE.without(pruned.removed).sample_many(rng, 200)).all()
    json.dumps(pruned.to_json() | scores.to_json())


def test_evolution_reaches_everything_and_leaves_nothing():
    rng = np.random.default_rng(0)
    batch = PRUNED.sample_many(rng, 4000)
    one, other = batch[:2000], batch[2000:]
    for bred in (mutate_many(PRUNED, one, 0.3, rng), crossover_many(PRUNED, one, other, rng)):
        assert PRUNED.contains_many(bred).all()
        assert len(np.unique(bred.named, axis=0)) == 2 * 1 * 2 * 2
    same = crossover_many(PRUNED, one, one, rng)
    assert (same.keys == one.keys).all()
    budget = float(np.quantile(COST.flops(batch), 0.5))
    found = search(PRUNED, lambda paths: paths.named.sum(axis=1) * 1.0, COST.flops, budget, rng, 10, 20)
    assert found.path in PRUNED and found.cost <= budget
    best = front(PRUNED, lambda paths: paths.named.sum(axis=1) * 1.0, COST.flops, rng, 5, 20)
    assert PRUNED.contains_many(best.paths).all() and best.scores[-1] == 1 + 0 + 2 + 1


def test_buckets_hold_all_paths():
    buckets = Buckets(SPACE, COST.flops, 4)
    assert sum(buckets.count(bucket) for bucket in range(4)) == SPACE.size()


def test_progressive_shrinking_starts_with_the_largest_values():
    first, second, *_, last = shrinking_stages(GEOMETRY)
    assert [len(values) for _, values in first.named] == [1, 1, 1, 1]
    assert dict(second.named)["heads"] == (0.75, 1.0) and last.named == GEOMETRY.named


@pytest.mark.parametrize("limit", [counting.FEW_PARTS, 0])
@pytest.mark.parametrize("space", [SPACE, PRUNED, ofa_resnet50(replace(GEOMETRY, named=()))])
def test_no_paths_can_be_sampled(space, limit, monkeypatch):
    """A config may ask for none, for example with heldout_paths_per_bucket=0."""
    monkeypatch.setattr(counting, "FEW_PARTS", limit)
    counting._joint.cache_clear()
    cost = (COST if space.geometry.named else CostModel(64, 3, "detector", space.geometry, HeadGeometry(3, (16, 8), 8))).flops
    rng, other = np.random.default_rng(0), np.random.default_rng(0)
    assert len(sample_within(space, cost, -np.inf, np.inf, 0, rng)) == 0
    assert rng.random() == other.random(), "and no random number is taken"
