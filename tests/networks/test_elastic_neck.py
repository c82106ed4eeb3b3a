"""Up-convolutions and heads that a path chooses: the sliced path equals its static network, and costs equal a visit."""

from dataclasses import replace

import nnabla as nn
import numpy as np
import pytest
from visit import count_macs, peak_memory

from nnabla_detofa.common.errors import UserError
from nnabla_detofa.config import CenternetElasticNeck, CenternetOfaResnet50
from nnabla_detofa.data.targets import make_targets
from nnabla_detofa.evaluation.reestimation import reestimate
from nnabla_detofa.networks.centernet import Detector, detector_of
from nnabla_detofa.networks.layers import BATCH, STORED, GivenStatistics
from nnabla_detofa.networks.supernet import take_over
from nnabla_detofa.networks.weights import load_backbone, save
from nnabla_detofa.space.geometry import HeadGeometry
from nnabla_detofa.space.search_space import ofa_resnet50

NECK = CenternetElasticNeck(
    width_scale=0.0625,
    strides=(1, 2, 2, 1),
    zero_init_residual=False,
    deconv_channels=(16, 12),
    head_channels=16,
    heatmap_std=0.1,
)
SIZE, CLASSES = 64, 3


@pytest.fixture(scope="module")
def net() -> Detector:
    return detector_of(NECK, CLASSES, rng=np.random.default_rng(0))


@pytest.fixture(scope="module")
def paths() -> list:
    rng = np.random.default_rng(1)
    some = [NECK.space.sample(rng) for _ in range(3)]
    least = tuple((name, 0.5) for name, _ in NECK.geometry.named)
    return [*some, NECK.space.largest, replace(NECK.space.largest, named=least)]


def test_a_path_uses_its_share_of_the_filters(net):
    assert [name for name, _ in NECK.geometry.named] == ["up1", "up2", "heads"]
    small = replace(NECK.space.largest, named=(("up1", 0.5), ("up2", 0.75), ("heads", 0.5)))
    assert small in NECK.space
    assert net.head_geometry.of(dict(small.named)) == HeadGeometry(CLASSES, (8, 9), 8)
    assert net.up(nn.Variable((1, net.backbone.channels, 4, 4)), small).shape == (1, 9, 16, 16)
    assert HeadGeometry(20).of({"up1": 0.5, "up2": 0.75, "heads": 0.75}) == HeadGeometry(20, (128, 192, 256), 48)


def test_a_sliced_path_equals_its_static_network(net, paths):
    images = np.random.default_rng(0).normal(size=(2, 2, 3, SIZE, SIZE)).astype(np.float32)
    for path in paths:
        statistics = reestimate(net, path, images)
        static = detector_of(NECK, CLASSES, path)
        take_over(static, net, statistics)
        x = nn.Variable.from_numpy_array(images[0])
        for source, tolerance in ((GivenStatistics(statistics), 1e-6), (STORED, 1e-3)):
            expected = net(x, path, GivenStatistics(statistics))
            found = static(x, path, source)
            for one, other in zip(expected, found):
                one.forward()
                other.forward()
                assert np.allclose(one.d, other.d, atol=tolerance)


def test_the_loss_of_an_evaluation_is_that_of_training(net, paths):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(1, 2, 3, SIZE, SIZE)).astype(np.float32)
    cells = np.array([[2.0, 3.0, 9.0, 11.0]])
    one = [np.asarray(array)[None] for array in make_targets(cells, np.array([1]), CLASSES, (16, 16), 4)]
    targets = [nn.Variable.from_numpy_array(np.concatenate([array, array])) for array in one]
    for path in paths:
        given = GivenStatistics(reestimate(net, path, images))
        x = nn.Variable.from_numpy_array(images[0])
        quick, whole = net.evaluation_loss(x, path, targets, given), net.loss(net(x, path, given), targets)
        nn.forward_all([quick, whole])
        assert quick.d == pytest.approx(whole.d, rel=1e-5)


def test_costs_equal_a_visit_of_the_graph(paths):
    model = NECK.cost_model(SIZE, CLASSES, "detector")
    for path in paths:
        static = detector_of(NECK, CLASSES, path)
        x = nn.Variable((1, 3, SIZE, SIZE))
        output = nn.functions.sink(*static(x, path))
        assert model.flops([path])[0] == count_macs(output)
        assert model.memory([path])[0] == peak_memory(output, x)
        trainable = static.get_parameters(grad_only=True).values()
        assert model.params([path])[0] == sum(parameter.size for parameter in trainable)


def test_the_neck_reaches_smaller_budgets_than_the_backbone_alone():
    plain = CenternetOfaResnet50()
    whole = CenternetElasticNeck()
    ours, theirs = (network.cost_model(384, 20, "detector").flops.extremes(network.space) for network in (whole, plain))
    assert ours[1] == theirs[1] and ours[0] < 0.6 * theirs[0]


def test_every_parameter_of_the_largest_path_gets_a_gradient(net):
    x = nn.Variable.from_numpy_array(np.random.default_rng(0).normal(size=(2, 3, SIZE, SIZE)).astype(np.float32))
    for parameter in net.get_parameters(grad_only=True).values():
        parameter.grad.zero()
    outputs = net(x, NECK.space.largest, BATCH)
    total = nn.functions.add_n(*(nn.functions.sum(nn.functions.sin(output)) for output in outputs))
    total.forward()
    total.backward()
    assert [name for name, parameter in net.get_parameters(grad_only=True).items() if not parameter.g.any()] == []


def test_the_largest_path_is_the_ordinary_detector(net):
    plain = replace(NECK.space.largest, named=())
    geometry = replace(NECK.geometry, named=())
    ordinary = Detector(NECK.head_geometry(CLASSES), geometry, False, heatmap_std=0.1, rng=np.random.default_rng(0))
    x = nn.Variable.from_numpy_array(np.random.default_rng(0).normal(size=(1, 3, SIZE, SIZE)).astype(np.float32))
    for one, other in zip(net(x, NECK.space.largest, BATCH), ordinary(x, plain, BATCH)):
        one.forward()
        other.forward()
        assert (one.d == other.d).all()


def test_it_starts_from_the_backbone_of_the_ordinary_supernet(net, tmp_path):
    ordinary = Detector(HeadGeometry(CLASSES, (8, 8), 8), replace(NECK.geometry, named=()), rng=np.random.default_rng(5))
    ordinary.space = ofa_resnet50(replace(NECK.geometry, named=()))
    save(ordinary, tmp_path / "ordinary.h5")
    other = detector_of(NECK, CLASSES, rng=np.random.default_rng(6))
    before = {name: parameter.d.copy() for name, parameter in other.get_parameters().items()}
    unused = load_backbone(other, tmp_path / "ordinary.h5")
    assert all(not name.startswith("backbone/") for name in unused)
    for name, parameter in other.get_parameters().items():
        if name.startswith("backbone/"):
            assert (parameter.d == ordinary.get_parameters()[name].d).all()
        else:
            assert (parameter.d == before[name]).all(), "neck and heads are new"


@pytest.mark.parametrize("widths", [(1.0, 0.5), (), (0.5, 0.5)])
def test_widths_must_ascend(widths):
    with pytest.raises(UserError, match="values of a named choice of the geometry must be 1 to 100, in ascending order"):
        CenternetElasticNeck(up_widths=widths)
