"""The elastic ResNet50: independent reference numbers, paths as static networks, and which parameters a path uses."""

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest
from parity import cut_out_checks, failed, small_net, subnet_checks
from visit import count_macs, peak_memory

from nnabla_detofa.evaluation.reestimation import reestimate
from nnabla_detofa.networks import supernet
from nnabla_detofa.networks.centernet import Detector
from nnabla_detofa.networks.layers import BATCH, EPSILON, GivenStatistics, Plain, slice_channels
from nnabla_detofa.networks.supernet import Classifier
from nnabla_detofa.space.costs import CostModel
from nnabla_detofa.space.geometry import Geometry, HeadGeometry
from nnabla_detofa.space.paths import Path
from nnabla_detofa.space.search_space import ofa_resnet50

SMALL = Geometry(width_scale=0.125)


@pytest.mark.thorough
@pytest.mark.parametrize("number", range(8))
def test_subnets_equal_the_reference(number):
    assert failed(subnet_checks(number)) == []


def test_every_parameter_of_the_largest_path_gets_a_gradient():
    net = Classifier(10, SMALL, zero_init_residual=False)
    parameters = net.get_parameters(grad_only=True)
    x = nn.Variable.from_numpy_array(np.random.default_rng(0).normal(size=(4, 3, 64, 64)).astype(np.float32))
    labels = nn.Variable.from_numpy_array(np.arange(4).reshape(4, 1))
    (loss,) = net.losses(net(x, ofa_resnet50(SMALL).largest, BATCH), [labels])
    for parameter in parameters.values():
        parameter.grad.zero()
    loss.forward()
    loss.backward()
    # A convolution's weight has none where its batch normalization sees one value per channel; here no layer does.
    assert [name for name, p in parameters.items() if not np.abs(p.g).sum() > 0] == []


def test_a_path_leaves_what_it_does_not_use_without_gradient():
    net, space = Classifier(10, SMALL, zero_init_residual=False), ofa_resnet50(SMALL)
    path = Path.from_ofa({"d": [0] * 5, "e": [0.2] * 18, "w": [0] * 6}, SMALL)
    parameters = net.get_parameters(grad_only=True)
    x = nn.Variable.from_numpy_array(np.random.default_rng(0).normal(size=(4, 3, 64, 64)).astype(np.float32))
    (loss,) = net.losses(net(x, path, BATCH), [nn.Variable.from_numpy_array(np.zeros((4, 1)))])
    for parameter in parameters.values():
        parameter.grad.zero()
    loss.forward()
    loss.backward()
    assert not parameters["input_stem/1/conv/conv/conv/_W"].g.any()  # the residual convolution of the stem
    assert not parameters["blocks/2/conv1/conv/conv/_W"].g.any()  # the third layer of stage 1
    first = parameters["blocks/0/conv1/conv/conv/_W"]
    used = SMALL.middle(SMALL.stage_out(0, 0.65), 0.2), SMALL.stem_out(0.65)
    assert first.g[: used[0], : used[1]].any()
    assert not first.g[used[0] :].any() and not first.g[:, used[1] :].any()
    assert space.largest != path


@pytest.mark.parametrize("task", ["classification", "detection"])
@pytest.mark.parametrize("seed", range(3))
def test_a_path_cut_out_is_the_path(task, seed):
    assert failed(cut_out_checks(task, seed)) == []


@pytest.mark.parametrize("task", ["classification", "detection"])
def test_a_path_cut_out_holds_its_own_parameters_alone(task):
    rng = np.random.default_rng(0)
    net = small_net(task, rng)
    path, geometry = net.space.sample(rng), Geometry(width_scale=0.25, strides=(1, 2, 2, 1))
    cut = net.get_active_subnet(path.to_ofa(geometry))
    assert cut.path == path
    detector = task == "detection"
    head = HeadGeometry(3, (16, 16), 8) if detector else None
    model = CostModel((64, 48), 3 if detector else 10, "detector" if detector else "classifier", geometry, head)
    assert sum(p.size for p in cut.get_parameters(grad_only=True).values()) == model.params([path])[0]
    ours, theirs = cut.get_parameters(), net.get_parameters()
    for name, parameter in ours.items():  # without statistics of its own, the supernet's stored ones
        np.testing.assert_array_equal(parameter.d, theirs[name].d[tuple(map(slice, parameter.shape))])


def test_label_smoothing_by_hand():
    logits = nn.Variable.from_numpy_array(np.log([[0.7, 0.2, 0.1]]))
    loss = supernet.classification_loss(logits, nn.Variable.from_numpy_array([[0]]), 0.3)
    loss.forward()
    assert loss.d == pytest.approx(-(0.8 * np.log(0.7) + 0.1 * np.log(0.2) + 0.1 * np.log(0.1)), rel=1e-5)


THIN_STEM = Geometry(width_scale=0.125, stem_channels=8)
FLAT = Geometry(width_scale=0.125, stem_channels=8, strides=(1, 2, 1, 1))
DEEP_END = Geometry(width_scale=0.125, stem_channels=8, stage_channels=(64, 64, 64, 2048), strides=(1, 1, 1, 2))


@pytest.mark.parametrize("geometry, size", [(SMALL, (64, 64)), (THIN_STEM, (33, 50)), (FLAT, (64, 32)), (DEEP_END, (64, 64))])
def test_costs_equal_a_visit_of_the_built_graph(geometry, size):
    """The four geometries have their memory peaks in different layers: in the stem, a first and a later one of a stage."""
    net, model = Classifier(7, geometry), CostModel(size, 7, backbone=geometry)
    paths = ofa_resnet50(geometry).sample_many(np.random.default_rng(0), 6)
    for path, flops, memory in zip(paths, model.flops(paths), model.memory(paths)):
        x = nn.Variable((1, 3, *size))
        logits = net(x, path)
        assert count_macs(logits) == flops
        assert peak_memory(logits, x) == memory


class Unfolded(Plain):
    """Given statistics as a batch normalization of their own."""

    def __init__(self, statistics):
        self.statistics = statistics

    def __call__(self, layer, convolve, weight, gamma, beta, relu=False):
        mean, var = map(nn.Variable.from_numpy_array, self.statistics[layer.name])
        gamma, beta = (slice_channels(p, mean.shape[1]) for p in (gamma, beta))
        y = F.batch_normalization(convolve(weight), beta, gamma, mean, var, eps=EPSILON, batch_stat=False)
        return self.relu(y) if relu else y


def test_statistics_folded_into_the_convolutions_change_nothing():
    """In both kinds of convolution, with scales that are not the initial 0 and 1."""
    geometry, rng = Geometry(width_scale=0.125, strides=(1, 2, 2, 1)), np.random.default_rng(0)
    net = Detector(HeadGeometry(3, (16, 16), 8), geometry, heatmap_std=0.1)
    for name, parameter in net.get_parameters().items():
        if name.endswith(("_gamma", "_beta")):
            parameter.d = rng.normal(1.0, 0.5, parameter.shape)
    x = rng.normal(size=(2, 3, 64, 64)).astype(np.float32)
    for path in net_paths(geometry, rng):
        statistics = reestimate(net, path, [x])
        two = [net(nn.Variable.from_numpy_array(x), path, kind(statistics)) for kind in (GivenStatistics, Unfolded)]
        nn.forward_all([*two[0], *two[1]])
        for folded, unfolded in zip(*two):
            np.testing.assert_allclose(folded.d, unfolded.d, rtol=1e-4, atol=1e-5 * np.abs(unfolded.d).max())


def net_paths(geometry, rng):
    space = ofa_resnet50(geometry)
    return [space.largest, *space.sample_many(rng, 2)]
