"""What a path is worth: batch-normalisation re-estimation, validation loss, detections and average precision."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path as FilePath
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from ..backend.compat import Mo, nn
from ..backend.device_memory import bounded_by
from ..backend.graphs import CachedGraphs
from ..backend.launch import STOP_SIGNALS
from ..backend.ranks import Communicator
from ..common.errors import UserError
from ..common.files import write_bytes
from ..data.augment import invert, letterbox, transform_boxes
from ..data.targets import MOST_DETECTIONS
from ..networks.centernet import Detector, decode, soft_nms
from ..networks.supernet import CollectedStatistics, GivenStatistics
from ..space.paths import Path
from .metrics import summarise

PR_SET_PDEATHSIG = 1
"""Of Linux' prctl: the signal that a process gets when its parent ends."""
Statistics = dict[str, tuple[np.ndarray, np.ndarray]]


PARTS = ("graph", "re-estimation", "validation")
"""What the time of evaluating a path goes to."""


class Stopwatch:
    """Seconds spent on each of the `PARTS`, from one lap to the next."""

    def __init__(self):
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        """What was done since the last lap was for `part`."""
        now = time.perf_counter()
        self.seconds[part] += now - self._last
        self._last = now


def batch_statistics(net: Mo.Module, path: Path, batches: Sequence[np.ndarray], watch: Stopwatch) -> Iterator[Statistics]:
    """Mean and variance of every batch normalisation of `path`, for each batch of images (B, 3, H, W); B must not change."""
    images, collected = nn.Variable(batches[0].shape), CollectedStatistics()
    output = net.trunk(images, path, collected)
    watch.lap("graph")
    for batch in batches:
        images.d = batch
        output.forward(clear_buffer=True)
        yield collected.read()
    watch.lap("re-estimation")


def average(found: Iterable[Statistics]) -> Statistics:
    """The mean of several batches' statistics."""
    several = list(found)
    return {
        name: tuple(np.mean(parts, axis=0, dtype=np.float64).astype(np.float32) for parts in zip(*(s[name] for s in several)))
        for name in several[0]
    }


def reestimate(net: Mo.Module, path: Path, batches: Sequence[np.ndarray], watch: Stopwatch | None = None) -> Statistics:
    """Mean and variance of every batch normalisation of `path`: the average over the batches' own, as OFA takes them.

    Args:
        batches: images (B, 3, H, W), the same B in each.
    """
    return average(batch_statistics(net, path, batches, watch or Stopwatch()))


def validation_loss(
    net: Mo.Module,
    path: Path,
    statistics: Statistics,
    batches: Iterable[Sequence[np.ndarray]],
    watch: Stopwatch | None = None,
    on_outputs: Callable | None = None,
) -> float:
    """Mean loss over batches of (images, targets ...); a smaller last batch counts by its images.

    Args:
        on_outputs: gets each batch's outputs of the network, which it must copy.
    """
    watch = watch or Stopwatch()
    graphs: dict[int, tuple] = {}
    total = images = 0.0
    for batch in batches:
        size = len(batch[0])
        if size not in graphs:
            watch.lap("validation")
            inputs = [nn.Variable(array.shape) for array in batch]
            outputs = net(inputs[0], path, GivenStatistics(statistics))
            for output in outputs if on_outputs else ():
                output.persistent = True
            graphs[size] = inputs, outputs, net.loss(outputs, inputs[1:])
            watch.lap("graph")
        inputs, outputs, loss = graphs[size]
        for variable, array in zip(inputs, batch):
            variable.d = array
        loss.forward(clear_buffer=True)
        total += size * float(loss.d)
        images += size
        if on_outputs:
            on_outputs(outputs)
    watch.lap("validation")
    return total / images


class Evaluation(NamedTuple):
    """What a path is worth: its validation loss, AP50 on the same images where it was asked for, and seconds by `PARTS`."""

    loss: float
    ap: float | None
    seconds: dict[str, float]


@dataclass
class PathEvaluator:
    """Evaluates many paths of one supernet: images are decoded once, a path's graphs are built once.

    Attributes:
        net: the supernet.
        statistics_batches: images for re-estimating batch normalisation.
        validation_batches: (images, targets ...) for the loss.
        processes: paths are shared out over this many processes. Each is forked, so this is for the CPU, and for one rank:
            an MPI library does not survive that.
        truth: of the validation images, where AP50 is to be measured.
        comm: ranks that share out the paths instead.
    """

    net: Mo.Module
    statistics_batches: Sequence[np.ndarray]
    validation_batches: Sequence[Sequence[np.ndarray]]
    processes: int = 1
    truth: ValidationTruth | None = None
    comm: Communicator = field(default_factory=Communicator)

    def evaluate(self, path: Path) -> Evaluation:
        """Validation loss, and AP50 if there is a `truth`, of `path` with its own statistics."""
        watch, maps = Stopwatch(), []
        keep = None if self.truth is None else lambda outputs: maps.append([output.d.copy() for output in outputs])
        with bounded_by("hparams.bn_batch", len(self.statistics_batches[0])):
            statistics = reestimate(self.net, path, self.statistics_batches, watch)
            loss = validation_loss(self.net, path, statistics, self.validation_batches, watch, keep)
        ap = None if self.truth is None else self.truth.ap50(maps)
        watch.lap("validation")
        return Evaluation(loss, ap, watch.seconds)

    def evaluations(self, paths: Iterable[Path]) -> Iterator[Evaluation]:
        """One for each path, in their order, as soon as it and all before it are known; all ranks get all of them."""
        if self.comm.n_procs > 1:
            return self.comm.map(self.evaluate, paths)
        return map_forked(self.evaluate, paths, self.processes)

    @property
    def at_once(self) -> int:
        """How many paths are evaluated at the same time."""
        return self.comm.n_procs if self.comm.n_procs > 1 else self.processes

    def losses(self, paths: Iterable[Path]) -> np.ndarray:
        """(n,) validation losses."""
        return np.array([evaluation.loss for evaluation in self.evaluations(paths)], float)


def timing(evaluations: Sequence[Evaluation], processes: int) -> str:
    """What a path took, such as "1.1 s per path (2 processes at once): graph 0.1, re-estimation 0.4, validation 0.6"."""
    parts = {part: float(np.mean([evaluation.seconds[part] for evaluation in evaluations])) for part in PARTS}
    where = "" if processes == 1 else f" ({processes} processes at once)"
    return f"{sum(parts.values()):.2g} s per path{where}: " + ", ".join(f"{part} {value:.2g}" for part, value in parts.items())


def map_forked(function: Callable, items: Iterable, processes: int) -> Iterator:
    """`map(function, items)` over forked processes, in order; in this process where `processes` is 1.

    A forked process has the weights and the images of this one without copying or pickling them.
    """
    if processes <= 1:
        yield from map(function, items)
        return
    items = list(items)
    context, workers = multiprocessing.get_context("fork"), {}
    try:
        with _stop_signals_blocked():
            for _ in range(min(processes, len(items))):
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(function, items, theirs, os.getpid()), daemon=True)
                process.start()
                theirs.close()  # so that its end is noticed, and before another process is forked that would keep it open
                workers[ours] = process
        yield from _in_order(workers, len(items))
    finally:
        for process in workers.values():
            process.kill()
        for process in workers.values():
            process.join()


@contextmanager
def _stop_signals_blocked() -> Iterator[None]:
    """Block the `STOP_SIGNALS` in this thread while the block lasts; its signal mask is then what it was before.

    A forked process starts with the signal handlers of its parent: it must not run them before `_work` has set its own.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _in_order(workers: Mapping, count: int) -> Iterator:
    """Hand the numbers of items to whichever process is free, and yield the results in the order of the items."""
    waiting, results = deque(range(count)), {}
    for worker in workers:
        worker.send(waiting.popleft())
    for number in range(count):
        while number not in results:
            for worker in connection.wait(list(workers)):
                try:
                    done, result, error = worker.recv()
                except (EOFError, ConnectionError):
                    raise UserError(
                        "a process that evaluated paths was ended from outside, perhaps for want of memory: fewer "
                        "args.evaluation_processes need less"
                    ) from None
                if error is not None:
                    raise error
                results[done] = result
                if waiting:
                    worker.send(waiting.popleft())
        yield results.pop(number)


def _work(function: Callable, items: Sequence, parent_end, parent: int) -> None:
    """Runs in a forked process: apply the function to the items that are asked for, and end with the parent.

    Signals are the parent's business: it ends its processes itself.
    """
    if sys.platform == "linux":  # elsewhere the pipe's end says it, once the item at hand is done
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was killed before
        return
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    while True:
        number = parent_end.recv()
        try:
            answer = number, function(items[number]), None
        except Exception as error:
            answer = number, None, error
        parent_end.send(answer)


# --- Detections -------------------------------------------------------------------------------------------------------


@dataclass
class BoxDetector:
    """One path as a detector of boxes.

    Attributes:
        net, path, statistics: the supernet, the path, and the path's re-estimated statistics.
        top: detections kept in an image.
        flip: average the maps with those of the mirrored image, as `Detector.with_mirrored` does.
    """

    net: Detector
    path: Path
    statistics: Statistics
    top: int = MOST_DETECTIONS
    flip: bool = False

    def __post_init__(self):
        self._graphs = CachedGraphs(self._graph)

    def __call__(self, images: np.ndarray, matrices: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Boxes (n, 4) x1 y1 x2 y2 in pixels of the original images, scores (n,), labels (n,), best first, for each image.

        Args:
            images: (B, 3, H, W) as `data.augment.eval_transform` makes them.
            matrices: (B, 2, 3) that brought the originals to the input.
        """
        maps = self._outputs(images)
        if self.flip:
            maps = self.net.with_mirrored(maps, self._outputs(images[..., ::-1]))
        return boxes_in_images(self.net.decode(maps, self.top), matrices, images.shape[-1] // maps[0].shape[-1])

    def _outputs(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        """The network's maps (see `Detector.maps`)."""
        with self._graphs.held(images.shape) as (x, outputs):
            x.d = images
            nn.forward_all(outputs, clear_buffer=True)
            return tuple(output.d.copy() for output in outputs)

    def _graph(self, shape: tuple[int, ...]) -> tuple[nn.Variable, tuple[nn.Variable, ...]]:
        """The input of this shape, and the maps that come of it."""
        x = nn.Variable(shape)
        outputs = self.net.maps(self.net(x, self.path, GivenStatistics(self.statistics)))
        for output in outputs:
            output.persistent = True
        return x, outputs


def boxes_in_images(
    decoded: Sequence[Sequence[np.ndarray]], matrices: np.ndarray, stride: int
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Detections of each image of a batch, in pixels of the original: boxes (n, 4), scores (n,), labels (n,).

    Args:
        decoded: boxes in cells, scores and labels, as `Detector.decode` gives them.
        matrices: (B, 2, 3) that brought the originals to the input.
        stride: input pixels per cell.
    """
    boxes, scores, labels = decoded
    return [(transform_boxes(b * stride, invert(m)), s, k) for b, m, s, k in zip(boxes, matrices, scores, labels)]


@dataclass(frozen=True)
class ValidationTruth:
    """What detections on the validation images are held against.

    Attributes:
        objects: boxes, labels and difficult flags of each image.
        matrices: (n, 2, 3) that brought the images to the input.
        stride: input pixels per cell of the maps.
        classes: their names.
        metric: "11point", "area" or "coco". areas: of the objects of each image, for "coco".
    """

    objects: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]
    matrices: np.ndarray
    stride: int
    classes: tuple[str, ...]
    metric: str
    areas: Sequence[np.ndarray] | None = None

    def ap50(self, maps: Iterable[Sequence[np.ndarray]]) -> float | None:
        """AP at IoU 0.5; None where there is no object.

        Args:
            maps: heat map logits, offset and size of the images, batch by batch.
        """
        detections: list = []
        for logits, offset, size in maps:
            matrices = self.matrices[len(detections) : len(detections) + len(logits)]
            detections += boxes_in_images(decode(expit(logits), offset, size), matrices, self.stride)
        return summarise(detections, self.objects, self.classes, self.metric, self.areas)["ap50"]


def detect_images(
    detector: BoxDetector,
    images: Sequence[np.ndarray],
    size: tuple[int, int],
    scales: Sequence[float] = (1.0,),
    multiple: int = 32,
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Boxes, scores and labels of whole photographs, as `BoxDetector` gives them.

    Args:
        images: each (H, W, 3) uint8, blue, green, red.
        size: (height, width) of the network's input.
        scales: of the input over `size`; the detections of several are merged by `centernet.soft_nms`.
        multiple: of which the sides of a scaled input must be: the backbone's stride.
    """
    runs = []
    for scale in scales:
        scaled = tuple(max(multiple, round(side * scale / multiple) * multiple) for side in size)
        fitted = [letterbox(image, scaled, detector.net.normalization) for image in images]
        runs.append(detector(np.stack([image for image, _ in fitted]), np.stack([matrix for _, matrix in fitted])))
    if len(runs) == 1:
        return runs[0]
    joined = [[np.concatenate(part) for part in zip(*of_image)] for of_image in zip(*runs)]
    return [tuple(part[: detector.top] for part in soft_nms(*image)) for image in joined]


def detect_all(
    detector: BoxDetector,
    sets,
    batch: int,
    on_images: Callable[[int], None],
    comm: Communicator | None = None,
    **scaling,
) -> tuple[list, list]:
    """Detections and ground truth of every test image, as `metrics.summarise` takes them.

    Args:
        sets: `data.sets.DetectionSets`.
        on_images: hears how many more images are done.
        comm: ranks that share out the batches; all get all detections.
        scaling: `scales` and `multiple` of `detect_images`.
    """

    def detect(indices: range) -> tuple[list, list]:
        samples = [sets.test.load(index) for index in indices]
        with bounded_by("hparams.bn_batch", len(samples)):
            found = detect_images(detector, [sample.image for sample in samples], sets.image_size, **scaling)
        return found, [(sample.boxes, sample.labels, sample.difficult) for sample in samples]

    everything, detections, truth = range(len(sets.test)), [], []
    batches = [everything[start : start + batch] for start in range(0, len(everything), batch)]
    for found, true in (comm or Communicator()).map(detect, batches):
        detections += found
        truth += true
        on_images(len(true))
    return detections, truth


def average_precision(
    detector: BoxDetector, sets, batch: int, metric: str, on_images: Callable[[int], None], **scaling
) -> tuple[dict, list]:
    """Average precision on the test split as `metrics.summarise` gives it, and the detections; arguments as `detect_all`'s.

    Args:
        metric: "11point", "area" or "coco".
    """
    detections, truth = detect_all(detector, sets, batch, on_images, **scaling)
    areas = [sets.test.areas(index) for index in range(len(sets.test))] if metric == "coco" else None
    return summarise(detections, truth, sets.classes, metric, areas), detections


def save_detections(file: FilePath, sets, detections: Sequence, least: float = 0.05) -> None:
    """Write detections with a score of at least `least`: [{"image", "boxes", "scores", "labels"}, ...]."""
    entries = []
    for image_id, (boxes, scores, labels) in zip(sets.test.image_ids, detections):
        kept = scores >= least
        entries.append(
            {
                "image": image_id,
                "boxes": np.round(boxes[kept].astype(float), 2).tolist(),
                "scores": np.round(scores[kept].astype(float), 4).tolist(),
                "labels": labels[kept].tolist(),
            }
        )
    write_bytes(file, json.dumps(entries).encode())
