"""How a batch is cut, into mini-batches or over processes, changes memory and time, not what is trained."""

import nnabla as nn
import numpy as np
import pytest
from joined_processes import PipeCommunicator, together, values_of

from nnabla_detofa.backend.ranks import Communicator
from nnabla_detofa.config import Solver
from nnabla_detofa.data.loader import Loader
from nnabla_detofa.data.targets import make_targets
from nnabla_detofa.networks.centernet import Detector
from nnabla_detofa.networks.layers import STORED
from nnabla_detofa.networks.supernet import Classifier
from nnabla_detofa.runs.phases import Schedule
from nnabla_detofa.space.geometry import Geometry, HeadGeometry
from nnabla_detofa.space.pruning import UniformPaths
from nnabla_detofa.space.search_space import ofa_resnet50
from nnabla_detofa.training.loop import build, new_optimizer, normalizers, own_counts, train

SMALL = Geometry(
    depths=(0, 1),
    widths=(0.5, 1.0),
    ratios=(0.25, 0.5),
    base_depths=(1, 1),
    stage_channels=(16, 32),
    strides=(2, 2),
    stem_channels=8,
)
SPACE = ofa_resnet50(SMALL)
SHALLOW = min(SPACE.sample_many(np.random.default_rng(0), 500), key=lambda path: (path.stage_depths, path.stem_depth))
SKIPPED = ("blocks/1/", "blocks/3/")  # the second layer of each stage, which deeper paths have
SOLVERS = {
    "Sgd": {"lr": 0.01, "weight_decay": 1e-3},
    "Momentum": {"lr": 1e-3, "weight_decay": 1e-3},
    "Nesterov": {"lr": 1e-3, "weight_decay": 1e-3},
    "Adam": {"lr": 1e-4, "weight_decay": 1e-3},
    "AdamW": {"lr": 1e-4, "weight_decay": 1e-2},
}


class FrozenClassifier(Classifier):
    """Without batch normalization's dependence on the cut: it takes the stored statistics in training too."""

    def trunk(self, x, path, statistics=STORED):
        return super().trunk(x, path, STORED)


class FrozenDetector(Detector):
    def trunk(self, x, path, statistics=STORED):
        return super().trunk(x, path, STORED)


def labeled(dataset, index, rng):
    return rng.normal(size=(3, 32, 32)).astype(np.float32), np.array([index % 3])


def boxed(dataset, index, rng):
    """An image with as many objects as its index says, so that mini-batches have different numbers of them."""
    corners = np.random.default_rng(index).uniform(0, 5, (index % 4, 2))
    targets = make_targets(np.concatenate([corners, corners + 2], axis=1), np.arange(index % 4) % 2, 2, (8, 8), 4)
    return rng.normal(size=(3, 32, 32)).astype(np.float32), *targets


def classifier():
    return FrozenClassifier(3, SMALL, zero_init_residual=False, rng=np.random.default_rng(0))


def detector():
    return FrozenDetector(HeadGeometry(2, (8, 8), 8), SMALL, zero_init_residual=False, rng=np.random.default_rng(0))


class OneDeep:
    """The largest path once, which gives every layer its moments, and then one that skips layers."""

    def __init__(self, space, rng):
        self.paths = iter([space.largest])

    def next(self):
        return next(self.paths, SHALLOW)

    def state(self):
        return {}


def trained(comm, make=classifier, solver="Adam", mini_batch=8, steps=20, paths_per_step=1, sampler=UniformPaths):
    """Weights after each step on batches of 8 images, and the losses."""
    net, ranks, rate = make(), comm.n_procs, SOLVERS[solver]["lr"]
    options = Solver(solver, **SOLVERS[solver], schedule="constant")
    optimizer = new_optimizer(net, options, Schedule(rate, "constant", steps))
    item = boxed if isinstance(net, Detector) else labeled
    loader = Loader(range(12), item, 8, seed=0, workers=0, rank=comm.rank, size=ranks)
    inputs = [nn.Variable((mini_batch, *array.shape[1:])) for array in loader.batch(0)]
    weights, losses = [], []

    def on_step(progress):
        weights.append({name: parameter.d.copy() for name, parameter in net.get_parameters(grad_only=True).items()})
        losses.append(progress.losses)

    train(
        net,
        optimizer,
        sampler(SPACE, np.random.default_rng(1)),
        loader,
        inputs,
        range(steps),
        accumulate=8 // ranks // mini_batch,
        paths_per_step=paths_per_step,
        comm=comm,
        on_step=on_step,
    )
    return weights, losses


def assert_near(found, expected):
    for name, value in expected[0][-1].items():
        np.testing.assert_allclose(found[0][-1][name], value, rtol=0, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-4)


ALONE = Communicator()


@pytest.mark.thorough
@pytest.mark.parametrize("solver", SOLVERS)
def test_weights_do_not_depend_on_the_mini_batch(solver):
    expected = trained(ALONE, solver=solver)
    for mini_batch in (4, 2) if solver == "Adam" else (2,):
        assert_near(trained(ALONE, solver=solver, mini_batch=mini_batch), expected)


@pytest.mark.thorough
@pytest.mark.parametrize("options", [{"make": detector}, {"paths_per_step": 2}, {"make": detector, "paths_per_step": 2}])
def test_weights_do_not_depend_on_the_cut_of_a_detector_or_of_several_paths(options):
    """A detector's losses are divided by the objects of the batch, not by those of each mini-batch."""
    expected = trained(ALONE, **options)
    assert_near(trained(ALONE, mini_batch=2, **options), expected)
    for found in values_of(together(lambda comm: trained(comm, mini_batch=2, **options))):
        assert_near(found, expected)


@pytest.mark.parametrize(
    ("solver", "mini_batch"), [*((name, 2) for name in SOLVERS), ("Adam", 8), ("Adam", 4), ("Nesterov", 8)]
)
def test_a_skipped_layer_stays_exactly_as_it_is(solver, mini_batch):
    def check(weights):
        skipped = [name for name in weights[0] if name.startswith(SKIPPED)]
        assert len(skipped) == 18 and SHALLOW.stage_depths == (0, 0)
        for name in skipped:
            np.testing.assert_array_equal(weights[0][name], weights[-1][name], err_msg=name)
        used = "blocks/0/conv1/conv/conv/_W"
        assert not np.array_equal(weights[0][used], weights[-1][used])

    options = {"solver": solver, "mini_batch": mini_batch, "steps": 3, "sampler": OneDeep}
    check(trained(ALONE, **options)[0])
    if mini_batch < 8 and solver in ("Adam", "Nesterov"):  # what is added up over processes is no solver's business
        for weights, _ in values_of(together(lambda comm: trained(comm, **options))):
            check(weights)


class NcclRule(PipeCommunicator):
    """Reduces as nnabla's communicator does through NCCL: all arrays that are not zeroed, as one block.

    Blocks are added number by number, so ranks that reduce different arrays mix them up; NCCL itself would hang if the sizes
    differ.
    """

    def __init__(self, comm):
        super().__init__(comm.rank, comm.pipes)

    def all_reduce(self, arrays, division=False, inplace=True):
        written = [array for array in arrays if not array.zeroing]
        sizes = nn.NdArray.from_numpy_array(np.eye(self.n_procs)[self.rank] * sum(array.size for array in written))
        super().all_reduce([sizes])
        assert len(set(sizes.data.tolist())) == 1, f"ranks reduce {sizes.data} values"
        if written:
            block = nn.NdArray.from_numpy_array(np.concatenate([array.data.ravel() for array in written]))
            super().all_reduce([block], division)
            ends = np.cumsum([array.size for array in written])
            for array, part in zip(written, np.split(block.data, ends[:-1])):
                array.data = part.reshape(array.shape)


@pytest.mark.parametrize("options", [{}, {"solver": "Nesterov"}, {"paths_per_step": 2}, {"mini_batch": 4}])
def test_ranks_that_reduce_as_nccl_does_leave_skipped_layers_as_they_are(options):
    """And train what one process does; the other layers' gradients are there on all ranks, even if those of a rank are 0."""
    options = {"mini_batch": 2, "sampler": OneDeep, "steps": 4} | options
    expected = trained(ALONE, **options)
    for weights, losses in values_of(together(lambda comm: trained(NcclRule(comm), **options))):
        assert_near((weights, losses), expected)
        for name in weights[0]:
            if name.startswith(SKIPPED) and options.get("paths_per_step", 1) == 1:
                np.testing.assert_array_equal(weights[0][name], weights[-1][name], err_msg=name)


def test_a_mini_batch_has_its_share_of_the_loss_of_a_batch():
    """One with few objects, or none, weighs less: the shares add up to the loss of the whole batch."""
    net = detector()
    loader = Loader(range(8), boxed, 8, seed=0, workers=0)
    images, *targets = loader.batch(0)
    order = np.argsort(targets[-1].sum(axis=1), kind="stable")  # the images without objects first
    images, targets = images[order], [array[order] for array in targets]
    assert net.counts(targets)[1] == 12 and net.counts([array[:2] for array in targets]) == (0, 0)

    def loss(chosen, parts, counts=()):
        inputs = [nn.Variable.from_numpy_array(np.asarray(array[chosen])) for array in (images, *targets)]
        total = build(net, SPACE.largest, inputs, parts, counts=counts).losses[0]
        total.forward()
        return float(total.d)

    counts = normalizers([own_counts(net, [array[part] for array in targets]) for part in (slice(3), slice(3, 8))])
    shares = [loss(slice(start, start + 2), 4, counts) for start in range(0, 8, 2)]
    assert sum(shares) == pytest.approx(loss(slice(0, 8), 1), rel=1e-5)
    assert sum(loss(slice(start, start + 2), 4) for start in range(0, 8, 2)) != pytest.approx(sum(shares), rel=1e-2)


def test_classifiers_have_no_counts():
    assert normalizers([own_counts(classifier(), [np.zeros((4, 1))])] * 2) == ()
