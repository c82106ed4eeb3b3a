"""Base class of the NNablaNAS runners, whose runs are sequences of named, resumable phases.

A phase stores its result in the run's folder and is not repeated: the same command resumes an interrupted run.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from io import BytesIO
from pathlib import Path as FilePath

import numpy as np
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary

from .. import config as configs
from ..backend.compat import Optimizer, Runner
from ..backend.launch import Stopped
from ..common.errors import UserError
from ..common.files import write_json
from ..common.progress import ProgressBar
from ..common.reading import parse_json, shown, shown_names
from ..data.loader import Loader
from ..evaluation.path_evaluation import KeptEvaluation, rng_for, sample_in_buckets, seed_for
from ..evaluation.validation import PathEvaluator, timing, validation_loss
from ..networks.weights import digest
from ..path_filter.evaluated_paths import EvaluatedPaths
from ..path_filter.model import PathFilter, PathScorer, Tokenizer
from ..path_filter.ranking import fit, fit_options, transfer
from ..runs import result_files, time_left
from ..runs.cost_ledger import DeviceClock, entry
from ..runs.phases import TrainingPhase, phase_names, slug, training_phases
from ..space.costs import CostModel
from ..space.counting import Buckets
from ..space.geometry import Geometry
from ..space.paths import PathBatch
from ..space.search_space import SearchSpace
from .checkpoint import Checkpoint
from .loop import NotFinite, Objective, PathSampler, Progress, new_optimizer, train
from .stop import StopRequest

ACCOUNT_EVERY = 10.0
"""Seconds between updates of the cost records outside training; a killed run loses at most the cost of this interval."""


class SupernetRunner(Runner):
    """Base class of the runners: resumable phases, training, evaluation of paths and fitting of path filters.

    Args:
        model: a `SearchNet`.
        optimizer: optimizers by name; initially empty, because each phase creates its own from `config.optimizer`.
        regularizer: estimators of NNablaNAS; empty, because costs are computed by `costs.CostModel`.
        dataloader: datasets by split; their lengths are numbers of images.
        hparams: hyperparameters of NNablaNAS (`batch_size_train`, `input_shapes`, ...).
        args: `comm`, `event` and `output_path` as in NNablaNAS; `config`, the checked config; `sets`, the datasets with
            their transforms; `cost`, the cost model.

    Attributes:
        begun: whether the run has completed a training step or a phase.
        on_begin: called when the first training step or phase is complete.
    """

    phases: tuple[str, ...] = ()
    lines: dict[str, str] = {}  # training phase -> its lines of Algorithm 1, stored in checkpoints
    loss_names: tuple[str, ...] = ("loss",)  # names of the values returned by the model's `losses`

    def __init__(self, model, optimizer, regularizer, dataloader, hparams, args):
        super().__init__(model, optimizer, regularizer, dataloader, hparams, args)
        self.config: configs.Config = args["config"]
        self.folder = FilePath(self._abs_output_path)
        self.space: SearchSpace = model.space
        self.cost: CostModel = args["cost"]
        self.sets = args["sets"]
        self.buckets = Buckets(self.space, self.cost.flops, self.config.hparams.buckets)
        self.training = {phase.name: phase for phase in training_phases(self.config)}
        self.phases = self.phases or phase_names(self.config)
        self.stop = StopRequest(self.comm)
        self.begun = False
        self.on_begin: Callable[[], None] = lambda: None
        self.results: dict = {}
        anew = "count the time anew"
        self.seconds: dict[str, float] = self.read_result("seconds", {}, result_files.seconds, anew)
        here = self.comm.gather((socket.gethostname(), os.getpid()))
        others = tuple(pid for host, pid in here if host == here[self.comm.rank][0] and pid != os.getpid())
        self.clock = DeviceClock(self.comm.ctx.backend != ["cpu:float"], self.comm.n_procs, others)
        fresh = {"unit": self.clock.unit, "phases": {}}
        self.ledger: dict = self.read_result("ledger", fresh, result_files.ledger, anew)
        if self.ledger["unit"] != self.clock.unit:
            self.log(f"the ledger counts {self.ledger['unit']}, and here there are {self.clock.unit}: it begins anew")
            self.ledger = fresh

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
            self.monitor.info(f"{text}\n", view=False)

    def callback_on_epoch_end(self) -> None:
        """Hook for subclasses, called after each epoch of a training phase."""

    def callback_on_finish(self) -> None:
        """Close the log files; raise the first write error of TensorBoard's thread, if any."""
        try:
            self.monitor.close()
        finally:
            if self.comm.rank == 0:  # `monitor.close` leaves its file open if it fails to close TensorBoard's
                self.monitor.file.close()

    # --- Phases and their results -----------------------------------------------------------------------------------

    def write_result(self, name: str, content) -> None:
        """Write content as <name>.json to the run's folder; only rank 0 writes."""
        if self.comm.rank == 0:
            write_json(self.folder / f"{name}.json", content)

    def read_result(
        self, name: str, default=None, check: Callable = lambda content: content, remedy: str = "have it made again"
    ):
        """Read the content that `write_result` wrote as <name>.json. All ranks must call this.

        Args:
            name: name of the file without its suffix.
            default: value to return if there is no file.
            check: validates the content, one of the functions of `result_files`.
            remedy: effect of removing the file, for the error message.

        Raises:
            UserError: the file is damaged.
        """
        file = self.folder / f"{name}.json"

        def read():
            try:
                return check(parse_json(file.read_text())) if file.exists() else default
            except ValueError as error:
                raise UserError(f"{file} is damaged ({error}): remove it to {remedy}") from error

        return self.comm.once(read)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Log the start of a phase, and record its cost at its end or interruption."""
        number = self.phases.index(name) + 1
        self._accounted = name, time.perf_counter(), self.clock()
        left = self.left(0.0)
        self.log(f"[{number}/{len(self.phases)}] {name}" + (f" ({left} left for the whole run)" if left else ""))
        try:
            yield
        except BaseException:
            with suppress(OSError):  # report the first error
                self.account()
            raise
        self.begin()
        self.account()

    def begin(self) -> None:
        """Call `on_begin` when the first training step or phase of the run is complete."""
        if not self.begun:
            self.on_begin()
            self.begun = True

    def account(self) -> None:
        """Add the cost of the phase since its start or the last call to seconds.json and ledger.json."""
        name, start, device_start = self._accounted
        self._accounted = name, time.perf_counter(), self.clock()
        self.seconds[name] = self.seconds.get(name, 0.0) + self._accounted[1] - start
        self.write_result("seconds", self.seconds)
        spent = self.ledger["phases"].get(name, {"seconds": 0.0})["seconds"]
        self.ledger["phases"][name] = entry(name, spent + self._accounted[2] - device_start)
        self.write_result("ledger", self.ledger)

    def pause(self, alone: bool = False) -> None:
        """Check for stop requests, and record the cost every `ACCOUNT_EVERY` seconds.

        Args:
            alone: only rank 0 calls this, while the other ranks wait. Otherwise all ranks must call it.

        Raises:
            Stopped: a stop was requested.
        """
        self.stop.check_here() if alone else self.stop.check()
        if time.perf_counter() - self._accounted[1] > ACCOUNT_EVERY:
            self.account()

    @cached_property
    def planned(self) -> dict[str, time_left.Work]:
        """The work of each phase, for the estimate of the time left."""
        splits = [name for name in ("train", "val", "test") if hasattr(self.sets, name)]
        return time_left.work(self.config, {name: len(getattr(self.sets, name)) for name in splits})

    def left(self, done: float) -> str:
        """Estimate the time until the run is finished, in words; "" if nothing is known yet.

        Args:
            done: finished fraction of the current phase.
        """
        name, start, _ = self._accounted
        seconds = self.seconds | {name: self.seconds.get(name, 0.0) + time.perf_counter() - start}
        found = time_left.seconds_left(self.planned, seconds, name, done)
        return "" if found is None else f"about {time_left.in_words(found)}"

    def log(self, message: str) -> None:
        """Write a line to the screen and to the log file."""
        self.monitor.info(message + "\n")

    def show(self, tag: str, value: float, step: int) -> None:
        """Add a point to a curve in TensorBoard."""
        if self.comm.rank == 0:
            self.monitor.tb.add_scalar(tag, value, step)

    def show_picture(self, tag: str, picture: Image.Image) -> None:
        """Add a picture to TensorBoard."""
        encoded = BytesIO()
        picture.save(encoded, "PNG")
        width, height = picture.size
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded.getvalue())
        self.monitor.tb.add_image(tag, image, 0)

    def progress(self, name: str, total: int, done: int = 0, unit: str = "step") -> ProgressBar:
        """Create a progress bar with the remaining time; ranks other than 0 show none."""
        return ProgressBar(total=total, initial=done, desc=name, unit=unit, disable=self.comm.rank > 0)

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
        """Train for the epochs of a phase, with checkpoints, and save weights and optimizer in the folder <name>/.

        If the phase was completed before, only its weights and its optimizer are loaded.

        Args:
            phase: phase to train.
            paths: sampler of the path of each step.
            optimizer: optimizer of the supernet's parameters.
            objective: training objective. Default: the network's own loss.

        Raises:
            NotFinite: the loss is NaN or infinite.
            Stopped: a stop was requested; a checkpoint was saved.
            UserError: a checkpoint is damaged or belongs to another config; or an image cannot be loaded or device memory is
                exhausted, in which case a checkpoint of the last complete step was saved.
        """
        name, epochs = phase.name, phase.epochs
        tags = objective.names if objective else self.loss_names
        done = Checkpoint(self.folder / slug(name), self.log)
        checkpoint = Checkpoint(self.folder / "checkpoint" / slug(name), self.log)
        per_epoch = phase.steps_per_epoch(len(self.dataloader["train"]))
        first, last = epochs.start * per_epoch, epochs.stop * per_epoch

        def restore(state: dict) -> None:
            if not isinstance(state["step"], int) or not first <= state["step"] <= last:
                raise ValueError(f"its step must be in [{first}, {last}], got {shown(state['step'])}")
            paths.restore(state["paths"])

        if self._loaded(done, optimizer, restore) is not None:
            if self.comm.rank == 0:
                checkpoint.remove()
            return
        if (state := self._loaded(checkpoint, optimizer, restore)) is not None:
            if state.get("config", self.config.config_hash) != self.config.config_hash:
                raise UserError(f"the checkpoint {checkpoint.folder} is another config's: remove it to start this phase over")
            first = state["step"]
            self.log(f"{name} goes on at step {first} of {last}")
        every = self.config.hparams.checkpoint_every_epochs * per_epoch
        bar = self.progress(name, last - epochs.start * per_epoch, first - epochs.start * per_epoch)

        def state_after(step: int) -> dict:
            return {
                "phase": name,
                "line": self.lines.get(name),
                "config": self.config.config_hash,
                "epoch": step // per_epoch,
                "step": step,
                "paths": paths.state(),
            }

        latest, saved = state_after(first), first if state else None

        def save(where: Checkpoint) -> None:
            nonlocal saved
            if self.comm.rank == 0:
                where.save(self.model, optimizer, latest)
            saved = latest["step"]
            self.account()

        def on_step(progress: Progress) -> None:
            nonlocal latest
            self.begin()
            latest = state_after(progress.step + 1)
            bar.update()
            self._report(name, tags, progress, bar, latest["step"] == last, getattr(paths, "rejected_share", None))
            if latest["step"] % per_epoch == 0:
                self.callback_on_epoch_end()
            stopping = self.stop.agreed()
            if stopping or latest["step"] % every == 0:
                save(checkpoint)
            if stopping:
                raise Stopped("checkpoint saved")

        with bar, self.stop.deferred():
            try:
                train(
                    self.model,
                    optimizer,
                    paths,
                    self.loader(phase),
                    self.inputs(),
                    range(first, last),
                    accumulate=phase.batch_size // self.comm.n_procs // self.mbs_train,
                    paths_per_step=phase.paths_per_step,
                    objective=objective,
                    comm=self.comm,
                    event=self.event,
                    on_step=on_step,
                )
            except NotFinite as error:
                kept = "there is no checkpoint of this phase yet"
                if saved is not None:
                    kept = f"the last good checkpoint is {checkpoint.folder}, of step {saved}"
                raise NotFinite(f"{name}: {error}; {kept}") from error
            except UserError:  # e.g. an image is missing or broken; the weights are those of the last complete step
                if latest["step"] != saved:
                    save(checkpoint)
                raise
            save(done)
        if self.comm.rank == 0:
            checkpoint.remove()
        self.comm.barrier()

    def _loaded(self, checkpoint: Checkpoint, optimizer: Optimizer, restore: Callable[[dict], None]) -> dict | None:
        """Load a checkpoint on all ranks, and verify that their weights are equal.

        Returns:
            The JSON of the state; None if there is no checkpoint.

        Raises:
            UserError: the weights differ, because the ranks read different files.
        """
        state = checkpoint.load(self.model, optimizer, restore)
        weights = digest(self.model.get_parameters()) if self.comm.n_procs > 1 else ""
        if len(set(self.comm.gather((state is None, weights)))) > 1:
            raise UserError(
                f"the ranks have different weights: {self.folder}, and the weights that a config names, must be the same files "
                "for all of them"
            )
        return state

    def _report(
        self,
        name: str,
        tags: Sequence[str],
        progress: Progress,
        bar: ProgressBar,
        last: bool,
        rejected_share: float | None = None,
    ) -> None:
        """Report the mean losses since the last report and the learning rate to TensorBoard and the log file.

        Reports are written every `print_frequency` steps and after the last step of a phase.

        Args:
            name: name of the phase.
            tags: names of the losses.
            progress: report of the step.
            bar: progress bar that shows the mean loss.
            last: whether this is the last step of the phase.
            rejected_share: share of the sampled paths that were rejected so far.
        """
        step = progress.step + 1
        for tag, value in zip(tags, progress.losses):
            self.monitor.update(f"{tag}/{name}", value)
        if last or step % self.config.args.print_frequency == 0:
            done = bar.n / bar.total if bar.total else 0.0
            bar.set_postfix(loss=f"{self.monitor[f'loss/{name}'].avg:.3f}", whole_run=self.left(done))
            self.monitor.write(step)
            self.show(f"learning_rate/{name}", progress.rate, step)
            if rejected_share is not None:
                self.show(f"share of paths rejected/{name}", rejected_share, step)
            shown = ", ".join(f"{tag} {self.monitor[f'{tag}/{name}'].avg:.4f}" for tag in tags)
            self.monitor.info(f"{name} step {step}: {shown}, rate {progress.rate:.2e}\n", view=False)
            self.monitor.meters.clear()  # reset() would keep the meters, and the next phase would write zeros for them

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

    # --- Evaluating paths -------------------------------------------------------------------------------------------

    @cached_property
    def evaluation(self) -> KeptEvaluation:
        """Evaluates paths of this run's supernet, and stores the results."""
        return KeptEvaluation.of(self.model, self.sets, self.config, self.cost, self.buckets, comm=self.comm)

    @property
    def evaluator(self) -> PathEvaluator:
        """The path evaluator of `evaluation`."""
        return self.evaluation.evaluator

    def evaluate_paths(self, name: str, paths: PathBatch) -> EvaluatedPaths:
        """Evaluate paths under the current weights; each result is stored in <name>.jsonl when it is complete."""

        def opened() -> tuple[EvaluatedPaths, PathBatch]:
            kept = self.evaluation.open(self.folder / f"{slug(name)}.jsonl")
            return kept, self.evaluation.missing(kept, paths)

        kept, missing = self.comm.once(opened)
        total = len(np.unique(paths.keys))
        with self.progress(name, total, total - len(missing), "path") as bar:

            def progress() -> None:
                bar.update()
                bar.set_postfix(whole_run=self.left(bar.n / total), refresh=False)
                self.pause()

            evaluations = self.evaluation.add(kept, missing, progress)
        if evaluations:
            self.log(f"{name}: {timing(evaluations, self.evaluator.at_once)}")
        return self.comm.once(lambda: kept)

    def sample_paths(self, name: str, per_bucket: int, space: SearchSpace) -> PathBatch:
        """Sample `per_bucket` paths uniformly from each FLOPs bucket that is not empty (Alg. 1 line 4)."""
        return sample_in_buckets(self.buckets, per_bucket, self.rng(name), space, self.log)

    # --- The path filter --------------------------------------------------------------------------------------------

    def scorer(self, path_filter: PathFilter) -> PathScorer:
        """Return the path filter as a function of paths, with this run's costs and buckets."""
        return PathScorer(path_filter, self.cost.flops, self.buckets.index)

    def new_filter(self) -> PathFilter:
        """Create the path filter of `hparams.filter`, with weights from its file or with random weights."""
        if self.config.hparams.filter.weights:
            return given_filter(self.config, self.space.geometry)
        return PathFilter(self.space.geometry, **filter_settings(self.config), rng=self.rng("path filter weights"))

    @property
    def filter_is_given(self) -> bool:
        """Whether `new_filter` loads a file, with a filter that was fitted to paths of another supernet."""
        return self.config.hparams.filter.weights is not None

    def train_filter(self, name: str, start: PathFilter, paths: EvaluatedPaths, transferred: bool = False) -> PathScorer:
        """Fit a copy of a path filter to evaluated paths (Eq. 5 and 6), and save it as <name>.h5.

        If the file exists, the filter is loaded from it.

        Args:
            name: name of the phase.
            start: path filter to copy.
            paths: evaluated paths.
            transferred: `start` was fitted to paths of another supernet, see `ranking.transfer`.

        Returns:
            The fitted filter as a function of paths.
        """
        file, options = self.folder / f"{slug(name)}.h5", self.config.hparams.filter
        trained, members = start.copy(), start.settings["ensemble"]

        def fitted() -> dict[str, np.ndarray]:
            if file.exists():
                return PathFilter.load(file).get_weights()
            given = paths.batch, paths.buckets, paths.losses
            if transferred:
                self.log(f"{name}: {transfer(trained, *given, self.rng(f'{name}, fresh weights'))}")
            with self.progress(name, members * options.epochs, unit="epoch") as bar:

                def on_epoch(member: int, epoch: int, train_loss: float, validation_loss: float) -> None:
                    bar.update()
                    bar.set_postfix(loss=f"{train_loss:.3f}", validation=f"{validation_loss:.3f}")
                    curve = name if members == 1 else f"{name}, member {member + 1}"
                    self.show(f"pair loss/{curve}", train_loss, epoch)
                    self.show(f"pair loss on validation paths/{curve}", validation_loss, epoch)
                    self.pause(alone=True)

                results = fit(trained, *given, self.rng(name), fit_options(options), on_epoch, transferred)
            for number, result in enumerate(results, 1):
                self.log(
                    f"{name}{f', member {number}' if members > 1 else ''}: best of {len(result.validation_losses) - 1} epochs "
                    f"is {result.best_epoch}, validation loss {result.validation_losses[result.best_epoch]:.4f} "
                    f"(before: {result.validation_losses[0]:.4f})"
                    + (f"; beside its linear skip, transferred logits times {result.kept:.3g}" if result.kept != 1 else "")
                )
            trained.save(file)
            return trained.get_weights()

        with self.phase(name):
            trained.set_weights(self.comm.once(fitted))
        return self.scorer(trained)


TRANSFERRED_SETTINGS = ("dim", "heads", "layers", "feed_forward", "stem_tokens", "block_encoding", "encoding", "pooling")
"""Settings in which a pre-trained path filter must match the filter that starts from its weights."""
FILTER_SETTINGS = (*TRANSFERRED_SETTINGS, "linear_skip", "ensemble")


def filter_settings(config: configs.Config) -> dict:
    """Return the arguments of `PathFilter` that `hparams` sets, which are all but the geometry and the generator."""
    options = config.hparams.filter
    return {key: getattr(options, key) for key in FILTER_SETTINGS} | {"buckets": config.hparams.buckets}


def given_filter(config: configs.Config, geometry: Geometry) -> PathFilter:
    """Load the path filter of the file named in a config.

    Raises:
        UserError: the file cannot be read, or its filter has other settings or belongs to another search space.
    """
    options = config.hparams.filter
    expected = {key: value for key, value in filter_settings(config).items() if key in (*TRANSFERRED_SETTINGS, "buckets")}
    loaded = PathFilter.load(options.weights, **expected)
    ours, theirs = Tokenizer(geometry, options.stem_tokens), loaded.tokenizer
    if ours.vocabulary != theirs.vocabulary or ours.blocks.tolist() != theirs.blocks.tolist():
        raise UserError(f"the path filter in {options.weights} was trained for another search space than this run's")
    return loaded.extended(options.ensemble, options.linear_skip)
