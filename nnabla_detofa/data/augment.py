"""CenterNet's augmentation: pure functions from an image and its boxes to a network input and its boxes.

An affine map is a (2, 3) float64 matrix from image pixels to input pixels; sizes are (height, width).
"""

from dataclasses import dataclass

import cv2
import numpy as np

from ..common.errors import UserError
from ..common.normalization import IMAGENET, Normalization
from .voc import Sample

# Principal components of ImageNet's colours (variances, and one column per component), blue, green, red.
COLOUR_VALUES = np.array([0.2141788, 0.01817699, 0.00341571], np.float32)
COLOUR_VECTORS = np.array(
    [[-0.58752847, -0.69563484, 0.41340352], [-0.5832747, 0.00994535, -0.81221408], [-0.56089297, 0.71832671, 0.41158938]],
    np.float32,
)


@dataclass(frozen=True)
class Augmentation:
    """What a training image goes through; the defaults are CenterNet's, and each piece can be switched off.

    Attributes:
        scale: smallest and largest zoom-out; the window is the longer side of the image times a value drawn in steps of
            0.1 from the smallest on, up to the largest. (1, 1) switches it off.
        crop: whether the centre of the window is drawn; otherwise it is the image's.
        border: the centre keeps this many pixels from the image's edges (fewer in small images, see `crop_border`).
        flip: probability of a mirrored image; 0 where left and right matter, as in digits.
        jitter: greatest relative change of brightness, contrast and saturation; 0 switches it off.
        lighting: standard deviation of the shift along ImageNet's principal colours; 0 switches it off.

    Raises:
        UserError: a value is outside its range.
    """

    scale: tuple[float, float] = (0.6, 1.3)
    crop: bool = True
    border: int = 128
    flip: float = 0.5
    jitter: float = 0.4
    lighting: float = 0.1

    def __post_init__(self):
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            raise UserError(f"augmentation.scale must be two positive values, the smaller first, got {self.scale}")
        if self.border < 0:
            raise UserError(f"augmentation.border must not be negative, got {self.border}")
        if not 0 <= self.flip <= 1:
            raise UserError(f"augmentation.flip must be a probability in [0, 1], got {self.flip}")
        if not 0 <= self.jitter < 1:
            raise UserError(f"augmentation.jitter must be in [0, 1), got {self.jitter}")
        if self.lighting < 0:
            raise UserError(f"augmentation.lighting must not be negative, got {self.lighting}")

    @property
    def scales(self) -> np.ndarray:
        """The values that a scale is drawn from."""
        low, high = self.scale
        return low + 0.1 * np.arange(int((high - low) / 0.1 + 1e-6) + 1)


def train_transform(
    sample: Sample,
    input_size: tuple[int, int],
    rng: np.random.Generator,
    augmentation: Augmentation | None = None,
    normalization: Normalization = IMAGENET,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Crop, scale, mirror and recolour one sample at random.

    Returns:
        image: (3, H, W) float32, normalized.
        boxes: (n, 4) float32 in input pixels, all of them and not clipped: an object may lie outside the input, and
            `targets.make_targets` clips it to the output map as CenterNet does.
        matrix: the affine map image -> input, the mirroring included.
    """
    options = augmentation or Augmentation()
    height, width = sample.image.shape[:2]
    centre = np.array([width / 2, height / 2])
    scale = rng.choice(options.scales)
    if options.crop:
        borders = [crop_border(side, options.border) for side in (width, height)]
        centre = np.array([rng.integers(border, side - border) for border, side in zip(borders, (width, height))])
    matrix = affine(centre, fit(sample.image.shape[:2], input_size) / scale, input_size)
    if rng.random() < options.flip:
        # Column x of the input becomes column W - x, not W - 1 - x: exactly CenterNet's, which mirrors the image (x ->
        # width - 1 - x) and the centre with it before it warps.
        matrix = matrix * [[-1.0], [1.0]] + [[0, 0, input_size[1]], [0, 0, 0]]
    image = _warp(sample.image, matrix, input_size)
    image = shift_lighting(jitter_colours(image, rng, options.jitter), rng, options.lighting)
    return normalization(image), transform_boxes(sample.boxes, matrix), matrix


def eval_transform(
    sample: Sample, input_size: tuple[int, int], normalization: Normalization = IMAGENET
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit one whole sample into the input, nothing drawn; the results are `train_transform`'s."""
    image, matrix = letterbox(sample.image, input_size, normalization)
    return image, transform_boxes(sample.boxes, matrix), matrix


def letterbox(
    image: np.ndarray, input_size: tuple[int, int], normalization: Normalization = IMAGENET
) -> tuple[np.ndarray, np.ndarray]:
    """Fit an image (H, W, 3) uint8 into the input, its shape kept and black beside it: (3, H, W) float32, and the map."""
    matrix = letterbox_matrix(image.shape[:2], input_size)
    return normalization(_warp(image, matrix, input_size)), matrix


def letterbox_matrix(image_size: tuple[int, int], input_size: tuple[int, int]) -> np.ndarray:
    """`letterbox`'s map."""
    height, width = image_size
    return affine(np.array([width / 2, height / 2]), fit(image_size, input_size), input_size)


def fit(image_size: tuple[int, int], input_size: tuple[int, int]) -> float:
    """The largest magnification at which the whole image is inside the input.

    For the square inputs of CenterNet it is input / max(height, width), as there; for others CenterNet would cut.
    """
    return min(inside / side for inside, side in zip(input_size, image_size))


def crop_border(side: int, border: int = 128) -> int:
    """Distance that a crop's centre keeps from the edges of `side` pixels: `border`, halved until two leave room between."""
    while side - border <= border and border > 0:
        border //= 2
    return border


def affine(centre: np.ndarray, magnification: float, size: tuple[int, int]) -> np.ndarray:
    """The map that magnifies and takes the image's point `centre` (x, y) to the middle of a map of `size`."""
    middle = np.array([size[1] / 2, size[0] / 2])
    return np.column_stack([magnification * np.eye(2), middle - magnification * np.asarray(centre, float)])


def transform_boxes(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Map the corners of boxes (n, 4), smaller corner first even where `matrix` mirrors: (n, 4) float32."""
    corners = boxes.reshape(-1, 2, 2).astype(np.float64) @ matrix[:, :2].T + matrix[:, 2]
    return np.concatenate([corners.min(1), corners.max(1)], axis=1).astype(np.float32)


def invert(matrix: np.ndarray) -> np.ndarray:
    """The affine map back: input pixels -> image pixels."""
    return cv2.invertAffineTransform(matrix)


def jitter_colours(image: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Brightness, contrast and saturation in random order: a blend with black, with the mean grey, with the grey image.

    `image` is (H, W, 3) float32 in [0, 1]; the result may leave that range, as in CenterNet.
    """
    if strength == 0:
        return image
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)[..., None]
    others = (np.float32(0), grey.mean(), grey)
    for choice in rng.permutation(len(others)):
        share = np.float32(1 + rng.uniform(-strength, strength))
        image = share * image + (1 - share) * others[choice]
    return image


def shift_lighting(image: np.ndarray, rng: np.random.Generator, deviation: float) -> np.ndarray:
    """Shift all pixels along the principal colours by normal amounts of this standard deviation (AlexNet's lighting)."""
    if deviation == 0:
        return image
    return image + COLOUR_VECTORS @ (COLOUR_VALUES * rng.normal(0, deviation, 3).astype(np.float32))


def _warp(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Apply the map, black outside the image: (H, W, 3) float32 in [0, 1]."""
    return cv2.warpAffine(image, matrix, size[::-1], flags=cv2.INTER_LINEAR).astype(np.float32) / 255
