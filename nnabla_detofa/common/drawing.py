"""Detected objects in image coordinates, and drawing of them on the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .errors import UserError
from .figures import matplotlib

MIN_PICTURE_SIZE = 640
"""Smallest longer side of a picture in pixels: smaller images are enlarged so that class names fit beside boxes."""


def class_colors(classes: int) -> Sequence[tuple[float, float, float]]:
    """Return the red, green and blue in [0, 1] of 10 or 20 class colors; with more classes the colors repeat."""
    return matplotlib().colormaps["tab10" if classes <= 10 else "tab20"].colors


class Detection(NamedTuple):
    """One detected object.

    Attributes:
        box: x1, y1, x2, y2 in pixels, inside the image; the origin is the upper left corner, x to the right and y down.
        name: name of the class.
        score: confidence in [0, 1].
    """

    box: tuple[float, float, float, float]
    name: str
    score: float


def in_pixels(
    found: tuple[np.ndarray, np.ndarray, np.ndarray], classes: Sequence[str], height: int, width: int, threshold: float
) -> list[Detection]:
    """Convert arrays of detections to objects with a score of at least `threshold`, in the same order.

    Boxes are clipped at the edges of the image, and boxes that are empty afterwards are dropped.

    Args:
        found: boxes (n, 4), scores (n,) and labels (n,), best first, as `detections.detect_images` returns them.
        classes: names of the classes; labels are indices into it.
        height, width: size of the image in pixels.
        threshold: smallest score, inclusive.

    Raises:
        UserError: the threshold is not in [0, 1].
    """
    if not 0 <= threshold <= 1:
        raise UserError(f"threshold must be in [0, 1], got {threshold}")
    boxes, scores, labels = found
    boxes = np.clip(boxes, 0, [width, height, width, height])
    kept = (scores >= threshold) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    rows = zip(boxes[kept].astype(float).tolist(), labels[kept].tolist(), scores[kept].astype(float).tolist())
    return [Detection(tuple(box), classes[label], score) for box, label, score in rows]


def draw(image: np.ndarray, found: Sequence[Detection], classes: Sequence[str]) -> Image.Image:
    """Draw a box, a class name and a score for each detection on a copy of the image, with one color per class.

    Small images are enlarged; lines and letters scale with large ones. A label is placed above, inside or below its box, where
    it covers no other label if possible.

    Args:
        image: (H, W, 3) uint8, blue, green, red.
        found: the detections, best first.
        classes: names of all classes, which determine the colors.
    """
    height, width = image.shape[:2]
    factor = max(1, -(-MIN_PICTURE_SIZE // max(height, width)))
    picture = Image.fromarray(image[:, :, ::-1]).resize((width * factor, height * factor), Image.Resampling.BICUBIC)
    longest = max(picture.size)
    line, canvas = max(2, round(longest / 250)), ImageDraw.Draw(picture)
    font = ImageFont.truetype(f"{matplotlib().get_data_path()}/fonts/ttf/DejaVuSans.ttf", max(13, round(longest / 50)))
    colors = class_colors(len(classes))
    styles = {name: tuple(round(255 * part) for part in colors[label % len(colors)]) for label, name in enumerate(classes)}
    for box, name, _ in reversed(found):
        canvas.rectangle([factor * x for x in box], outline=styles[name], width=line)
    placed: list[tuple[float, ...]] = []
    for box, name, score in found:
        text = f"{name} {score:.2f}"
        size = font.getbbox(text)[2] + 2 * line, sum(font.getmetrics())
        place = label_place([factor * x for x in box], size, picture.size, placed)
        placed.append(place)
        canvas.rectangle(place, fill=styles[name])
        light = np.dot(styles[name], (0.299, 0.587, 0.114)) > 140
        canvas.text((place[0] + line, place[1]), text, fill="black" if light else "white", font=font)
    return picture


def label_place(
    box: Sequence[float], size: tuple[float, float], picture: tuple[int, int], placed: Sequence[tuple[float, ...]]
) -> tuple[float, float, float, float]:
    """Return x1 y1 x2 y2 of a label: the first position at its box that overlaps no placed label, otherwise above the box.

    Args:
        box: x1 y1 x2 y2 of the detection in pixels of the picture.
        size: width and height of the label in pixels.
        picture: width and height of the picture in pixels; the label is shifted inside it.
        placed: labels x1 y1 x2 y2 that are placed already.
    """
    (x1, y1, x2, y2), (wide, high) = box, size
    places = []
    for x in (x1, x2 - wide):
        for y in (y1 - high, y1, y2, y2 - high):
            left, top = max(0.0, min(x, picture[0] - wide)), max(0.0, min(y, picture[1] - high))
            places.append((left, top, left + wide, top + high))

    def free(place: tuple[float, ...]) -> bool:
        return all(place[2] <= p[0] or p[2] <= place[0] or place[3] <= p[1] or p[3] <= place[1] for p in placed)

    return next(filter(free, places), places[0])
