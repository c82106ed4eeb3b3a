"""CenterNet on the elastic backbone: up-convolutions, three heads, the loss on logits, and decoding.

Only the backbone is elastic. Output stride 4: the backbone's stride is 32 with the stem's max-pool, and each of
three transposed convolutions doubles the map. (The paper says that "a max-pooling layer and classification head are replaced":
we read it as the pooling in front of the classifier, since without the stem's max-pool the heat map would have stride 2.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np

from ..backend import kernels
from ..backend.compat import F, Mo, Model, Parameter, nn
from ..common.boxes import box_iou
from ..common.errors import UserError
from ..common.normalization import IMAGENET, Normalization
from ..space.geometry import OFA_RESNET50, Geometry, HeadGeometry
from ..space.paths import Path
from ..space.search_space import ofa_resnet50
from .layers import STORED, ConvBN, he_normal
from .supernet import ElasticResNet50, Named, take_over
from .weights import load_backbone

OFFSET_WEIGHT, SIZE_WEIGHT = 1.0, 0.1  # of the three losses (Objects as Points, section 3)
HEAT_MAP_BIAS = -2.19  # sigmoid(-2.19) is about 0.1: the loss starts calm (CenterNet)


class Outputs(NamedTuple):
    """What the detector returns for a batch, at output stride 4: (B, channels, H/4, W/4) each."""

    heat_map: nn.Variable  # logits, one channel a class
    offset: nn.Variable  # x, y of the centre inside its cell, in cells
    size: nn.Variable  # width, height, in cells


class TargetVariables(NamedTuple):
    """The loss' targets for a batch of B images with at most M objects each (see `data.targets`)."""

    heat_map: nn.Variable  # (B, K, h, w), 1 at centres, Gaussian around them
    size: nn.Variable  # (B, M, 2)
    offset: nn.Variable  # (B, M, 2)
    index: nn.Variable  # (B, M) cell of each centre, y * w + x
    mask: nn.Variable  # (B, M) 1 where there is an object


class DeconvBN(ConvBN):
    """4x4 stride-2 transposed convolution, batch normalisation and ReLU; any number of leading inputs."""

    output_axis = 1

    def __init__(self, name, inputs, outputs, rng):
        super().__init__(name, inputs, outputs, 4, rng)
        # An output pixel sees 2x2 of the 4x4 kernel. NNabla's transposed weight is (inputs, outputs, kh, kw).
        weight = he_normal(rng, (inputs, outputs, 4, 4), inputs * 4)
        self.parameters["conv/conv/_W"] = Parameter(weight.shape, initializer=weight)

    def __call__(self, x, statistics):
        weight = self.parameters["conv/conv/_W"]
        weight = kernels.leading(weight, x.shape[1], weight.shape[1])
        gamma, beta = (self.parameters[f"bn/bn/{key}"] for key in ("_gamma", "_beta"))
        convolve = partial(F.deconvolution, x, pad=(1, 1), stride=(2, 2))
        return statistics(self, convolve, weight, gamma, beta, relu=True)


class Head(Mo.Module):
    """3x3 convolution, ReLU, 1x1 convolution, both with bias."""

    def __init__(self, inputs, hidden, outputs, rng, std=0.001, bias=0.0):
        super().__init__(name="")
        values = {
            "conv1/_W": he_normal(rng, (hidden, inputs, 3, 3), inputs * 9),
            "conv1/_b": np.zeros(hidden, np.float32),
            "conv2/_W": rng.normal(0.0, std, (outputs, hidden, 1, 1)).astype(np.float32),
            "conv2/_b": np.full(outputs, bias, np.float32),
        }
        for key, value in values.items():
            self.parameters[key] = Parameter(value.shape, initializer=value)

    def __call__(self, x, statistics=STORED):
        w1, b1, w2, b2 = self.parameters.values()
        return F.convolution(statistics.relu(F.convolution(x, w1, b1, pad=(1, 1))), w2, b2)


def run_heads(heads: Sequence[Head], x: nn.Variable, statistics) -> list[nn.Variable]:
    """The outputs of several heads of one map.

    Where `statistics.joins_heads`, one convolution computes all hidden maps and another all outputs, with zeros between what
    a head does not read: three convolutions of few channels each leave most of a core idle.
    """
    if not statistics.joins_heads or len(heads) == 1:
        return [head(x, statistics) for head in heads]
    first, first_bias, second, second_bias = zip(*(head.parameters.values() for head in heads))
    hidden = F.convolution(x, F.concatenate(*first, axis=0), F.concatenate(*first_bias, axis=0), pad=(1, 1))
    weight, bias = block_diagonal(second), F.concatenate(*second_bias, axis=0)
    y = F.convolution(statistics.relu(hidden), weight, bias)
    batch, _, *size = y.shape
    pixels = size[0] * size[1]
    flat, ends = F.reshape(y, (batch, y.shape[1] * pixels)), np.cumsum([0, *(w.shape[0] for w in second)])
    parts = [F.slice(flat, (0, start * pixels), (batch, end * pixels)) for start, end in zip(ends, ends[1:])]
    return [F.reshape(part, (batch, w.shape[0], *size)) for part, w in zip(parts, second)]


def block_diagonal(weights: Sequence[nn.Variable]) -> nn.Variable:
    """Weights (R, C, 1, 1) of several 1x1 convolutions -> the weight of one that reads all their inputs in a row."""
    rows, columns, before = [], sum(w.shape[1] for w in weights), 0
    for w in weights:
        after = columns - before - w.shape[1]
        zeros = [F.constant(0, (w.shape[0], side, 1, 1)) for side in (before, after)]
        rows.append(F.concatenate(*[part for part in (zeros[0], w, zeros[1]) if part.shape[1]], axis=1))
        before += w.shape[1]
    return F.concatenate(*rows, axis=0)


class Backbone(Protocol):
    """What a detector asks of an elastic backbone, a `Model` as `ElasticResNet50` is one.

    Every batch normalisation in it goes through `statistics` (see `layers.ConvBN.run`), under a name of its own.

    Attributes:
        channels: of its last feature map, at most.
    """

    channels: int

    def __call__(self, x: nn.Variable, path: Path, statistics) -> nn.Variable: ...


class Detector(Model):
    """The supernet f^trg: elastic backbone, up-convolutions and CenterNet's heads (section 4.1).

    A detector with other heads is a subclass that has its own `make_heads`, `heads` and `losses`, and for its detections
    `maps`, `with_mirrored` and `decode`.

    Args:
        head: filters and number of classes.
        heat_map_std: standard deviation of the heat map's last weights. CenterNet's is 0.001; nets of a few
            channels learn only with about 0.1.
        geometry, zero_init_residual, rng, path: see `ElasticResNet50`.
        backbone: another backbone, in place of the one that geometry, zero_init_residual and path describe.
        normalization: of the images that it takes.
    """

    def __init__(
        self,
        head: HeadGeometry,
        geometry: Geometry = OFA_RESNET50,
        zero_init_residual: bool = True,
        heat_map_std: float = 0.001,
        rng: np.random.Generator | None = None,
        path: Path | None = None,
        backbone: Backbone | None = None,
        normalization: Normalization = IMAGENET,
    ):
        super().__init__(name="")
        self.normalization = normalization
        rng = rng or np.random.default_rng(0)
        self.backbone = backbone or ElasticResNet50(geometry, zero_init_residual, rng, path)
        channels = self.backbone.channels
        deconvs = {}
        for index, filters in enumerate(head.deconv_channels):
            deconvs[index] = DeconvBN(f"deconv/{index}", channels, filters, rng)
            channels = filters
        self.deconv = Named(deconvs)
        self.make_heads(channels, head, heat_map_std, rng)

    def make_heads(self, channels: int, head: HeadGeometry, heat_map_std: float, rng: np.random.Generator) -> None:
        """Make the modules that `heads` runs on a map of `channels`."""
        self.heat_map = Head(channels, head.head_channels, head.num_classes, rng, heat_map_std, HEAT_MAP_BIAS)
        self.offset = Head(channels, head.head_channels, 2, rng)
        self.size = Head(channels, head.head_channels, 2, rng)

    def __call__(self, x: nn.Variable, path: Path, statistics=STORED) -> Outputs:
        """Images (B, 3, H, W) -> heat map logits, offset and size at output stride 4."""
        return self.heads(self.trunk(x, path, statistics), statistics)

    def trunk(self, x: nn.Variable, path: Path, statistics=STORED) -> nn.Variable:
        """The network up to its last batch normalisation: backbone and up-convolutions."""
        return self.up(self.backbone(x, path, statistics), statistics)

    def up(self, y: nn.Variable, statistics=STORED) -> nn.Variable:
        """The backbone's last feature map -> the map at the output stride."""
        for layer in self.deconv.modules.values():
            y = layer(y, statistics)
        return y

    def heads(self, y: nn.Variable, statistics=STORED) -> Outputs:
        """The map at the output stride -> the three heads' outputs."""
        return Outputs(*run_heads((self.heat_map, self.offset, self.size), y, statistics))

    def losses(self, outputs: Outputs, targets: Sequence[nn.Variable], counts: Sequence[nn.Variable] | None = None) -> Losses:
        """What training minimises, and its parts; targets are those of `TargetVariables`.

        Args:
            counts: of a batch that these images are a part of; the losses are then their shares of the batch's.
        """
        return detection_loss(outputs, TargetVariables(*targets), *(counts or ()))

    def counts(self, targets: Sequence[np.ndarray]) -> tuple[int, int]:
        """What the losses of images with these targets are divided by: the heat map's centers, and objects."""
        heat_map, *_, mask = targets
        return int(np.sum(heat_map >= 1)), int(np.sum(mask))

    def loss(self, outputs: Outputs, targets: Sequence[nn.Variable], loss_weights=None) -> nn.Variable:
        """What paths are compared by: the whole loss."""
        return self.losses(outputs, targets)[0]

    def maps(self, outputs: Outputs) -> tuple[nn.Variable, ...]:
        """What `decode` reads, (B, channels, h, w) each: here the heat map in [0, 1], offset and size."""
        return F.sigmoid(outputs.heat_map), outputs.offset, outputs.size

    def with_mirrored(self, maps: Sequence[np.ndarray], mirrored: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        """The maps of images, averaged with those of the mirrored images: heat map and size, as in CenterNet's flip test."""
        heat_map, offset, size = maps
        return (heat_map + mirrored[0][..., ::-1]) / 2, offset, (size + mirrored[2][..., ::-1]) / 2

    def decode(self, maps: Sequence[np.ndarray], top: int = 100) -> tuple[Sequence[np.ndarray], ...]:
        """For each image of the maps its boxes (n, 4) in cells, scores (n,) and labels (n,), best first, `top` at most."""
        return decode(*maps, top=top)


# --- Loss -------------------------------------------------------------------------------------------------------------


class Losses(NamedTuple):
    """The parts of CenterNet's loss, each a scalar."""

    total: nn.Variable
    heat_map: nn.Variable
    offset: nn.Variable
    size: nn.Variable


def detection_loss(
    outputs: Outputs, targets: TargetVariables, centers: nn.Variable | None = None, objects: nn.Variable | None = None
) -> Losses:
    """CenterNet's loss: penalty-reduced focal + 1.0 offset L1 + 0.1 size L1 (Objects as Points, section 3).

    Args:
        centers, objects: scalars to divide by, see `Detector.counts`; None counts those of the targets.
    """
    heat_map = focal_loss(outputs.heat_map, targets.heat_map, centers)
    offset = masked_l1(outputs.offset, targets.offset, targets.index, targets.mask, objects)
    size = masked_l1(outputs.size, targets.size, targets.index, targets.mask, objects)
    return Losses(heat_map + OFFSET_WEIGHT * offset + SIZE_WEIGHT * size, heat_map, offset, size)


def focal_loss(logits: nn.Variable, target: nn.Variable, centers: nn.Variable | None = None) -> nn.Variable:
    """Penalty-reduced focal loss of logits (B, K, h, w) against a heat map in [0, 1]; divided by the number of centres.

    With p = sigmoid(x): (1 - p)^2 log p at centres, (1 - target)^4 p^2 log(1 - p) elsewhere. Both logarithms are taken
    as softplus of the logit, so that no clamp is needed: CenterNet clamps p to [1e-4, 1 - 1e-4] and has no gradient
    beyond. Inside that range the two are equal. Without a centre the sum is not divided, as in CenterNet.
    """
    times = kernels.multiply
    p, far = F.sigmoid(logits), 1.0 - target
    q, far = 1.0 - p, times(far, far)
    centre = F.greater_equal_scalar(target, 1.0)
    positive = times(times(centre, times(q, q)), F.softplus(-1.0 * logits))
    negative = times(times(times(far, far), times(p, p)), F.softplus(logits))  # zero at centres, where target is 1
    return F.sum(positive + negative) / F.maximum_scalar(F.sum(centre) if centers is None else centers, 1.0)


def masked_l1(
    output: nn.Variable, target: nn.Variable, index: nn.Variable, mask: nn.Variable, objects: nn.Variable | None = None
) -> nn.Variable:
    """Mean absolute error of output (B, C, h, w), read at the objects' cells, against target (B, M, C).

    Args:
        objects: the number to take the mean over; None is that of `mask`.
    """
    batch, channels, height, width = output.shape
    most = index.shape[1]
    rows = F.reshape(F.transpose(output, (0, 2, 3, 1)), (batch * height * width, channels))
    start = nn.Variable.from_numpy_array(np.arange(batch, dtype=np.float32)[:, None] * (height * width))
    found = F.embed(F.reshape(index + start, (batch * most,)), rows)
    weight = F.reshape(mask, (batch * most, 1))
    error = F.abs(found - F.reshape(target, (batch * most, channels))) * weight
    return F.sum(error) / (channels * (F.sum(mask) if objects is None else objects) + 1e-4)


# --- Decoding ---------------------------------------------------------------------------------------------------------


def decode(heat_map: np.ndarray, offset: np.ndarray, size: np.ndarray, top: int = 100):
    """The `top` peaks of each image as boxes, best first; every class competes with every other.

    A peak is a cell that equals the maximum of its 3x3 neighbourhood in its class.

    Args:
        heat_map: (B, K, h, w) probabilities. offset, size: (B, 2, h, w), in cells.

    Returns:
        boxes (B, top, 4) as x1 y1 x2 y2 in cells of the output map, scores (B, top), classes (B, top) int.
    """
    batch, _, height, width = heat_map.shape
    found = [_best_peaks(values, top) for values in heat_map]
    order, scores = (np.stack(arrays) for arrays in zip(*found))
    label, cell = np.divmod(order, height * width)

    def at_cells(values: np.ndarray) -> np.ndarray:
        return np.take_along_axis(values.reshape(batch, 2, -1), cell[:, None, :], axis=2)

    y, x = np.divmod(cell, width)
    centre = np.stack([x, y], axis=1) + at_cells(offset)
    half = at_cells(size) / 2
    boxes = np.concatenate([centre - half, centre + half], axis=1).transpose(0, 2, 1)
    return boxes.astype(np.float32), scores.astype(np.float32), label


def _best_peaks(heat_map: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions in the flattened heat map (K, h, w) and values of its `top` highest peaks; the first of equal ones is first."""
    is_peak = heat_map == _max_of_3x3(heat_map)
    positions = np.flatnonzero(is_peak & (heat_map > 0))
    if len(positions) < top:  # other cells fill up, with the value 0
        values = np.where(is_peak, heat_map, 0.0).ravel()
        positions = np.argsort(-values, kind="stable")[:top]
        return positions, values[positions]
    values = heat_map.ravel()[positions]
    least = np.partition(values, len(values) - top)[len(values) - top]
    positions, values = positions[values >= least], values[values >= least]
    best = np.argsort(-values, kind="stable")[:top]
    return positions[best], values[best]


def _max_of_3x3(values: np.ndarray) -> np.ndarray:
    """The maximum of each cell's neighbourhood in its map (..., h, w): of rows, and then of columns."""
    rows = values.copy()
    np.maximum(rows[..., 1:], values[..., :-1], out=rows[..., 1:])
    np.maximum(rows[..., :-1], values[..., 1:], out=rows[..., :-1])
    found = rows.copy()
    np.maximum(found[..., 1:, :], rows[..., :-1, :], out=found[..., 1:, :])
    np.maximum(found[..., :-1, :], rows[..., 1:, :], out=found[..., :-1, :])
    return found


def soft_nms(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, sigma: float = 0.5, least: float = 1e-3
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Merge the detections of one image from several runs: Soft-NMS, inside each class.

    The best detection is taken, and the score of every other one falls by exp(-IoU^2 / sigma); and so on with what is left
    (Bodla et al. 2017, with the sigma of CenterNet's multi-scale test).

    Args:
        boxes: (n, 4) x1 y1 x2 y2. scores, labels: (n,).
        least: detections whose score falls below are dropped.

    Returns:
        boxes (m, 4), scores (m,) and labels (m,), best first.
    """
    overlaps = np.where(labels[:, None] == labels, box_iou(boxes, boxes), 0.0)
    left, scores, order = np.ones(len(scores), bool), scores.astype(np.float64), []
    for _ in range(len(scores)):
        best = int(np.argmax(np.where(left, scores, -1.0)))
        if scores[best] < least:
            break
        order.append(best)
        left[best] = False
        scores[left] *= np.exp(-(overlaps[best, left] ** 2) / sigma)
    return boxes[order], scores[order].astype(np.float32), labels[order]


# --- As NNablaNAS makes them ------------------------------------------------------------------------------------------


class SearchNet(Detector):
    """The detection supernet as NNablaNAS makes it: from a config's `network.centernet_ofa_resnet50` section.

    Args:
        num_classes, width_scale, strides, elastic_stem, zero_init_residual, deconv_channels, head_channels, heat_map_std:
            see `config.CenternetOfaResnet50`.
        weights: a weights file whose backbone is taken over: a pre-trained classification supernet's, or a detector's.
        rng: draws the initial weights.
        normalization: of the images that it takes.
    """

    def __init__(
        self,
        num_classes: int = 20,
        width_scale: float = 1.0,
        strides: Sequence[int] = (1, 2, 2, 2),
        elastic_stem: bool = True,
        zero_init_residual: bool = True,
        deconv_channels: Sequence[int] = (256, 256, 256),
        head_channels: int = 64,
        heat_map_std: float = 0.001,
        weights: str | None = None,
        rng: np.random.Generator | None = None,
        normalization: Normalization = IMAGENET,
    ):
        geometry = Geometry(width_scale=width_scale, strides=tuple(strides))
        head = HeadGeometry(num_classes, tuple(deconv_channels), head_channels)
        super().__init__(head, geometry, zero_init_residual, heat_map_std, rng, normalization=normalization)
        self.space = ofa_resnet50(geometry, elastic_stem)
        self._static = {
            "num_classes": num_classes,
            "width_scale": width_scale,
            "strides": tuple(strides),
            "deconv_channels": tuple(deconv_channels),
            "head_channels": head_channels,
        }
        if weights:
            load_backbone(self, weights)

    def get_active_subnet(self, path: Path | Mapping, statistics: Mapping | None = None) -> TrainNet:
        """`path` cut out as a static network of its own, its weights copied; see `supernet.SearchNet.get_active_subnet`."""
        return TrainNet(path, **self._static, supernet=self, statistics=statistics)


class TrainNet(Detector):
    """One path of the detection supernet as a static network: `net(x)`.

    Args:
        genotype: a `Path`, or OFA's notation of one.
        supernet: take the weights over from it. statistics: and these batch-normalisation statistics.
        num_classes, width_scale, strides, deconv_channels, head_channels: see `SearchNet`.
    """

    def __init__(
        self,
        genotype: Path | Mapping,
        num_classes: int = 20,
        width_scale: float = 1.0,
        strides: Sequence[int] = (1, 2, 2, 2),
        deconv_channels: Sequence[int] = (256, 256, 256),
        head_channels: int = 64,
        supernet: Detector | None = None,
        statistics: Mapping | None = None,
    ):
        geometry = Geometry(width_scale=width_scale, strides=tuple(strides))
        path = genotype if isinstance(genotype, Path) else Path.from_ofa(genotype, geometry)
        super().__init__(HeadGeometry(num_classes, tuple(deconv_channels), head_channels), geometry, path=path)
        self.path = path
        if supernet is not None:
            take_over(self, supernet, statistics)
        elif statistics is not None:
            raise UserError("statistics are those of a path of a supernet: they need supernet beside them")

    def __call__(self, x: nn.Variable, statistics=STORED) -> Outputs:
        """Images (B, 3, H, W) -> heat map logits, offset and size at output stride 4."""
        return super().__call__(x, self.path, statistics)
