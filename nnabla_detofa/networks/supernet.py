"""The classification supernet: the elastic ResNet50 with a linear classifier, whole or one path as a static network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..backend.compat import F, Mo, Parameter, nn
from ..common.errors import UserError
from ..common.normalization import IMAGENET, Normalization
from ..config import OwnClassifier
from ..space.geometry import OFA_RESNET50, Geometry
from ..space.paths import Path
from ..space.search_space import ofa_resnet50
from . import weights as weights_file
from .layers import STORED, ConvBN, StatisticsSource
from .resnet50 import ElasticResNet50


class Classifier(ElasticResNet50):
    """The classification supernet f^pre: elastic ResNet50, global average pooling and one linear layer (Eq. 1).

    Args:
        num_classes: number of outputs of the linear layer.
        geometry, zero_init_residual, rng, path: see `ElasticResNet50`.
        label_smoothing: label smoothing of the training loss.
        normalization: normalization of the input images.
    """

    loss_names: tuple[str, ...] = ("loss",)

    def __init__(
        self,
        num_classes: int = 1000,
        geometry: Geometry = OFA_RESNET50,
        zero_init_residual: bool = True,
        rng: np.random.Generator | None = None,
        path: Path | None = None,
        label_smoothing: float = 0.0,
        normalization: Normalization = IMAGENET,
    ):
        rng = rng or np.random.default_rng(0)
        super().__init__(geometry, zero_init_residual, rng, path)
        self.normalization = normalization
        self._label_smoothing = label_smoothing
        weight = rng.normal(0.0, 0.01, (self.channels, num_classes)).astype(np.float32)
        self.classifier = Linear(weight)

    def __call__(self, x: nn.Variable, path: Path, statistics: StatisticsSource = STORED) -> nn.Variable:
        """Map images (B, 3, H, W) to logits (B, num_classes)."""
        return self.classifier(F.mean(self.trunk(x, path, statistics), axis=(2, 3)))

    def losses(self, outputs: nn.Variable, targets: Sequence[nn.Variable]) -> tuple[nn.Variable, ...]:
        """Return the training loss, cross entropy with label smoothing against labels (B, 1), as a tuple of one scalar."""
        return (classification_loss(outputs, targets[0], self._label_smoothing),)

    def static(self, path: Path) -> Classifier:
        """Create the static network of a path, with initial weights."""
        return Classifier(self.classifier.parameters["0/linear/linear/_b"].shape[0], self.space.geometry, path=path)

    def loss(self, outputs: nn.Variable, targets: Sequence[nn.Variable], loss_weights: None = None) -> nn.Variable:
        """Return the cross entropy without label smoothing, by which paths are compared."""
        return classification_loss(outputs, targets[0])


class Linear(Mo.Module):
    """Linear layer for any number of leading inputs; the initial `weight` is (inputs, outputs), as in NNabla."""

    def __init__(self, weight: np.ndarray):
        super().__init__(name="")
        self.parameters["0/linear/linear/_W"] = Parameter(weight.shape, initializer=weight)
        self.parameters["0/linear/linear/_b"] = Parameter(weight.shape[1:])

    def __call__(self, x: nn.Variable) -> nn.Variable:
        weight, bias = self.parameters.values()
        if x.shape[1] < weight.shape[0]:
            weight = F.slice(weight, (0, 0), (x.shape[1], weight.shape[1]))
        return F.affine(x, weight, bias)


def classification_loss(logits: nn.Variable, labels: nn.Variable, smoothing: float = 0.0) -> nn.Variable:
    """Compute the mean cross entropy with label smoothing.

    Args:
        logits: (B, K).
        labels: (B, 1), integers in [0, K).
        smoothing: probability mass that the target distributes uniformly over all K classes, as in OFA.

    Returns:
        the loss, a scalar.
    """
    loss = F.mean(F.softmax_cross_entropy(logits, labels))
    if smoothing == 0.0:
        return loss
    uniform = F.mean(F.log_softmax(logits)) * -1.0
    return (1.0 - smoothing) * loss + smoothing * uniform


# --- Static networks --------------------------------------------------------------------------------------------------


def copy_leading(source: Mapping[str, nn.Variable], target: Mapping[str, nn.Variable]) -> None:
    """Copy the leading channels of each source parameter to the target parameter of the same name.

    If the source kernel is larger than the target kernel, its center is copied (as in OFA's elastic kernels).

    Raises:
        KeyError: the source lacks a parameter of the target.
    """
    for name, parameter in target.items():
        whole, shape = source[name].d, parameter.shape
        starts = [0 if axis < 2 else (most - size) // 2 for axis, (most, size) in enumerate(zip(whole.shape, shape))]
        parameter.d = whole[tuple(slice(start, start + size) for start, size in zip(starts, shape))]


def take_over(target: Mo.Module, source: Mo.Module, statistics: Mapping | None = None) -> None:
    """Copy weights, statistics and image normalization of a supernet to the static network of one of its paths.

    Args:
        target: the static network.
        source: the supernet.
        statistics: layer name -> re-estimated (mean, variance) of the path; None copies the statistics stored in the supernet.
    """
    copy_leading(source.get_parameters(), target.get_parameters())
    target.normalization = source.normalization
    for layer in (module for _, module in target.get_modules() if isinstance(module, ConvBN)):
        if statistics is not None:
            layer.mean.d, layer.var.d = statistics[layer.name]


def classifier_of(
    network: OwnClassifier,
    num_classes: int,
    path: Path | None = None,
    rng: np.random.Generator | None = None,
    normalization: Normalization = IMAGENET,
    label_smoothing: float = 0.0,
) -> Classifier:
    """Create the classification supernet of the user's own, or with `path` the static network of one path."""
    net = network.classifier(num_classes, path, rng, normalization, label_smoothing)
    if net is None:
        initial = network.zero_init_residual
        net = Classifier(num_classes, network.geometry, initial, rng, path, label_smoothing, normalization)
    net.space, net.static = network.space, partial(classifier_of, network, num_classes)
    return net


class SearchNet(Classifier):
    """The classification supernet, with the arguments of a config's `network.ofa_resnet50` section.

    Args:
        num_classes, width_scale, strides, elastic_stem, zero_init_residual: see `config.OfaResnet50`.
        weights: a weights file of the whole network, which is adapted if it was trained with another normalization.
        label_smoothing: label smoothing of the training loss.
        rng: random generator of the initial weights.
        normalization: normalization of the input images.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        width_scale: float = 1.0,
        strides: Sequence[int] = (1, 2, 2, 2),
        elastic_stem: bool = True,
        zero_init_residual: bool = True,
        weights: str | None = None,
        label_smoothing: float = 0.0,
        rng: np.random.Generator | None = None,
        normalization: Normalization = IMAGENET,
    ):
        geometry = Geometry(width_scale=width_scale, strides=tuple(strides))
        super().__init__(num_classes, geometry, zero_init_residual, rng, None, label_smoothing, normalization)
        self.space = ofa_resnet50(geometry, elastic_stem)
        self._static: dict[str, Any] = {"num_classes": num_classes, "width_scale": width_scale, "strides": tuple(strides)}
        if weights:
            weights_file.load(self, weights, adapt=True)

    def get_active_subnet(self, path: Path | Mapping, statistics: Mapping | None = None) -> TrainNet:
        """Extract a path as a static network with copied weights (the method name is NNablaNAS').

        Args:
            path: a `Path`, or a path in OFA's notation.
            statistics: re-estimated BatchNorm statistics of the path (`reestimation.reestimate`); None copies the stored ones.
        """
        return TrainNet(path, **self._static, supernet=self, statistics=statistics)


class TrainNet(Classifier):
    """One path of the classification supernet as a static network, called as `net(x)`.

    Args:
        genotype: a `Path`, or a path in OFA's notation.
        num_classes, width_scale, strides: see `SearchNet`.
        supernet: the supernet to copy the weights from.
        statistics: batch-normalization statistics of the path; None copies those stored in `supernet`.

    Raises:
        UserError: `statistics` are given without `supernet`.
    """

    def __init__(
        self,
        genotype: Path | Mapping,
        num_classes: int = 1000,
        width_scale: float = 1.0,
        strides: Sequence[int] = (1, 2, 2, 2),
        supernet: Classifier | None = None,
        statistics: Mapping | None = None,
    ):
        geometry = Geometry(width_scale=width_scale, strides=tuple(strides))
        path = genotype if isinstance(genotype, Path) else Path.from_ofa(genotype, geometry)
        super().__init__(num_classes, geometry, path=path)
        self.path = path
        if supernet is not None:
            take_over(self, supernet, statistics)
        elif statistics is not None:
            raise UserError("statistics must be given together with supernet, to whose path they belong")

    def __call__(self, x: nn.Variable, statistics: StatisticsSource = STORED) -> nn.Variable:  # type: ignore[override]
        """Map images (B, 3, H, W) to logits (B, num_classes)."""
        return super().__call__(x, self.path, statistics)
