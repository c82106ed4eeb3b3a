"""CenterNet's augmentation: pure functions from an image and its boxes to a network input and its boxes.

An affine map is a (2, 3) float64 matrix from image pixels to input pixels. Sizes are (height, width).

Colors and boxes are computed by element-wise products and sums, which give the same bits on all x86 processors. OpenCV's
conversion to gray and matrix products do not, because they choose their instructions by the processor.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from ..common.errors import UserError
from ..common.normalization import IMAGENET, Normalization
from .dataset import Sample

# Shares of the channels blue, green, red in gray, as in OpenCV (ITU-R BT.601).
GRAY_SHARES = np.array([0.114, 0.587, 0.299], np.float32)
# Principal components of ImageNet's colors: variances, and eigenvectors as columns; rows are blue, green, red.
COLOR_VALUES = np.array([0.2141788, 0.01817699, 0.00341571], np.float32)
COLOR_VECTORS = np.array(
    [[-0.58752847, -0.69563484, 0.41340352], [-0.5832747, 0.00994535, -0.81221408], [-0.56089297, 0.71832671, 0.41158938]],
    np.float32,
)


@dataclass(frozen=True)
class Augmentation:
    """Settings of the training augmentation. The defaults are CenterNet's; each part can be disabled.

    Attributes:
        scale: smallest and largest zoom-out factor. The side of the crop window is the longer side of the image times a
            factor sampled from smallest, smallest + 0.1, ..., largest. (1, 1) disables scaling.
        crop: whether the center of the crop window is sampled; otherwise it is the center of the image.
        border: distance in pixels of the sampled center from the image edges (smaller in small images, see `crop_border`).
        flip: probability of mirroring the image; use 0 if left and right matter, as for digits.
        jitter: largest relative change of brightness, contrast and saturation; 0 disables it.
        lighting: standard deviation of the shift along ImageNet's principal color components; 0 disables it.

    Raises:
        UserError: a value is outside its range.
    """

    scale: tuple[float, float] = (0.6, 1.3)
    crop: bool = True
    border: int = 128
    flip: float = 0.5
    jitter: float = 0.4
    lighting: float = 0.1

    def __post_init__(self) -> None:
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
        """The factors that the scale is sampled from."""
        low, high = self.scale
        return low + 0.1 * np.arange(int((high - low) / 0.1 + 1e-6) + 1)


def train_transform(
    sample: Sample,
    input_size: tuple[int, int],
    rng: np.random.Generator,
    augmentation: Augmentation | None = None,
    normalization: Normalization = IMAGENET,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Randomly crop, scale, mirror and change the colors of one sample.

    Args:
        sample: an image and its objects.
        input_size: (height, width) of the network's input.
        rng: random generator.
        augmentation: settings; None uses CenterNet's.
        normalization: mean and standard deviation of each channel.

    Returns:
        image: (3, H, W) float32, normalized.
        boxes: (n, 4) float32 in input pixels. All boxes are returned, unclipped; an object may lie outside the input, and
            `targets.make_targets` clips it to the output map, as CenterNet does.
        matrix: (2, 3) affine map from image to input, including mirroring.
    """
    options = augmentation or Augmentation()
    height, width = sample.image.shape[:2]
    center = np.array([width / 2, height / 2])
    scale = rng.choice(options.scales)
    if options.crop:
        borders = [crop_border(side, options.border) for side in (width, height)]
        center = np.array([rng.integers(border, side - border) for border, side in zip(borders, (width, height))])
    matrix = affine(center, fit((height, width), input_size) / scale, input_size)
    if rng.random() < options.flip:
        # Column x of the input becomes column W - x, not W - 1 - x. This matches CenterNet, which mirrors the image (x ->
        # width - 1 - x) and the center before warping.
        matrix = matrix * [[-1.0], [1.0]] + [[0, 0, input_size[1]], [0, 0, 0]]
    image = _warp(sample.image, matrix, input_size).astype(np.float32) / 255
    image = shift_lighting(jitter_colors(image, rng, options.jitter), rng, options.lighting)
    return normalization(image), transform_boxes(sample.boxes, matrix), matrix


def eval_transform(
    sample: Sample, input_size: tuple[int, int], normalization: Normalization = IMAGENET
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit the whole image of a sample into the input, without randomness; returns the same values as `train_transform`."""
    image, matrix = letterbox(sample.image, input_size, normalization)
    return image, transform_boxes(sample.boxes, matrix), matrix


def letterbox(
    image: np.ndarray, input_size: tuple[int, int], normalization: Normalization = IMAGENET
) -> tuple[np.ndarray, np.ndarray]:
    """Fit an image into the input with its aspect ratio preserved, and pad with black.

    Args:
        image: (H, W, 3) uint8, channels blue, green, red.
        input_size: (height, width) of the network's input.

    Returns:
        the normalized image, (3, height, width) float32, and the (2, 3) affine map from image to input.
    """
    pixels, matrix = letterbox_pixels(image, input_size)
    return normalization(pixels.astype(np.float32) / 255), matrix


def letterbox_pixels(image: np.ndarray, input_size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the image of `letterbox` before normalization, (height, width, 3) uint8, and the affine map."""
    height, width = image.shape[:2]
    matrix = letterbox_matrix((height, width), input_size)
    return _warp(image, matrix, input_size), matrix


def letterbox_matrix(image_size: tuple[int, int], input_size: tuple[int, int]) -> np.ndarray:
    """Return the (2, 3) affine map of `letterbox`; both sizes are (height, width)."""
    height, width = image_size
    return affine(np.array([width / 2, height / 2]), fit(image_size, input_size), input_size)


def fit(image_size: tuple[int, int], input_size: tuple[int, int]) -> float:
    """Return the largest scale factor at which the whole image fits into the input.

    For square inputs this is CenterNet's input / max(height, width); for other inputs CenterNet would cut off a part.
    """
    return min(inside / side for inside, side in zip(input_size, image_size))


def crop_border(side: int, border: int = 128) -> int:
    """Return the distance of a crop's center from the edges of a side of `side` pixels: `border`, halved until two fit."""
    while side - border <= border and border > 0:
        border //= 2
    return border


def affine(center: np.ndarray, magnification: float, size: tuple[int, int]) -> np.ndarray:
    """Return the (2, 3) affine map that scales by `magnification` and maps `center` (x, y) to the center of `size`."""
    middle = np.array([size[1] / 2, size[0] / 2])
    return np.column_stack([magnification * np.eye(2), middle - magnification * np.asarray(center, float)])


def transform_boxes(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Apply an affine map to boxes (n, 4) x1 y1 x2 y2; the result (n, 4) float32 has x1 <= x2 even if `matrix` mirrors."""
    corners = (boxes.reshape(-1, 2, 1, 2).astype(np.float64) * matrix[:, :2]).sum(3) + matrix[:, 2]
    return np.concatenate([corners.min(1), corners.max(1)], axis=1).astype(np.float32)


def invert(matrix: np.ndarray) -> np.ndarray:
    """Return the inverse affine map, from input pixels to image pixels."""
    return cv2.invertAffineTransform(matrix)


def jitter_colors(image: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Change brightness, contrast and saturation in random order, by blending with black, the mean gray and the gray image.

    Args:
        image: (H, W, 3) float32 in [0, 1]. The result may leave that range, as in CenterNet.
        rng: random generator.
        strength: largest relative change, in [0, 1).
    """
    if strength == 0:
        return image
    gray = sum(image[..., channel, None] * share for channel, share in enumerate(GRAY_SHARES))
    others = (np.float32(0), gray.mean(), gray)
    for choice in rng.permutation(len(others)):
        share = np.float32(1 + rng.uniform(-strength, strength))
        image = share * image + (1 - share) * others[choice]
    return image


def shift_lighting(image: np.ndarray, rng: np.random.Generator, deviation: float) -> np.ndarray:
    """Shift all pixels along the principal color components by normally distributed amounts (AlexNet's lighting noise)."""
    if deviation == 0:
        return image
    return image + (COLOR_VECTORS * (COLOR_VALUES * rng.normal(0, deviation, 3).astype(np.float32))).sum(1)


def _warp(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Apply an affine map to an image (H, W, 3) uint8, with black outside the image; returns the same type in `size`."""
    return cv2.warpAffine(image, matrix, size[::-1], flags=cv2.INTER_LINEAR)
