"""Datasets of the user's own, which a config names by the import path of their class (`config.OwnData`)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..common.checked import listed
from ..common.errors import UserError
from ..config import OwnData
from .dataset import DetectionDataset

SPLITS = ("train", "val", "test")
Datasets = tuple[DetectionDataset, DetectionDataset | None, DetectionDataset]


def open_own(data: OwnData) -> Datasets:
    """Open the datasets of the training, validation (None if held out) and test images.

    Raises:
        UserError: `open` returned something else, or a label is not the index of a class.
    """
    found, name = data.open(), type(data).__name__
    if not isinstance(found, tuple) or len(found) != len(SPLITS):
        raise UserError(f"{name}.open must return the datasets of train, val and test, got {type(found).__name__}")
    for split, dataset in zip(SPLITS, found):
        if dataset is None and split == "val":
            continue
        if not isinstance(dataset, DetectionDataset):
            kind = "nnabla_detofa.data.dataset.DetectionDataset"
            raise UserError(f"{name}.open must return a {kind} for {split}, got {type(dataset).__name__}")
        if dataset.classes != found[0].classes:
            classes = [listed(part.classes, "and") for part in (found[0], dataset)]
            raise UserError(
                f"{name}.open must return the same classes for all splits: train has {classes[0]}, {split} {classes[1]}"
            )
        for index, image in enumerate(dataset.image_ids):
            if any(not 0 <= label < len(dataset.classes) for label in dataset.objects(index)[1]):
                raise UserError(
                    f"labels of {image} in {split} must be indices of the {len(dataset.classes)} classes, got "
                    f"{', '.join(map(str, dataset.objects(index)[1]))}"
                )
    if (found[1] is None) != bool(data.holdout):
        raise UserError(
            f"holdout must be {'1 or more' if found[1] is None else '0'}, since {name}.open returns "
            f"{'no' if found[1] is None else 'a'} dataset of val, got {data.holdout}"
        )
    return found


def own_content(data: OwnData) -> Iterator[bytes]:
    """Yield what determines the content of a dataset: names and sizes in bytes of its images, and their objects."""
    for name, dataset in zip(SPLITS, open_own(data)):
        if dataset is None:
            continue
        for index, file in enumerate(dataset.files):
            yield f"{name} {dataset.image_ids[index]} {file.stat().st_size}".encode(errors="surrogateescape")
            yield from (np.ascontiguousarray(array).tobytes() for array in dataset.objects(index))
