"""Normalization of a network's input: subtract a mean and divide by a standard deviation, per channel.

A network is accurate only on images normalized as in its training. So the normalization belongs to a dataset
(`dataloader.<name>.normalization`), is stored in weights files and exports, and is an attribute of each network.
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
"""Parameters of the first layer, whose input is the image: (filters, 3, h, w), and (1, filters, 1, 1)."""


@dataclass(frozen=True)
class Normalization:
    """Statistics of a dataset's images with values in [0, 1].

    Attributes:
        mean, std: values of the blue, green and red channels, in this order, the order in which images are read.
    """

    mean: tuple[Level, Level, Level]
    std: tuple[Deviation, Deviation, Deviation]

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Normalize an image (H, W, 3) float32 in [0, 1] to (3, H, W) float32: (image - mean) / std."""
        import numpy as np

        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        return np.ascontiguousarray(((image - mean) / std).transpose(2, 0, 1))

    def __str__(self) -> str:
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return f"mean {mean} and std {std} (blue, green, red)"


IMAGENET = Normalization(mean=(0.406, 0.456, 0.485), std=(0.225, 0.224, 0.229))
"""Statistics of ImageNet, the values of torchvision and OFA, which list them for red, green, blue."""
COCO = Normalization(mean=(0.408, 0.447, 0.470), std=(0.289, 0.274, 0.278))
"""Statistics of COCO, the values of CenterNet for blue, green, red, rounded to three digits."""
UNRECORDED = COCO
"""Normalization of weights files and runs that do not record one: it was fixed before it became a config key."""


def adapted(
    arrays: Mapping[str, np.ndarray], prefix: str, trained: Normalization, given: Normalization
) -> dict[str, np.ndarray]:
    """Adapt the first layer of a network trained on images normalized by `trained` to images normalized by `given`.

    With t = (pixel - m) / s in training and g = (pixel - M) / S here, t = g S / s + (M - m) / s. The factor is multiplied into
    the weights, which is exact. The shift adds a constant to each filter's output, which is subtracted from the running mean
    of the batch normalization. This is exact except for outputs whose window crosses the image's edge, since padding is not
    shifted.

    Args:
        arrays: parameters of the network by name.
        prefix: prefix of `FIRST_CONV` and `FIRST_MEAN` in these names.
        trained, given: normalization in training, and of the new images.

    Returns:
        The two adapted parameters by name, float32.
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
