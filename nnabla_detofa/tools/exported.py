"""A detector exported as NNP, as a function of one image; it needs neither the run nor its data."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Annotated, Any

import cv2
import numpy as np

from ..backend.compat import nn
from ..common import checked
from ..common.drawing import Detection, in_pixels
from ..common.errors import UserError
from ..common.files import digest
from ..common.normalization import Normalization
from ..common.reading import read_json, short, shown
from ..common.shipped import shipped
from ..config import CenternetOfaResnet50, network_type
from ..config.values import Side
from ..data.augment import letterbox_matrix
from ..evaluation.detections import boxes_in_images
from ..networks.centernet import detector_of
from ..networks.decoding import decode
from ..space.paths import Path
from .detect import check_image
from .export import MAX_BATCH, about_file
from .static_network import read_network

SUFFIX = ".nnp"


def is_exported(place: str | FilePath) -> bool:
    """Return whether this is an exported detector, and not a run."""
    return FilePath(place).suffix == SUFFIX and not FilePath(place).is_dir()


@dataclass(frozen=True)
class Metadata:
    """What a detector needs of the metadata beside its file; see `export.export`.

    Attributes:
        classes: class names, in the order of the labels.
        shape: shape of the input, (batch, 3, height, width).
        outputs: names of the outputs: heatmap, offset and size, or those of the user's own heads. Files of older versions have
            other names.
        stride: input pixels per heatmap cell.
        normalized_by_user: whether the input is normalized by `normalization`; otherwise it is pixels from 0 to 255.
        sha256: checksum of the detector's file; None in files of older versions.
    """

    classes: tuple[str, ...]
    shape: tuple[Annotated[int, f"[1, {MAX_BATCH}]"], Annotated[int, "[3, 3]"], Side, Side]
    outputs: tuple[str, ...]
    stride: Annotated[int, "[1, 64]"]
    normalized_by_user: bool
    normalization: Normalization
    sha256: str | None = None

    @classmethod
    def from_json(cls, content: Any) -> Metadata:
        """Check the content of a metadata file.

        Raises:
            UserError: a value is missing or not allowed.
        """
        try:
            takes = content["input"]
            values = {name: content[name] for name in ("classes", "stride")} | {"shape": takes["shape"]}
            values["outputs"] = list(content["outputs"])
            older = takes.get("normalised_by_user", False)
            values["normalized_by_user"] = takes.get("normalized_by_user", older)
            values["normalization"] = {name: takes[name] for name in ("mean", "std")}
            values["sha256"] = content.get("sha256")
        except (LookupError, TypeError, AttributeError) as error:
            raise UserError(f"a value is missing ({short(repr(error))})") from error
        about = checked.read(cls, values, "it")
        if "network" not in content and len(about.outputs) != 3:
            raise UserError(f"outputs must be a list of 3 values, got {len(about.outputs)}")
        return about


@dataclass(frozen=True)
class ExportedDetector:
    """An NNP file that `export` wrote, as a function of one image; see `detect.ImageDetector`. Threads may share it.

    Attributes:
        name: the file.
        about: its metadata.
        decode: computes boxes, scores and labels from the outputs (`Detector.decode`).
        network: the graph, with the input "image" and the outputs of `about`.
        lock: held by the thread that computes the graph.
    """

    name: str
    about: Metadata
    decode: Callable[[Sequence[np.ndarray]], Sequence[Iterable[np.ndarray]]] = field(repr=False)
    network: Any = field(repr=False)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the labels."""
        return self.about.classes

    def __call__(self, image: np.ndarray, threshold: float = 0.3) -> list[Detection]:
        """Detect the objects in an image; see `detect.ImageDetector`."""
        check_image(image)
        batch, _, height, width = self.about.shape
        rows, columns = image.shape[:2]
        matrix = letterbox_matrix((rows, columns), (height, width))
        pixels = cv2.warpAffine(image, matrix, (width, height)).astype(np.float32)
        inputs = self.about.normalization(pixels / 255) if self.about.normalized_by_user else pixels.transpose(2, 0, 1)
        with self.lock:
            self.network.inputs["image"].d = np.repeat(inputs[None], batch, axis=0)
            outputs = [self.network.outputs[name] for name in self.about.outputs]
            nn.forward_all(outputs)
            decoded = self.decode([output.d[:1].copy() for output in outputs])
        (found,) = boxes_in_images(decoded, matrix[None], self.about.stride)
        return in_pixels(found, self.classes, rows, columns, threshold)


def load_exported(file: str | FilePath) -> ExportedDetector:
    """Load an exported detector: a file, or one that is shipped. The class of a network of the user's own is imported.

    Raises:
        UserError: the file or its metadata are missing or damaged.
    """
    found = shipped(file)
    if not found.is_file():
        raise UserError(f"{file} is not an exported detector: the file does not exist")
    content = read_json(about_file(found), "the metadata of the exported detector")
    try:
        about = Metadata.from_json(content)
    except UserError as error:
        raise UserError(
            f"{about_file(found)} is damaged ({str(error).removeprefix('it.')}): export the detector again"
        ) from error
    decoder = _decoder(content, about)
    try:
        if about.sha256 not in (None, digest(found.read_bytes())):
            raise ValueError(f"{about_file(found)} belongs to another file")
        network = read_network(found, about.shape[0])
        shapes = network.inputs["image"].shape, network.outputs[about.outputs[0]].shape[:2]
        if shapes != (about.shape, (about.shape[0], len(about.classes))):
            raise ValueError(f"its metadata do not describe it: it has the shapes {shapes}")
        cells = network.outputs[about.outputs[0]].shape[2:]
        if decoder is _centernet and cells != tuple(side // about.stride for side in about.shape[2:]):
            raise ValueError(
                f"its metadata do not describe it: stride is {about.stride}, but its heatmap has the shape {cells}"
            )
        return ExportedDetector(str(file), about, decoder, network)
    except Exception as error:  # the reader raises errors of many kinds for a damaged archive
        raise UserError(f"{found} is damaged, or was not written by export ({error}): export the detector again") from error


def _decoder(content: Mapping[str, Any], about: Metadata) -> Callable[[Sequence[np.ndarray]], Sequence[Iterable[np.ndarray]]]:
    """Return `Detector.decode` of the network that the content of a metadata file names.

    Raises:
        UserError: the network is the user's own, and cannot be imported or does not fit its settings.
    """
    entries = content.get("network")
    if entries is None:
        return _centernet
    if not isinstance(entries, Mapping) or len(entries) != 1:
        raise UserError(f"network in the metadata of the exported detector must have exactly one entry, got {shown(entries)}")
    ((name, settings),) = entries.items()
    network = checked.read(network_type(name), settings, f"network.{name}")
    if not isinstance(network, CenternetOfaResnet50):
        raise UserError(f"network in the metadata of the exported detector must be a detector, got {shown(name)}")
    return detector_of(network, len(about.classes), Path.from_ofa(content.get("path", {}), network.geometry)).decode


def _centernet(maps: Sequence[np.ndarray]) -> Sequence[Iterable[np.ndarray]]:
    heatmap, offset, size = maps
    return decode(heatmap, offset, size)
