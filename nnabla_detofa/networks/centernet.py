"""CenterNet with the elastic backbone: up-convolutions, three heads, the loss on logits, and decoding.

Only the backbone is elastic. The output stride is 4: the backbone, including the stem's max-pool, has stride 32, and each of
the three transposed convolutions doubles the resolution. (The paper says that "a max-pooling layer and classification head are
replaced". We take this to be the pooling before the classifier, because without the stem's max-pool the heatmap would have
stride 2.)
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

OFFSET_WEIGHT, SIZE_WEIGHT = 1.0, 0.1  # loss weights (Objects as Points, section 3)
HEAT_MAP_BIAS = -2.19  # initial bias; sigmoid(-2.19) is about 0.1, which keeps the initial loss small (CenterNet)


class Outputs(NamedTuple):
    """Outputs of the detector for a batch, at output stride 4: (B, channels, H/4, W/4) each."""

    heat_map: nn.Variable  # logits, one channel per class
    offset: nn.Variable  # x, y of the center inside its cell, in cells
    size: nn.Variable  # width, height, in cells


class TargetVariables(NamedTuple):
    """Targets of the loss for a batch of B images with at most M objects each (see `data.targets`)."""

    heat_map: nn.Variable  # (B, K, h, w), 1 at centers with Gaussians around them
    size: nn.Variable  # (B, M, 2), width and height in cells
    offset: nn.Variable  # (B, M, 2), x and y in cells
    index: nn.Variable  # (B, M), cell of each center, y * w + x
    mask: nn.Variable  # (B, M), 1 for rows that hold an object


class DeconvBN(ConvBN):
    """4x4 transposed convolution with stride 2, batch normalization and ReLU, for any number of leading input channels.

    Maps (B, C, H, W), for any C up to `inputs`, to (B, outputs, 2H, 2W).
    """

    output_axis = 1

    def __init__(self, name, inputs, outputs, rng):
        super().__init__(name, inputs, outputs, 4, rng)
        # Each output pixel uses 2x2 of the 4x4 kernel. NNabla's transposed weight is (inputs, outputs, kh, kw).
        weight = he_normal(rng, (inputs, outputs, 4, 4), inputs * 4)
        self.parameters["conv/conv/_W"] = Parameter(weight.shape, initializer=weight)

    def __call__(self, x, statistics):
        weight = self.parameters["conv/conv/_W"]
        weight = kernels.leading(weight, x.shape[1], weight.shape[1])
        gamma, beta = (self.parameters[f"bn/bn/{key}"] for key in ("_gamma", "_beta"))
        convolve = partial(F.deconvolution, x, pad=(1, 1), stride=(2, 2))
        return statistics(self, convolve, weight, gamma, beta, relu=True)


class Head(Mo.Module):
    """Output head: 3x3 convolution, ReLU and 1x1 convolution, both convolutions with bias.

    Maps (B, inputs, h, w) to (B, outputs, h, w). `std` is the standard deviation of the initial weights of the last layer, and
    `bias` its initial bias.
    """

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
    """Compute the outputs of several heads on the same feature map x (B, C, h, w).

    If `statistics.joins_heads` is true, one convolution computes all hidden maps and a second one all outputs, with a
    block-diagonal weight, because three separate convolutions with few channels leave most of a core idle.

    Returns:
        for each head its output, (B, outputs, h, w).
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
    """Combine weights (R_i, C_i, 1, 1) of several 1x1 convolutions into one weight (sum R_i, sum C_i, 1, 1).

    The combined convolution reads the concatenated inputs and returns the concatenated outputs.
    """
    rows, columns, before = [], sum(w.shape[1] for w in weights), 0
    for w in weights:
        after = columns - before - w.shape[1]
        zeros = [F.constant(0, (w.shape[0], side, 1, 1)) for side in (before, after)]
        rows.append(F.concatenate(*[part for part in (zeros[0], w, zeros[1]) if part.shape[1]], axis=1))
        before += w.shape[1]
    return F.concatenate(*rows, axis=0)


class Backbone(Protocol):
    """Interface of an elastic backbone for a detector; it is also a `Model`, like `ElasticResNet50`.

    Each of its batch normalizations calls `statistics` (see `layers.ConvBN.run`) and has a unique layer name.

    Attributes:
        channels: largest number of channels of the last feature map.
    """

    channels: int

    def __call__(self, x: nn.Variable, path: Path, statistics) -> nn.Variable: ...


class Detector(Model):
    """The detection supernet f^trg: elastic backbone, up-convolutions and CenterNet's heads (section 4.1).

    To use other heads, subclass it and override `make_heads`, `heads` and `losses`, and for inference `maps`,
    `with_mirrored` and `decode`.

    Args:
        head: numbers of channels of up-convolutions and heads, and number of classes.
        geometry, zero_init_residual, rng, path: see `ElasticResNet50`.
        heat_map_std: standard deviation of the initial weights of the heatmap's last layer. CenterNet uses 0.001; networks
            with few channels learn only with about 0.1.
        backbone: a backbone that replaces the one defined by `geometry`, `zero_init_residual` and `path`.
        normalization: normalization of the input images.
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
        """Create the modules that `heads` applies to a feature map with `channels` channels."""
        self.heat_map = Head(channels, head.head_channels, head.num_classes, rng, heat_map_std, HEAT_MAP_BIAS)
        self.offset = Head(channels, head.head_channels, 2, rng)
        self.size = Head(channels, head.head_channels, 2, rng)

    def __call__(self, x: nn.Variable, path: Path, statistics=STORED) -> Outputs:
        """Map images (B, 3, H, W) to heatmap logits, offset and size at output stride 4."""
        return self.heads(self.trunk(x, path, statistics), statistics)

    def trunk(self, x: nn.Variable, path: Path, statistics=STORED) -> nn.Variable:
        """Apply the network up to its last batch normalization: backbone and up-convolutions."""
        return self.up(self.backbone(x, path, statistics), statistics)

    def up(self, y: nn.Variable, statistics=STORED) -> nn.Variable:
        """Apply the up-convolutions to the backbone's last feature map; returns the map at the output stride."""
        for layer in self.deconv.modules.values():
            y = layer(y, statistics)
        return y

    def heads(self, y: nn.Variable, statistics=STORED) -> Outputs:
        """Apply the three heads to the map at the output stride."""
        return Outputs(*run_heads((self.heat_map, self.offset, self.size), y, statistics))

    def losses(self, outputs: Outputs, targets: Sequence[nn.Variable], counts: Sequence[nn.Variable] | None = None) -> Losses:
        """Compute the training loss and its parts.

        Args:
            outputs: outputs of the network.
            targets: the fields of `TargetVariables`.
            counts: if these images are a part of a larger batch, the `counts` of the whole batch; the losses of the parts
                then add up to the loss of the batch.
        """
        return detection_loss(outputs, TargetVariables(*targets), *(counts or ()))

    def counts(self, targets: Sequence[np.ndarray]) -> tuple[int, int]:
        """Count what the losses are divided by: heatmap cells that are centers, and objects."""
        heat_map, *_, mask = targets
        return int(np.sum(heat_map >= 1)), int(np.sum(mask))

    def loss(self, outputs: Outputs, targets: Sequence[nn.Variable], loss_weights=None) -> nn.Variable:
        """Return the total loss, by which paths are compared."""
        return self.losses(outputs, targets)[0]

    def maps(self, outputs: Outputs) -> tuple[nn.Variable, ...]:
        """Return the inputs of `decode`, (B, channels, h, w) each: heatmap in [0, 1], offset and size."""
        return F.sigmoid(outputs.heat_map), outputs.offset, outputs.size

    def with_mirrored(self, maps: Sequence[np.ndarray], mirrored: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        """Average the maps with those of the mirrored images: heatmap and size, but not offset, as in CenterNet's flip test."""
        heat_map, offset, size = maps
        return (heat_map + mirrored[0][..., ::-1]) / 2, offset, (size + mirrored[2][..., ::-1]) / 2

    def decode(self, maps: Sequence[np.ndarray], top: int = 100) -> tuple[Sequence[np.ndarray], ...]:
        """Return for each image boxes (n, 4) in cells, scores (n,) and labels (n,) of at most `top` detections, best first."""
        return decode(*maps, top=top)


# --- Loss -------------------------------------------------------------------------------------------------------------


class Losses(NamedTuple):
    """CenterNet's total loss and its unweighted parts, each a scalar."""

    total: nn.Variable
    heat_map: nn.Variable
    offset: nn.Variable
    size: nn.Variable


def detection_loss(
    outputs: Outputs, targets: TargetVariables, centers: nn.Variable | None = None, objects: nn.Variable | None = None
) -> Losses:
    """Compute CenterNet's loss: penalty-reduced focal + 1.0 * offset L1 + 0.1 * size L1 (Objects as Points, section 3).

    Args:
        outputs: outputs of the network.
        targets: targets of the same images.
        centers, objects: scalars that the losses are divided by, see `Detector.counts`; None counts them in `targets`.
    """
    heat_map = focal_loss(outputs.heat_map, targets.heat_map, centers)
    offset = masked_l1(outputs.offset, targets.offset, targets.index, targets.mask, objects)
    size = masked_l1(outputs.size, targets.size, targets.index, targets.mask, objects)
    return Losses(heat_map + OFFSET_WEIGHT * offset + SIZE_WEIGHT * size, heat_map, offset, size)


def focal_loss(logits: nn.Variable, target: nn.Variable, centers: nn.Variable | None = None) -> nn.Variable:
    """Compute the penalty-reduced focal loss (Objects as Points, Eq. 1), divided by the number of centers.

    With p = sigmoid(logit), it is the negative sum of (1 - p)^2 log p at centers and (1 - target)^4 p^2 log(1 - p) elsewhere.
    Both logarithms are computed as softplus of the logit, so that no clamping is needed. CenterNet clamps p to
    [1e-4, 1 - 1e-4] and has no gradient outside; inside that range the two losses are equal. Without any center the sum is
    not divided, as in CenterNet.

    Args:
        logits: (B, K, h, w).
        target: heatmap (B, K, h, w) in [0, 1], 1 at centers.
        centers: scalar that the sum is divided by; None counts the centers in `target`.

    Returns:
        the loss, a scalar.
    """
    times = kernels.multiply
    p, far = F.sigmoid(logits), 1.0 - target
    q, far = 1.0 - p, times(far, far)
    center = F.greater_equal_scalar(target, 1.0)
    positive = times(times(center, times(q, q)), F.softplus(-1.0 * logits))
    negative = times(times(times(far, far), times(p, p)), F.softplus(logits))  # zero at centers, where target is 1
    return F.sum(positive + negative) / F.maximum_scalar(F.sum(center) if centers is None else centers, 1.0)


def masked_l1(
    output: nn.Variable, target: nn.Variable, index: nn.Variable, mask: nn.Variable, objects: nn.Variable | None = None
) -> nn.Variable:
    """Compute the mean absolute error of a map at the cells of the objects.

    Args:
        output: (B, C, h, w).
        target: (B, M, C).
        index: (B, M), cell of each object, y * w + x.
        mask: (B, M), 1 for rows that hold an object.
        objects: number of objects to average over, a scalar; None counts them in `mask`.

    Returns:
        the loss, a scalar, averaged over objects and channels.
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
    """Decode the `top` highest peaks of each image, over all classes, to boxes sorted by score.

    A peak is a cell that equals the maximum of its 3x3 neighborhood in the heatmap of its class.

    Args:
        heat_map: (B, K, h, w), probabilities.
        offset, size: (B, 2, h, w), in cells.
        top: number of detections per image.

    Returns:
        boxes (B, top, 4) as x1 y1 x2 y2 in cells of the output map, scores (B, top), labels (B, top) int.
    """
    batch, _, height, width = heat_map.shape
    found = [_best_peaks(values, top) for values in heat_map]
    order, scores = (np.stack(arrays) for arrays in zip(*found))
    label, cell = np.divmod(order, height * width)

    def at_cells(values: np.ndarray) -> np.ndarray:
        return np.take_along_axis(values.reshape(batch, 2, -1), cell[:, None, :], axis=2)

    y, x = np.divmod(cell, width)
    center = np.stack([x, y], axis=1) + at_cells(offset)
    half = at_cells(size) / 2
    boxes = np.concatenate([center - half, center + half], axis=1).transpose(0, 2, 1)
    return boxes.astype(np.float32), scores.astype(np.float32), label


def _best_peaks(heat_map: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Return positions in the flattened heatmap (K, h, w) and values of its `top` highest peaks; ties keep their order."""
    is_peak = heat_map == _max_of_3x3(heat_map)
    positions = np.flatnonzero(is_peak & (heat_map > 0))
    if len(positions) < top:  # fill up with other cells of value 0
        values = np.where(is_peak, heat_map, 0.0).ravel()
        positions = np.argsort(-values, kind="stable")[:top]
        return positions, values[positions]
    values = heat_map.ravel()[positions]
    least = np.partition(values, len(values) - top)[len(values) - top]
    positions, values = positions[values >= least], values[values >= least]
    best = np.argsort(-values, kind="stable")[:top]
    return positions[best], values[best]


def _max_of_3x3(values: np.ndarray) -> np.ndarray:
    """Compute the maximum of each cell's 3x3 neighborhood in maps (..., h, w), first along rows and then along columns."""
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
    """Merge detections of one image, for example from several scales, by Soft-NMS within each class.

    The algorithm repeatedly selects the best remaining detection and multiplies the scores of the others of its class by
    exp(-IoU^2 / sigma) (Bodla et al. 2017, with the sigma of CenterNet's multi-scale test).

    Args:
        boxes: (n, 4) x1 y1 x2 y2.
        scores, labels: (n,).
        sigma: width of the Gaussian penalty.
        least: detections with a lower score are dropped.

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


# --- Classes that NNablaNAS creates from a config ---------------------------------------------------------------------


class SearchNet(Detector):
    """The detection supernet, with the arguments of a config's `network.centernet_ofa_resnet50` section.

    Args:
        num_classes, width_scale, strides, elastic_stem, zero_init_residual, deconv_channels, head_channels, heat_map_std:
            see `config.CenternetOfaResnet50`.
        weights: a weights file of a pre-trained classification supernet or of a detector, from which the backbone is loaded.
        rng: random generator of the initial weights.
        normalization: normalization of the input images.
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
        """Extract a path as a static network with copied weights; see `supernet.SearchNet.get_active_subnet`."""
        return TrainNet(path, **self._static, supernet=self, statistics=statistics)


class TrainNet(Detector):
    """One path of the detection supernet as a static network, called as `net(x)`.

    Args:
        genotype: a `Path`, or a path in OFA's notation.
        num_classes, width_scale, strides, deconv_channels, head_channels: see `SearchNet`.
        supernet: the supernet to copy the weights from.
        statistics: batch-normalization statistics of the path; None copies those stored in `supernet`.

    Raises:
        UserError: `statistics` are given without `supernet`.
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
        """Map images (B, 3, H, W) to heatmap logits, offset and size at output stride 4."""
        return super().__call__(x, self.path, statistics)
