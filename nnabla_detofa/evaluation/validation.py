"""Validation loss and AP50 of paths with re-estimated batch normalization statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np

from ..backend import kernels
from ..backend.compat import Mo, nn
from ..backend.device_memory import bounded_by
from ..backend.launch import cores
from ..backend.ranks import Communicator
from ..data.compact import AnyArray, put
from ..networks.layers import GivenStatistics
from ..space.paths import Path
from .detections import ValidationTruth
from .forked import map_forked
from .images import EvaluationImages
from .reestimation import PARTS, Statistics, Stopwatch, reestimate


def validation_loss(
    net: Mo.Module,
    path: Path,
    statistics: Statistics,
    batches: Iterable[Sequence[AnyArray]],
    watch: Stopwatch | None = None,
    on_maps: Callable | None = None,
) -> float:
    """Compute the mean loss of a path over batches; each batch is weighted by its number of images.

    Args:
        net: supernet.
        path: path to run.
        statistics: re-estimated batch normalization statistics of the path.
        batches: arrays (images, targets ...); the last batch may be smaller.
        watch: measures the time.
        on_maps: called with a detector's maps (`Detector.maps`) of each batch, which it must copy.
    """
    watch = watch or Stopwatch()
    graphs: dict[int, tuple] = {}
    losses, sizes = kernels.ScalarLog(), []
    for batch in batches:
        size = len(batch[0])
        if size not in graphs:
            watch.lap("validation")
            inputs, given = [nn.Variable(array.shape) for array in batch], GivenStatistics(statistics)
            if on_maps is None and hasattr(net, "evaluation_loss"):
                graphs[size] = inputs, (), net.evaluation_loss(inputs[0], path, inputs[1:], given)
            else:
                outputs = net(inputs[0], path, given)
                maps = net.maps(outputs) if on_maps else ()
                for output in maps:
                    output.persistent = True
                compared = partial(net.compared_loss, path=path) if hasattr(net, "compared_loss") else net.loss
                graphs[size] = inputs, maps, compared(outputs, inputs[1:])
            watch.lap("graph")
        inputs, maps, loss = graphs[size]
        for variable, array in zip(inputs, batch):
            put(variable, array)
        nn.forward_all([loss, *maps], clear_buffer=True)
        losses.add([loss])
        sizes.append(size)
        if on_maps:
            on_maps(maps)
    total = sum(size * loss for size, (loss,) in zip(sizes, losses.read().tolist()))
    watch.lap("validation")
    return total / sum(sizes)


class Evaluation(NamedTuple):
    """Result of evaluating a path: validation loss, AP50 on the same images (None if not measured), seconds by `PARTS`."""

    loss: float
    ap: float | None
    seconds: dict[str, float]


@dataclass
class PathEvaluator:
    """Evaluates many paths of one supernet. Images are decoded once, and the graphs of a path are built once.

    Attributes:
        net: supernet.
        statistics_batches: images (B, 3, H, W) for the batch normalization statistics.
        validation_batches: arrays (images, targets ...) for the loss.
        processes: number of forked processes among which the paths are distributed. Only for one rank on the CPU, because
            an MPI library does not survive a fork.
        truth: ground truth of the validation images; None does not measure AP50.
        comm: ranks among which the paths are distributed instead.
        others: evaluators at the other resolutions that paths choose, by the side of the input in pixels.
    """

    net: Mo.Module
    statistics_batches: Sequence[AnyArray]
    validation_batches: Sequence[Sequence[AnyArray]]
    processes: int = 1
    truth: ValidationTruth | None = None
    comm: Communicator = field(default_factory=Communicator)
    others: Mapping[int | None, PathEvaluator] = field(default_factory=dict)

    @classmethod
    def on(
        cls,
        net: Mo.Module,
        images: EvaluationImages,
        processes: int | None = None,
        ap_metric: str | None = None,
        comm: Communicator | None = None,
    ) -> PathEvaluator:
        """Create the evaluator of the paths of `net` on the images of a run.

        Args:
            net: supernet.
            images: images to evaluate on, which are loaded.
            processes: number of forked processes, see `processes` above; more than one rank and a GPU use none. Default: the
                number of cores.
            ap_metric: metric of AP50; None does not measure it.
            comm: ranks among which the paths are distributed.
        """
        comm = comm or Communicator()
        forks = comm.n_procs == 1 and nn.get_current_context().backend == ["cpu:float"]
        validation = images.validation_batches()
        truth = images.truth(ap_metric) if ap_metric else None
        others: dict[int | None, PathEvaluator] = {
            side: cls.on(net, images.at(side), processes, ap_metric, comm) for side in images.sets.resolutions[:-1]
        }
        return cls(net, images.statistics_batches(), validation, (processes or cores()) if forks else 1, truth, comm, others)

    def at(self, path: Path) -> PathEvaluator:
        """Return the evaluator at the resolution of a path, whose batches have images of this size."""
        return self.others.get(path.resolution, self)

    def evaluate(self, path: Path) -> Evaluation:
        """Evaluate a path with its own batch normalization statistics; AP50 is measured if `truth` is given."""
        if (own := self.at(path)) is not self:
            return own.evaluate(path)
        watch, maps = Stopwatch(), []
        keep = None if self.truth is None else lambda found: maps.append([output.d.copy() for output in found])
        with bounded_by("hparams.bn_batch", len(self.statistics_batches[0])):
            statistics = reestimate(self.net, path, self.statistics_batches, watch)
            loss = validation_loss(self.net, path, statistics, self.validation_batches, watch, keep)
        ap = None if self.truth is None else self.truth.ap50(map(self.net.decode, maps))
        watch.lap("validation")
        return Evaluation(loss, ap, watch.seconds)

    def evaluations(self, paths: Iterable[Path]) -> Iterator[Evaluation]:
        """Yield the evaluation of each path in order, as soon as it and all previous ones are complete.

        All ranks receive all evaluations.
        """
        if self.comm.n_procs > 1:
            return self.comm.map(self.evaluate, paths)
        return map_forked(self.evaluate, paths, self.processes)

    @property
    def at_once(self) -> int:
        """Number of paths that are evaluated at the same time."""
        return self.comm.n_procs if self.comm.n_procs > 1 else self.processes

    def losses(self, paths: Iterable[Path]) -> np.ndarray:
        """Compute the (n,) validation losses of paths."""
        return np.array([evaluation.loss for evaluation in self.evaluations(paths)], float)


def timing(evaluations: Sequence[Evaluation], processes: int) -> str:
    """Format the mean time per path: "1.1 s per path (2 processes at once): graph 0.1, re-estimation 0.4, validation 0.6"."""
    parts = {part: float(np.mean([evaluation.seconds[part] for evaluation in evaluations])) for part in PARTS}
    where = "" if processes == 1 else f" ({processes} processes at once)"
    return f"{sum(parts.values()):.2g} s per path{where}: " + ", ".join(f"{part} {value:.2g}" for part, value in parts.items())
