"""Objects that were found in a photograph, and a picture of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .figures import matplotlib

SMALLEST_PICTURE = 640
"""Pixels of a picture's longer side, at least: a smaller photograph is enlarged, so that names fit beside boxes."""


def class_colours(classes: int) -> Sequence[tuple[float, float, float]]:
    """Red, green and blue in [0, 1] of ten classes, or of twenty; more take the same again."""
    return matplotlib().colormaps["tab10" if classes <= 10 else "tab20"].colors


class Detection(NamedTuple):
    """One object that was found.

    Attributes:
        box: x1, y1, x2, y2 in pixels of the photograph, inside it; x to the right and y down, from its upper left corner.
        name: of its class.
        score: in [0, 1].
    """

    box: tuple[float, float, float, float]
    name: str
    score: float


def in_pixels(
    found: tuple[np.ndarray, np.ndarray, np.ndarray], classes: Sequence[str], height: int, width: int, threshold: float
) -> list[Detection]:
    """The objects with a score of at least `threshold`, best first; boxes are cut at the photograph's edges.

    Args:
        found: boxes (n, 4), scores (n,) and labels (n,), as `detections.detect_images` gives them.
        height, width: of the photograph.
    """
    boxes, scores, labels = found
    boxes = np.clip(boxes, 0, [width, height, width, height])
    kept = (scores >= threshold) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    rows = zip(boxes[kept].astype(float).tolist(), labels[kept].tolist(), scores[kept].astype(float).tolist())
    return [Detection(tuple(box), classes[label], score) for box, label, score in rows]


def draw(image: np.ndarray, found: Sequence[Detection], classes: Sequence[str]) -> Image.Image:
    """The photograph with a box, a name and a score for each detection, a colour for each class.

    Small photographs are enlarged; lines and letters grow with large ones. A label stands where it covers no other label, if
    there is such a place at its box: above, inside or below.

    Args:
        image: (H, W, 3) uint8, blue, green, red.
    """
    height, width = image.shape[:2]
    factor = max(1, -(-SMALLEST_PICTURE // max(height, width)))
    picture = Image.fromarray(image[:, :, ::-1]).resize((width * factor, height * factor), Image.Resampling.BICUBIC)
    longest = max(picture.size)
    line, canvas = max(2, round(longest / 250)), ImageDraw.Draw(picture)
    font = ImageFont.truetype(f"{matplotlib().get_data_path()}/fonts/ttf/DejaVuSans.ttf", max(13, round(longest / 50)))
    colours = class_colours(len(classes))
    styles = {name: tuple(round(255 * part) for part in colours[label % len(colours)]) for label, name in enumerate(classes)}
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
    """x1 y1 x2 y2 of a label: the first place at the box, inside the picture, where no label is yet; else above it."""
    (x1, y1, x2, y2), (wide, high) = box, size
    places = []
    for x in (x1, x2 - wide):
        for y in (y1 - high, y1, y2, y2 - high):
            left, top = max(0.0, min(x, picture[0] - wide)), max(0.0, min(y, picture[1] - high))
            places.append((left, top, left + wide, top + high))

    def free(place: tuple[float, ...]) -> bool:
        return all(place[2] <= p[0] or p[2] <= place[0] or place[3] <= p[1] or p[3] <= place[1] for p in placed)

    return next(filter(free, places), places[0])
