"""Standard errors of a run's APs over its test images: what another draw of as many images would change (ours)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from ..common.files import write_json
from ..common.reading import read_json
from ..common.seeds import rng_for
from ..data.sets import DetectionSets, open_sets
from ..evaluation.metrics import Detections, bootstrap_ap, voc_matches
from ..runs.run_folder import read_result, reading
from .run import Run, profile_folder

REPEATS = 200
FILE = "bootstrap.json"


def standard_error(detections: Detections, sets: DetectionSets, metric: str) -> float | None:
    """The standard deviation of AP50, in points, over `REPEATS` resamplings of the test images; None of COCO's metric."""
    if metric == "coco":
        return None
    samples = [sets.test.load(index) for index in range(len(sets.test))]
    truth = [(sample.boxes, sample.labels, sample.difficult) for sample in samples]
    matches = voc_matches(detections, truth, len(sets.classes))
    weights = rng_for(0, "bootstrap of test images").multinomial(len(truth), np.full(len(truth), 1 / len(truth)), REPEATS)
    return float(100 * np.nanstd(bootstrap_ap(matches, weights, metric), ddof=1))


def errors_of(run: Run) -> dict[str, float]:
    """Detector, such as "fullnet" or "subnet_1" -> the standard error of its AP in points; empty where none is known.

    Taken from the run's kept detections and the test images, or from what was found before.
    """
    if run.profile.archives:
        file = run.folder / FILE
        return read_json(file, "the standard errors") if file.is_file() else {}
    file = profile_folder(run.profile) / "bootstrap" / f"{run.folder.name}.json"
    names = [name for name in _detectors(run) if (run.folder / f"{name}_detections.json").is_file()]
    known = read_json(file, "the standard errors") if file.is_file() else {}
    if known and file.stat().st_mtime < (run.folder / "summary.json").stat().st_mtime:
        known = {}  # of a run that was begun again
    if set(names) <= set(known) or run.config.dataloader.ap_metric == "coco" or not _data_is_there(run):
        return known
    sets = open_sets(run.config)
    for name in names:
        content = read_result(run.folder, f"{name}_detections")
        with reading(run.folder / f"{name}_detections.json"):
            found = as_arrays(content)
        known[name] = round(standard_error(found, sets, run.config.dataloader.ap_metric), 3)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, known)
    return known


def as_arrays(content: Any) -> Detections:
    """The detections that a run keeps, as `metrics` takes them."""
    return [
        (
            np.array(entry["boxes"], float).reshape(-1, 4),
            np.array(entry["scores"], float),
            np.array(entry["labels"], int),
        )
        for entry in content
    ]


def _detectors(run: Run) -> Sequence[str]:
    subnets = [file.stem for file in sorted(run.folder.glob("subnet_*.json")) if not file.stem.endswith("_detections")]
    return ("fullnet", *subnets)


def _data_is_there(run: Run) -> bool:
    return FilePath(run.config.dataloader.root).exists()
