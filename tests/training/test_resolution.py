"""Paths that choose their input resolution: what a step, an evaluation and the costs of a path see."""

from dataclasses import dataclass, replace

import nnabla as nn
import numpy as np
import pytest
from joined_processes import together, values_of
from small import detofa_config
from visit import count_macs

from nnabla_detofa import config as configs
from nnabla_detofa.backend.ranks import Communicator
from nnabla_detofa.common.errors import UserError
from nnabla_detofa.config import CenternetElasticNeck, Solver, older
from nnabla_detofa.data.augment import letterbox, letterbox_pixels
from nnabla_detofa.data.dataset import Sample
from nnabla_detofa.data.loader import Loader
from nnabla_detofa.data.sets import DetectionSets
from nnabla_detofa.evaluation.images import EvaluationImages
from nnabla_detofa.evaluation.reestimation import reestimate
from nnabla_detofa.evaluation.validation import PathEvaluator, validation_loss
from nnabla_detofa.networks.centernet import Detector
from nnabla_detofa.networks.detection_loss import Outputs
from nnabla_detofa.networks.layers import BATCH, STORED
from nnabla_detofa.runs.phases import Schedule
from nnabla_detofa.space.costs import CostModel
from nnabla_detofa.space.geometry import Geometry, HeadGeometry
from nnabla_detofa.space.operations import Option
from nnabla_detofa.space.paths import Path
from nnabla_detofa.space.pruning import operation_scores, prune_operations
from nnabla_detofa.space.search_space import ofa_resnet50
from nnabla_detofa.training.loop import build, load, new_optimizer, step, train
from nnabla_detofa.training.resolution import at_resolution, resized

SMALL = Geometry(
    depths=(0, 1),
    widths=(0.5, 1.0),
    ratios=(0.25, 0.5),
    base_depths=(1, 1),
    stage_channels=(16, 32),
    strides=(2, 2),
    stem_channels=8,
    named=(("resolution", (32, 48, 64)),),
)
SPACE = ofa_resnet50(SMALL)
HEAD = HeadGeometry(2, (8, 8), 8)
LARGE = SPACE.largest
LITTLE = replace(LARGE, named=(("resolution", 32),))


class Squares:
    """Four gray images of 64 pixels with noise and one square each."""

    files = ()

    def __len__(self):
        return 4

    def load(self, index: int) -> Sample:
        image = np.random.default_rng(index).integers(0, 255, (64, 64, 3)).astype(np.uint8)
        box = np.array([[8.0, 16, 24 + 8 * index, 48]], np.float32)
        return Sample(image, box, np.array([index % 2]), np.zeros(1, bool), str(index))


SETS = DetectionSets(("a", "b"), *[Squares()] * 3, (64, 64), 4, 3, resolutions=(32, 48, 64))


def detector() -> Detector:
    """A detector without the dependence on the mini-batch of batch normalization."""

    class Frozen(Detector):
        def trunk(self, x, path, statistics=STORED):
            return super().trunk(x, path, STORED)

    net = Frozen(HEAD, SMALL, zero_init_residual=False, heatmap_std=0.1, rng=np.random.default_rng(0))
    net.space = SPACE
    return net


def items(dataset, index, rng):
    """Images have 1 to 3 objects, so that mini-batches differ in their number."""
    sample = dataset.load(index)
    boxes = np.concatenate([sample.boxes + 4 * number for number in range(1 + index % 3)])
    return letterbox(sample.image, (64, 64))[0], *SETS.train_targets(boxes, np.zeros(len(boxes), int))


class Given:
    """A sampler of given paths."""

    def __init__(self, *paths: Path):
        self.paths = list(paths)

    def next(self) -> Path:
        return self.paths.pop(0)

    def state(self) -> dict:
        return {}


def trained(paths, parts: int = 1, comm: Communicator | None = None) -> dict:
    """Weights after a step with these paths, on a batch of so many mini-batches, whose images the processes share."""
    comm = comm or Communicator()
    shapes, size = ([3, 64, 64], *SETS.train_shapes()), 4 // parts
    net, inputs = detector(), [nn.Variable((size, *shape)) for shape in shapes]
    optimizer = new_optimizer(net, Solver("Sgd", lr=0.01), Schedule(0.01, "constant", 1))
    loader = Loader(Squares(), items, 4, 0, workers=0, rank=comm.rank, size=comm.n_procs)
    options = {"accumulate": parts // comm.n_procs, "paths_per_step": len(paths), "comm": comm}
    train(net, optimizer, Given(*paths), loader, inputs, range(1), **options)
    return {name: parameter.d.copy() for name, parameter in net.get_parameters().items()}


def test_images_are_resized_by_the_map_of_the_letterbox():
    """So an object is where its scaled box is: pixel x of the result is pixel x * 64 / side of the image."""
    ramp = np.tile(np.arange(64, dtype=np.float32) * 3, (64, 1))
    for side in (32, 48):
        found = resized(nn.Variable.from_numpy_array(ramp[None, None]), side)
        found.forward()
        expected = letterbox_pixels(np.repeat(ramp[..., None], 3, 2).astype(np.uint8), (side, side))[0][..., 0]
        assert np.abs(found.d[0, 0] - expected).max() <= 1  # rounded to 8 bits
        assert found.d[0, 0, 0, :4] == pytest.approx(np.arange(4) * 3 * 64 / side)
    image = nn.Variable((1, 3, 64, 64))
    assert resized(image, None) is image and resized(image, 64) is image


def test_targets_are_made_at_every_resolution():
    """The square 8, 16, 24, 48 is 4 x 8 cells around (4, 8) of 4 pixels at 64; at 32 it is 2 x 4 cells around (2, 4)."""
    assert SETS.train_shapes()[::5] == [[2, 16 * side // 64, 16 * side // 64] for side in (32, 48, 64)]
    batch = [np.asarray(array) for array in items(Squares(), 0, None)]
    net = detector()
    for side, size, (x, y) in ((32, (2, 4), (2, 4)), (48, (3, 6), (3, 6)), (64, (4, 8), (4, 8))):
        image, heatmap, found, offset, cell, mask = at_resolution(net, batch, side)
        assert image is batch[0] and heatmap.shape == (2, side // 4, side // 4)
        assert found[0] == pytest.approx(size) and offset[0] == pytest.approx((0, 0)) and cell[0] == y * side // 4 + x
        assert heatmap[0, y, x] == 1 and mask.sum() == 1


def test_the_sets_of_one_resolution_are_ordinary_ones():
    alone = SETS.at(32)
    assert (alone.image_size, alone.map_size, alone.resolutions) == ((32, 32), (8, 8), ()) and SETS.at(None) is SETS
    image, *targets = alone.eval_item(Squares(), 0)
    assert image.shape == (3, 32, 32) and len(targets) == 5 == len(alone.target_shapes())


def test_a_step_trains_each_path_at_its_own_resolution():
    net, batch = detector(), Loader(Squares(), items, 4, 0, workers=0).batch(0)
    gradients = []
    for paths in ((LITTLE,), (LARGE,), (LITTLE, LARGE)):
        for parameter in net.get_parameters().values():
            parameter.grad.zero()
        for path in paths:
            images, *targets = at_resolution(net, batch, path.resolution)
            x = resized(nn.Variable.from_numpy_array(images), path.resolution)
            variables = [nn.Variable.from_numpy_array(np.asarray(target)) for target in targets]
            loss = net.losses(net(x, path, BATCH), variables)[0]
            loss.forward()
            loss.backward()
        gradients.append({name: parameter.g.copy() for name, parameter in net.get_parameters(grad_only=True).items()})
    before = {name: parameter.d.copy() for name, parameter in net.get_parameters().items()}
    for paths, expected in zip(((LITTLE,), (LARGE,), (LITTLE, LARGE)), gradients):
        after = trained(paths)
        for name, gradient in expected.items():
            assert before[name] - after[name] == pytest.approx(0.01 * gradient, rel=1e-3, abs=1e-7), (paths, name)


def test_mini_batches_and_processes_are_divided_by_the_counts_at_their_resolution():
    paths = [LITTLE, LARGE]
    whole = trained(paths)
    for cut in (trained(paths, 2), *values_of(together(lambda comm: trained(paths, 2, comm)))):
        assert all(cut[name] == pytest.approx(values, rel=1e-4, abs=1e-6) for name, values in whole.items())


def test_a_path_is_evaluated_on_images_of_its_resolution():
    net = detector()
    images = EvaluationImages(SETS, np.arange(4), np.arange(4), 2)
    evaluator = PathEvaluator.on(net, images, 1, "area")
    assert [batch.shape for batch in evaluator.at(LITTLE).statistics_batches] == [(2, 3, 32, 32)] * 2
    for path in (LITTLE, LARGE):
        alone = images.at(path.resolution)
        statistics = reestimate(net, path, alone.statistics_batches())
        expected = validation_loss(net, path, statistics, alone.validation_batches())
        found = evaluator.evaluate(path)
        assert found.loss == pytest.approx(expected, rel=1e-5) and 0 <= found.ap <= 1


def test_compared_losses_measure_sizes_in_one_unit():
    """An error of 2 cells at 32 pixels is one of 4 cells at 64, the same share of the image."""
    net = detector()
    assert [net.size_unit(replace(LARGE, named=(("resolution", side),))) for side in (32, 64)] == [2, 1]
    losses = []
    for path, wrong in ((LITTLE, 2.0), (LARGE, 4.0)):
        sets = SETS.at(path.resolution)
        targets = [nn.Variable.from_numpy_array(np.asarray(array)[None]) for array in sets.eval_item(Squares(), 0)[1:]]
        logits = np.where(np.asarray(targets[0].d) >= 1, 20.0, -20.0)
        maps = np.zeros((1, 2, *sets.map_size), np.float32)
        width, height = targets[1].d[0, 0]
        sizes = maps + np.array([width + wrong, height]).reshape(1, 2, 1, 1)
        outputs = Outputs(*(nn.Variable.from_numpy_array(np.float32(array)) for array in (logits, maps, sizes)))
        loss = net.compared_loss(outputs, targets, path)
        loss.forward()
        losses.append(float(loss.d))
    assert losses == pytest.approx([0.2, 0.2], rel=1e-3)  # weight 0.1, half of the coordinates are wrong by 4


@pytest.mark.parametrize("path", [LITTLE, LARGE])
@pytest.mark.parametrize("method, result", [("loss", "own"), ("losses", ["own"])])
def test_a_loss_of_your_own_compares_paths_at_every_resolution(path, method, result):
    net = type("Own", (Detector,), {method: lambda self, outputs, targets: result})(HEAD, SMALL, rng=np.random.default_rng(0))
    net.space = SPACE
    assert net.compared_loss(None, None, path) == "own"


def test_costs_are_those_of_graphs_at_the_paths_own_resolution():
    cost, net = CostModel(64, 2, "detector", SMALL, HEAD), detector()
    for path in SPACE.sample_many(np.random.default_rng(0), 6):
        side = path.resolution
        assert cost.input_size(path) == (side, side)
        x = nn.Variable((1, 3, side, side))
        assert cost.flops([path])[0] == count_macs(nn.functions.sink(*net(x, path))), path
    assert cost.flops([LARGE])[0] == 4 * cost.flops([LITTLE])[0] and cost.params([LARGE]) == cost.params([LITTLE])


def test_a_resolution_is_pruned_like_another_operation():
    cost = CostModel(64, 2, "detector", SMALL, HEAD)
    sides = np.array([32, 48, 64])
    scores = operation_scores(SPACE, lambda paths: sides[paths.named[:, 0]], cost.stage_flops, 20, np.random.default_rng(0))
    flops = {
        operation.value: flops for operation, flops in zip(scores.operations, scores.flops) if isinstance(operation, Option)
    }
    assert flops[64] == 4 * flops[32] and str(Option("resolution", 48)) == "resolution 48"
    pruned = prune_operations(scores, "flops_score_bucket", LARGE, np.random.default_rng(0), r_op=0.4)
    assert {op for op in pruned.removed if isinstance(op, Option)} == {Option("resolution", 32)}
    smaller = SPACE.without(pruned.removed)
    assert dict(smaller.named)["resolution"] == (48, 64) and LITTLE not in smaller and LARGE in smaller


def test_a_graph_reads_the_targets_of_its_path():
    net, batch = detector(), Loader(Squares(), items, 4, 0, workers=0).batch(0)
    inputs = [nn.Variable(array.shape) for array in batch]
    for path in (LITTLE, LARGE):
        graph = build(net, path, inputs)
        load(graph, at_resolution(net, batch, path.resolution))
        step(graph)
        assert np.isfinite(graph.losses[0].d) and graph.inputs[1].shape[2:] == (path.resolution // 4,) * 2


NETWORK = {"width_scale": 0.0625, "strides": (1, 2, 2, 1), "deconv_channels": (8, 8), "head_channels": 8}


def test_paths_choose_among_the_resolutions_of_the_config():
    network = CenternetElasticNeck(**NETWORK, resolutions=(32, 64))
    assert network.geometry.named[-1] == ("resolution", (32, 64)) and network.geometry.resolutions == (32, 64)
    assert CenternetElasticNeck(**NETWORK).geometry.resolutions == () and network.space.largest.resolution == 64


@dataclass(frozen=True)
class FixedSize(CenternetElasticNeck):
    """A network whose geometry leaves the resolution out."""

    @property
    def geometry(self) -> Geometry:
        return Geometry(strides=self.strides, width_scale=self.width_scale)


@pytest.mark.parametrize(
    ("name", "sides", "words"),
    [
        ("centernet_elastic_neck", [40, 64], "resolutions of the geometry must be multiples of 16, .* got 40, 64"),
        ("centernet_elastic_neck", [64, 32], "must be 1 to 100, in ascending order"),
        (
            "centernet_elastic_neck",
            [32, 48],
            "image_size must be 48, the largest of network.centernet_elastic_neck.resolutions",
        ),
        ("centernet_elastic_neck", 64, "resolutions must be a list"),
        ("centernet_ofa_resnet50", [32, 64], "network.centernet_ofa_resnet50.resolutions is not a key"),
        (f"{__name__}:FixedSize", [32, 64], "resolutions must be left out, since the geometry of FixedSize"),
    ],
)
def test_wrong_resolutions_are_one_sentence(name, sides, words):
    content = detofa_config("digits")
    content["network"] = {name: content["network"]["centernet_ofa_resnet50"] | {"resolutions": sides}}
    with pytest.raises(UserError, match=words):
        configs.from_dict(content, "sizes")


@pytest.mark.parametrize("sides", [[], [32, 64]])
def test_checkpoints_of_older_versions_stay_valid_without_the_choice(sides):
    """A config's hash, which checkpoints store, has the new key only if it is used."""
    content = detofa_config("digits")
    content["network"] = {"centernet_elastic_neck": content["network"]["centernet_ofa_resnet50"] | {"resolutions": sides}}
    config = configs.from_dict(content, "sizes")
    (settings,) = older.hashed(config.to_dict())["network"].values()
    assert ("resolutions" in settings) == bool(sides) and configs.from_dict(config.to_dict(), "sizes") == config
