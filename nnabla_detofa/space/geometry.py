"""Channels and strides of the elastic ResNet50 and of the detector, as functions of the choices of a path.

Pure arithmetic, shared by the search space, the cost model and the networks, so that the three cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any, NamedTuple

from ..common.errors import UserError
from ..common.reading import shown, shown_names

Choice = Any
"""Choice of a layer: E, or any value that can be hashed and ordered in a subclass of `Geometry`."""
MAX_LAYERS, MAX_VALUES = 1000, 100
"""Largest numbers of layers per stage, and of values of a named choice; they bound geometries from files, which are used before
any network is built."""


def is_count(value: Any) -> bool:
    """Return whether `value` is an integer of 1 or more."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def _check_counts(owner: str, **values: tuple) -> None:
    """Raise UserError for the first of `values` that contains anything but integers of 1 or more."""
    for name, numbers in values.items():
        if not all(map(is_count, numbers)):
            raise UserError(f"{name} of {owner} must be integers of 1 or more, got {', '.join(map(str, numbers))}")


def choice_word(choice: Choice) -> str:
    """Return the name of a layer's choice in messages and tokens: "E0.25" for a ratio, `str(choice)` for other types."""
    return f"E{choice}" if isinstance(choice, Real) else str(choice)


def equal_choice(value: Any, choices: tuple[Any, ...]) -> Any:
    """Return the element of `choices` that equals `value`, or `value` if none does; a list, as in JSON, equals a tuple."""
    value = tuple(value) if isinstance(value, list) else value
    if isinstance(value, bool) and not any(isinstance(choice, bool) for choice in choices):  # True equals 1
        return value
    if value in choices:
        return choices[choices.index(value)]
    if not isinstance(value, Real) or isinstance(value, int):
        return value  # equal integers are the same choice, and long ones are no float
    numbers = [choice for choice in choices if isinstance(choice, Real) and not isinstance(choice, int)]
    return next((choice for choice in numbers if math.isclose(choice, value, rel_tol=1e-6)), value)  # 0.2 in float32


def make_divisible(value: float, divisor: int) -> int:
    """Round `value` to the nearest multiple of `divisor` (half up), at least `divisor` and never below 90% of `value`.

    OFA adopted this rule from MobileNet; it determines every channel count of the supernet.
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


class Choices(NamedTuple):
    """A named choice of a path, beside those of its stem and stages: one of `values`, in ascending order."""

    name: str
    values: tuple[Any, ...]


UP, HEADS, RESOLUTION = "up", "heads", "resolution"
"""Names of the choices that scale the filters of CenterNet's up-convolutions, numbered from 1 ("up1"), and of its heads; and of
the choice of the side of the square input in pixels (`Path.resolution`)."""


@dataclass(frozen=True)
class Geometry:
    """Choices of the elastic ResNet50, and the channels and strides that they determine.

    The defaults are OFA-ResNet50 (Table 1 and the published supernet). `width_scale` scales every base width, including the
    stem's, and the channel divisor (8 at scale 1, never below 1): with a fixed divisor of 8 the width choices of a small
    network would collapse into one. The paper is silent on this; we use it for small experiments.

    A layer may choose more than E. In a subclass `ratios` may hold any values that can be hashed and ordered, such as named
    tuples of E and a kernel size, if `expand_ratio` returns the E of each: space, costs, tokens, pruning and search only count
    and compare them (docs/extend/extending.md).

    Attributes:
        depths: choices of D, layers added to a stage's base depth.
        widths: choices of W, multipliers of a stage's output channels.
        ratios: choices of E for each layer, middle channels of a bottleneck as a share of its output channels.
        base_depths: layers of each stage at D = 0.
        stage_channels: output channels of each stage at W = 1 and `width_scale` 1.
        strides: stride of the first layer of each stage.
        stem_channels: output channels of the stem at W = 1 and `width_scale` 1.
        width_scale: factor of all base widths.
        named: further choices of a path, each with a name of its own, such as the widths of the heads.

    Raises:
        UserError: choices are not in ascending order, a number is not positive, a name occurs twice, or the tuples with one
            value per stage differ in length.
    """

    depths: tuple[int, ...] = (0, 1, 2)
    widths: tuple[float, ...] = (0.65, 0.8, 1.0)
    ratios: tuple[float, ...] = (0.2, 0.25, 0.35)
    base_depths: tuple[int, ...] = (2, 2, 4, 2)
    stage_channels: tuple[int, ...] = (256, 512, 1024, 2048)
    strides: tuple[int, ...] = (1, 2, 2, 2)
    stem_channels: int = 64
    width_scale: float = 1.0
    named: tuple[Choices, ...] = ()

    def __post_init__(self) -> None:
        owner = "the geometry"
        self._check_named(owner)
        for name in ("depths", "widths", "ratios"):
            choices = getattr(self, name)
            try:
                ascending = bool(choices) and list(choices) == sorted(set(choices))
            except TypeError as error:
                raise UserError(f"{name} of {owner} must be values that can be hashed and ordered: {error}") from error
            if not ascending:
                got = shown_names([str(choice) for choice in choices]) if choices else shown(choices)
                raise UserError(f"{name} of {owner} must be one or more numbers in ascending order, got {got}")
        if not all(is_count(depth + 1) for depth in self.depths):
            raise UserError(f"depths of {owner} must be integers of 0 or more, got {self.depths}")
        ratios = tuple(map(self.expand_ratio, self.ratios))
        for ratio in ratios:
            if not isinstance(ratio, Real):
                raise UserError(f"expand_ratio of {owner} must return a number for each choice, got {shown(ratio)}")
        choices = list(map(str, self.ratios))
        if len(set(choices)) < len(choices):
            raise UserError(f"ratios of {owner} must be choices with different names (str), got {shown_names(choices)}")
        for name, numbers in (("widths", self.widths), ("ratios", ratios), ("width_scale", (self.width_scale,))):
            if not all(0 < number < math.inf for number in numbers):
                raise UserError(f"{name} of {owner} must be positive and finite, got {', '.join(map(str, numbers))}")
        if max(self.depths) > MAX_LAYERS or not all(depth <= MAX_LAYERS for depth in self.base_depths):
            raise UserError(f"depths and base_depths of {owner} must be at most {MAX_LAYERS}")
        per_stage = {"base_depths": self.base_depths, "stage_channels": self.stage_channels, "strides": self.strides}
        _check_counts(owner, **per_stage, stem_channels=(self.stem_channels,))
        if not self.stages or len(set(map(len, per_stage.values()))) > 1:
            raise UserError(
                f"{', '.join(per_stage)} of {owner} must have a number for each stage, "
                f"got {', '.join(str(len(numbers)) for numbers in per_stage.values())} numbers"
            )

    def _check_named(self, owner: str) -> None:
        """Make `named` of plain tuples or lists, as in JSON, a tuple of `Choices`, and check it."""
        try:
            named = tuple(Choices(str(name), tuple(values)) for name, values in self.named if not isinstance(values, str))
            ascending = all(choices.values and list(choices.values) == sorted(set(choices.values)) for choices in named)
        except (TypeError, ValueError) as error:
            raise UserError(f"named of {owner} must be pairs of a name and its values, got {self.named}") from error
        if len(named) < len(self.named):
            raise UserError(f"named of {owner} must be pairs of a name and its values, got {self.named}")
        names = [choices.name for choices in named]
        if not all(names) or len(set(names)) < len(names):
            raise UserError(f"named of {owner} must have a different name for each choice, got {', '.join(names)}")
        if not ascending or any(len(choices.values) > MAX_VALUES for choices in named):
            raise UserError(f"values of a named choice of {owner} must be 1 to {MAX_VALUES}, in ascending order, got {named}")
        object.__setattr__(self, "named", named)
        _check_counts(owner, strides=self.strides)
        if not all(is_count(side) and side % self.total_stride == 0 for side in self.resolutions):
            raise UserError(
                f"resolutions of {owner} must be multiples of {self.total_stride}, the stride of the backbone, got "
                f"{', '.join(map(str, self.resolutions))}"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the geometry as plain JSON values, for `from_json`. Without named choices it is as in older versions."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        if not values["named"]:
            del values["named"]
        return values

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Geometry:
        """Create a geometry from the result of `to_json`.

        If the default choices of a layer are named tuples, so are those that are read.

        Raises:
            KeyError, TypeError: a key is missing or unknown.
            UserError: the values are not a valid geometry.
        """
        data = {"named": ()} | dict(data)
        entries: dict[str, Any] = {entry.name: data[entry.name] for entry in fields(cls)} | data
        values: dict[str, Any] = {key: _tuples(value) for key, value in entries.items()}
        kind = type(cls.ratios[0])
        if issubclass(kind, tuple):
            values["ratios"] = tuple(kind(*choice) for choice in values["ratios"])
        return cls(**values)

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Sides of the input in pixels that a path chooses from, in ascending order; empty if it does not choose."""
        return dict(self.named).get(RESOLUTION, ())

    @property
    def stages(self) -> int:
        return len(self.base_depths)

    @property
    def stem_depths(self) -> tuple[int, int]:
        """The two depths of the stem, the smallest and the largest D; only the largest has a residual convolution."""
        return (min(self.depths), max(self.depths))

    @property
    def layers_per_stage(self) -> tuple[int, ...]:
        """Layers of each stage at the largest D: 4, 4, 6, 4 for OFA-ResNet50."""
        return tuple(base + max(self.depths) for base in self.base_depths)

    @property
    def layers(self) -> int:
        return sum(self.layers_per_stage)

    @property
    def divisor(self) -> int:
        return max(1, round(8 * min(1.0, self.width_scale)))

    @property
    def total_stride(self) -> int:
        """Stride of the last feature map in input pixels: 4 in the stem (convolution and max-pool), times the strides."""
        total = 4
        for stride in self.strides:
            total *= stride
        return total

    def stem_out(self, width: float) -> int:
        """Return the output channels of the stem for stem width `width`."""
        return make_divisible(self.stem_channels * self.width_scale * width, self.divisor)

    def stem_mid(self, width: float) -> int:
        """Return the channels of the stem's first (and residual) convolution for stem width `width`."""
        return make_divisible(self.stem_out(width) // 2, self.divisor)

    def stage_out(self, stage: int, width: float) -> int:
        """Return the output channels of stage `stage` (0-based) for width multiplier `width`."""
        return make_divisible(self.stage_channels[stage] * self.width_scale * width, self.divisor)

    def expand_ratio(self, choice: Choice) -> float:
        """Return the E of a layer for its choice, one of `ratios`. Here it is the choice itself; subclasses may override it."""
        return choice

    def choice(self, value: Any) -> Choice:
        """Return the element of `ratios` that equals `value`, or `value` if none does; a list, as in JSON, equals a tuple."""
        return equal_choice(value, self.ratios)

    def middle(self, out_channels: int, ratio: Choice) -> int:
        """Return the middle channels of a bottleneck with `out_channels` output channels and the choice `ratio`."""
        return make_divisible(round(out_channels * self.expand_ratio(ratio)), self.divisor)


@dataclass(frozen=True)
class HeadGeometry:
    """Up-convolutions and the three heads of CenterNet (section 4.1; the defaults are CenterNet's).

    They are the largest ones; a path with the named choices "up1", "up2", ... and "heads" uses a share of their filters (`of`).

    Attributes:
        num_classes: channels of the heatmap.
        deconv_channels: filters of each 4x4 stride-2 transposed convolution; their number determines the output stride.
        head_channels: filters of the 3x3 convolution in each head.

    Raises:
        UserError: a number is not a positive integer.
    """

    num_classes: int = 20
    deconv_channels: tuple[int, ...] = field(default=(256, 256, 256))
    head_channels: int = 64

    def __post_init__(self) -> None:
        _check_counts(
            "the head",
            num_classes=(self.num_classes,),
            deconv_channels=self.deconv_channels,
            head_channels=(self.head_channels,),
        )

    def of(self, named: Mapping[str, Any]) -> HeadGeometry:
        """Return the up-convolutions and heads of a path with these named choices; without them, all filters are used."""
        ups = [named.get(f"{UP}{number}", 1.0) for number in range(1, len(self.deconv_channels) + 1)]
        if {*ups, named.get(HEADS, 1.0)} == {1.0}:
            return self
        channels = tuple(_share(filters, width) for filters, width in zip(self.deconv_channels, ups))
        return replace(self, deconv_channels=channels, head_channels=_share(self.head_channels, named.get(HEADS, 1.0)))

    def output_stride(self, backbone: Geometry) -> int:
        """Return the stride of the heatmap in input pixels: 4 for the paper's detector."""
        return backbone.total_stride // 2 ** len(self.deconv_channels)


def _share(filters: int, width: float) -> int:
    """Return the number of filters for a width multiplier, in multiples of 8 if there are at least 64."""
    return min(filters, make_divisible(filters * width, min(8, max(1, filters // 8))))


OFA_RESNET50 = Geometry()


def _tuples(value: Any) -> Any:
    """Make lists of JSON tuples again, at any depth."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
