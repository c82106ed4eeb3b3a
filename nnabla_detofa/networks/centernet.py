"""CenterNet with the elastic backbone: up-convolutions and three heads.

In the paper only the backbone is elastic. A space whose paths have the named choices of `HeadGeometry` makes up-convolutions
and heads elastic too: a path uses their leading filters, like the channels of the backbone. The output stride is 4: the
backbone, including the stem's max-pool, has stride 32, and each of the three transposed convolutions doubles the resolution.
(The paper says that "a max-pooling layer and classification head are replaced". We take this to be the pooling before the
classifier, because without the stem's max-pool the heatmap would have stride 2.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Protocol

import numpy as np

from ..backend import kernels
from ..backend.compat import F, Mo, Model, Parameter, nn
from ..common.errors import UserError
from ..common.normalization import IMAGENET, Normalization
from ..config import CenternetOfaResnet50, OwnDetector
from ..data.compact import nonzero
from ..space.geometry import OFA_RESNET50, Geometry, HeadGeometry
from ..space.paths import Path
from ..space.search_space import ofa_resnet50
from .decoding import decode
from .detection_loss import Losses, Outputs, TargetVariables, detection_loss, focal_loss, l1_at_objects, total
from .layers import STORED, ConvBN, StatisticsSource, he_normal
from .resnet50 import ElasticResNet50, Named
from .supernet import take_over
from .weights import load_backbone

HEATMAP_BIAS = -2.19  # initial bias; sigmoid(-2.19) is about 0.1, which keeps the initial loss small (CenterNet)


class DeconvBN(ConvBN):
    """4x4 transposed convolution with stride 2, batch normalization and ReLU, for any numbers of leading channels.

    Maps (B, C, H, W), for any C up to `inputs`, to (B, filters, 2H, 2W), for any number of filters up to `outputs`.
    """

    output_axis = 1

    def __init__(self, name: str, inputs: int, outputs: int, rng: np.random.Generator):
        super().__init__(name, inputs, outputs, 4, rng)
        # Each output pixel uses 2x2 of the 4x4 kernel. NNabla's transposed weight is (inputs, outputs, kh, kw).
        weight = he_normal(rng, (inputs, outputs, 4, 4), inputs * 4)
        self.parameters["conv/conv/_W"] = Parameter(weight.shape, initializer=weight)

    def __call__(  # type: ignore[override]
        self, x: nn.Variable, outputs: int, statistics: StatisticsSource
    ) -> nn.Variable:
        weight = kernels.leading(self.parameters["conv/conv/_W"], x.shape[1], outputs)
        gamma, beta = (self.parameters[f"bn/bn/{key}"] for key in ("_gamma", "_beta"))
        return statistics(self, partial(statistics.deconvolution, x), weight, gamma, beta, relu=True)


class Head(Mo.Module):
    """Output head: 3x3 convolution, ReLU and 1x1 convolution, both convolutions with bias.

    Maps (B, C, h, w), for any C up to `inputs`, to (B, outputs, h, w), with any number of filters up to `hidden`. `std` is the
    standard deviation of the initial weights of the last layer, and `bias` its initial bias.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, rng: np.random.Generator, std: float = 0.001, bias: float = 0.0):
        super().__init__(name="")
        values = {
            "conv1/_W": he_normal(rng, (hidden, inputs, 3, 3), inputs * 9),
            "conv1/_b": np.zeros(hidden, np.float32),
            "conv2/_W": rng.normal(0.0, std, (outputs, hidden, 1, 1)).astype(np.float32),
            "conv2/_b": np.full(outputs, bias, np.float32),
        }
        for key, value in values.items():
            self.parameters[key] = Parameter(value.shape, initializer=value)

    def weights(self, inputs: int, hidden: int | None = None) -> tuple[nn.Variable, ...]:
        """Return weight and bias of both convolutions, for so many leading inputs and filters (None: all)."""
        w1, b1, w2, b2 = self.parameters.values()
        hidden = hidden or b1.shape[0]
        b1 = b1 if hidden == b1.shape[0] else F.slice(b1, (0,), (hidden,))
        return kernels.leading(w1, hidden, inputs), b1, kernels.leading(w2, w2.shape[0], hidden), b2

    def __call__(self, x: nn.Variable, statistics: StatisticsSource = STORED, hidden: int | None = None) -> nn.Variable:
        w1, b1, w2, b2 = self.weights(x.shape[1], hidden)
        return F.convolution(statistics.relu(F.convolution(x, w1, b1, pad=(1, 1))), w2, b2)

    def at(self, patches: nn.Variable, statistics: StatisticsSource, hidden: int | None = None) -> nn.Variable:
        """Compute the outputs (n, outputs) at the centers of n patches (n, C * 9), as `kernels.patches` returns them."""
        w1, b1, w2, b2 = self.weights(patches.shape[1] // 9, hidden)
        w1, w2 = (F.transpose(F.reshape(w, (w.shape[0], w.size // w.shape[0])), (1, 0)) for w in (w1, w2))
        return F.affine(statistics.relu(F.affine(patches, w1, b1)), w2, b2)


def run_heads(
    heads: Sequence[Head], x: nn.Variable, statistics: StatisticsSource, hidden: int | None = None
) -> list[nn.Variable]:
    """Compute the outputs of several heads, with `hidden` filters each (None: all), on the same feature map x (B, C, h, w).

    If `statistics.joins_heads` is true, one convolution computes all hidden maps and a second one all outputs, with a
    block-diagonal weight, because three separate convolutions with few channels leave most of a core idle.

    Returns:
        for each head its output, (B, outputs, h, w).
    """
    if not statistics.joins_heads or len(heads) == 1:
        return [head(x, statistics, hidden) for head in heads]
    first, first_bias, second, second_bias = zip(*(head.weights(x.shape[1], hidden) for head in heads))
    maps = F.convolution(x, F.concatenate(*first, axis=0), F.concatenate(*first_bias, axis=0), pad=(1, 1))
    weight, bias = block_diagonal(second), F.concatenate(*second_bias, axis=0)
    y = F.convolution(statistics.relu(maps), weight, bias)
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

    def __call__(self, x: nn.Variable, path: Path, statistics: StatisticsSource) -> nn.Variable: ...


class Detector(Model):
    """The detection supernet f^trg: elastic backbone, up-convolutions and CenterNet's heads (section 4.1).

    To use other heads, subclass it and override `make_heads`, `heads`, `losses` and `counts`, and for inference `maps`,
    `with_mirrored` and `decode`, with the names of losses and maps.

    Args:
        head: numbers of channels of up-convolutions and heads, and number of classes.
        geometry, zero_init_residual, rng, path: see `ElasticResNet50`.
        heatmap_std: standard deviation of the initial weights of the heatmap's last layer. CenterNet uses 0.001; networks
            with few channels learn only with about 0.1.
        backbone: a backbone that replaces the one defined by `geometry`, `zero_init_residual` and `path`.
        normalization: normalization of the input images.

    Attributes:
        head_geometry: numbers of channels of the largest path.
        num_classes: number of classes.
    """

    loss_names: ClassVar[tuple[str, ...]] = ("loss", "heatmap", "offset", "size")
    """Names of the results of `losses` in logs."""
    map_names: ClassVar[tuple[str, ...]] = ("heatmap", "offset", "size")
    """Names of the results of `maps`, the outputs of an exported detector."""

    def __init__(
        self,
        head: HeadGeometry,
        geometry: Geometry = OFA_RESNET50,
        zero_init_residual: bool = True,
        heatmap_std: float = 0.001,
        rng: np.random.Generator | None = None,
        path: Path | None = None,
        backbone: Backbone | None = None,
        normalization: Normalization = IMAGENET,
    ):
        super().__init__(name="")
        self.normalization, self.head_geometry, self.num_classes = normalization, head, head.num_classes
        rng = rng or np.random.default_rng(0)
        self.backbone = backbone or ElasticResNet50(geometry, zero_init_residual, rng, path)
        channels = self.backbone.channels
        allocated = head.of(dict(path.named)) if path else head
        deconvs = {}
        for index, filters in enumerate(allocated.deconv_channels):
            deconvs[index] = DeconvBN(f"deconv/{index}", channels, filters, rng)
            channels = filters
        self.deconv = Named(deconvs)
        self.make_heads(channels, allocated, heatmap_std, rng)

    def make_heads(self, channels: int, head: HeadGeometry, heatmap_std: float, rng: np.random.Generator) -> None:
        """Create the modules that `heads` applies to a feature map with `channels` channels."""
        self.heatmap = Head(channels, head.head_channels, head.num_classes, rng, heatmap_std, HEATMAP_BIAS)
        self.offset = Head(channels, head.head_channels, 2, rng)
        self.size = Head(channels, head.head_channels, 2, rng)

    def __call__(self, x: nn.Variable, path: Path, statistics: StatisticsSource = STORED) -> Outputs:
        """Map images (B, 3, H, W) to heatmap logits, offset and size at output stride 4."""
        return self.heads(self.trunk(x, path, statistics), path, statistics)

    def trunk(self, x: nn.Variable, path: Path, statistics: StatisticsSource = STORED) -> nn.Variable:
        """Apply the network up to its last batch normalization: backbone and up-convolutions."""
        return self.up(self.backbone(x, path, statistics), path, statistics)

    def up(self, y: nn.Variable, path: Path, statistics: StatisticsSource = STORED) -> nn.Variable:
        """Apply the up-convolutions of a path to the backbone's last feature map; returns the map at the output stride."""
        for layer, filters in zip(self.deconv.modules.values(), self.head_geometry.of(dict(path.named)).deconv_channels):
            y = layer(y, filters, statistics)
        return y

    def heads(self, y: nn.Variable, path: Path, statistics: StatisticsSource = STORED) -> Outputs:
        """Apply the three heads of a path to the map at the output stride."""
        hidden = self.head_geometry.of(dict(path.named)).head_channels
        return Outputs(*run_heads((self.heatmap, self.offset, self.size), y, statistics, hidden))

    def losses(self, outputs: Outputs, targets: Sequence[nn.Variable], counts: Sequence[nn.Variable] | None = None) -> Losses:
        """Compute the training loss and its parts.

        Args:
            outputs: outputs of the network.
            targets: the fields of `TargetVariables`.
            counts: if these images are a part of a larger batch, the `counts` of the whole batch; the losses of the parts
                then add up to the loss of the batch.
        """
        if not isinstance(outputs, Outputs):
            raise UserError(
                f"heads of {type(self).__name__} must return an Outputs for CenterNet's losses, got {type(outputs).__name__}; "
                "other heads also need the method losses"
            )
        return detection_loss(outputs, TargetVariables(*targets), *(counts or ()))

    def counts(self, targets: Sequence[np.ndarray]) -> tuple[int, int]:
        """Count what the losses are divided by: heatmap cells that are centers, and objects."""
        heatmap, *_, mask = targets
        return int(np.sum(nonzero(heatmap) >= 1)), int(np.sum(mask))

    def loss(self, outputs: Outputs, targets: Sequence[nn.Variable], loss_weights: None = None) -> nn.Variable:
        """Return the total loss, by which paths of one resolution are compared."""
        return self.losses(outputs, targets)[0]

    def compared_loss(self, outputs: Outputs, targets: Sequence[nn.Variable], path: Path) -> nn.Variable:
        """Return the loss by which paths of several resolutions are compared: `loss`, with sizes in one unit (`size_unit`).

        The heatmap's loss is divided by the number of centers and the others by that of objects, not of cells, and offsets are
        shares of a cell at every resolution. Subclasses with `losses` or a `loss` of their own are compared by their `loss`.
        """
        own = any(getattr(type(self), name) is not getattr(Detector, name) for name in ("losses", "loss"))
        if own or self.size_unit(path) == 1:
            return self.loss(outputs, targets)
        return total(*self.losses(outputs, targets)[1:], self.size_unit(path))

    def size_unit(self, path: Path) -> float:
        """Return the width of a cell at the path's resolution in cells at the largest one; 1 if paths do not choose it."""
        return self.space.geometry.resolutions[-1] / path.resolution if path.resolution else 1.0

    def evaluation_loss(
        self, x: nn.Variable, path: Path, targets: Sequence[nn.Variable], statistics: StatisticsSource
    ) -> nn.Variable:
        """Return the `compared_loss` of a forward pass, up to rounding, without a gradient.

        The losses of offset and size read only the cells of the objects, so on the CPU these heads, two thirds of the channels
        of all heads, are computed only there. A subclass with other heads or losses computes them everywhere.
        """
        methods = ("__call__", "make_heads", "heads", "losses", "loss", "compared_loss")
        if not kernels.on_cpu() or any(getattr(type(self), name) is not getattr(Detector, name) for name in methods):
            return self.compared_loss(self(x, path, statistics), targets, path)
        y, given = self.trunk(x, path, statistics), TargetVariables(*targets)
        patches = kernels.patches(y, given.index, given.mask, 3)
        hidden = self.head_geometry.of(dict(path.named)).head_channels
        offset, size = (head.at(patches, statistics, hidden) for head in (self.offset, self.size))
        return total(
            focal_loss(self.heatmap(y, statistics, hidden), given.heatmap),
            l1_at_objects(offset, given.offset, given.mask),
            l1_at_objects(size, given.size, given.mask),
            self.size_unit(path),
        )

    def maps(self, outputs: Outputs) -> tuple[nn.Variable, ...]:
        """Return the inputs of `decode`, (B, channels, h, w) each: heatmap in [0, 1], offset and size."""
        return F.sigmoid(outputs.heatmap), outputs.offset, outputs.size

    def with_mirrored(self, maps: Sequence[np.ndarray], mirrored: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        """Average the maps with those of the mirrored images: heatmap and size, but not offset, as in CenterNet's flip test."""
        heatmap, offset, size = maps
        return (heatmap + mirrored[0][..., ::-1]) / 2, offset, (size + mirrored[2][..., ::-1]) / 2

    def decode(self, maps: Sequence[np.ndarray], top: int = 100) -> Sequence[Iterable[np.ndarray]]:
        """Return for each image boxes (n, 4) in cells, scores (n,) and labels (n,) of at most `top` detections, best first."""
        heatmap, offset, size = maps
        return decode(heatmap, offset, size, top)


def detector_of(
    network: CenternetOfaResnet50,
    num_classes: int,
    path: Path | None = None,
    rng: np.random.Generator | None = None,
    normalization: Normalization = IMAGENET,
) -> Detector:
    """Create the supernet of a config's section `network`, or with `path` the static network of one path.

    Args:
        network: the section, of this package or of the user's own.
        num_classes: number of classes.
        path: if given, only the weights of this path are allocated.
        rng: random generator of the initial weights.
        normalization: normalization of the input images.
    """
    net = network.detector(num_classes, path, rng, normalization) if isinstance(network, OwnDetector) else None
    if net is None:
        head, initial = network.head_geometry(num_classes), (network.zero_init_residual, network.heatmap_std)
        net = Detector(head, network.geometry, *initial, rng, path, normalization=normalization)
    net.space, net.num_classes = network.space, num_classes
    return net


# --- Classes that NNablaNAS creates from a config ---------------------------------------------------------------------


class SearchNet(Detector):
    """The detection supernet, with the arguments of a config's `network.centernet_ofa_resnet50` section.

    Args:
        num_classes, width_scale, strides, elastic_stem, zero_init_residual, deconv_channels, head_channels, heatmap_std:
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
        heatmap_std: float = 0.001,
        weights: str | None = None,
        rng: np.random.Generator | None = None,
        normalization: Normalization = IMAGENET,
    ):
        geometry = Geometry(width_scale=width_scale, strides=tuple(strides))
        head = HeadGeometry(num_classes, tuple(deconv_channels), head_channels)
        super().__init__(head, geometry, zero_init_residual, heatmap_std, rng, normalization=normalization)
        self.space = ofa_resnet50(geometry, elastic_stem)
        self._static: dict[str, Any] = {
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
            raise UserError("statistics must be given together with supernet, to whose path they belong")

    def __call__(self, x: nn.Variable, statistics: StatisticsSource = STORED) -> Outputs:  # type: ignore[override]
        """Map images (B, 3, H, W) to heatmap logits, offset and size at output stride 4."""
        return super().__call__(x, self.path, statistics)
