"""The shapes of the elastic ResNet50 and of the detector on it: which channels and strides a choice means.

Pure arithmetic, shared by the search space, the cost model and the networks, so that the three cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any

from ..common.errors import UserError

MOST_LAYERS = 1000
"""Of a stage: what a file says of a network is believed before the network is made."""


def is_count(value: Any) -> bool:
    """Whether `value` is an integer of 1 or more."""
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= 1


def _refuse_no_counts(owner: str, **values: tuple) -> None:
    """Raise UserError for the first of `values` that holds anything but integers of 1 or more."""
    for name, numbers in values.items():
        if not all(map(is_count, numbers)):
            raise UserError(f"{name} of {owner} must be 1 or more, and whole, got {', '.join(map(str, numbers))}")


def choice_word(choice: Hashable) -> str:
    """A layer's choice in messages and tokens: "E0.25" for a ratio; a choice of another kind says it itself, by `str`."""
    return f"E{choice}" if isinstance(choice, Real) else str(choice)


def make_divisible(value: float, divisor: int) -> int:
    """Round `value` to the nearest multiple of `divisor` (half up), at least `divisor` and never below 90% of `value`.

    The rule OFA took over from MobileNet; it decides every channel count of the supernet.
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


@dataclass(frozen=True)
class Geometry:
    """The elastic ResNet50: what can be chosen, and the channels and strides that a choice means.

    The defaults are OFA-ResNet50 (Table 1 and the published supernet). `width_scale` shrinks every base width, the
    stem's too, and the channel divisor with it (8 at scale 1, never below 1): with a fixed divisor of 8 the width choices
    of a small network would collapse into one (paper is silent: small experiments are ours).

    What a layer chooses need not be E alone. In a subclass `ratios` may hold any values that can be hashed and ordered, such
    as named tuples of E and a kernel size, where `expand_ratio` says the E of each: space, costs, tokens, pruning and search
    only count and compare them (docs/extending.md).

    Attributes:
        depths: the choices of D, layers added to a stage's base depth.
        widths: the choices of W, multipliers of a stage's output channels.
        ratios: the choices of each layer: E, middle channels of a bottleneck as a share of its output channels.
        base_depths: layers of each stage at D = 0.
        stage_channels: output channels of each stage at W = 1 and `width_scale` 1.
        strides: stride of the first layer of each stage.
        stem_channels: output channels of the stem at W = 1 and `width_scale` 1.

    Raises:
        UserError: choices do not rise, a number is not positive, or the stages' entries differ in length.
    """

    depths: tuple[int, ...] = (0, 1, 2)
    widths: tuple[float, ...] = (0.65, 0.8, 1.0)
    ratios: tuple[float, ...] = (0.2, 0.25, 0.35)
    base_depths: tuple[int, ...] = (2, 2, 4, 2)
    stage_channels: tuple[int, ...] = (256, 512, 1024, 2048)
    strides: tuple[int, ...] = (1, 2, 2, 2)
    stem_channels: int = 64
    width_scale: float = 1.0

    def __post_init__(self):
        owner = "the geometry"
        for name in ("depths", "widths", "ratios"):
            choices = getattr(self, name)
            if not choices or list(choices) != sorted(set(choices)):
                raise UserError(f"{name} of {owner} must be one or more numbers that rise, got {choices}")
        if not all(is_count(depth + 1) for depth in self.depths):
            raise UserError(f"depths of {owner} must be 0 or more, and whole, got {self.depths}")
        ratios = tuple(map(self.expand_ratio, self.ratios))
        for name, numbers in (("widths", self.widths), ("ratios", ratios), ("width_scale", (self.width_scale,))):
            if not all(0 < number < math.inf for number in numbers):
                raise UserError(f"{name} of {owner} must be positive and finite, got {', '.join(map(str, numbers))}")
        if max(self.depths) > MOST_LAYERS or not all(depth <= MOST_LAYERS for depth in self.base_depths):
            raise UserError(f"depths and base_depths of {owner} must be at most {MOST_LAYERS}")
        per_stage = {"base_depths": self.base_depths, "stage_channels": self.stage_channels, "strides": self.strides}
        _refuse_no_counts(owner, **per_stage, stem_channels=(self.stem_channels,))
        if not self.stages or len(set(map(len, per_stage.values()))) > 1:
            raise UserError(
                f"{', '.join(per_stage)} of {owner} must have a number for each stage, "
                f"got {', '.join(str(len(numbers)) for numbers in per_stage.values())} numbers"
            )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Geometry:
        """The geometry that `dataclasses.asdict` made into JSON.

        Raises:
            KeyError, TypeError: an entry is missing or unknown.
            UserError: they make no geometry.
        """
        entries = {entry.name: data[entry.name] for entry in fields(cls)} | dict(data)
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in entries.items()})

    @property
    def stages(self) -> int:
        return len(self.base_depths)

    @property
    def stem_depths(self) -> tuple[int, int]:
        """The stem's two depths: the smallest and the largest D; only at the largest is its residual conv there."""
        return (min(self.depths), max(self.depths))

    @property
    def layers_per_stage(self) -> tuple[int, ...]:
        """Layers of each stage at its greatest depth: 4, 4, 6, 4 for OFA-ResNet50."""
        return tuple(base + max(self.depths) for base in self.base_depths)

    @property
    def layers(self) -> int:
        return sum(self.layers_per_stage)

    @property
    def divisor(self) -> int:
        return max(1, round(8 * min(1.0, self.width_scale)))

    @property
    def total_stride(self) -> int:
        """Input pixels per feature-map cell: the stem's convolution and max-pool halve twice, then the stages."""
        total = 4
        for stride in self.strides:
            total *= stride
        return total

    def stem_out(self, width: float) -> int:
        """Channels after the stem for stem width `width`."""
        return make_divisible(self.stem_channels * self.width_scale * width, self.divisor)

    def stem_mid(self, width: float) -> int:
        """Channels of the stem's first (and residual) convolution for stem width `width`."""
        return make_divisible(self.stem_out(width) // 2, self.divisor)

    def stage_out(self, stage: int, width: float) -> int:
        """Channels after stage `stage` (0-based) for width multiplier `width`."""
        return make_divisible(self.stage_channels[stage] * self.width_scale * width, self.divisor)

    def expand_ratio(self, choice: Hashable) -> float:
        """E of a layer that chooses `choice`, one of `ratios`: the choice itself."""
        return choice

    def choice(self, value: Any) -> Hashable:
        """The one of `ratios` that equals `value`, which may be a list in place of a tuple, as JSON has it; else `value`."""
        value = tuple(value) if isinstance(value, list) else value
        if isinstance(value, bool):  # True equals a ratio of 1
            return value
        if value in self.ratios:
            return self.ratios[self.ratios.index(value)]
        numbers = [ratio for ratio in self.ratios if isinstance(ratio, Real) and isinstance(value, Real)]
        return next((ratio for ratio in numbers if math.isclose(ratio, value, rel_tol=1e-6)), value)  # 0.2 in float32

    def middle(self, out_channels: int, ratio: Hashable) -> int:
        """Middle channels of a bottleneck with `out_channels` outputs and the layer's choice `ratio`."""
        return make_divisible(round(out_channels * self.expand_ratio(ratio)), self.divisor)


@dataclass(frozen=True)
class HeadGeometry:
    """CenterNet on the backbone: the up-convolutions and the three heads (section 4.1; CenterNet's own defaults).

    Attributes:
        num_classes: channels of the class heat map.
        deconv_channels: filters of each 4x4 stride-2 transposed convolution; their number sets the output stride.
        head_channels: filters of the 3x3 convolution in each head.

    Raises:
        UserError: a number is not a positive integer.
    """

    num_classes: int = 20
    deconv_channels: tuple[int, ...] = field(default=(256, 256, 256))
    head_channels: int = 64

    def __post_init__(self):
        _refuse_no_counts(
            "the head",
            num_classes=(self.num_classes,),
            deconv_channels=self.deconv_channels,
            head_channels=(self.head_channels,),
        )

    def output_stride(self, backbone: Geometry) -> int:
        """Input pixels per heat-map cell: 4 for the paper's detector."""
        return backbone.total_stride // 2 ** len(self.deconv_channels)


OFA_RESNET50 = Geometry()
