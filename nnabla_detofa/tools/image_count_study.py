"""Study of how many images the evaluation of a path needs: how fewer images change the ranking inside a FLOPs bucket."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, NamedTuple

import numpy as np

from ..backend.compat import nn
from ..common.errors import UserError
from ..common.seeds import rng_for
from ..config import Config
from ..data.compact import AnyArray
from ..evaluation.forked import map_forked
from ..evaluation.images import EvaluationImages, with_images
from ..evaluation.path_sampling import distinct_in_buckets
from ..evaluation.reestimation import Statistics, Stopwatch, average, batch_statistics
from ..evaluation.validation import PathEvaluator, validation_loss
from ..networks.centernet import Detector
from ..networks.detection_loss import OFFSET_WEIGHT, SIZE_WEIGHT
from ..networks.layers import GivenStatistics
from ..path_filter.metrics import kendall_tau, per_bucket
from ..space.counting import Buckets
from ..space.paths import Path, PathBatch
from .report import markdown_row
from .sampled_paths import open_supernet

VALIDATION_PAIRS = 20
"""Number of pairs of disjoint subsets of the validation images; they need no extra evaluation, because losses combine."""


# --- Losses that combine ----------------------------------------------------------------------------------------------


class ImageLosses(NamedTuple):
    """The loss of a path for each image, in parts that combine exactly into the loss of any batch of these images.

    A detector's loss is normalized by the number of objects in a batch, so it is not a mean over images. Each part of it is
    a sum over images, divided by a count over images. A detector has the parts heatmap, offset and size, a classifier one.

    Attributes:
        sums: (images, parts) numerators, times the part's weight in the loss.
        counts: (images, parts) numbers of centers (heatmap) or of coordinates, two per object (offset, size); 1 for a
            classifier.
        slack: (parts,) constant that the loss adds to the count before the division.
    """

    sums: np.ndarray
    counts: np.ndarray
    slack: np.ndarray

    def loss(self, chosen: np.ndarray, batch: int) -> float:
        """Return the loss that `validation.validation_loss` computes for a subset of the images.

        Args:
            chosen: (n,) indices of images.
            batch: number of images per batch.
        """
        parts = [chosen[start : start + batch] for start in range(0, len(chosen), batch)]
        losses = [np.sum(self.sums[part].sum(axis=0) / _divisor(self.counts[part].sum(axis=0), self.slack)) for part in parts]
        return float(np.average(losses, weights=[len(part) for part in parts]))


def _divisor(counts: np.ndarray, slack: np.ndarray) -> np.ndarray:
    """Return the divisors of CenterNet's losses; see `detection_loss.focal_loss` and `masked_l1`."""
    return np.maximum(counts, 1.0) + slack


def image_losses(net: Any, path: Path, statistics: Statistics, batches: Sequence[Sequence[AnyArray]]) -> ImageLosses:
    """Compute a path's loss for every image of the batches, one image at a time.

    Args:
        net: the supernet, a detector or a classifier.
        path: the path.
        statistics: its BatchNorm statistics.
        batches: batches of (images, targets ...).

    Raises:
        UserError: the detector has other losses than CenterNet's.
    """
    if isinstance(net, Detector) and type(net).losses is not Detector.losses:
        raise UserError(f"this study needs a network whose losses are divided like CenterNet's, got {type(net).__name__}")
    inputs = [nn.Variable((1, *array.shape[1:])) for array in batches[0]]
    outputs = net(inputs[0], path, GivenStatistics(statistics))
    detection = isinstance(net, Detector)
    losses = net.losses(outputs, inputs[1:])[1:] if detection else (net.loss(outputs, inputs[1:]),)
    weights, slack = [1.0], [0.0]
    if isinstance(net, Detector):
        weights, slack = [1.0, OFFSET_WEIGHT, SIZE_WEIGHT * net.size_unit(path)], [0.0, 1e-4, 1e-4]
    sums, counts = [], []
    for image in (image for batch in batches for image in zip(*batch)):
        for variable, array in zip(inputs, image):
            variable.d = array[None]
        nn.forward_all(losses, clear_buffer=True)
        _, *targets = image
        counted = (np.sum(targets[0] >= 1), 2 * np.sum(targets[4]), 2 * np.sum(targets[4])) if detection else (1,)
        counts.append(np.array(counted, float))
        sums.append(np.array([float(loss.d) for loss in losses]) * weights * _divisor(counts[-1], np.array(slack)))
    return ImageLosses(np.array(sums), np.array(counts), np.array(slack))


# --- Measures ---------------------------------------------------------------------------------------------------------


def tau_inside(first: np.ndarray, second: np.ndarray, buckets: np.ndarray) -> float:
    """Compute Kendall's tau between two evaluations (n,) of the same paths: the mean over buckets with two or more paths.

    Args:
        first, second: (n,) losses.
        buckets: (n,) FLOPs bucket of each path.
    """
    return float(np.nanmean(list(per_bucket(kendall_tau, -first, second, buckets).values())))


def noise_share(first: np.ndarray, second: np.ndarray, buckets: np.ndarray) -> float:
    """Estimate which share of the losses' variance inside a bucket is noise of the evaluation.

    Two evaluations of equal size on disjoint images differ by the noise of both, so half the variance of their difference is
    the noise of one. A shift that all paths of a bucket share does not count, because it does not change their ranking.

    Args:
        first, second: (n,) losses of the same paths on disjoint images.
        buckets: (n,) FLOPs bucket of each path.
    """
    noise = _variance_inside(first - second, buckets) / 2
    total = (_variance_inside(first, buckets) + _variance_inside(second, buckets)) / 2
    return noise / total


def _variance_inside(values: np.ndarray, buckets: np.ndarray) -> float:
    """Return the unbiased variance inside a bucket, averaged over buckets with two or more paths."""
    groups = [values[buckets == bucket] for bucket in np.unique(buckets)]
    return float(np.mean([np.var(group, ddof=1) for group in groups if len(group) > 1]))


# --- The study --------------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """Results for one number of images.

    Attributes:
        images: number of images in a subset.
        full: Kendall's tau with the full evaluation, for each subset.
        halves: Kendall's tau between two disjoint subsets, for each pair.
        noise: share of the losses' variance that is noise, for each pair.
    """

    images: int
    full: tuple[float, ...]
    halves: tuple[float, ...]
    noise: tuple[float, ...]


@dataclass(frozen=True)
class Study:
    """Result of a study.

    Attributes:
        paths: number of evaluated paths.
        per_bucket: number of paths requested for each FLOPs bucket.
        images: number of validation images of the full evaluation.
        bn_images: number of images for re-estimation of the full evaluation.
        bn_batch: number of images per batch.
        validation: rows by ascending number of validation images; re-estimation uses all its images.
        reestimation: rows by ascending number of images for re-estimation; validation uses all its images.
        spread: standard deviation of the full losses inside a bucket.
        seconds: duration of the whole study.
    """

    paths: int
    per_bucket: int
    images: int
    bn_images: int
    bn_batch: int
    validation: tuple[Row, ...]
    reestimation: tuple[Row, ...]
    spread: float
    seconds: float


class _PathLosses(NamedTuple):
    """Losses of one path: for each image under the full statistics, and on all images under the statistics of each subset.

    The first value of `by_statistics` is the loss of the full evaluation.
    """

    images: ImageLosses
    by_statistics: np.ndarray


def image_count_study(
    config: Config,
    weights_file: str | PathLike,
    per_bucket: int,
    name: str = "paths",
    images: int | None = None,
    bn_images: int | None = None,
    pairs: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
    note: Callable[[str], None] = lambda text: None,
) -> Study:
    """Evaluate paths with all images and with fewer images, and compare the rankings.

    Each path is computed once for each validation image, and validated once more for each subset of the images for
    re-estimation. All paths use the same subsets, as in a run. Subsets come in disjoint pairs; their size doubles from one
    batch for re-estimation, or from 8 validation images, to half of all images.

    Args:
        config, weights_file, per_bucket, name: see `sampled_paths.evaluate_sampled_paths`.
        images: number of validation images of the full evaluation; None is the config's number.
        bn_images: number of images for re-estimation of the full evaluation; None is four times the config's number.
        pairs: number of pairs of disjoint subsets of each size of the images for re-estimation; each subset costs one
            validation of every path.
        progress: called with the numbers of finished and of all paths.
        note: called with a message for each bucket with fewer paths than `per_bucket`.

    Raises:
        UserError: there are too few paths or images to compare, or the data or the weights are missing or do not fit.
    """
    start = time.perf_counter()
    args, hparams = config.args, with_images(config, images, bn_images or 4 * config.hparams.bn_images)
    model, sets, cost = open_supernet(config, weights_file)
    buckets = Buckets(model.space, cost.flops, hparams.buckets)
    evaluator = PathEvaluator.on(model, EvaluationImages.choose(sets, hparams, args.seed), args.evaluation_processes)
    batch, rng = hparams.bn_batch, rng_for(args.seed, "study")
    n_images, n_batches = sum(len(b[0]) for b in evaluator.validation_batches), len(evaluator.statistics_batches)
    if per_bucket < 2 or n_images < 16 or n_batches < 2:
        raise UserError(
            "the study needs at least 2 paths per bucket, 16 validation images and 2 batches for re-estimation, got "
            f"{per_bucket}, {n_images} and {n_batches}"
        )
    paths = distinct_in_buckets(buckets, per_bucket, args.seed, name, model.space, (), note)
    bn_pairs = [(size, *_disjoint(n_batches, size, rng)) for size in _doubled(1, n_batches // 2) for _ in range(pairs)]
    found = _compute_losses(evaluator, paths, bn_pairs, batch, progress)
    bucket, full = buckets.index(cost.flops(paths)), np.array([losses.by_statistics[0] for losses in found])
    reestimation = _reestimation_rows(found, bn_pairs, full, bucket, batch)
    validation = _validation_rows(found, full, bucket, batch, rng)
    spread = math.sqrt(_variance_inside(full, bucket))
    numbers = len(paths), per_bucket, n_images, n_batches * batch, batch
    return Study(*numbers, validation, reestimation, spread, time.perf_counter() - start)


Pairs = Sequence[tuple[int, np.ndarray, np.ndarray]]
"""Pairs of disjoint subsets of the batches for re-estimation: number of batches in a subset, and the indices of both."""


def _compute_losses(
    evaluator: PathEvaluator, paths: PathBatch, pairs: Pairs, batch: int, progress: Callable[[int, int], None]
) -> list[_PathLosses]:
    """Compute the losses of every path, in several processes."""
    model, n_batches = evaluator.net, len(evaluator.statistics_batches)
    subsets = [np.arange(n_batches), *(subset for _, *pair in pairs for subset in pair)]
    n_images = sum(len(arrays[0]) for arrays in evaluator.validation_batches)

    def losses_of(path: Path) -> _PathLosses:
        own = evaluator.at(path)
        statistics = list(batch_statistics(model, path, own.statistics_batches, Stopwatch()))
        chosen = [average(statistics[index] for index in subset) for subset in subsets]
        by_statistics = [validation_loss(model, path, some, own.validation_batches) for some in chosen[1:]]
        images = image_losses(model, path, chosen[0], own.validation_batches)
        return _PathLosses(images, np.array([images.loss(np.arange(n_images), batch), *by_statistics]))

    found: list[_PathLosses] = []
    progress(0, len(paths))
    for losses in map_forked(losses_of, paths, evaluator.processes):
        found.append(losses)
        progress(len(found), len(paths))
    return found


def _reestimation_rows(
    found: Sequence[_PathLosses], pairs: Pairs, full: np.ndarray, buckets: np.ndarray, batch: int
) -> tuple[Row, ...]:
    """Compute the row of each number of images for re-estimation; `full` (n,) are the losses of the full evaluation."""
    by_statistics = np.array([losses.by_statistics for losses in found])
    columns: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    for number, (size, *_) in enumerate(pairs):
        columns.setdefault(size, []).append((by_statistics[:, 2 * number + 1], by_statistics[:, 2 * number + 2]))
    return tuple(_row(size * batch, two, full, buckets) for size, two in columns.items())


def _validation_rows(
    found: Sequence[_PathLosses], full: np.ndarray, buckets: np.ndarray, batch: int, rng: np.random.Generator
) -> tuple[Row, ...]:
    """Compute the row of each number of validation images; `full` (n,) are the losses of the full evaluation."""
    n_images = len(found[0].images.sums)

    def losses_on(chosen: np.ndarray) -> np.ndarray:
        return np.array([losses.images.loss(chosen, batch) for losses in found])

    rows = []
    for size in _doubled(8, n_images // 2):
        sampled = [_disjoint(n_images, size, rng) for _ in range(VALIDATION_PAIRS)]
        rows.append(_row(size, [(losses_on(one), losses_on(other)) for one, other in sampled], full, buckets))
    return tuple(rows)


def _doubled(first: int, most: int) -> list[int]:
    """Return `first`, twice `first`, ... below `most`, and `most` at the end."""
    found = []
    while first < most:
        found.append(first)
        first *= 2
    return [*found, most]


def _disjoint(count: int, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Sample two disjoint subsets of range(count) of `size` items each, in ascending order."""
    order = rng.permutation(count)
    return np.sort(order[:size]), np.sort(order[size : 2 * size])


def _row(images: int, pairs: Sequence[tuple[np.ndarray, np.ndarray]], full: np.ndarray, buckets: np.ndarray) -> Row:
    """Compute the row of one number of images from pairs of losses (n,) on disjoint subsets and the full losses (n,)."""
    return Row(
        images,
        tuple(tau_inside(losses, full, buckets) for pair in pairs for losses in pair),
        tuple(tau_inside(*pair, buckets) for pair in pairs),
        tuple(noise_share(*pair, buckets) for pair in pairs),
    )


def markdown(result: Study, title: str, command: str) -> str:
    """Format a study as a Markdown page.

    Args:
        result: the study.
        title: the title, which names the supernet.
        command: the command that made the study.
    """
    lines = [
        f"# {title}",
        "",
        f"Made by `{command}` in {result.seconds:.0f} seconds: {result.paths} paths, {result.per_bucket} per FLOPs bucket. "
        f"Within a bucket, the full losses ({result.images} validation images, {result.bn_images} for re-estimation) have a "
        f"standard deviation of {result.spread:.4f}.",
    ]
    for heading, rows, other in (
        ("validation images", result.validation, f"re-estimation on all {result.bn_images}"),
        ("images for re-estimation", result.reestimation, f"validation on all {result.images}"),
    ):
        titles = (heading, "tau with all images", "tau between two disjoint subsets", "share of noise in the variance")
        lines += ["", f"{other[0].upper()}{other[1:]}:", "", markdown_row(titles), markdown_row(["---:"] * len(titles))]
        lines += [markdown_row([str(row.images), *map(_mean_and_spread, row[1:3]), _percent(row.noise)]) for row in rows]
    return "\n".join([*lines, ""])


def _mean_and_spread(values: Sequence[float]) -> str:
    """Format the mean and, for two or more values, the standard deviation."""
    return f"{np.mean(values):.2f}" + (f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else "")


def _percent(shares: Sequence[float]) -> str:
    """Format the mean and, for two or more shares, the standard deviation in percent."""
    return f"{np.mean(shares):.0%}" + (f" ± {100 * np.std(shares, ddof=1):.0f}" if len(shares) > 1 else "")
