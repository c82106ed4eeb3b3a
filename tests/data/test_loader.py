import dataclasses
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest

from nnabla_detofa import config as configs
from nnabla_detofa.backend.ranks import Communicator
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.data import loader as loading
from nnabla_detofa.data.compact import Sparse
from nnabla_detofa.data.loader import CachedDataset, Loader
from nnabla_detofa.runs.phases import training_phases
from nnabla_detofa.training import runner


def transform(dataset, index, rng):
    """The item and what its generator draws, late for some items so that threads overtake one another."""
    draw = rng.random(2)
    time.sleep(0.002 * (index % 3))
    return np.full(3, dataset[index]), draw


def make_loader(count=10, batch_size=4, **options) -> Loader:
    return Loader(list(range(count)), transform, batch_size, **{"seed": 5, **options})


def assert_same(batch, other):
    for a, b in zip(batch, other):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_are_a_function_of_the_step(workers):
    reference = make_loader(workers=0)
    with make_loader(workers=workers).batches(3) as batches:
        for step in range(3, 12):
            assert_same(next(batches), reference.batch(step))


def test_an_epoch_has_each_item_once_and_an_order_of_its_own():
    loader = make_loader(12)
    epochs = [np.concatenate([loader.indices(epoch * 3 + i) for i in range(len(loader))]) for epoch in range(4)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    straight = make_loader(12, shuffle=False)
    assert np.concatenate([straight.indices(i) for i in range(4)]).tolist() == [*range(12), *range(4)]


def test_the_order_of_an_epoch_is_drawn_once_for_all_its_steps(monkeypatch):
    loader, drawn, default_rng = make_loader(100, 4), [], np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: drawn.append(seed) or default_rng(seed))
    steps = [loader.indices(step) for step in range(30)]
    assert len(drawn) == 2
    np.testing.assert_array_equal(loader.indices(3), steps[3])
    with pytest.raises(ValueError, match="read-only"):
        steps[0][0] = 1


def test_an_item_draws_anew_in_each_epoch_wherever_it_comes():
    loader = make_loader(4, 4)
    first, again, second = (dict(zip(loader.batch(step)[0][:, 0], loader.batch(step)[1][:, 0])) for step in (0, 0, 1))
    assert first == again
    assert all(first[item] != second[item] for item in first)
    assert len(set(first.values())) == 4
    assert make_loader(4, 4, seed=6).batch(0)[1].tolist() != loader.batch(0)[1].tolist()


RUNS = [("voc_detofa", runner) for runner in ("detofa", *configs.BASELINES)]
RUNS += [("imagenet_pretrain", "pretrain"), ("digits_pretrain_ps", "pretrain")]


@pytest.mark.parametrize(("name", "kind"), RUNS)
def test_no_two_phases_share_a_batch(name, kind):
    """Neither orders nor what items draw; phases of one schedule have its epochs in turn."""
    config = configs.load(Path(__file__).parents[2] / "configs" / f"{name}.json", [f"args.runner={kind}"])
    run = SimpleNamespace(config=config, comm=Communicator(), dataloader={"train": range(8)})
    run.sets = SimpleNamespace(train_item=lambda dataset, index, rng, **size: (rng.random(2),))
    orders, draws, items = [], [], 0
    for phase in training_phases(config):
        loader = runner.SupernetRunner.loader(run, dataclasses.replace(phase, batch_size=8))
        for epoch in phase.epochs:
            orders.append(tuple(loader.indices(epoch)))
            draws += [tuple(draw) for draw in loader.batch(epoch)[0]]
            items += 8
    assert len(set(draws)) == items >= 8 * 5
    assert len(orders) - len(set(orders)) <= 5  # of 8! orders a few hundred hardly meet
    names = [phase.schedule_name for phase in training_phases(config)]
    assert len(names) == len(set(names)) + {"detofa": 1, "ofa": 1, "compofa": 1, "ofa_ps": 2}.get(kind, 0)


def test_seeds_of_several_numbers():
    first, again, other = (make_loader(4, 4, seed=seed).batch(0) for seed in ((5, 1), (5, 1), (5, 2)))
    assert_same(first, again)
    assert first[1].tolist() != other[1].tolist()


def test_generators_of_order_and_items_differ():
    """SeedSequence takes (seed, epoch) and (seed, epoch, 0) for the same."""
    draws = make_loader(4, 4, shuffle=False).batch(0)[1]
    assert not (draws == np.random.default_rng((5, 0)).random(2)).all(1)[1:].any()
    assert not (draws == np.random.default_rng((5, 0, 4)).random(2)).all(1).any()


def test_last_batch():
    assert len(make_loader()) == 2 and len(make_loader(drop_last=False)) == 3
    smaller = make_loader(drop_last=False, shuffle=False)
    assert [len(smaller.batch(step)[0]) for step in range(4)] == [4, 4, 2, 4]
    assert len(make_loader(3, 4, drop_last=False).batch(0)[0]) == 3


def test_ranks_share_each_batch():
    whole, parts = make_loader(), [make_loader(rank=rank, size=2) for rank in range(2)]
    for step in range(5):
        batches = [part.batch(step) for part in parts]
        assert_same([np.concatenate(arrays) for arrays in zip(*batches)], whole.batch(step))


def test_errors_surface_in_the_consumer_and_end_the_threads():
    def failing(dataset, index, rng):
        if index == 6:
            raise UserError("image 6 is broken")
        return transform(dataset, index, rng)

    loader = Loader(list(range(12)), failing, 4, seed=0, shuffle=False)
    batches = loader.batches()
    assert next(batches)[0][:, 0].tolist() == [0, 1, 2, 3]
    with pytest.raises(UserError, match="image 6 is broken"):
        next(batches)
    assert next(batches, None) is None


def test_threads_stack_their_own_items_and_items_have_one_shape(monkeypatch):
    names, add = set(), loading._Stack.add
    monkeypatch.setattr(loading._Stack, "add", lambda *given: names.add(threading.current_thread().name) or add(*given))
    with make_loader(workers=2).batches() as batches:
        next(batches)
    assert names and all(name.startswith("loader") for name in names)

    def ragged(dataset, index, rng):
        return (np.zeros(1 + index % 2),)

    with pytest.raises(ValueError, match=r"equal shapes and types, got float64 \(.,\) beside float64 \(.,\)"):
        Loader(range(4), ragged, 4, seed=0).batch(0)


def test_sparse_arrays_of_different_sizes_are_stacked():
    def item(dataset, index, rng):
        return np.array([index]), Sparse(np.arange(index), np.ones(index, np.float32), (2, 3))

    for workers in (0, 2):
        with Loader(range(4), item, 4, seed=0, shuffle=False, workers=workers).batches() as batches:
            numbers, arrays = next(batches)
        assert numbers.ravel().tolist() == [0, 1, 2, 3] and arrays.shape == (4, 2, 3)
        assert np.asarray(arrays).sum((1, 2)).tolist() == [0, 1, 2, 3]


def test_closing_ends_the_threads_and_only_a_few_batches_are_made_ahead():
    before, made = threading.active_count(), []

    def counting(dataset, index, rng):
        made.append(index)
        return (np.zeros(1),)

    batches = Loader(list(range(100)), counting, 2, seed=0, workers=3, ahead=2).batches()
    next(batches)
    while len(made) < 2 * (1 + 2):
        time.sleep(0.001)
    time.sleep(0.05)  # for more that should not come
    assert len(made) == 2 * (1 + 2)
    assert threading.active_count() > before
    batches.close()
    batches.close()
    assert threading.active_count() == before and list(batches) == []


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"batch_size": 11}, {"batch_size": 3, "size": 2}])
def test_impossible_batches_are_refused(options):
    with pytest.raises(UserError, match="batch_size must be .*got"):
        make_loader(**options)


def test_impossible_ranks_are_refused():
    with pytest.raises(ValueError, match="rank must be"):
        make_loader(rank=2, size=2)
    with pytest.raises(ValueError, match="drop_last must be true"):
        make_loader(size=2, drop_last=False)
    with pytest.raises(UserError, match="at most the number of images, 0"):
        make_loader(0, 4, drop_last=False)


class Item(NamedTuple):
    image: np.ndarray


class Counted:
    classes = ("cat",)

    def __init__(self):
        self.loads = []

    def __len__(self):
        return 3

    def load(self, index):
        self.loads.append(index)
        return Item(np.full((10, 10), index, np.uint8))


def test_cache_keeps_what_fits():
    cached = CachedDataset(Counted(), max_bytes=250)
    for _ in range(2):
        assert [cached.load(i).image[0, 0] for i in range(3)] == [0, 1, 2]
    assert cached.loads == [0, 1, 2, 2]
    assert len(cached) == 3 and cached.classes == ("cat",)
    with pytest.raises(ValueError, match="read-only"):
        cached.load(0).image[0, 0] = 1
    with pytest.raises(AttributeError):
        cached.nothing  # noqa: B018
