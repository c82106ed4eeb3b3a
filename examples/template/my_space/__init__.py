"""A search space of my own: other depths, widths and expand ratios, given in the config.

Rename the package, then change what differs from OFA-ResNet50 under CenterNet: the geometry, the costs, the network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from nnabla_detofa.common.normalization import IMAGENET, Normalization
from nnabla_detofa.config import OwnDetector
from nnabla_detofa.networks.centernet import Detector
from nnabla_detofa.networks.resnet50 import ElasticResNet50
from nnabla_detofa.space.costs import CostModel
from nnabla_detofa.space.geometry import Geometry
from nnabla_detofa.space.paths import Path


class MyGeometry(Geometry):
    """Channels as functions of the choices: `middle`, `stage_out`, ... are here to override."""


class MyCost(CostModel):
    """FLOPs, parameters and memory of layers: `middle_cost`, `backbone_tables`, `head_cost`, ... are here to override."""


class MyResNet50(ElasticResNet50):
    """The elastic backbone: `layer_type` is here to override, or the whole class."""


class MyDetector(Detector):
    """Up-convolutions, heads, losses and decoding: `make_heads`, `heads`, `losses`, ... are here to override."""


@dataclass(frozen=True)
class MyCenterNet(OwnDetector):
    """The network of a config: `"network": {"my_space:MyCenterNet": {"widths": [0.5, 1.0]}}`.

    Attributes:
        depths, widths, ratios: choices of D, W and E.
    """

    depths: tuple[Annotated[int, "[0, 8]"], ...] = (0, 1)
    widths: tuple[Annotated[float, "(0, 4]"], ...] = (0.5, 0.75, 1.0)
    ratios: tuple[Annotated[float, "(0, 4]"], ...] = (0.2, 0.35)

    @property
    def geometry(self) -> MyGeometry:
        choices = {"depths": self.depths, "widths": self.widths, "ratios": self.ratios}
        return MyGeometry(strides=self.strides, width_scale=self.width_scale, named=self.resolution_choice, **choices)

    def cost_model(self, image_size: int | tuple[int, int], num_classes: int, scope: str) -> MyCost:
        return MyCost(image_size, num_classes, scope, self.geometry, self.head_geometry(num_classes))

    def detector(
        self,
        num_classes: int,
        path: Path | None = None,
        rng: np.random.Generator | None = None,
        normalization: Normalization = IMAGENET,
    ) -> Any:
        rng = rng or np.random.default_rng(0)
        backbone = MyResNet50(self.geometry, self.zero_init_residual, rng, path)
        head = self.head_geometry(num_classes)
        return MyDetector(head, heatmap_std=self.heatmap_std, rng=rng, backbone=backbone, normalization=normalization)
