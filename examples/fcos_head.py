"""Another detection head under the same elastic backbone: FCOS-like, every cell inside an object gives its four distances.

Targets, losses, decoding and costs are written here; backbone, search space and all commands are the package's.

    PYTHONPATH=examples nnabla_nas -f examples/fcos_head.json
"""

from __future__ import annotations

from dataclasses import dataclass

import nnabla as nn
import nnabla.functions as F
import numpy as np

from nnabla_detofa.common.normalization import IMAGENET
from nnabla_detofa.config import OwnDetector
from nnabla_detofa.data.sets import DetectionSets
from nnabla_detofa.networks.centernet import Detector, Head, run_heads
from nnabla_detofa.networks.decoding import soft_nms
from nnabla_detofa.networks.layers import STORED
from nnabla_detofa.space.costs import CostModel
from nnabla_detofa.space.geometry import HeadGeometry

LARGEST = 5.0  # of the logarithm of a distance in cells
CLASSES = 10.0  # weight of their loss: with 1 it is lost beside the other two, and boxes are found long before their classes


def area(edges: nn.Variable) -> nn.Variable:
    """Of boxes given by distances (B, 4, h, w) -> (B, 1, h, w)."""
    return (edges[:, 0:1] + edges[:, 2:3]) * (edges[:, 1:2] + edges[:, 3:4])


class FcosSets(DetectionSets):
    """The data set with FCOS' targets: one-hot classes (K, h, w), distances (4, h, w) and centerness (1, h, w) of each cell."""

    def target_shapes(self) -> list[list[int]]:
        return [[channels, *self.map_size] for channels in (len(self.classes), 4, 1)]

    def targets(self, boxes: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, ...]:
        classes, edges, centerness = (np.zeros(shape, np.float32) for shape in self.target_shapes())
        y, x = np.indices(self.map_size) + 0.5
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        for row in np.argsort(-areas):  # the smallest object last: it keeps the cells it shares
            x1, y1, x2, y2 = boxes[row]
            distances = np.stack([x - x1, y - y1, x2 - x, y2 - y])
            inside = distances.min(0) > 0
            classes[:, inside], classes[labels[row], inside] = 0, 1
            edges[:, inside] = found = distances[:, inside]
            centerness[0, inside] = np.sqrt((np.minimum(found[:2], found[2:]) / np.maximum(found[:2], found[2:])).prod(0))
        return classes, edges, centerness


class FcosDetector(Detector):
    loss_names, map_names = ("loss", "classes", "edges", "centerness"), ("scores", "edges")

    def make_heads(self, channels: int, head: HeadGeometry, heatmap_std: float, rng) -> None:
        self.classes = Head(channels, head.head_channels, head.num_classes, rng, heatmap_std, bias=-4.6)
        self.edges = Head(channels, head.head_channels, 5, rng, heatmap_std)

    def heads(self, y: nn.Variable, path, statistics=STORED) -> list[nn.Variable]:
        """Logits (B, K, h, w); logarithms of left, top, right, bottom in cells, and the centerness' logit (B, 5, h, w)."""
        return run_heads((self.classes, self.edges), y, statistics)

    def losses(self, outputs, targets, counts=None) -> tuple[nn.Variable, ...]:
        """Focal loss of all cells; -log IoU, weighted by centerness, and the centerness' cross entropy of cells in objects."""
        (scores, found), (wanted, edges, centerness) = outputs, targets
        inside = F.sum(wanted, axis=1, keepdims=True)
        count, weight = (F.maximum_scalar(total, 1.0) for total in counts or (F.sum(inside), F.sum(centerness)))
        p, logits, found = F.sigmoid(scores), found[:, 4:], F.exp(F.minimum_scalar(found[:, :4], LARGEST))
        positive = 0.25 * wanted * (1.0 - p) ** 2 * F.softplus(-1.0 * scores)
        negative = 0.75 * (1.0 - wanted) * p**2 * F.softplus(scores)
        classes = F.sum(positive + negative) / count
        center = F.sum(inside * (F.softplus(logits) - centerness * logits)) / count  # NNabla's own wants labels of 0 or 1
        overlap = area(F.minimum2(found, edges))
        misfit = F.log((area(found) + area(edges) - overlap + 1.0) / (overlap + 1.0))
        distances = F.sum(centerness * misfit) / weight
        return CLASSES * classes + distances + center, classes, distances, center

    def counts(self, targets) -> tuple[float, float]:
        return float(targets[0].sum()), float(targets[2].sum())  # cells in objects, and the sum of their centerness

    def maps(self, outputs) -> tuple[nn.Variable, ...]:
        """Scores (B, K, h, w) in [0, 1], and distances in cells (B, 4, h, w)."""
        classes, edges = outputs
        scores = F.sigmoid(classes) * F.sigmoid(edges[:, 4:])
        return scores**0.5, F.exp(F.minimum_scalar(edges[:, :4], LARGEST))

    def with_mirrored(self, maps, mirrored):
        scores, edges = (values[..., ::-1] for values in mirrored)
        return (maps[0] + scores) / 2, (maps[1] + edges[:, [2, 1, 0, 3]]) / 2  # left and right change places

    def decode(self, maps, top: int = 100):
        found = []
        for scores, edges in zip(*maps):
            best = np.argsort(-scores.ravel(), kind="stable")[:top]
            label, y, x = np.unravel_index(best, scores.shape)
            middle, near, far = np.stack([x, y]) + 0.5, edges[:2, y, x], edges[2:, y, x]
            found.append(soft_nms(np.concatenate([middle - near, middle + far]).T, scores.ravel()[best], label))
        return tuple(zip(*found))


class FcosCost(CostModel):
    def map_channels(self, head: HeadGeometry) -> tuple[int, ...]:
        return head.num_classes, 5


@dataclass(frozen=True)
class FcosNet(OwnDetector):
    """The network of a config, with the keys of `centernet_ofa_resnet50`; `heatmap_std` is that of the classes."""

    sets_type = FcosSets

    def cost_model(self, image_size, num_classes: int, scope: str) -> FcosCost:
        return FcosCost(image_size, num_classes, scope, self.geometry, self.head_geometry(num_classes))

    def detector(self, num_classes: int, path=None, rng=None, normalization=IMAGENET) -> FcosDetector:
        shape = self.head_geometry(num_classes), self.geometry, self.zero_init_residual, self.heatmap_std
        return FcosDetector(*shape, rng, path, normalization=normalization)
