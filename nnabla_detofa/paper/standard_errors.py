"""Standard errors of AP over the test images: how much AP would vary with another sample of as many test images.

They are estimated by a bootstrap over the images. The paper reports none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from ..common.errors import UserError
from ..common.files import write_json
from ..common.reading import read_json
from ..common.seeds import rng_for
from ..data.sets import DetectionSets, open_sets
from ..evaluation.metrics import Detections, bootstrap_ap, voc_matches
from ..runs.run_folder import read_result, reading
from .run import Run, profile_folder

REPEATS = 200
FILE = "bootstrap.json"
"""Name in a run's archive."""


def standard_error(detections: Detections, sets: DetectionSets, metric: str) -> float | None:
    """Return the standard deviation of AP50, in points, over `REPEATS` resamplings of the test images; None for COCO's AP."""
    if metric == "coco":
        return None
    samples = [sets.test.load(index) for index in range(len(sets.test))]
    truth = [(sample.boxes, sample.labels, sample.difficult) for sample in samples]
    matches = voc_matches(detections, truth, len(sets.classes))
    weights = rng_for(0, "bootstrap of test images").multinomial(len(truth), np.full(len(truth), 1 / len(truth)), REPEATS)
    return float(100 * np.nanstd(bootstrap_ap(matches, weights, metric), ddof=1))


def standard_errors_of(run: Run) -> dict[str, float]:
    """Return the standard errors of a run's APs, in points, by detector ("fullnet", "subnet_1", ...).

    They are computed from the run's detections and the test images and then stored. The result is empty if neither stored
    values nor the data exist.
    """
    if run.archive:
        file = run.folder / FILE
        return read_json(file, "the standard errors") if file.is_file() else {}
    file, metric = stored_file(run), run.dataloader.ap_metric
    names = [name for name in _detectors(run) if (run.folder / f"{name}_detections.json").is_file()]
    known: dict[str, float] = read_json(file, "the standard errors") if file.is_file() else {}
    if known and not run.is_older_than(file):
        known = {}
    if set(names) <= set(known) or metric == "coco" or not FilePath(run.dataloader.root).exists():
        return known
    sets = open_sets(run.config)
    if not isinstance(sets, DetectionSets):
        raise UserError(f"{run.folder} must be a run that trains detectors, got args.runner={run.config.args.runner}")
    for name in names:
        content = read_result(run.folder, f"{name}_detections")
        with reading(run.folder / f"{name}_detections.json"):
            found = as_arrays(content)
        error = standard_error(found, sets, metric)
        assert error is not None  # only COCO's AP has none
        known[name] = round(error, 3)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, known)
    return known


def stored_file(run: Run) -> FilePath:
    """Return the file in which a run's standard errors are stored."""
    return profile_folder(run.profile) / "bootstrap" / f"{run.folder.name}.json"


def as_arrays(content: Any) -> Detections:
    """Convert the content of a run's file of detections for the functions of `metrics`."""
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
