"""Another detection head under the same elastic backbone: FCOS-like, every cell inside an object gives its four distances.

Two heads on the up-sampled map: classes, and the distances to the left, top, right and bottom edge with the centreness.
Targets, losses, decoding and costs are written here; the backbone, the training loop, the re-estimation of batch normalization
and average precision are the package's. The backbone starts from the demo's weights, those of single digits.

    python examples/fcos_head.py [--steps N]        (300 steps take some minutes)
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import nnabla as nn
import nnabla.functions as F
import numpy as np
from on_digits import digits, train_steps

from nnabla_detofa.data.sets import DetectionSets
from nnabla_detofa.evaluation.detections import BoxDetector, average_precision
from nnabla_detofa.evaluation.reestimation import reestimate
from nnabla_detofa.networks.centernet import Detector, Head, run_heads
from nnabla_detofa.networks.decoding import soft_nms
from nnabla_detofa.networks.layers import STORED
from nnabla_detofa.networks.weights import load_backbone
from nnabla_detofa.space.costs import CostModel
from nnabla_detofa.space.geometry import Geometry, HeadGeometry
from nnabla_detofa.space.search_space import ofa_resnet50

LARGEST = 5.0  # of the logarithm of a distance in cells
CLASSES = 10.0  # weight of their loss: with 1 it is lost beside the other two, and boxes are found long before their classes


class Outputs(NamedTuple):
    classes: nn.Variable  # logits (B, K, h, w)
    edges: nn.Variable  # logarithms of left, top, right, bottom in cells, then the centreness' logit (B, 5, h, w)


class Losses(NamedTuple):
    total: nn.Variable  # the first is minimized
    classes: nn.Variable
    edges: nn.Variable
    centreness: nn.Variable


class FcosSets(DetectionSets):
    """The data set with FCOS' targets: one-hot classes (K, h, w), distances (4, h, w) and centreness (1, h, w) of each cell."""

    def target_shapes(self) -> list[list[int]]:
        return [[channels, *self.map_size] for channels in (len(self.classes), 4, 1)]

    def targets(self, boxes: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, ...]:
        classes, edges, centreness = (np.zeros(shape, np.float32) for shape in self.target_shapes())
        y, x = np.indices(self.map_size) + 0.5
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        for row in np.argsort(-areas):  # the smallest object last: it keeps the cells it shares
            x1, y1, x2, y2 = boxes[row]
            distances = np.stack([x - x1, y - y1, x2 - x, y2 - y])
            inside = distances.min(0) > 0
            classes[:, inside], classes[labels[row], inside] = 0, 1
            edges[:, inside] = distances[:, inside]
            left, top, right, bottom = distances[:, inside]
            ratios = np.minimum(left, right) / np.maximum(left, right) * np.minimum(top, bottom) / np.maximum(top, bottom)
            centreness[0, inside] = np.sqrt(ratios)
        return classes, edges, centreness


class FcosDetector(Detector):
    def make_heads(self, channels: int, head: HeadGeometry, heatmap_std: float, rng) -> None:
        self.classes = Head(channels, head.head_channels, head.num_classes, rng, heatmap_std, bias=-4.6)
        self.edges = Head(channels, head.head_channels, 5, rng, heatmap_std)

    def heads(self, y: nn.Variable, path, statistics=STORED) -> Outputs:
        return Outputs(*run_heads((self.classes, self.edges), y, statistics))

    def losses(self, outputs: Outputs, targets, counts=None) -> Losses:
        """Focal loss of all cells; -log IoU, weighted by centreness, and the centreness' cross entropy of cells in objects."""
        wanted, edges, centreness = targets
        inside = F.sum(wanted, axis=1, keepdims=True)
        count, weight = (F.maximum_scalar(total, 1.0) for total in counts or (F.sum(inside), F.sum(centreness)))
        p = F.sigmoid(outputs.classes)
        positive = 0.25 * wanted * (1.0 - p) ** 2 * F.softplus(-1.0 * outputs.classes)
        negative = 0.75 * (1.0 - wanted) * p**2 * F.softplus(outputs.classes)
        classes = F.sum(positive + negative) / count
        logits = outputs.edges[:, 4:]
        center = F.sum(inside * (F.softplus(logits) - centreness * logits)) / count  # NNabla's own wants labels of 0 or 1
        found = F.exp(F.minimum_scalar(outputs.edges[:, :4], LARGEST))
        shared = F.minimum2(found, edges)
        overlap, both = area(shared), area(found) + area(edges)
        misfit = F.log((both - overlap + 1.0) / (overlap + 1.0))
        distances = F.sum(centreness * misfit) / weight
        return Losses(CLASSES * classes + distances + center, classes, distances, center)

    def counts(self, targets) -> tuple[float, float]:
        """What the losses divide by: cells in objects, and the sum of their centreness."""
        wanted, _, centreness = targets
        return float(wanted.sum()), float(centreness.sum())

    def maps(self, outputs: Outputs) -> tuple[nn.Variable, ...]:
        """Scores (B, K, h, w) in [0, 1], and distances in cells (B, 4, h, w)."""
        scores = F.sigmoid(outputs.classes) * F.sigmoid(outputs.edges[:, 4:])
        return scores**0.5, F.exp(F.minimum_scalar(outputs.edges[:, :4], LARGEST))

    def with_mirrored(self, maps, mirrored):
        scores, edges = (values[..., ::-1] for values in mirrored)
        return (maps[0] + scores) / 2, (maps[1] + edges[:, [2, 1, 0, 3]]) / 2  # left and right change places

    def decode(self, maps, top: int = 100):
        """The cells with the best scores as boxes, those on the same object merged."""
        found = []
        for scores, edges in zip(*maps):
            best = np.argsort(-scores.ravel(), kind="stable")[:top]
            label, y, x = np.unravel_index(best, scores.shape)
            left, top_edge, right, bottom = edges[:, y, x]
            corners = np.stack([x + 0.5 - left, y + 0.5 - top_edge, x + 0.5 + right, y + 0.5 + bottom], axis=1)
            found.append(soft_nms(corners, scores.ravel()[best], label))
        return tuple(zip(*found))


def area(edges: nn.Variable) -> nn.Variable:
    """Of boxes given by distances (B, 4, h, w) -> (B, 1, h, w)."""
    return (edges[:, 0:1] + edges[:, 2:3]) * (edges[:, 1:2] + edges[:, 3:4])


class FcosCost(CostModel):
    def map_channels(self, head: HeadGeometry) -> tuple[int, ...]:
        return head.num_classes, 5


GEOMETRY = Geometry(width_scale=0.125, strides=(1, 2, 2, 1))  # as in configs/digits_base.json
HEAD = HeadGeometry(num_classes=10, deconv_channels=(64, 64), head_channels=16)
SIZE = 112
WEIGHTS = Path(__file__).parent.parent / "configs/weights/digits_supernet.h5"


def main(steps: int = 60) -> dict:
    """Train, then measure the largest path's average precision."""
    space = ofa_resnet50(GEOMETRY)
    net = FcosDetector(HEAD, GEOMETRY, heatmap_std=0.1, rng=np.random.default_rng(0))
    load_backbone(net, WEIGHTS)
    cost = FcosCost(SIZE, 10, "detector", GEOMETRY, HEAD)
    print(f"paths take {cost.flops.reachable(space)}")
    with digits(SIZE, kind=FcosSets) as sets:
        losses = train_steps(net, space, sets, steps, rate=3e-3)
        images = np.stack([sets.eval_item(sets.train, index)[0] for index in range(min(64, len(sets.train)))])
        detector = BoxDetector(net, space.largest, reestimate(net, space.largest, [images]))
        result, detections = average_precision(detector, sets, 32, "area", lambda count: None)
    box, score, label = (values[0] for values in detections[0])
    print(f"AP50 of the largest path {result['ap50']:.3f}; in the first test image a {label} ({score:.2f}) at {box.round(1)}")
    return {"losses": losses, "net": net, "space": space, "cost": cost, "detections": detections, "ap50": result["ap50"]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60, help="training steps (default: %(default)s)")
    main(parser.parse_args().steps)
