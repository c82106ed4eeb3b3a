"""Average precision of detections, computed as by Pascal VOC's development kit and by COCO."""

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..common.boxes import box_iou

Detections = Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Per image: boxes (n, 4) x1 y1 x2 y2 in image pixels, scores (n,), labels (n,)."""

GroundTruth = Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Per image: boxes (n, 4) x1 y1 x2 y2 in image pixels, labels (n,), difficult (n,) bool."""


@dataclass(frozen=True, eq=False)
class VOCResult:
    """Pascal VOC average precision in [0, 1].

    Attributes:
        per_class: (num_classes,) float64 AP of each class; nan if the ground truth has no object of the class that is not
            difficult.
        mean: mean over the classes that have objects; nan if no class has one.
    """

    per_class: np.ndarray
    mean: float


def average_precision(recall: np.ndarray, precision: np.ndarray, metric: str = "area") -> float:
    """Compute the average precision of a precision-recall curve.

    Args:
        recall: (n,) in [0, 1], nondecreasing (detections in order of descending score).
        precision: (n,) in [0, 1].
        metric: how the interpolated precision, the maximum precision at the same or a higher recall, is averaged: "area" is
            the area under its curve (VOC since 2010), "11point" its mean at recalls 0, 0.1, ..., 1 (VOC 2007).

    Raises:
        ValueError: `metric` is unknown.
    """
    if metric not in ("area", "11point"):
        raise ValueError(f"metric must be 'area' or '11point', got {metric!r}")
    recall, precision = np.asarray(recall, float), np.asarray(precision, float)
    if metric == "11point":
        # arange / 10 instead of linspace: the level 0.3 must equal the float recall of 3 of 10 objects.
        return float(np.mean([precision[recall >= level].max(initial=0) for level in np.arange(11) / 10]))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0) * envelope))


OTHER_METRIC = {"area": "11point", "11point": "area"}
"""Maps each VOC metric to the other one. Results contain both; "ap50" is computed by the metric in the config."""
AP_TITLES = {"ap": "AP", "ap50": "AP50", "ap50_11point": "AP50 (11-point)", "ap50_area": "AP50 (area)"}
"""Maps keys of `summarize` to titles in tables."""


def ap_keys(result: Mapping) -> list[str]:
    """Return the keys of `AP_TITLES` in a result of `summarize`, in their order: "ap50", and others depending on the metric."""
    return [key for key in AP_TITLES if key == "ap50" or key in result]


def voc_ap(
    detections: Detections, ground_truth: GroundTruth, num_classes: int, iou: float = 0.5, metric: str = "area"
) -> VOCResult:
    """Compute Pascal VOC's average precision of detections.

    Args:
        detections, ground_truth, num_classes, iou: see `voc_curves`.
        metric: see `average_precision`.

    Raises:
        ValueError: the numbers of images differ, a score is not finite, or the metric is unknown.
    """
    return _voc_result(voc_curves(detections, ground_truth, num_classes, iou), metric)


def _voc_result(curves: Sequence[tuple[np.ndarray, np.ndarray] | None], metric: str) -> VOCResult:
    per_class = np.array([np.nan if curve is None else average_precision(*curve, metric) for curve in curves], float)
    known = per_class[~np.isnan(per_class)]
    return VOCResult(per_class, float(known.mean()) if len(known) else float("nan"))


@dataclass(frozen=True, eq=False)
class RankedDetections:
    """Detections of a class by descending score, without those that are ignored.

    Attributes:
        correct: (n,) bool, whether each detection is a true positive.
        image: (n,) int, index of the image of each detection.
        objects: (images,) int, number of objects of the class in each image that are not difficult.
    """

    correct: np.ndarray
    image: np.ndarray
    objects: np.ndarray


def voc_curves(
    detections: Detections, ground_truth: GroundTruth, num_classes: int, iou: float = 0.5
) -> list[tuple[np.ndarray, np.ndarray] | None]:
    """Compute the precision-recall curve of each class by the rules of Pascal VOC's development kit.

    Args:
        detections, ground_truth, num_classes, iou: see `voc_matches`.

    Returns:
        For each class: recall (n,) and precision (n,) in order of descending score, or None if the ground truth has no object
        of the class.

    Raises:
        ValueError: as `voc_matches`.
    """
    curves: list[tuple[np.ndarray, np.ndarray] | None] = []
    for ranked in voc_matches(detections, ground_truth, num_classes, iou):
        found = ranked.correct.cumsum()
        total, judged = ranked.objects.sum(), np.arange(1, len(found) + 1)
        curves.append((found / total, found / judged) if total else None)
    return curves


def voc_matches(
    detections: Detections, ground_truth: GroundTruth, num_classes: int, iou: float = 0.5
) -> list[RankedDetections]:
    """Match the detections of each class to objects by the rules of Pascal VOC's development kit.

    A detection is assigned to the object of its class and image with the largest IoU. It is a true positive if that IoU is at
    least `iou` and the object has no true positive with a higher score. Difficult objects are not counted, and detections
    assigned to one with an IoU of at least `iou` are ignored. Box corners are inclusive: a box is x2 - x1 + 1 pixels wide.
    Detections with equal scores are ordered by image, then by position in their image.

    Args:
        detections, ground_truth: per image, see `Detections` and `GroundTruth`.
        num_classes: number of classes; labels are in [0, num_classes).
        iou: smallest IoU of a true positive.

    Returns:
        The ranked detections of each class.

    Raises:
        ValueError: the numbers of images differ, or a score is not finite.
    """
    if len(detections) != len(ground_truth):
        raise ValueError(f"detections must be given for {len(ground_truth)} images, got {len(detections)}")
    matches, first_object = [], 0
    counts = np.zeros((num_classes, len(ground_truth)), int)
    for image, ((boxes, scores, labels), (true_boxes, true_labels, difficult)) in enumerate(zip(detections, ground_truth)):
        labels, true_labels, difficult = (np.asarray(a) for a in (labels, true_labels, difficult))
        overlap = np.where(labels[:, None] == true_labels, box_iou(boxes, true_boxes, inclusive=True), -1.0)
        overlap = np.concatenate([overlap, np.full((len(labels), 1), -1.0)], axis=1)  # argmax needs at least one column
        nearest = overlap.argmax(1)
        ignored = np.append(difficult.astype(bool), False)[nearest]
        images = np.full(len(labels), image)
        matches.append((np.asarray(scores, float), labels, overlap.max(1) >= iou, first_object + nearest, ignored, images))
        first_object += len(true_labels) + 1
        counted = true_labels[~np.asarray(difficult, bool)].astype(int)
        counts[:, image] = np.bincount(counted, minlength=num_classes)[:num_classes]
    scores, labels, hit, objects, ignored, images = (
        (np.concatenate(column) for column in zip(*matches)) if matches else [np.zeros(0)] * 6
    )
    if not np.isfinite(scores).all():
        raise ValueError(f"scores must be finite, got {scores[~np.isfinite(scores)][0]}")
    found = []
    for label in range(num_classes):
        of_class = np.flatnonzero(labels == label)
        ranked = of_class[np.argsort(-scores[of_class], kind="stable")]
        ranked = ranked[~(hit[ranked].astype(bool) & ignored[ranked].astype(bool))]
        hits = np.flatnonzero(hit[ranked])
        correct = np.zeros(len(ranked), bool)
        correct[hits[np.unique(objects[ranked[hits]], return_index=True)[1]]] = True  # the first at each object
        found.append(RankedDetections(correct, images[ranked].astype(int), counts[label]))
    return found


def bootstrap_ap(matches: Sequence[RankedDetections], weights: np.ndarray, metric: str = "area") -> np.ndarray:
    """Compute the mean AP over the classes on resampled images, for a bootstrap of its error.

    Args:
        matches: the result of `voc_matches`.
        weights: (repeats, images), how often each resampling contains each image.
        metric: see `average_precision`.

    Returns:
        (repeats,) AP in [0, 1]; NaN for a resampling without objects.
    """
    per_class = []
    for ranked in matches:
        total = weights @ ranked.objects  # (repeats,)
        counted = weights[:, ranked.image]  # (repeats, n)
        found, judged = (counted * ranked.correct).cumsum(1), counted.cumsum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            recall = found / total[:, None]
            precision = np.where(judged > 0, found / judged, 0.0)
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        if metric == "11point":
            levels = [np.where(recall >= level, precision, 0).max(1, initial=0) for level in np.arange(11) / 10]
            value = np.mean(levels, axis=0)
        else:
            value = (np.diff(recall, prepend=0, axis=1) * envelope).sum(1)
        per_class.append(np.where(total > 0, value, np.nan))
    values = np.array(per_class)
    known = ~np.isnan(values)
    sums = np.where(known, values, 0).sum(0)
    return np.where(known.any(0), sums / np.maximum(known.sum(0), 1), np.nan)


@dataclass(frozen=True, eq=False)
class COCOResult:
    """COCO metrics in [0, 1]; nan if there are no objects to evaluate.

    Attributes:
        values: AP (mean over IoU 0.5 to 0.95), AP50, AP75, APs, APm, APl (small, medium, large objects).
        per_class, per_class_50: (num_classes,) float64 AP and AP50 of each class.
    """

    values: dict[str, float]
    per_class: np.ndarray
    per_class_50: np.ndarray


def coco_ap(
    detections: Detections, ground_truth: GroundTruth, num_classes: int, areas: Sequence[np.ndarray] | None = None
) -> COCOResult:
    """Compute COCO's average precision with pycocotools. Boxes are x2 - x1 pixels wide.

    Args:
        detections: per image, see `Detections`.
        ground_truth: per image, see `GroundTruth`. The third array of an image marks crowds, or VOC's difficult objects;
            detections inside them are ignored.
        num_classes: number of classes.
        areas: per image, (n,) mask areas in pixels, from which COCO determines the size class of an object. Default: the
            areas of the boxes.

    Raises:
        ValueError: the numbers of images differ.
    """
    precision = _coco_precision(detections, ground_truth, num_classes, areas)
    thresholds = {"": slice(None), "50": slice(0, 1), "75": slice(5, 6)}
    sizes = {"s": 1, "m": 2, "l": 3}
    curves = {f"AP{name}": precision[chosen, :, :, 0, -1] for name, chosen in thresholds.items()}
    curves |= {f"AP{name}": precision[:, :, :, column, -1] for name, column in sizes.items()}

    def mean(curve: np.ndarray) -> float:
        return float(curve[curve >= 0].mean()) if (curve >= 0).any() else float("nan")

    def per_class(chosen: slice) -> np.ndarray:
        return np.array([mean(precision[chosen, :, label, 0, -1]) for label in range(num_classes)])

    return COCOResult({name: mean(curve) for name, curve in curves.items()}, per_class(slice(None)), per_class(slice(0, 1)))


def _coco_precision(
    detections: Detections, ground_truth: GroundTruth, num_classes: int, areas: Sequence[np.ndarray] | None
) -> np.ndarray:
    """Compute the interpolated precision by (IoU, recall, class, object size, detections per image); -1 without objects."""
    from pycocotools.coco import COCO  # imported here because only the COCO metrics need it
    from pycocotools.cocoeval import COCOeval

    if len(detections) != len(ground_truth):
        raise ValueError(f"detections must be given for {len(ground_truth)} images, got {len(detections)}")

    def collection(per_image: Sequence[list[dict]]) -> COCO:
        annotations = [{**a, "image_id": image} for image, of_image in enumerate(per_image) for a in of_image]
        coco = COCO()
        coco.dataset = {
            "images": [{"id": image} for image in range(len(per_image))],
            "categories": [{"id": label} for label in range(num_classes)],
            "annotations": [{**a, "id": i} for i, a in enumerate(annotations, start=1)],  # to COCOeval, id 0 means "no match"
        }
        coco.createIndex()
        return coco

    def annotation(box: np.ndarray, label: int, area: float | None = None, **more: float) -> dict:
        x1, y1, x2, y2 = map(float, box)
        width, height = x2 - x1, y2 - y1
        area = width * height if area is None else float(area)
        return {"bbox": [x1, y1, width, height], "category_id": int(label), "area": area, "iscrowd": 0, **more}

    box_areas: Sequence[Iterable[float | None]] = areas or []
    if not areas:
        box_areas = [[None] * len(image[0]) for image in ground_truth]
    truth = [
        [annotation(box, label, area, iscrowd=int(crowd)) for box, label, crowd, area in zip(*image, image_areas)]
        for image, image_areas in zip(ground_truth, box_areas)
    ]
    found = [
        [annotation(box, label, score=float(score)) for box, score, label in zip(boxes, scores, labels)]
        for boxes, scores, labels in detections
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(collection(truth), collection(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"]


def summarize(
    detections: Detections,
    ground_truth: GroundTruth,
    classes: Sequence[str],
    metric: str,
    areas: Sequence[np.ndarray] | None = None,
) -> dict:
    """Compute the average precision by `metric`, as plain JSON values.

    Args:
        detections, ground_truth: per image, see `Detections` and `GroundTruth`.
        classes: class names.
        metric: "11point" or "area" (`voc_ap`), or "coco" (`coco_ap`).
        areas: see `coco_ap`.

    Returns:
        Dictionary with "ap50" and "ap50_per_class" by `metric`. A VOC metric adds the other VOC metric, "ap50_area" or
        "ap50_11point", and its values per class ("..._per_class"); the COCO metric adds "ap", "ap_per_class" and "coco",
        all COCO metrics. Values are in [0, 1]; None if there is no object.
    """

    def plain(value: float) -> float | None:
        return None if np.isnan(value) else float(value)

    def named(values: np.ndarray) -> dict[str, float | None]:
        return dict(zip(classes, map(plain, values)))

    if metric != "coco":
        curves = voc_curves(detections, ground_truth, len(classes))
        main, other = (_voc_result(curves, name) for name in (metric, OTHER_METRIC[metric]))
        key = f"ap50_{OTHER_METRIC[metric]}"
        return {
            "ap50": plain(main.mean),
            "ap50_per_class": named(main.per_class),
            key: plain(other.mean),
            f"{key}_per_class": named(other.per_class),
        }
    found = coco_ap(detections, ground_truth, len(classes), areas)
    return {
        "ap50": plain(found.values["AP50"]),
        "ap50_per_class": named(found.per_class_50),
        "ap": plain(found.values["AP"]),
        "ap_per_class": named(found.per_class),
        "coco": {name: plain(value) for name, value in found.values.items()},
    }
