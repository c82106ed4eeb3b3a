"""How pixels become a network's input: less a mean, over a standard deviation, channel by channel.

A network computes what it learned only on images normalized as in its training. So the normalization belongs to a data set
(`dataloader.<name>.normalization`), is kept in weights files and exports, and each network knows its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

if TYPE_CHECKING:
    import numpy as np

# NumPy is imported where it computes: reading a config, which holds a normalization, does without.

Level = Annotated[float, "[0, 1]"]
Deviation = Annotated[float, "[0.001, 1]"]
FIRST_CONV, FIRST_MEAN = "input_stem/0/conv/conv/_W", "input_stem/0/bn/bn/_mean"
"""Parameters of the layer that sees the image: (filters, 3, h, w), and (1, filters, 1, 1)."""


@dataclass(frozen=True)
class Normalization:
    """Statistics of a data set's images with values in [0, 1].

    Attributes:
        mean, std: of the blue, green and red channel, in this order, in which images are read.
    """

    mean: tuple[Level, Level, Level]
    std: tuple[Deviation, Deviation, Deviation]

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) float32 in [0, 1] -> (3, H, W) float32, less the mean, over the deviation."""
        import numpy as np

        mean, std = np.float32(self.mean), np.float32(self.std)
        return np.ascontiguousarray(((image - mean) / std).transpose(2, 0, 1))

    def __str__(self) -> str:
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return f"mean {mean} and std {std} (blue, green, red)"


IMAGENET = Normalization(mean=(0.406, 0.456, 0.485), std=(0.225, 0.224, 0.229))
"""ImageNet's, as torchvision and OFA have them for red, green, blue."""
COCO = Normalization(mean=(0.408, 0.447, 0.470), std=(0.289, 0.274, 0.278))
"""COCO's, as CenterNet has them for blue, green, red, rounded to three digits."""
UNRECORDED = COCO
"""Of weights files and runs that name none: before it was an entry of the config, all images were normalized so."""


def adapted(
    arrays: Mapping[str, np.ndarray], prefix: str, trained: Normalization, given: Normalization
) -> dict[str, np.ndarray]:
    """The parameters of a first layer that computes from images normalized by `given` what it did from `trained` ones.

    With t = (pixel - m) / s in training and g = (pixel - M) / S here, t = g S / s + (M - m) / s. The factor goes into the
    weights, which is exact. The shift is a constant of each filter and goes into the running mean of the batch normalization,
    exact except in outputs whose window reaches over the image's edge, where the padding adds none.

    Args:
        arrays: a network's, by name. prefix: of `FIRST_CONV` and `FIRST_MEAN` there.

    Returns:
        these two, float32.
    """
    import numpy as np

    weight, mean = (np.asarray(arrays[prefix + name], np.float64) for name in (FIRST_CONV, FIRST_MEAN))
    scale = _columns(given.std) / _columns(trained.std)
    shift = (_columns(given.mean) - _columns(trained.mean)) / _columns(trained.std)
    constant = (weight * shift).sum(axis=(1, 2, 3))
    changed = {FIRST_CONV: weight * scale, FIRST_MEAN: mean - constant.reshape(mean.shape)}
    return {prefix + name: array.astype(np.float32) for name, array in changed.items()}


def _columns(values: Sequence[float]) -> np.ndarray:
    import numpy as np

    return np.array(values, np.float64)[:, None, None]
