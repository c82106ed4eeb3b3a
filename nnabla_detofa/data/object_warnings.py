"""Warnings about objects that get no training target, do not count in evaluation, or cannot be detected."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.checked import counted
from .augment import letterbox_matrix, transform_boxes
from .targets import MAX_DETECTIONS, clip_to_map

if TYPE_CHECKING:
    from .sets import DetectionSets


def object_warnings(sets: DetectionSets, key: str) -> list[str]:
    """Return warnings about objects that get no training target or cannot be detected, with the setting that changes it.

    Args:
        sets: the opened datasets.
        key: key of the dataset in the config, such as `dataloader.voc`.
    """
    texts = alike(sets.classes)
    for part, dataset in (("train", sets.train), ("val", sets.val)):
        texts += crowded(part, dataset, sets.max_objects, key)
        texts += thin(part, dataset)
    counts = [
        np.bincount(np.concatenate([part.objects(i)[1] for i in range(len(part))]), minlength=len(sets.classes))
        for part in (sets.train, sets.test)
    ]
    texts += untrained(*(dict(zip(sets.classes, count)) for count in counts))
    if not any(len(sets.val.objects(index)[0]) for index in range(len(sets.val))):
        texts.append(f"{key}: no image of val has an object, so the losses of paths are not informative")
    smallest = sets.at(min(sets.resolutions, default=None))
    missed = [_without_target(smallest, index) for index in range(len(sets.val))]
    if sum(missed):
        texts.append(
            f"val has {counted(sum(missed), 'object')} in {counted(np.count_nonzero(missed), 'image')} in the last cell of the "
            f"{smallest.map_size[0]} x {smallest.map_size[1]} output map, without a share in losses: a larger "
            f"{'smallest resolution' if sets.resolutions else f'{key}.image_size'} leaves out fewer"
        )
    return texts + undetectable("test", sets.test)


def untrained(train: Mapping[str, int], test: Mapping[str, int]) -> list[str]:
    """Return a warning for each class with objects in test but none in train, from the numbers of objects by class."""
    return [
        f"class {name} has no object to learn from in train, and {count} in test"
        for name, count in test.items()
        if count and not train.get(name)
    ]


def alike(classes: Sequence[str]) -> list[str]:
    """Return a warning for each pair of class names that differ only in case, spaces, "-" or "_"."""
    first: dict[str, str] = {}
    texts = []
    for name in classes:
        other = first.setdefault("".join(re.split(r"[\s_-]+", name.casefold())), name)
        if other != name:
            texts.append(
                f"{other!r} and {name!r} are different classes; if they are the same, use one spelling in all annotations"
            )
    return texts


def crowded(part: str, dataset: Any, max_objects: int, key: str) -> list[str]:
    """Return a warning if images have more than `max_objects` objects, so that some get no target."""
    counts = np.array([len(dataset.objects(index)[0]) for index in range(len(dataset))], int)
    beyond = np.maximum(counts - max_objects, 0)
    if not beyond.any():
        return []
    return [
        f"{key}.max_objects={max_objects} leaves {beyond.sum()} of {counted(counts.sum(), 'object')} of {part} without a "
        f"target, in {np.count_nonzero(beyond)} of {counted(len(counts), 'image')}: set it to {counts.max()}"
    ]


def thin(part: str, dataset: Any) -> list[str]:
    """Return a warning if objects are one pixel wide or high in VOC's coordinates: their size x2 - x1 or y2 - y1 is 0."""
    boxes = [dataset.objects(index)[0] for index in range(len(dataset))]
    found = np.array([(of_image[:, 2:] == of_image[:, :2]).any(1).sum() for of_image in boxes], int)
    if not found.any():
        return []
    return [
        f"{part} has {counted(found.sum(), 'object')} in {counted(np.count_nonzero(found), 'image')} with a width or height of "
        "one pixel: evaluation counts such objects, but training gives them no target; draw them at least two pixels wide and "
        "high"
    ]


def undetectable(part: str, dataset: Any) -> list[str]:
    """Return a warning if images have more than `MAX_DETECTIONS` objects, the number of detections that are evaluated."""
    counts = np.array([np.count_nonzero(~dataset.objects(index)[2]) for index in range(len(dataset))], int)
    beyond = np.maximum(counts - MAX_DETECTIONS, 0)
    if not beyond.any():
        return []
    return [
        f"{part} has {counted(np.count_nonzero(beyond), 'image')} with more than {MAX_DETECTIONS} objects, but only the "
        f"{MAX_DETECTIONS} best detections of an image count: {beyond.sum()} of {counts.sum()} objects cannot be found; cut "
        "such images into smaller ones"
    ]


def _without_target(sets: DetectionSets, index: int) -> int:
    """Count the objects of validation image `index` that vanish when clipped to the output map, without thin objects."""
    boxes, *_ = sets.val.objects(index)
    boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)]
    if not len(boxes):
        return 0
    cells = transform_boxes(boxes, letterbox_matrix(sets.val.size(index), sets.image_size)) / sets.stride
    return int(np.count_nonzero(~clip_to_map(cells, sets.map_size)[1]))
