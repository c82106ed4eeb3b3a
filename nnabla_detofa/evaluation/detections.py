"""Detections of a path: boxes in the pixels of the images, and their average precision."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath

import numpy as np
from scipy.special import expit

from ..backend.compat import nn
from ..backend.device_memory import bounded_by
from ..backend.graphs import CachedGraphs
from ..backend.ranks import Communicator
from ..common.files import write_bytes
from ..data.augment import invert, letterbox, transform_boxes
from ..data.targets import MOST_DETECTIONS
from ..networks.centernet import Detector, decode, soft_nms
from ..networks.layers import GivenStatistics
from ..space.paths import Path
from .metrics import summarise
from .reestimation import Statistics


@dataclass
class BoxDetector:
    """One path as a detector of boxes.

    Attributes:
        net, path, statistics: the supernet, the path, and the path's re-estimated statistics.
        top: detections kept in an image.
        flip: average the maps with those of the mirrored image, as `Detector.with_mirrored` does.
    """

    net: Detector
    path: Path
    statistics: Statistics
    top: int = MOST_DETECTIONS
    flip: bool = False

    def __post_init__(self):
        self._graphs = CachedGraphs(self._graph)

    def __call__(self, images: np.ndarray, matrices: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Boxes (n, 4) x1 y1 x2 y2 in pixels of the original images, scores (n,), labels (n,), best first, for each image.

        Args:
            images: (B, 3, H, W) as `data.augment.eval_transform` makes them.
            matrices: (B, 2, 3) that brought the originals to the input.
        """
        maps = self._outputs(images)
        if self.flip:
            maps = self.net.with_mirrored(maps, self._outputs(images[..., ::-1]))
        return boxes_in_images(self.net.decode(maps, self.top), matrices, images.shape[-1] // maps[0].shape[-1])

    def _outputs(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        """The network's maps (see `Detector.maps`)."""
        with self._graphs.held(images.shape) as (x, outputs):
            x.d = images
            nn.forward_all(outputs, clear_buffer=True)
            return tuple(output.d.copy() for output in outputs)

    def _graph(self, shape: tuple[int, ...]) -> tuple[nn.Variable, tuple[nn.Variable, ...]]:
        """The input of this shape, and the maps that come of it."""
        x = nn.Variable(shape)
        outputs = self.net.maps(self.net(x, self.path, GivenStatistics(self.statistics)))
        for output in outputs:
            output.persistent = True
        return x, outputs


def boxes_in_images(
    decoded: Sequence[Sequence[np.ndarray]], matrices: np.ndarray, stride: int
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Detections of each image of a batch, in pixels of the original: boxes (n, 4), scores (n,), labels (n,).

    Args:
        decoded: boxes in cells, scores and labels, as `Detector.decode` gives them.
        matrices: (B, 2, 3) that brought the originals to the input.
        stride: input pixels per cell.
    """
    boxes, scores, labels = decoded
    return [(transform_boxes(b * stride, invert(m)), s, k) for b, m, s, k in zip(boxes, matrices, scores, labels)]


@dataclass(frozen=True)
class ValidationTruth:
    """What detections on the validation images are held against.

    Attributes:
        objects: boxes, labels and difficult flags of each image.
        matrices: (n, 2, 3) that brought the images to the input.
        stride: input pixels per cell of the maps.
        classes: their names.
        metric: "11point", "area" or "coco". areas: of the objects of each image, for "coco".
    """

    objects: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]
    matrices: np.ndarray
    stride: int
    classes: tuple[str, ...]
    metric: str
    areas: Sequence[np.ndarray] | None = None

    def ap50(self, maps: Iterable[Sequence[np.ndarray]]) -> float | None:
        """AP at IoU 0.5; None where there is no object.

        Args:
            maps: heat map logits, offset and size of the images, batch by batch.
        """
        detections: list = []
        for logits, offset, size in maps:
            matrices = self.matrices[len(detections) : len(detections) + len(logits)]
            detections += boxes_in_images(decode(expit(logits), offset, size), matrices, self.stride)
        return summarise(detections, self.objects, self.classes, self.metric, self.areas)["ap50"]


def detect_images(
    detector: BoxDetector,
    images: Sequence[np.ndarray],
    size: tuple[int, int],
    scales: Sequence[float] = (1.0,),
    multiple: int = 32,
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Boxes, scores and labels of whole photographs, as `BoxDetector` gives them.

    Args:
        images: each (H, W, 3) uint8, blue, green, red.
        size: (height, width) of the network's input.
        scales: of the input over `size`; the detections of several are merged by `centernet.soft_nms`.
        multiple: of which the sides of a scaled input must be: the backbone's stride.
    """
    runs = []
    for scale in scales:
        scaled = tuple(max(multiple, round(side * scale / multiple) * multiple) for side in size)
        fitted = [letterbox(image, scaled, detector.net.normalization) for image in images]
        runs.append(detector(np.stack([image for image, _ in fitted]), np.stack([matrix for _, matrix in fitted])))
    if len(runs) == 1:
        return runs[0]
    joined = [[np.concatenate(part) for part in zip(*of_image)] for of_image in zip(*runs)]
    return [tuple(part[: detector.top] for part in soft_nms(*image)) for image in joined]


def detect_all(
    detector: BoxDetector,
    sets,
    batch: int,
    on_images: Callable[[int], None],
    comm: Communicator | None = None,
    **scaling,
) -> tuple[list, list]:
    """Detections and ground truth of every test image, as `metrics.summarise` takes them.

    Args:
        sets: `data.sets.DetectionSets`.
        on_images: hears how many more images are done.
        comm: ranks that share out the batches; all get all detections.
        scaling: `scales` and `multiple` of `detect_images`.
    """

    def detect(indices: range) -> tuple[list, list]:
        samples = [sets.test.load(index) for index in indices]
        with bounded_by("hparams.bn_batch", len(samples)):
            found = detect_images(detector, [sample.image for sample in samples], sets.image_size, **scaling)
        return found, [(sample.boxes, sample.labels, sample.difficult) for sample in samples]

    everything, detections, truth = range(len(sets.test)), [], []
    batches = [everything[start : start + batch] for start in range(0, len(everything), batch)]
    for found, true in (comm or Communicator()).map(detect, batches):
        detections += found
        truth += true
        on_images(len(true))
    return detections, truth


def average_precision(
    detector: BoxDetector, sets, batch: int, metric: str, on_images: Callable[[int], None], **scaling
) -> tuple[dict, list]:
    """Average precision on the test split as `metrics.summarise` gives it, and the detections; arguments as `detect_all`'s.

    Args:
        metric: "11point", "area" or "coco".
    """
    detections, truth = detect_all(detector, sets, batch, on_images, **scaling)
    areas = [sets.test.areas(index) for index in range(len(sets.test))] if metric == "coco" else None
    return summarise(detections, truth, sets.classes, metric, areas), detections


def save_detections(file: FilePath, sets, detections: Sequence, least: float = 0.05) -> None:
    """Write detections with a score of at least `least`: [{"image", "boxes", "scores", "labels"}, ...]."""
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
