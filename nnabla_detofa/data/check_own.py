"""Check of a dataset of the user's own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..config import OwnData
from .check_report import DataReport, ImageInspector, Split, finished
from .own import SPLITS, open_own


def own_report(data: OwnData, whole: bool, on_image: Callable[[], None]) -> DataReport:
    """Check the images of a dataset, and count its objects; see `check_voc` for `whole` and `on_image`."""
    report = DataReport(f"{data.root}, read by {type(data).__name__}")
    images = ImageInspector(report, whole, on_image)
    for name, dataset in zip(SPLITS, report.attempt(open_own, data) or ()):
        if dataset is None:
            continue
        split = Split(name, len(dataset), files=list(dataset.files))
        report.splits.append(split)
        for index, file in enumerate(dataset.files):
            images.header(file)
            boxes, labels, difficult = dataset.objects(index)
            split.empty += not len(boxes)
            split.difficult += int(np.sum(difficult))
            split.objects.update(dataset.classes[label] for label in labels[~difficult])
    return finished(report, images)
