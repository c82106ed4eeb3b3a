"""Detections of a path in pixels of the original images, and their average precision."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from ..backend.compat import nn
from ..backend.device_memory import bounded_by
from ..backend.graphs import CachedGraphs
from ..backend.ranks import Communicator
from ..common.files import write_bytes
from ..data.augment import invert, letterbox, transform_boxes
from ..data.sets import DetectionSets
from ..data.targets import MAX_DETECTIONS
from ..networks.centernet import Detector
from ..networks.decoding import soft_nms
from ..networks.layers import GivenStatistics
from ..space.paths import Path
from .metrics import summarize
from .reestimation import Statistics


@dataclass
class BoxDetector:
    """One path of a supernet as a detector of boxes.

    Attributes:
        net: the supernet.
        path: the path.
        statistics: re-estimated batch normalization statistics of the path.
        top: maximum number of detections per image.
        flip: average the output maps of the image and of its mirror image, see `Detector.with_mirrored`.
    """

    net: Detector
    path: Path
    statistics: Statistics
    top: int = MAX_DETECTIONS
    flip: bool = False

    def __post_init__(self) -> None:
        self._graphs: CachedGraphs = CachedGraphs()

    def __call__(self, images: np.ndarray, matrices: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Detect objects in a batch of images.

        Args:
            images: (B, 3, H, W) network inputs, as returned by `data.augment.eval_transform`.
            matrices: (B, 2, 3) affine maps from original images to inputs.

        Returns:
            For each image: boxes (n, 4) x1 y1 x2 y2 in pixels of the original image, scores (n,) and labels (n,), by
            descending score.
        """
        maps = self._outputs(images)
        if self.flip:
            maps = self.net.with_mirrored(maps, self._outputs(images[..., ::-1]))
        return boxes_in_images(self.net.decode(maps, self.top), matrices, images.shape[-1] // maps[0].shape[-1])

    def _outputs(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        """Compute the network's output maps (see `Detector.maps`)."""
        with self._graphs.held(images.shape, self._graph) as (x, outputs):
            x.d = images
            nn.forward_all(outputs, clear_buffer=True)
            return tuple(output.d.copy() for output in outputs)

    def _graph(self, shape: tuple[int, ...]) -> tuple[nn.Variable, tuple[nn.Variable, ...]]:
        """Build the graph for inputs of this shape; return the input and the output maps."""
        x = nn.Variable(shape)
        outputs = self.net.maps(self.net(x, self.path, GivenStatistics(self.statistics)))
        for output in outputs:
            output.persistent = True
        return x, outputs


def boxes_in_images(
    decoded: Sequence[Iterable[np.ndarray]], matrices: np.ndarray, stride: int
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Transform the detections of a batch to pixels of the original images.

    Args:
        decoded: boxes in cells, scores and labels, as returned by `Detector.decode`.
        matrices: (B, 2, 3) affine maps from original images to inputs.
        stride: input pixels per cell.

    Returns:
        For each image: boxes (n, 4), scores (n,) and labels (n,).
    """
    boxes, scores, labels = decoded
    return [(transform_boxes(b * stride, invert(m)), s, k) for b, m, s, k in zip(boxes, matrices, scores, labels)]


@dataclass(frozen=True)
class ValidationTruth:
    """Ground truth of the validation images.

    Attributes:
        objects: boxes, labels and difficult flags of each image.
        matrices: (n, 2, 3) affine maps from original images to inputs.
        stride: input pixels per cell of the output maps.
        classes: class names.
        metric: "11point", "area" or "coco".
        areas: areas in pixels of the objects of each image, for "coco".
    """

    objects: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]
    matrices: np.ndarray
    stride: int
    classes: tuple[str, ...]
    metric: str
    areas: Sequence[np.ndarray] | None = None

    def ap50(self, decoded: Iterable[Sequence[Iterable[np.ndarray]]]) -> float | None:
        """Compute the AP at IoU 0.5; None if the images contain no object.

        Args:
            decoded: detections of the images, as returned by `Detector.decode`, for each batch.
        """
        detections: list = []
        for boxes, scores, labels in decoded:
            matrices = self.matrices[len(detections) :]
            detections += boxes_in_images((boxes, scores, labels), matrices, self.stride)
        return summarize(detections, self.objects, self.classes, self.metric, self.areas)["ap50"]


def detect_images(
    detector: BoxDetector,
    images: Sequence[np.ndarray],
    size: tuple[int, int],
    scales: Sequence[float] = (1.0,),
    multiple: int = 32,
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Detect objects in images of any size.

    Args:
        images: images (H, W, 3) uint8 with channels blue, green, red.
        size: (height, width) of the network's input.
        scales: input sizes relative to `size`; detections at several scales are merged by `decoding.soft_nms`.
        multiple: the sides of a scaled input are rounded to multiples of this number, the stride of the backbone.

    Returns:
        Boxes, scores and labels of each image, as returned by `BoxDetector`.
    """
    runs = []
    for scale in scales:
        height, width = (max(multiple, round(side * scale / multiple) * multiple) for side in size)
        fitted = [letterbox(image, (height, width), detector.net.normalization) for image in images]
        runs.append(detector(np.stack([image for image, _ in fitted]), np.stack([matrix for _, matrix in fitted])))
    if len(runs) == 1:
        return runs[0]
    joined = [[np.concatenate(part) for part in zip(*of_image)] for of_image in zip(*runs)]
    merged = [soft_nms(boxes, scores, labels) for boxes, scores, labels in joined]
    return [(boxes[: detector.top], scores[: detector.top], labels[: detector.top]) for boxes, scores, labels in merged]


def detect_all(
    detector: BoxDetector,
    sets: DetectionSets,
    batch: int,
    on_images: Callable[[int], None],
    comm: Communicator | None = None,
    **scaling: Any,
) -> tuple[list, list]:
    """Detect objects in all test images.

    Args:
        detector: detector to run.
        sets: datasets; only the test split is read.
        batch: images per batch.
        on_images: called after each batch with the number of its images.
        comm: ranks among which the batches are distributed; every rank receives all detections.
        scaling: `scales` and `multiple` of `detect_images`.

    Returns:
        Detections and ground truth of the test images, in the format of `metrics.summarize`.
    """

    size = sets.at(detector.path.resolution).image_size

    def detect(indices: range) -> tuple[list, list]:
        samples = [sets.test.load(index) for index in indices]
        with bounded_by("hparams.bn_batch", len(samples)):
            found = detect_images(detector, [sample.image for sample in samples], size, **scaling)
        return found, [(sample.boxes, sample.labels, sample.difficult) for sample in samples]

    everything, detections, truth = range(len(sets.test)), [], []
    batches = [everything[start : start + batch] for start in range(0, len(everything), batch)]
    for found, true in (comm or Communicator()).map(detect, batches):
        detections += found
        truth += true
        on_images(len(true))
    return detections, truth


def average_precision(
    detector: BoxDetector, sets: DetectionSets, batch: int, metric: str, on_images: Callable[[int], None], **scaling: Any
) -> tuple[dict, list]:
    """Compute the average precision of a detector on the test split.

    Args:
        detector, sets, batch, on_images, scaling: see `detect_all`; `scaling` may include its `comm`.
        metric: "11point", "area" or "coco".

    Returns:
        The result of `metrics.summarize`, and the detections of each image.
    """
    detections, truth = detect_all(detector, sets, batch, on_images, **scaling)
    areas = [sets.test.areas(index) for index in range(len(sets.test))] if metric == "coco" else None
    return summarize(detections, truth, sets.classes, metric, areas), detections


def save_detections(file: FilePath, sets: DetectionSets, detections: Sequence, least: float = 0.05) -> None:
    """Write the detections with a score of at least `least` as JSON: [{"image", "boxes", "scores", "labels"}, ...]."""
    entries = []
    for image_id, (boxes, scores, labels) in zip(sets.test.image_ids, detections):
        kept = scores >= least
        entries.append(
            {
                "image": image_id,
                "boxes": np.round(boxes[kept].astype(float), 2).tolist(),
                "scores": np.round(scores[kept].astype(float), 4).tolist(),
                "labels": labels[kept].tolist(),
            }
        )
    write_bytes(file, json.dumps(entries).encode())
