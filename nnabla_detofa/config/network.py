"""Section `network` of a config: the supernets, ours by name and others by the import path of their class."""

from __future__ import annotations

from dataclasses import dataclass, is_dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from ..common.errors import UserError
from ..common.normalization import IMAGENET, Normalization
from ..space.geometry import HEADS, RESOLUTION, UP, Choices, Geometry, HeadGeometry
from .imported import imported
from .values import Channels, Classes, PathStr, Side, UpToOne

if TYPE_CHECKING:
    import numpy as np

    from ..space.costs import CostModel
    from ..space.paths import Path
    from ..space.search_space import SearchSpace


@dataclass(frozen=True)
class OfaResnet50:
    """The classification supernet: elastic ResNet-50.

    Attributes:
        num_classes: number of classes; null: that of the dataset.
        width_scale: factor of the channel numbers of the backbone, for small experiments.
        strides: stride of the first layer of each stage.
        elastic_stem: whether paths also choose the depth and the widths of the stem; otherwise the stem is the largest.
        zero_init_residual: initialize gamma of the last batch normalization of each residual branch to 0, as OFA does.
        weights: file (.h5) of a pre-trained supernet.
    """

    num_classes: Classes | None = None
    width_scale: UpToOne = 1.0
    strides: tuple[Annotated[int, "[1, 2]"], ...] = (1, 2, 2, 2)
    elastic_stem: bool = True
    zero_init_residual: bool = True
    weights: PathStr | None = None

    def __post_init__(self) -> None:
        if len(self.strides) != 4:
            raise UserError(f"strides must be 4 numbers, one for each stage, got {len(self.strides)}")
        if not isinstance(self.geometry, Geometry):
            found = type(self.geometry).__name__
            raise UserError(f"geometry of {type(self).__name__} must be a property that returns a Geometry, got a {found}")

    @property
    def geometry(self) -> Geometry:
        """Geometry of the backbone."""
        return Geometry(strides=self.strides, width_scale=self.width_scale)

    @property
    def space(self) -> SearchSpace:
        """The search space A of all paths."""
        from ..space.search_space import ofa_resnet50

        return ofa_resnet50(self.geometry, self.elastic_stem)

    @property
    def coupled_space(self) -> SearchSpace:
        """The search space of the baseline CompOFA*, with coupled choices."""
        from ..space.search_space import compofa

        return compofa(self.geometry, self.elastic_stem)

    @property
    def shrinking_stages(self) -> tuple[SearchSpace, ...]:
        """The growing search spaces of the baseline OFA with progressive shrinking on detection data (Table A1)."""
        from ..space.search_space import shrinking_stages

        return shrinking_stages(self.geometry, self.elastic_stem)

    def part(self, name: str, depths: tuple[int, ...], widths: tuple[float, ...], ratios: tuple[float, ...]) -> SearchSpace:
        """Return the search space `name` of all paths with these depths, widths and expand ratios."""
        from ..space.search_space import product_space

        return product_space(name, depths, widths, ratios, self.geometry, self.elastic_stem)

    def cost_model(self, image_size: int | tuple[int, int], num_classes: int, scope: str) -> CostModel:
        """Return the cost model of paths; see `CostModel` for the arguments."""
        from ..space.costs import CostModel

        return CostModel(image_size, num_classes, scope, self.geometry)


@dataclass(frozen=True)
class OwnClassifier(OfaResnet50):
    """Base class of a classification supernet of your own, for the pre-training of a detector's backbone; see `OwnDetector`."""

    def classifier(
        self,
        num_classes: int,
        path: Path | None = None,
        rng: np.random.Generator | None = None,
        normalization: Normalization = IMAGENET,
        label_smoothing: float = 0.0,
    ) -> Any:
        """Create the supernet, a `networks.supernet.Classifier`, or with `path` the static network of one path.

        Here it returns None: the elastic ResNet50 of `geometry`. The arguments are those of `Classifier`.
        """
        return None


@dataclass(frozen=True)
class CenternetOfaResnet50(OfaResnet50):
    """The detection supernet: CenterNet on the elastic backbone.

    Attributes:
        deconv_channels: number of filters of each transposed convolution; each doubles the resolution.
        head_channels: number of filters of the 3x3 convolution in each head.
        heatmap_std: standard deviation of the initial weights of the last convolution of the heatmap head.
    """

    deconv_channels: tuple[Channels, ...] = (256, 256, 256)
    head_channels: Channels = 64
    heatmap_std: Annotated[float, "[0, 10]"] = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        stride, doublings = self.geometry.total_stride, len(self.deconv_channels)
        if stride % 2**doublings:
            raise UserError(
                f"deconv_channels must have at most {stride.bit_length() - 1} values, which double the resolution from stride "
                f"{stride} to 1, got {doublings}"
            )

    def head_geometry(self, num_classes: int) -> HeadGeometry:
        """Return the geometry of the heads for a dataset of `num_classes` classes, unless the config sets their number."""
        return HeadGeometry(self.num_classes or num_classes, self.deconv_channels, self.head_channels)

    def cost_model(self, image_size: int | tuple[int, int], num_classes: int, scope: str) -> CostModel:
        """Return the cost model of paths; see `CostModel` for the arguments."""
        from ..space.costs import CostModel

        head = HeadGeometry(num_classes, self.deconv_channels, self.head_channels)
        return CostModel(image_size, num_classes, scope, self.geometry, head)


@dataclass(frozen=True)
class OwnDetector(CenternetOfaResnet50):
    """Base class of a detection supernet of your own, which a config names by its import path: "package.module:Class".

    A subclass is a frozen dataclass. Its fields, the inherited ones included, are the keys of the config's section. It
    overrides `detector` if its layers differ from CenterNet's on the elastic ResNet50, and where its paths differ `geometry`,
    `cost_model` and the spaces.

    Attributes:
        resolutions: sides of the square input in pixels, in ascending order, of which a path chooses one; the largest one is
            the `image_size` of the dataset. Empty: all paths have this `image_size`.
    """

    resolutions: tuple[Side, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resolutions and self.geometry.resolutions != self.resolutions:
            raise UserError(
                f"resolutions must be left out, since the geometry of {type(self).__name__} has no resolution_choice among its "
                f"named choices, got {', '.join(map(str, self.resolutions))}"
            )

    @property
    def resolution_choice(self) -> tuple[Choices, ...]:
        """The named choice of the input resolution, for `Geometry.named`; empty if paths do not choose it."""
        return (Choices(RESOLUTION, self.resolutions),) if self.resolutions else ()

    @property
    def geometry(self) -> Geometry:
        """Geometry of the backbone."""
        return replace(super().geometry, named=self.resolution_choice)

    @property
    def sets_type(self) -> Any:
        """Subclass of `data.sets.DetectionSets` that computes the targets of the detector's own heads; None: CenterNet's."""
        return None

    def detector(
        self,
        num_classes: int,
        path: Path | None = None,
        rng: np.random.Generator | None = None,
        normalization: Normalization = IMAGENET,
    ) -> Any:
        """Create the supernet, a `networks.centernet.Detector`, or with `path` the static network of one path.

        Here it returns None: CenterNet on the elastic ResNet50 of `geometry`, with `head_geometry`.

        Args:
            num_classes: number of classes.
            path: if given, only the weights of this path are allocated.
            rng: random generator of the initial weights.
            normalization: normalization of the input images.
        """
        return None


@dataclass(frozen=True)
class CenternetElasticNeck(OwnDetector):
    """The detection supernet whose up-convolutions and heads are elastic too, the paper's future work.

    Attributes:
        up_widths: shares of the filters of each transposed convolution, of which a path chooses one for each of them.
        head_widths: shares of the filters of the 3x3 convolution in the heads, of which a path chooses one for all heads.
    """

    up_widths: tuple[UpToOne, ...] = (0.5, 0.75, 1.0)
    head_widths: tuple[UpToOne, ...] = (0.5, 0.75, 1.0)

    @property
    def geometry(self) -> Geometry:
        """Geometry of the backbone, with the named choices of the up-convolutions, of the heads and of the resolution."""
        ups = [Choices(f"{UP}{number}", self.up_widths) for number in range(1, len(self.deconv_channels) + 1)]
        return replace(super().geometry, named=(*ups, Choices(HEADS, self.head_widths), *self.resolution_choice))


def network_type(name: str) -> type[OfaResnet50]:
    """Return the class of the section of a network: one of `NETWORKS`, or a class that the name imports.

    Raises:
        UserError: the module or the class cannot be imported, or it is not a dataclass based on `OwnDetector` or
            `OwnClassifier`.
    """
    return NETWORKS[name] if name in NETWORKS else _own_network(name)


def _own_network(name: str) -> type[OwnDetector | OwnClassifier]:
    kind = imported("network", name)
    if not (isinstance(kind, type) and issubclass(kind, (OwnDetector, OwnClassifier)) and is_dataclass(kind)):
        raise UserError(
            f"network {name}: {name.partition(':')[2]} must be a frozen dataclass based on nnabla_detofa.config.OwnDetector or "
            "OwnClassifier"
        )
    return kind


NETWORKS = {
    "ofa_resnet50": OfaResnet50,
    "centernet_ofa_resnet50": CenternetOfaResnet50,
    "centernet_elastic_neck": CenternetElasticNeck,
}
"""Networks by their names in a config."""
