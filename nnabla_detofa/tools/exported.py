"""A detector exported as NNP, as a function of one image; it needs neither the run nor its data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import cv2
import numpy as np

from ..backend.compat import nn
from ..common.drawing import Detection, in_pixels
from ..common.errors import UserError
from ..common.reading import read_json
from ..common.shipped import shipped
from ..data.augment import letterbox_matrix
from ..evaluation.detections import boxes_in_images
from ..networks.decoding import decode
from .detect import check_image
from .export import about_file
from .static_network import NETWORK

SUFFIX = ".nnp"


def is_exported(place: str | FilePath) -> bool:
    """Return whether this is an exported detector, and not a run."""
    return FilePath(place).suffix == SUFFIX


@dataclass(frozen=True)
class ExportedDetector:
    """An NNP file that `export` wrote, as a function of one image; see `detect.ImageDetector`.

    Attributes:
        name: the file.
        about: its metadata.
        network: the graph, with the input "image" and the outputs of `about`.
    """

    name: str
    about: Mapping[str, Any]
    network: Any = field(repr=False)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the labels."""
        return tuple(self.about["classes"])

    def __call__(self, image: np.ndarray, threshold: float = 0.3) -> list[Detection]:
        """Detect the objects in an image; see `detect.ImageDetector`."""
        check_image(image)
        takes = self.about["input"]
        batch, _, height, width = takes["shape"]
        rows, columns = image.shape[:2]
        matrix = letterbox_matrix((rows, columns), (height, width))
        pixels = cv2.warpAffine(image, matrix, (width, height)).astype(np.float32)
        if takes.get("normalized_by_user", takes.get("normalised_by_user")):  # the second is the key of older exports
            pixels = (pixels / 255 - np.float32(takes["mean"])) / np.float32(takes["std"])
        self.network.inputs["image"].d = np.repeat(pixels.transpose(2, 0, 1)[None], batch, axis=0)
        outputs = [self.network.outputs[name] for name in self.about["outputs"]]  # older files have other names
        nn.forward_all(outputs)
        decoded = decode(*(output.d[:1].copy() for output in outputs))
        (found,) = boxes_in_images(decoded, matrix[None], self.about["stride"])
        return in_pixels(found, self.classes, rows, columns, threshold)


def load_exported(file: str | FilePath) -> ExportedDetector:
    """Load an exported detector: a file, or one that is shipped.

    Raises:
        UserError: the file or its metadata are missing or damaged.
    """
    found = shipped(file)
    if not found.is_file():
        raise UserError(f"{file} is not an exported detector: the file does not exist")
    about = read_json(about_file(found), "the metadata of the exported detector")
    try:
        from nnabla.utils.nnp_graph import NnpLoader

        network = NnpLoader(str(found)).get_network(NETWORK, batch_size=about["input"]["shape"][0])
        return ExportedDetector(str(file), about, network)
    except Exception as error:  # the reader raises errors of many kinds for a damaged archive
        raise UserError(f"{found} is damaged, or was not written by export ({error}): export the detector again") from error
