import sys
import time

import numpy as np
import pytest
from small import GEOMETRY, PRUNED, SPACE, every_path

from nnabla_detofa.common.errors import UserError
from nnabla_detofa.evolution import (
    Constraint,
    NoPath,
    at_most,
    between,
    crossover_many,
    first_population,
    front,
    mutate_many,
    search,
)
from nnabla_detofa.space.costs import CostModel
from nnabla_detofa.space.counting import Buckets, sample_within
from nnabla_detofa.space.geometry import Geometry, HeadGeometry
from nnabla_detofa.space.paths import PathBatch
from nnabla_detofa.space.search_space import compofa, ofa_resnet50

A = ofa_resnet50()
MODEL = CostModel(64, backbone=GEOMETRY)


def additive_score(geometry, seed=0):
    """A synthetic score: a sum of one random value per choice."""
    rng = np.random.default_rng(seed)
    layers, places = np.arange(geometry.layers), np.arange(geometry.stages + 2)
    per_ratio = rng.normal(size=(geometry.layers, len(geometry.ratios) + 1))  # the last column, -1, is a skipped layer
    per_width = rng.normal(size=(geometry.stages + 2, len(geometry.widths)))
    return lambda batch: per_ratio[layers, batch.ratios].sum(axis=1) + per_width[places, batch.widths].sum(axis=1)


@pytest.mark.parametrize("space", [SPACE, PRUNED], ids=lambda space: space.name)
@pytest.mark.parametrize("quantile", [0.02, 0.5, 1])
def test_finds_the_best_feasible_path(space, quantile):
    score, paths = additive_score(GEOMETRY), every_path(space)
    costs = MODEL.flops(paths)
    budget = np.quantile(costs, quantile)
    feasible = paths[costs <= budget]
    found = search(space, score, MODEL, budget, np.random.default_rng(0), generations=60)
    assert found.score == pytest.approx(score(feasible).max())
    assert found.cost == MODEL.flops([found.path])[0] <= budget
    assert found.path in space


def test_the_smallest_budget_leaves_the_smallest_path():
    smallest = MODEL.flops(every_path(SPACE)).min()
    score = additive_score(GEOMETRY)
    found = search(SPACE, score, MODEL, smallest, np.random.default_rng(0), generations=3, mutate_prob=1)
    assert found.cost == smallest and found.scored == 1
    assert 0 < found.left_out <= 3 * 50  # mutants hardly ever hit the one path; crossovers of it with itself do


def test_scores_each_path_once_and_only_feasible_ones():
    score, budget, seen = additive_score(A.geometry), 2.5e9, []
    model = CostModel(224)

    def watched(batch):
        assert (model.flops(batch) <= budget).all()
        seen.extend(batch.keys.tolist())
        return score(batch)

    found = search(A, watched, model, budget, np.random.default_rng(0), generations=40)
    assert len(seen) == len(set(seen)) == found.scored
    assert len(found.history) == 41 and list(found.history) == sorted(found.history)
    assert found.history[-1] == found.score == pytest.approx(score(PathBatch.from_paths([found.path]))[0])
    assert found.history[-1] > found.history[0]


def test_the_same_generator_gives_the_same_search():
    one, two, other = (
        search(A, additive_score(A.geometry), CostModel(224), 3e9, np.random.default_rng(seed), 20, progress=None)
        for seed in (1, 1, 2)
    )
    assert one == two != other


def test_progress_is_reported_for_each_generation():
    heard = []
    found = search(
        SPACE, additive_score(GEOMETRY), MODEL, 1e12, np.random.default_rng(0), 5, progress=lambda *news: heard.append(news)
    )
    assert heard == list(enumerate(found.history))[1:]


def test_an_impossible_budget_names_what_is_reachable():
    with pytest.raises(UserError, match="budget 0.1 GFLOPs is below the smallest path; reachable are 0.9609 to 7.49 GFLOPs"):
        search(A, additive_score(A.geometry), CostModel(224), 1e8, np.random.default_rng(0))


def test_further_constraints_hold_too():
    model = CostModel(224)
    # Three paths in a million have so few parameters, so this bound must be the one that paths are drawn from.
    bound = at_most(model.params, 5.5e6)
    found = search(A, additive_score(A.geometry), model, 4e9, np.random.default_rng(0), generations=30, constraints=[bound])
    assert model.params([found.path])[0] <= 5.5e6 and found.cost <= 4e9


def test_any_function_can_be_the_cost():
    def layers(batch):
        return (batch.ratios >= 0).sum(axis=1)

    found = search(A, additive_score(A.geometry), layers, 11, np.random.default_rng(0), generations=20)
    assert found.cost <= 11
    with pytest.raises(
        UserError, match="none of 136500 paths sampled from the space A, nor of those bred from them, has cost <= 9; allow more"
    ):
        search(A, additive_score(A.geometry), layers, 9, np.random.default_rng(0))


def test_the_first_population_is_uniform_below_the_budget():
    costs = MODEL.flops(every_path(SPACE))
    budget = float(np.quantile(costs, 0.05)) + 0.5
    first = first_population(SPACE, [at_most(MODEL, budget)], 500, np.random.default_rng(0))
    again = sample_within(SPACE, MODEL, -np.inf, np.floor(budget) + 1, 500, np.random.default_rng(0))
    assert len(first) == 500 and (first.keys == again.keys).all() and (MODEL.flops(first) <= budget).all()


@pytest.mark.parametrize(
    "arguments", [{"parent_ratio": 2}, {"mutate_prob": -0.1}, {"mutation_ratio": 25}, {"population": 0}, {"generations": -1}]
)
def test_argument_errors_name_the_argument(arguments):
    (name,) = arguments
    with pytest.raises(UserError, match=name.rstrip("s")):
        search(SPACE, additive_score(GEOMETRY), MODEL, 1e12, np.random.default_rng(0), **arguments)


@pytest.mark.parametrize("population", [1, 2, 3])
def test_the_smallest_populations_climb_too(population):
    found = search(SPACE, additive_score(GEOMETRY), MODEL, 1e12, np.random.default_rng(0), 30, population)
    assert found.scored > 10 and found.history[-1] > found.history[0]


def test_a_front_rejects_the_same_arguments():
    for arguments in ({"mutate_prob": 2}, {"population": 0}, {"generations": -1}):
        with pytest.raises(UserError, match=next(iter(arguments)).rstrip("s")):
            front(SPACE, additive_score(GEOMETRY), MODEL, np.random.default_rng(0), **arguments)


def test_a_score_of_nan_is_rejected():
    with pytest.raises(ValueError, match="NaN"):
        search(SPACE, lambda batch: np.full(len(batch), np.nan), MODEL, 1e12, np.random.default_rng(0))


@pytest.mark.parametrize("space", [A, compofa(), A.without(op for op in A.operations if op.depth == 2 and op.ratio < 0.3)])
def test_children_stay_inside_the_space(space):
    rng = np.random.default_rng(0)
    parents = space.sample_many(rng, 1000), space.sample_many(rng, 1000)
    for child in (mutate_many(space, parents[0], 0.3, rng), crossover_many(space, *parents, rng)):
        assert space.contains_many(child).all()
        assert (PathBatch.canonical(child.depths, child.widths, child.ratios, child.geometry).keys == child.keys).all()


def test_parents_from_outside_the_space_have_children_inside():
    rng = np.random.default_rng(0)
    parents = A.sample_many(rng, 500), A.sample_many(rng, 500)
    pruned = A.without(op for op in A.operations if op.ratio == 0.2)
    child = crossover_many(pruned, *parents, rng)
    assert pruned.contains_many(child).all()


def test_the_mutation_rate_is_the_share_of_resampled_choices():
    rng = np.random.default_rng(0)
    parents = A.sample_many(rng, 20_000)
    assert (mutate_many(A, parents, 0.0, rng).keys == parents.keys).all()
    child = mutate_many(A, parents, 0.1, rng)
    # A redrawn choice among three differs two times in three; the stem's depth has two choices; (D, W) has nine.
    changed = (child.depths != parents.depths).mean(axis=0)
    np.testing.assert_allclose(changed, [0.05, *[0.1 * 2 / 3] * 4], atol=0.006)
    np.testing.assert_allclose((child.widths != parents.widths).mean(axis=0), 0.1 * 2 / 3, atol=0.006)
    assert (child.ratios != parents.ratios)[:, 0].mean() == pytest.approx(0.1 * 2 / 3, abs=0.006)


def test_crossover_takes_each_choice_from_a_parent():
    rng = np.random.default_rng(0)
    first, second = A.sample_many(rng, 2000), A.sample_many(rng, 2000)
    child = crossover_many(A, first, second, rng)
    for ours, one, two in (
        (child.depths, first.depths, second.depths),
        (child.widths, first.widths, second.widths),
        (child.ratios, first.ratios, second.ratios),
    ):
        known = (one >= 0) & (two >= 0) & (ours >= 0)
        assert ((ours == one) | (ours == two) | ~known).all()
        differ = known & (one != two)
        assert (ours == one)[differ].mean() == pytest.approx(0.5, abs=0.02)
    same = crossover_many(A, first, first, rng)
    assert (same.keys == first.keys).all()


def test_constraint_text():
    assert Constraint("latency", len, 12.5, "ms").text(12.5) == "12.5 ms"


@pytest.mark.parametrize("share", [0, 0.2, 0.5, 0.8, 0.95, 1])
def test_bounds_that_are_a_paths_very_costs_allow_it(share):
    """The fewest parameters, then the least memory, of all paths with so many FLOPs or more; nothing is to spare."""
    paths = every_path(SPACE)
    flops, params, memory = MODEL.flops(paths), MODEL.params(paths), MODEL.memory(paths)
    least = np.quantile(flops, share, method="nearest")
    fewest = params[flops >= least].min()
    lowest = memory[(flops >= least) & (params == fewest)].min()
    allowed = paths[(flops >= least) & (params <= fewest) & (memory <= lowest)]
    bounds = [between(MODEL, least, np.inf), at_most(MODEL.params, fewest), at_most(MODEL.memory, lowest)]
    found = first_population(SPACE, bounds, 20, np.random.default_rng(0))
    assert len(found) and set(found.keys.tolist()) <= set(allowed.keys.tolist())


def test_the_first_population_comes_straight_from_a_rare_bucket():
    """At the paper's size one path in a million is in the top bucket."""
    space, cost = ofa_resnet50(), CostModel(384, 20, "detector").flops
    low, high = Buckets(space, cost).edges[-2:]
    bounds = (at_most(cost, high), Constraint("FLOPs", cost, high, "GFLOPs", 1e9, np.ceil(low)))
    found = first_population(space, bounds, 50, np.random.default_rng(0))
    assert len(found) == 50 and cost(found).min() >= low


def test_bounds_on_memory_are_sampled_exactly_with_an_additive_one():
    paths = every_path(SPACE)
    flops, memory = MODEL.flops(paths), MODEL.memory(paths)
    budget, most = np.quantile(flops, 0.3), np.quantile(memory, 0.2)
    bounds = (at_most(MODEL, budget), at_most(MODEL.memory, most))
    allowed = set(paths[(flops <= budget) & (memory <= most)].keys.tolist())
    drawn = first_population(SPACE, bounds, 50 * len(allowed), np.random.default_rng(0))
    assert set(drawn.keys.tolist()) == allowed


def test_bounds_that_exclude_each_other_are_known_without_sampling():
    model = CostModel(384, 20, "detector")
    least = model.memory([A.largest])[0] - 1
    bounds = (between(model, model.flops([A.largest])[0], np.inf), at_most(model.memory, least))
    with pytest.raises(NoPath, match=r"no path of the space A has FLOPs from .* to inf GFLOPs and memory <= .* MB; allow more"):
        first_population(A, bounds, 10, np.random.default_rng(0))


def test_500_generations_take_seven_seconds_or_less_besides_scoring():
    start = time.process_time()
    search(A, additive_score(A.geometry), CostModel(384, 20, "detector"), 15e9, np.random.default_rng(0))
    assert time.process_time() - start < 7  # 0.7 on the machine it was written on


def hypervolume(costs, scores, worst):
    """Area that the points dominate, up to `worst`: (largest cost, smallest score)."""
    from pymoo.indicators.hv import HV

    return HV(np.array([worst[0], -worst[1]], float))(np.column_stack([costs, -np.asarray(scores)]).astype(float))


@pytest.mark.parametrize("space", [SPACE, PRUNED], ids=lambda space: space.name)
def test_the_front_of_a_small_space_is_that_of_the_enumeration(space):
    score, paths = additive_score(GEOMETRY), every_path(space)
    costs, scores = MODEL.flops(paths), score(paths)
    found = front(space, score, MODEL, np.random.default_rng(0), generations=40, population=60)
    assert (np.diff(found.costs) > 0).all() and (np.diff(found.scores) > 0).all()
    assert (MODEL.flops(found.paths) == found.costs).all() and space.contains_many(found.paths).all()
    worst = costs.max() + 1, scores.min()
    assert hypervolume(found.costs, found.scores, worst) > 0.995 * hypervolume(costs, scores, worst)


@pytest.mark.thorough
def test_one_front_equals_many_searches():
    """On A: against a search for each of eight budgets that scores more paths in all."""
    score, model = additive_score(A.geometry), CostModel(224)
    budgets = np.linspace(1.2e9, 7e9, 8)
    singles = [search(A, score, model, budget, np.random.default_rng(1), 40) for budget in budgets]
    found = front(A, score, model, np.random.default_rng(0), generations=100)
    assert found.scored < sum(single.scored for single in singles)
    worst = 8e9, -20
    theirs = hypervolume([single.cost for single in singles], [single.score for single in singles], worst)
    assert hypervolume(found.costs, found.scores, worst) > theirs
    for budget, single in zip(budgets, singles):
        assert found.scores[found.costs <= budget].max() > single.score - 0.5


def test_a_front_keeps_hard_bounds_and_depends_on_the_generator_alone():
    model, seen = CostModel(224), []
    bounds = [between(model, 2e9, 3e9), at_most(model.memory, 6e6)]

    def watched(batch):
        assert ((model.flops(batch) >= 2e9) & (model.flops(batch) <= 3e9) & (model.memory(batch) <= 6e6)).all()
        seen.extend(batch.keys.tolist())
        return additive_score(A.geometry)(batch)

    one, two = (front(A, watched, model, np.random.default_rng(3), 5, 20, constraints=bounds) for _ in range(2))
    assert one.scored == two.scored == len(seen) / 2 == len(set(seen))
    assert (one.paths.keys == two.paths.keys).all()


def test_a_front_without_pymoo_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "nnabla_detofa.evolution.nsga2", None)
    with pytest.raises(UserError, match=r"a Pareto front needs pymoo, .* install nnabla-detofa\[search\]"):
        front(SPACE, additive_score(GEOMETRY), MODEL, np.random.default_rng(0))


def test_a_combination_that_sampling_misses_is_found_by_breeding():
    """Of the third FLOPs bucket only a few of its smallest paths have so few parameters."""
    geometry = Geometry(width_scale=0.125, strides=(1, 2, 2, 1))
    space, model = ofa_resnet50(geometry), CostModel(112, 10, "detector", geometry, HeadGeometry(10, (64, 64), 16))
    buckets = Buckets(space, model.flops)
    low, high = buckets.interval(2)
    bounds = [between(model.flops, low, high - 1), at_most(model.params, 540_000)]
    found = first_population(space, bounds, 50, np.random.default_rng(0))
    assert len(found) == len(np.unique(found.keys)) == 50
    assert (buckets.index(model.flops(found)) == 2).all() and model.params(found).max() <= 540_000
