"""CenterNet on the elastic backbone: the original's losses and decoding, costs of the built graph, gradients."""

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest
from parity import decoding_checks, failed, loss_checks
from visit import count_macs, peak_memory

from nnabla_detofa.networks import centernet, supernet, weights
from nnabla_detofa.networks.centernet import Detector
from nnabla_detofa.networks.decoding import decode, soft_nms
from nnabla_detofa.networks.detection_loss import TargetVariables, focal_loss
from nnabla_detofa.networks.layers import BATCH
from nnabla_detofa.space.costs import CostModel
from nnabla_detofa.space.geometry import OFA_RESNET50, Geometry, HeadGeometry
from nnabla_detofa.space.search_space import ofa_resnet50

SMALL, HEAD = Geometry(width_scale=0.125, strides=(1, 2, 2, 1)), HeadGeometry(3, (16, 16), 8)


def variable(array) -> nn.Variable:
    return nn.Variable.from_numpy_array(np.asarray(array, np.float32))


THIN = Geometry(width_scale=0.0625, stem_channels=16)


@pytest.mark.parametrize("objects", [True, False])
def test_losses_equal_the_original(objects):
    assert failed(loss_checks(objects)) == []


def test_the_focal_loss_is_finite_and_has_a_gradient_where_the_original_is_clamped():
    logits = variable([[[[60.0, -60.0, 0.0]]]]).apply(need_grad=True)
    logits.grad.zero()
    loss = focal_loss(logits, variable([[[[0.0, 1.0, 0.5]]]]))
    loss.forward()
    loss.backward()
    assert float(loss.d) == pytest.approx(60 + 60 + 0.5**4 * 0.25 * np.log(2), rel=1e-5)
    assert logits.g.ravel()[0] == pytest.approx(1, rel=1e-4) and logits.g.ravel()[1] == pytest.approx(-1, rel=1e-4)


def test_decoding_equals_the_original_in_order():
    assert failed(decoding_checks()) == []


def test_decoding_by_hand():
    heat = np.full((1, 2, 4, 5), 0.01, np.float32)
    heat[0, 1, 2, 3], heat[0, 1, 2, 2], heat[0, 0, 0, 0] = 0.9, 0.8, 0.7  # the second is beside the first: no peak
    offset, size = np.full((1, 2, 4, 5), 0.25, np.float32), np.zeros((1, 2, 4, 5), np.float32)
    size[0, :, 2, 3] = 2, 4
    boxes, scores, labels = decode(heat, offset, size, top=2)
    np.testing.assert_allclose(boxes[0, 0], [3.25 - 1, 2.25 - 2, 3.25 + 1, 2.25 + 2])
    np.testing.assert_allclose(scores[0], [0.9, 0.7])
    assert labels[0].tolist() == [1, 0]


@pytest.mark.parametrize("kind", ["distinct", "ties", "few peaks", "negative", "nan"])
def test_decoding_equals_a_stable_sort_of_all_cells(kind):
    """Peaks by nine shifted maps, ordered by value and then by position; where there are too few, other cells as zeros."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        heat = rng.random((2, 3, *rng.integers(1, 8, 2))).astype(np.float32)
        if kind == "ties":
            heat = np.round(heat * 4) / 4
        if kind == "few peaks":
            heat[heat < 0.9] = 0
        if kind == "negative":
            heat -= 0.5
        if kind == "nan":
            heat[rng.random(heat.shape) < 0.2] = np.nan
        padded = np.pad(heat, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
        height, width = heat.shape[2:]
        shifted = [padded[:, :, y : y + height, x : x + width] for y in range(3) for x in range(3)]
        peaks = np.where(heat == np.maximum.reduce(shifted), heat, 0).reshape(2, -1)
        order = np.argsort(-peaks, axis=1, kind="stable")[:, :10]
        zeros = np.zeros((2, 2, height, width), np.float32)
        boxes, scores, labels = decode(heat, zeros, zeros, top=10)
        np.testing.assert_array_equal(scores, np.take_along_axis(peaks, order, axis=1))
        np.testing.assert_array_equal(labels * height * width + boxes[..., 1] * width + boxes[..., 0], order)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "geometry, head, size",
    [
        (SMALL, HEAD, (64, 96)),
        (OFA_RESNET50, HeadGeometry(20), (128, 128)),
        (Geometry(width_scale=0.25), HEAD, (64, 64)),
        (THIN, HeadGeometry(3, (1024, 8), 4), (64, 64)),
        (THIN, HeadGeometry(3, (16, 16), 256), (64, 64)),
        (THIN, HeadGeometry(250, (16, 16), 8), (64, 64)),
    ],
)
def test_the_cost_table_equals_a_visit_of_the_built_graph(geometry, head, size):
    """The thin geometries have their memory peaks in the up-convolutions and in the heads."""
    net, rng = Detector(head, geometry), np.random.default_rng(0)
    space = ofa_resnet50(geometry)
    paths = [space.largest, *(space.sample(rng) for _ in range(5))]
    models = [CostModel(size, head.num_classes, scope, geometry, head) for scope in ("detector", "backbone")]
    for path in paths:
        x = nn.Variable((1, 3, *size))
        outputs = net(x, path)
        assert outputs.heatmap.shape[1:] == (head.num_classes, *(s // head.output_stride(geometry) for s in size))
        assert count_macs(F.sink(*outputs)) == models[0].flops([path])[0]
        assert peak_memory(F.sink(*outputs), x) == models[0].memory([path])[0]
        backbone = net.backbone(x, path)
        assert count_macs(backbone) == models[1].flops([path])[0]
        assert peak_memory(backbone, x) == models[1].memory([path])[0]
    assert sum(p.size for p in net.get_parameters(grad_only=True).values()) == models[0].params([space.largest])[0]


def test_every_parameter_of_the_largest_path_gets_a_gradient():
    net = Detector(HEAD, SMALL, zero_init_residual=False)
    rng = np.random.default_rng(0)
    x = variable(rng.normal(size=(2, 3, 64, 64)))
    heatmap = np.zeros((2, 3, 16, 16))
    heatmap[:, 1, 5, 6] = 1
    given = (heatmap, np.ones((2, 4, 2)), np.full((2, 4, 2), 0.5), np.full((2, 4), 5 * 16 + 6), [[1, 0, 0, 0]] * 2)
    loss = net.losses(net(x, ofa_resnet50(SMALL).largest, BATCH), list(TargetVariables(*map(variable, given)))).total
    parameters = net.get_parameters(grad_only=True)
    for parameter in parameters.values():
        parameter.grad.zero()
    loss.forward()
    loss.backward()
    assert [name for name, p in parameters.items() if not np.abs(p.g).sum() > 0] == []


def test_a_detector_starts_from_the_classifier(tmp_path):
    classifier = supernet.SearchNet(10, 0.125, (1, 2, 2, 1), rng=np.random.default_rng(5))
    weights.save(classifier, tmp_path / "supernet.h5")
    net = centernet.SearchNet(3, 0.125, (1, 2, 2, 1), True, True, (16, 16), 8, weights=str(tmp_path / "supernet.h5"))
    theirs, ours = classifier.get_parameters(), net.backbone.get_parameters()
    for name, parameter in ours.items():
        np.testing.assert_array_equal(parameter.d, theirs[name].d)


def test_soft_nms_by_hand():
    """The better of two equal boxes lowers the other by exp(-1 / 0.5); other places and classes stay."""
    box, far = [0.0, 0, 10, 10], [50.0, 50, 60, 60]
    boxes, labels = np.array([box, far, box, box]), np.array([0, 0, 0, 1])
    found, scores, kept = soft_nms(boxes, np.array([0.5, 0.3, 0.9, 0.7], np.float32), labels)
    assert found.tolist() == [box, box, far, box] and kept.tolist() == [0, 1, 0, 0]
    assert scores == pytest.approx([0.9, 0.7, 0.3, 0.5 * np.exp(-2)])
    assert len(soft_nms(boxes[:0], np.zeros(0), labels[:0])[0]) == 0
    assert len(soft_nms(boxes[:1], np.array([1e-4]), labels[:1])[0]) == 0
