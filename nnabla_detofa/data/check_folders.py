"""Check of a classification dataset with one folder of images per class."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from .check_report import DataReport, ImageInspector, Split, finished
from .image_folder import list_classes, other_files, outside_classes, too_few_classes


def check_folders(
    root: str | os.PathLike, splits: Mapping[str, str], whole: bool = False, on_image: Callable[[], None] = lambda: None
) -> DataReport:
    """Check a classification dataset with one folder per class.

    Args:
        root: folder of the dataset.
        splits: name -> its folder below `root`.
        whole, on_image: see `check_voc`.

    Returns:
        the report; problems of the data are listed in it, not raised.
    """
    report = DataReport(f"{root}, one folder per class")
    images = ImageInspector(report, whole, on_image)
    classes: set[str] | None = None
    for name, part in splits.items():
        split, folder = Split(name), Path(root, part)
        report.splits.append(split)
        if not folder.is_dir():
            report.fatal.append(f"{folder} is not a folder; it must contain one subfolder of JPEG or PNG images per class")
            continue
        inside = list_classes(folder)
        if (text := too_few_classes(folder, inside)) and not (classes and inside):
            report.fatal.append(text)
        report.warnings += filter(None, [outside_classes(folder)])
        here = set(inside)
        classes = here if classes is None else classes
        for odd in sorted(here ^ classes):
            report.fatal.append(f"class {odd} must be in every split, but {'is in' if odd in here else 'is not in'} {folder}")
        for class_name, (where, files) in inside.items():
            split.objects[class_name] = len(files)
            split.files += files
            report.warnings += filter(None, [other_files(where, len(files))])
            if not files:
                report.fatal.append(f"{where} must contain at least one JPEG or PNG image")
            for file in files:
                images.header(file)
        split.images = len(split.files)
    return finished(report, images)
