"""Base class of the runners that train detectors: evaluation of a path on the test split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..common.drawing import draw, in_pixels
from ..config import DetofaHparams, ImageFolderData
from ..data.sets import DetectionSets
from ..evaluation.detections import BoxDetector, average_precision, save_detections
from ..evaluation.reestimation import Statistics, reestimate
from ..evaluation.validation import validation_loss
from ..runs.phases import slug
from ..runs.result_files import detector
from ..space.paths import Path, PathBatch
from ..training.runner import SupernetRunner

SHOWN_IMAGES, SHOWN_SCORE = 6, 0.3
"""Number of test images shown in TensorBoard, and minimum score of the detections shown."""


class DetectorRunner(SupernetRunner):
    """Runner whose supernet is a detector."""

    hparams: DetofaHparams
    sets: DetectionSets

    def evaluate_detector(self, name: str, path: Path) -> dict:
        """Evaluate a path on the test split under the current weights, without fine-tuning.

        The result is stored as <name>.json; a stored result is reused.

        Returns:
            Dictionary with "flops" (multiply-accumulates of `hparams.cost_scope`), "params" (of the whole detector),
            "loss" on the validation images, AP on the test split (see `metrics.summarize`), and "path" in OFA's notation.
        """
        if (stored := self.stored_evaluation(name, path)) is not None:
            return stored
        evaluator = self.evaluator.at(path)
        statistics = reestimate(self.model, path, evaluator.statistics_batches)
        ap, detections = self._average_precision(name, path, statistics)
        batch = PathBatch.from_paths([path], self.space.geometry)
        result = {
            "flops": int(self.cost.flops(batch)[0]),
            "params": int(replace(self.cost, scope="detector").params(batch)[0]),
            "loss": validation_loss(self.model, path, statistics, evaluator.validation_batches),
            **ap,
            "path": path.to_ofa(self.space.geometry),
        }
        if self.comm.rank == 0:
            save_detections(self.folder / f"{slug(name)}_detections.json", self.sets, detections)
            self._show_detections(name, detections)
        self.log.scalar(f"AP50 on the test split/{name}", result["ap50"], result["flops"] // 10**6)
        self.files.write(slug(name), result)
        return result

    def stored_evaluation(self, name: str, path: Path | None = None) -> dict | None:
        """Read the result that `evaluate_detector` stored as `name`; None if there is none.

        Raises:
            UserError: the file is damaged, or belongs to a path other than `path`.
        """
        return self.files.read(slug(name), check=lambda content: detector(content, self.space.geometry, path))

    def _average_precision(self, name: str, path: Path, statistics: Statistics) -> tuple[dict, list]:
        """Compute the average precision and the detections of a path on the test split."""
        hparams, data = self.hparams, self.config.dataloader
        assert not isinstance(data, ImageFolderData)
        with self.log.progress(f"test images of {name}", len(self.sets.test), unit="image") as bar:
            return average_precision(
                BoxDetector(self.model, path, statistics, flip=hparams.flip_test),
                self.sets,
                hparams.bn_batch,
                data.ap_metric,
                bar.update,
                scales=hparams.test_scales,
                multiple=self.space.geometry.total_stride,
                comm=self.comm,
            )

    def _show_detections(self, name: str, detections: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
        """Add some test images with their detections to TensorBoard."""
        test, classes = self.sets.test, self.sets.classes
        for number, index in enumerate(np.linspace(0, len(test) - 1, min(SHOWN_IMAGES, len(test))).astype(int)):
            image = test.load(int(index)).image
            height, width = image.shape[:2]
            found = in_pixels(detections[index], classes, height, width, SHOWN_SCORE)
            self.log.image(f"detections of {name}/{number + 1}", draw(image, found, classes))
