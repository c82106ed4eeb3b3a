"""Base class of the NNablaNAS runners, whose runs are sequences of named, resumable phases.

A phase stores its result in the run's folder and is not repeated: the same command resumes an interrupted run.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path as FilePath
from typing import Any, ClassVar

import numpy as np

from ..backend.compat import Optimizer, Runner
from ..backend.ranks import Communicator
from ..common.reading import shown_names
from ..common.seeds import rng_for, seed_for
from ..config import Config
from ..data.loader import Loader
from ..evaluation.images import Hparams, Sets
from ..evaluation.path_sampling import sample_in_buckets
from ..evaluation.stored import StoredEvaluation
from ..evaluation.validation import PathEvaluator, timing, validation_loss
from ..path_filter.evaluated_paths import EvaluatedPaths
from ..path_filter.model import PathFilter, PathScorer
from ..runs import time_left
from ..runs.cost_ledger import DeviceClock
from ..runs.phases import TrainingPhase, phase_names, slug
from ..space.costs import CostModel
from ..space.counting import Buckets
from ..space.paths import PathBatch
from ..space.search_space import SearchSpace
from .filter_fitting import fit_filter, new_filter
from .loop import Objective, PathSampler, new_optimizer, train
from .phase_training import PhaseTraining
from .run_files import PhaseCosts, ResultFiles
from .run_log import RunLog
from .stop import StopRequest


class SupernetRunner(Runner):
    """Base class of the runners: resumable phases, training, validation of paths and fitting of path filters.

    Args:
        model: a `SearchNet`.
        optimizer: optimizers by name; initially empty, because each phase creates its own from `config.optimizer`.
        regularizer: estimators of NNablaNAS; empty, because costs are computed by `costs.CostModel`.
        dataloader: datasets by split; their lengths are numbers of images.
        hparams: hyperparameters of NNablaNAS (`batch_size_train`, `input_shapes`, ...).
        args: `comm`, `event` and `output_path` as in NNablaNAS; `config`, the checked config; `training`, the training phases;
            `sets`, the datasets with their transforms; `cost`, the cost model.

    Attributes:
        config: config of the run.
        hparams: its section `hparams`.
        training: training phases by name.
        phases: names of all phases, in order.
        folder: folder of the run.
        space: full search space A.
        cost: cost model of paths.
        buckets: FLOPs buckets of the full search space.
        sets: datasets of the run.
        log: log file, screen and TensorBoard.
        files: JSON files of the run.
        costs: time of the phases.
        stop: handling of stop signals.
        results: content of summary.json so far.
        started: whether the run has completed a training step or a phase.
        on_started: called when the first training step or phase is complete.
    """

    method: ClassVar[str]  # the runner of this package whose config, training phases and files it has
    phases: tuple[str, ...] = ()
    lines: dict[str, str] = {}  # training phase -> its lines of Algorithm 1, stored in checkpoints

    def __init__(self, model: Any, optimizer: dict, regularizer: dict, dataloader: dict, hparams: dict, args: dict):
        super().__init__(model, optimizer, regularizer, dataloader, hparams, args)
        self.config: Config = args["config"]
        self.hparams: Hparams = self.config.hparams  # in place of NNablaNAS' dictionary, which only its constructor reads
        self.training: dict[str, TrainingPhase] = {phase.name: phase for phase in args["training"]}
        self.phases = self.phases or phase_names(self.config, args["training"])
        self.folder = FilePath(self._abs_output_path)
        self.space: SearchSpace = model.space
        self.cost: CostModel = args["cost"]
        self.buckets = Buckets(self.space, self.cost.flops, self.hparams.buckets)
        self.sets: Sets = args["sets"]
        self.log = RunLog(self.monitor, self.comm.rank)
        self.files = ResultFiles(self.folder, self.comm)
        self.costs = PhaseCosts(self.files, _device_clock(self.comm), self.log)
        self.stop = StopRequest(self.comm)
        self.results: dict[str, Any] = {}
        self.started = False
        self.on_started: Callable[[], None] = lambda: None

    # NNablaNAS requires these names; the phases call both functions by their own names.
    train_on_batch = staticmethod(train)
    valid_on_batch = staticmethod(validation_loss)

    def callback_on_start(self) -> None:
        """Log the search space and the FLOPs buckets."""
        edges = ", ".join(f"{edge / 1e9:.4g}" for edge in self.buckets.edges)
        self.log(f"search space {self.space.name}: {self.space.size():.4g} paths; FLOPs buckets at {edges} GFLOPs")

    def log_data(self) -> None:
        """Log the classes of the dataset, and, only to the file, the warnings that were printed when it was opened."""
        self.log(f"classes: {shown_names(self.sets.classes)}")
        for text in self.sets.warnings:
            self.log.to_file(text)

    def callback_on_epoch_end(self) -> None:
        """Hook for subclasses, called after each epoch of a training phase."""

    def callback_on_finish(self) -> None:
        """Close the log files; raise the first write error of TensorBoard's thread, if any."""
        self.log.close()

    # --- Phases -----------------------------------------------------------------------------------------------------

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Log the start of a phase, and record its cost at its end or interruption."""
        self.costs.start(name)
        self.log(f"[{self.phases.index(name) + 1}/{len(self.phases)}] {name}")  # `tools.phase_states` reads this line
        if left := self.time_left(0.0):
            self.log(f"{left} left for the whole run")
        try:
            yield
        except BaseException:
            with suppress(OSError):  # report the first error
                self.costs.record()
            raise
        self.mark_started()
        self.costs.record()

    def mark_started(self) -> None:
        """Call `on_started` when the first training step or phase of the run is complete."""
        if not self.started:
            self.on_started()
            self.started = True

    def pause(self, alone: bool = False) -> None:
        """Check for stop requests, and record the cost from time to time.

        Args:
            alone: only rank 0 calls this, while the other ranks wait. Otherwise all ranks must call it.

        Raises:
            Stopped: a stop was requested.
        """
        self.stop.check_here() if alone else self.stop.check()
        self.costs.record_if_due()

    @cached_property
    def planned_work(self) -> dict[str, time_left.Work]:
        """Work of each phase, for the estimate of the time left."""
        images = {name: len(getattr(self.sets, name)) for name in ("train", "val", "test") if hasattr(self.sets, name)}
        work = time_left.work(self.config, list(self.training.values()), images)
        return {name: item for name, item in work.items() if name in self.phases}

    def time_left(self, done: float) -> str:
        """Estimate the time until the run is finished, in words; "" if nothing is known yet.

        Args:
            done: finished fraction of the current phase.
        """
        seconds = time_left.seconds_left(self.planned_work, self.costs.seconds_so_far(), self.costs.phase, done)
        return "" if seconds is None else f"about {time_left.in_words(seconds)}"

    def rng(self, name: str) -> np.random.Generator:
        """Return the random generator for the purpose `name`; it depends only on the run's seed and the name."""
        return rng_for(self.config.args.seed, name)

    # --- Training ---------------------------------------------------------------------------------------------------

    def new_optimizer(self, phase: TrainingPhase) -> Optimizer:
        """Create an optimizer of the supernet's parameters with the solver and the schedule of the phase."""
        return new_optimizer(self.model, phase.solver, phase.schedule(len(self.dataloader["train"])))

    def train_phase(
        self, phase: TrainingPhase, paths: PathSampler, optimizer: Optimizer, objective: Objective | None = None
    ) -> None:
        """Train a phase, or load its result if it was completed before; see `phase_training.PhaseTraining`."""
        PhaseTraining(self, phase, paths, optimizer, objective).train()

    def loader(self, phase: TrainingPhase) -> Loader:
        """Create the loader of a phase's training batches.

        A batch depends only on the seed, the phase's schedule, the epoch and the step. Different schedules have different
        orders of images, crops, flips and colors, which do not depend on the phases that ran before.
        """
        return Loader(
            self.dataloader["train"],
            self.sets.train_item,
            phase.batch_size,
            seed_for(self.config.args.seed, f"batches of {phase.schedule_name}"),
            workers=self.config.args.workers,
            rank=self.comm.rank,
            size=self.comm.n_procs,
            sizes=getattr(self.config.dataloader, "train_sizes", ()),
        )

    def inputs(self) -> list:
        """Return the input variables of a training mini-batch: images, then targets."""
        placeholder = self.placeholder["train"]
        return [*placeholder["inputs"], *placeholder["targets"]]

    # --- Validation of paths ----------------------------------------------------------------------------------------

    @cached_property
    def evaluation(self) -> StoredEvaluation:
        """Computes validation losses of paths of this run's supernet, and stores them."""
        args = self.config.args
        return StoredEvaluation.of(self.model, self.sets, args, self.hparams, self.cost, self.buckets, comm=self.comm)

    @property
    def evaluator(self) -> PathEvaluator:
        """The path evaluator of `evaluation`."""
        return self.evaluation.evaluator

    def validate_paths(self, name: str, paths: PathBatch) -> EvaluatedPaths:
        """Compute the validation losses of paths under the current weights; each is stored in <name>.jsonl at once."""

        def opened() -> tuple[EvaluatedPaths, PathBatch]:
            stored = self.evaluation.open(self.folder / f"{slug(name)}.jsonl")
            return stored, self.evaluation.missing(stored, paths)

        stored, missing = self.comm.once(opened)
        total = len(np.unique(paths.keys))
        with self.log.progress(name, total, total - len(missing), "path") as bar:

            def progress() -> None:
                bar.update()
                bar.set_postfix(whole_run=self.time_left(bar.n / total), refresh=False)
                self.pause()

            evaluations = self.evaluation.add(stored, missing, progress)
        if evaluations:
            self.log(f"{name}: {timing(evaluations, self.evaluator.at_once)}")
        return self.comm.once(lambda: stored)

    def sample_paths(self, name: str, per_bucket: int, space: SearchSpace) -> PathBatch:
        """Sample `per_bucket` paths uniformly from each FLOPs bucket that is not empty (Alg. 1 line 4)."""
        return sample_in_buckets(self.buckets, per_bucket, self.rng(name), space, self.log)

    # --- Path filter ------------------------------------------------------------------------------------------------

    def new_filter(self) -> PathFilter:
        """Create the path filter of `hparams.filter`, with weights from its file or with random weights."""
        return new_filter(self.hparams.filter, self.hparams.buckets, self.space.geometry, self.rng("path filter weights"))

    @property
    def filter_is_given(self) -> bool:
        """Whether `new_filter` loads a file, with a filter that was fitted to paths of another supernet."""
        return self.hparams.filter.weights is not None

    def fit_filter(self, name: str, start: PathFilter, paths: EvaluatedPaths, transferred: bool = False) -> PathScorer:
        """Fit a copy of a path filter to evaluated paths; see `filter_fitting.fit_filter`."""
        return fit_filter(self, name, start, paths, transferred)

    def scorer(self, path_filter: PathFilter) -> PathScorer:
        """Return a path filter as a function of paths, with this run's costs and buckets."""
        return PathScorer(path_filter, self.cost.flops, self.buckets.index)


def _device_clock(comm: Communicator) -> DeviceClock:
    """Create the clock of the devices of all ranks."""
    here = comm.gather((socket.gethostname(), os.getpid()))
    others = tuple(pid for host, pid in here if host == here[comm.rank][0] and pid != os.getpid())
    on_gpu = comm.ctx is not None and comm.ctx.backend != ["cpu:float"]
    return DeviceClock(on_gpu, comm.n_procs, others)
