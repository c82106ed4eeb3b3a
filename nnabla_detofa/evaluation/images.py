"""Selection of the images on which the paths of a run are evaluated."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..common.errors import UserError
from ..common.seeds import rng_for
from ..config import Config, DetofaHparams, PretrainHparams, check_batch_norm
from ..data.augment import letterbox_matrix
from ..data.compact import AnyArray
from ..data.sets import ClassificationSets, DetectionSets, eval_batches
from .detections import ValidationTruth

Sets = ClassificationSets | DetectionSets
Hparams = DetofaHparams | PretrainHparams


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationImages:
    """The images of a run on which its paths are evaluated, transformed as for inference.

    Attributes:
        sets: datasets of the run.
        statistics: (n,) indices of the training images from which batch normalization statistics are re-estimated.
        validation: (n,) indices of the validation images on which losses are computed, ascending.
        batch: images per batch.
    """

    sets: Sets
    statistics: np.ndarray
    validation: np.ndarray
    batch: int

    @classmethod
    def choose(cls, sets: Sets, hparams: Hparams, seed: int) -> EvaluationImages:
        """Choose the images at random from the run's seed.

        `bn_images` training images are chosen for the statistics, in whole batches of `bn_batch` but at least one batch, and
        `val_images` validation images for the loss; None chooses all validation images.
        """
        batch, count = hparams.bn_batch, min(len(sets.val), hparams.val_images or len(sets.val))
        statistics = rng_for(seed, "statistics").permutation(len(sets.train))[: hparams.bn_images]
        validation = rng_for(seed, "validation").permutation(len(sets.val))[:count]
        whole = max(1, len(statistics) // batch) * batch
        return cls(sets, statistics[:whole], np.sort(validation), batch)

    def at(self, side: int | None) -> EvaluationImages:
        """Return the same images, transformed for a path whose input has this side in pixels; None: as they are."""
        return self if side is None else dataclasses.replace(self, sets=self.sets.at(side))

    def statistics_batches(self) -> list[AnyArray]:
        """Load batches of training images (B, 3, H, W), for `reestimation.reestimate`."""
        return [arrays[0] for arrays in eval_batches(self.sets, self.sets.train, self.statistics, self.batch)]

    def validation_batches(self) -> list[tuple[AnyArray, ...]]:
        """Load batches of validation images with their targets, for `validation.validation_loss`."""
        return list(eval_batches(self.sets, self.sets.val, self.validation, self.batch))

    def truth(self, metric: str) -> ValidationTruth:
        """Load the ground truth of the validation images, for AP50 by this metric; only for detection datasets."""
        sets = self.sets
        assert isinstance(sets, DetectionSets)
        samples = [sets.val.load(int(index)) for index in self.validation]
        return ValidationTruth(
            [(sample.boxes, sample.labels, sample.difficult) for sample in samples],
            np.stack([letterbox_matrix(sample.image.shape[:2], sets.image_size) for sample in samples]),
            sets.stride,
            sets.classes,
            metric,
            [sets.val.areas(int(index)) for index in self.validation] if metric == "coco" else None,
        )

    def fingerprints(self) -> dict[str, str]:
        """Hash the images and their annotations.

        The hashes change with the dataset, the split, and the selection and order of images, but not with the location or the
        names of the same images.
        """
        return {
            "statistics": _digest(self.sets.train, self.statistics),
            "validation": _digest(self.sets.val, self.validation),
        }


def _digest(dataset: Any, indices: Iterable[int]) -> str:
    """Compute a short hash of images and their labels and boxes, in the order of `indices`."""
    total = hashlib.sha256()
    for index in indices:
        sample = dataset.load(int(index))
        fields = sample if isinstance(sample, tuple) else (sample.image, sample.boxes, sample.labels, sample.difficult)
        for value in map(np.ascontiguousarray, fields):
            total.update(str(value.shape).encode())
            total.update(value.tobytes())
    return total.hexdigest()[:16]


def with_images(config: Config, images: int | None = None, bn_images: int | None = None) -> Hparams:
    """Return the hyperparameters of a config with other numbers of images for the evaluation of paths.

    Args:
        config: the config.
        images: number of validation images. Default: `hparams.val_images`.
        bn_images: number of images for batch normalization statistics. Default: `hparams.bn_images`.

    Raises:
        UserError: a number is not positive, or `bn_images` is too small for batch normalization.
    """
    hparams = config.hparams
    for name, number in {"val_images": images, "bn_images": bn_images}.items():
        if number is not None and number < 1:
            raise UserError(f"{name} must be 1 or more, got {number}")
    if bn_images is not None:
        check_batch_norm(config.network, config.dataloader, "bn_images", min(bn_images, hparams.bn_batch))
    return dataclasses.replace(
        hparams,
        val_images=hparams.val_images if images is None else images,
        bn_images=hparams.bn_images if bn_images is None else bn_images,
    )
