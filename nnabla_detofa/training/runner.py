"""What Algorithm 1 and its baselines share: an NNablaNAS runner whose run is a sequence of named phases.

A phase leaves its result in the run's folder and is not done again: the same command goes on where it was stopped.
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
from ..evaluation.path_evaluation import KeptEvaluation, named_rng, named_seed, sample_in_buckets
from ..evaluation.validation import PathEvaluator, timing, validation_loss
from ..networks.weights import digest
from ..path_filter.evaluated_paths import EvaluatedPaths
from ..path_filter.model import PathFilter, PathScorer, Tokenizer
from ..path_filter.ranking import fit, fit_options, transfer
from ..runs import result_files
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
"""Seconds of work, at most, that a kill may leave out of the record of what a run cost, outside training."""


class SupernetRunner(Runner):
    """Base of the runners: data, networks, the training loop and the evaluation of paths, with everything resumable.

    Args:
        model: a `SearchNet`.
        optimizer: empty at first; a phase starts its own by `config.optimizer`.
        regularizer: NNablaNAS' estimators; there are none, costs come from `costs.CostModel`.
        dataloader: data sets by split; their lengths are numbers of images.
        hparams: NNablaNAS' entries (`batch_size_train`, `input_shapes`, ...).
        args: `comm`, `event` and `output_path` as NNablaNAS has them; `config`, the checked config; `sets`, the data sets
            with their transforms; `cost`, the cost model.

    Attributes:
        begun: whether the run has finished a training step or a phase. on_begin: called at that moment.
    """

    phases: tuple[str, ...] = ()
    lines: dict[str, str] = {}  # of Algorithm 1 that training phases are, for their checkpoints
    loss_names: tuple[str, ...] = ("loss",)  # what the model's `losses` returns

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
        self.seconds: dict[str, float] = self.recall("seconds", {}, result_files.seconds, anew)
        here = self.comm.gather((socket.gethostname(), os.getpid()))
        others = tuple(pid for host, pid in here if host == here[self.comm.rank][0] and pid != os.getpid())
        self.clock = DeviceClock(self.comm.ctx.backend != ["cpu:float"], self.comm.n_procs, others)
        fresh = {"unit": self.clock.unit, "phases": {}}
        self.ledger: dict = self.recall("ledger", fresh, result_files.ledger, anew)
        if self.ledger["unit"] != self.clock.unit:
            self.log(f"the ledger counts {self.ledger['unit']}, and here there are {self.clock.unit}: it begins anew")
            self.ledger = fresh

    # NNablaNAS' names for what happens on a batch; the phases call both by their own.
    train_on_batch = staticmethod(train)
    valid_on_batch = staticmethod(validation_loss)

    def callback_on_start(self) -> None:
        """Say what is trained."""
        edges = ", ".join(f"{edge / 1e9:.4g}" for edge in self.buckets.edges)
        self.log(f"search space {self.space.name}: {self.space.size():.4g} paths; FLOPs buckets at {edges} GFLOPs")

    def log_data(self) -> None:
        """Say what the data set holds, with the warnings that were on the screen when it was opened."""
        self.log(f"classes: {shown_names(self.sets.classes)}")
        for text in self.sets.warnings:
            self.monitor.info(f"{text}\n", view=False)

    def callback_on_epoch_end(self) -> None:
        """Called after each epoch of a training phase; for subclasses."""

    def callback_on_finish(self) -> None:
        """Close the log, and say the first error of writing if there is one."""
        try:
            self.monitor.close()
        finally:
            if self.comm.rank == 0:  # its file stays open where TensorBoard's cannot be written
                self.monitor.file.close()

    # --- Phases and their results -----------------------------------------------------------------------------------

    def remember(self, name: str, content) -> None:
        """Keep something as <name>.json in the run's folder."""
        if self.comm.rank == 0:
            write_json(self.folder / f"{name}.json", content)

    def recall(self, name: str, default=None, check: Callable = lambda content: content, remedy: str = "have it made again"):
        """What was remembered as `name`, or `default`; all ranks must ask.

        Args:
            check: one of `result_files`, of the content. remedy: what it helps to remove a damaged file for.

        Raises:
            UserError: its file is damaged.
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
        """Announce a phase, and add its time to what the run has cost so far, interrupted or not."""
        number = self.phases.index(name) + 1
        self.log(f"[{number}/{len(self.phases)}] {name}")
        self._accounted = name, time.perf_counter(), self.clock()
        try:
            yield
        except BaseException:
            with suppress(OSError):  # the first error says what is wrong
                self.account()
            raise
        self.begin()
        self.account()

    def begin(self) -> None:
        """Note that the run has done its first piece of work, a training step or a phase, and call `on_begin` for it."""
        if not self.begun:
            self.on_begin()
            self.begun = True

    def account(self) -> None:
        """Add what the phase has cost since it began, or since this was called last, to what is kept of it."""
        name, start, device_start = self._accounted
        self._accounted = name, time.perf_counter(), self.clock()
        self.seconds[name] = self.seconds.get(name, 0.0) + self._accounted[1] - start
        self.remember("seconds", self.seconds)
        spent = self.ledger["phases"].get(name, {"seconds": 0.0})["seconds"]
        self.ledger["phases"][name] = entry(name, spent + self._accounted[2] - device_start)
        self.remember("ledger", self.ledger)

    def pause(self, alone: bool = False) -> None:
        """Between two pieces of a phase's work: honour a stop, and account every `ACCOUNT_EVERY` seconds.

        Args:
            alone: rank 0 does this work while the others wait; otherwise all must call this.
        """
        self.stop.check_here() if alone else self.stop.check()
        if time.perf_counter() - self._accounted[1] > ACCOUNT_EVERY:
            self.account()

    def log(self, message: str) -> None:
        """A line of the log, on the screen and in the file."""
        self.monitor.info(message + "\n")

    def show(self, tag: str, value: float, step: int) -> None:
        """A point of a curve in TensorBoard."""
        if self.comm.rank == 0:
            self.monitor.tb.add_scalar(tag, value, step)

    def show_picture(self, tag: str, picture: Image.Image) -> None:
        """A picture in TensorBoard."""
        encoded = BytesIO()
        picture.save(encoded, "PNG")
        width, height = picture.size
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded.getvalue())
        self.monitor.tb.add_image(tag, image, 0)

    def progress(self, name: str, total: int, done: int = 0, unit: str = "step") -> ProgressBar:
        """A progress bar with the time left."""
        return ProgressBar(total=total, initial=done, desc=name, unit=unit, disable=self.comm.rank > 0)

    def rng(self, name: str) -> np.random.Generator:
        """The generator of everything random that is called `name`: from the seed and the name alone."""
        return named_rng(self.config.args.seed, name)

    # --- Training ---------------------------------------------------------------------------------------------------

    def new_optimizer(self, phase: TrainingPhase) -> Optimizer:
        """A fresh solver over the supernet's parameters, with the phase's schedule."""
        return new_optimizer(self.model, phase.solver, phase.schedule(len(self.dataloader["train"])))

    def train_phase(
        self, phase: TrainingPhase, paths: PathSampler, optimizer: Optimizer, objective: Objective | None = None
    ) -> None:
        """Train for the phase's epochs, with checkpoints; weights and optimiser are kept in <name>/

        Where the phase was done before, only its weights and its optimiser are loaded.

        Args:
            objective: what is minimised; by default the network's own loss.
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
            self._report(name, tags, progress, bar, latest["step"] == last, getattr(paths, "refused_share", None))
            if latest["step"] % per_epoch == 0:
                self.callback_on_epoch_end()
            stopping = self.stop.agreed()
            if stopping or latest["step"] % every == 0:
                save(checkpoint)
            if stopping:
                raise Stopped

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
            except UserError:  # a photograph is gone, or broken: the weights are those of the last whole step
                if latest["step"] != saved:
                    save(checkpoint)
                raise
            save(done)
        if self.comm.rank == 0:
            checkpoint.remove()
        self.comm.barrier()

    def _loaded(self, checkpoint: Checkpoint, optimizer: Optimizer, restore: Callable[[dict], None]) -> dict | None:
        """What `checkpoint.load` gives, on all ranks; their weights are then the same.

        Raises:
            UserError: they are not: ranks read other files.
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
        refused_share: float | None = None,
    ) -> None:
        """Mean losses since the last report, and the rate of this step, to TensorBoard and as a line of the log.

        That is every `print_frequency` steps, and after the `last` step of a phase.

        Args:
            refused_share: of the draws so far.
        """
        step = progress.step + 1
        for tag, value in zip(tags, progress.losses):
            self.monitor.update(f"{tag}/{name}", value)
        if last or step % self.config.args.print_frequency == 0:
            bar.set_postfix(loss=f"{self.monitor[f'loss/{name}'].avg:.3f}")
            self.monitor.write(step)
            self.show(f"learning_rate/{name}", progress.rate, step)
            if refused_share is not None:
                self.show(f"share of draws refused/{name}", refused_share, step)
            shown = ", ".join(f"{tag} {self.monitor[f'{tag}/{name}'].avg:.4f}" for tag in tags)
            self.monitor.info(f"{name} step {step}: {shown}, rate {progress.rate:.2e}\n", view=False)
            self.monitor.meters.clear()  # reset() would keep them, and the next phase would write zeros for this one

    def loader(self, phase: TrainingPhase) -> Loader:
        """Training batches of a phase: a function of the seed, the phase's schedule, the epoch and the step alone.

        So no two schedules see the same order, crops, flips and colors, whichever were run before.
        """
        return Loader(
            self.dataloader["train"],
            self.sets.train_item,
            phase.batch_size,
            named_seed(self.config.args.seed, f"batches of {phase.schedule_name}"),
            workers=self.config.args.workers,
            rank=self.comm.rank,
            size=self.comm.n_procs,
            sizes=getattr(self.config.dataloader, "train_sizes", ()),
        )

    def inputs(self) -> list:
        """The variables that a training batch goes into."""
        placeholder = self.placeholder["train"]
        return [*placeholder["inputs"], *placeholder["targets"]]

    # --- Evaluating paths -------------------------------------------------------------------------------------------

    @cached_property
    def evaluation(self) -> KeptEvaluation:
        """Evaluates this run's paths."""
        return KeptEvaluation.of(self.model, self.sets, self.config, self.cost, self.buckets, comm=self.comm)

    @property
    def evaluator(self) -> PathEvaluator:
        """The images and the network of `evaluation`."""
        return self.evaluation.evaluator

    def evaluate_paths(self, name: str, paths: PathBatch) -> EvaluatedPaths:
        """Validation losses of `paths` under the present weights, kept in <name>.jsonl as they come."""

        def opened() -> tuple[EvaluatedPaths, PathBatch]:
            kept = self.evaluation.open(self.folder / f"{slug(name)}.jsonl")
            return kept, self.evaluation.missing(kept, paths)

        kept, missing = self.comm.once(opened)
        total = len(np.unique(paths.keys))
        with self.progress(name, total, total - len(missing), "path") as bar:

            def progress() -> None:
                bar.update()
                self.pause()

            evaluations = self.evaluation.add(kept, missing, progress)
        if evaluations:
            self.log(f"{name}: {timing(evaluations, self.evaluator.at_once)}")
        return self.comm.once(lambda: kept)

    def sample_paths(self, name: str, per_bucket: int, space: SearchSpace) -> PathBatch:
        """`per_bucket` paths of each FLOPs bucket, uniform inside it (Alg. 1 line 4); an empty bucket gives none."""
        return sample_in_buckets(self.buckets, per_bucket, self.rng(name), space, self.log)

    # --- The path filter --------------------------------------------------------------------------------------------

    def scorer(self, path_filter: PathFilter) -> PathScorer:
        """The filter as a function of paths, with this run's costs and buckets."""
        return PathScorer(path_filter, self.cost.flops, self.buckets.index)

    def new_filter(self) -> PathFilter:
        """The filter of `hparams.filter`: from its weights file, or with fresh weights."""
        if self.config.hparams.filter.weights:
            return given_filter(self.config, self.space.geometry)
        return PathFilter(self.space.geometry, **filter_settings(self.config), rng=self.rng("path filter weights"))

    @property
    def filter_is_given(self) -> bool:
        """Does `new_filter` come from a file, fitted to another supernet's paths?"""
        return self.config.hparams.filter.weights is not None

    def train_filter(self, name: str, start: PathFilter, paths: EvaluatedPaths, transferred: bool = False) -> PathScorer:
        """Fit a copy of `start` to evaluated paths with Eq. 5 and 6, and keep it as <name>.h5.

        Args:
            transferred: `start` was fitted to another supernet's paths, see `ranking.transfer`.
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
"""Settings that a pre-trained filter and the one that begins with its weights must share."""
FILTER_SETTINGS = (*TRANSFERRED_SETTINGS, "linear_skip", "ensemble")


def filter_settings(config: configs.Config) -> dict:
    """What `PathFilter` takes besides the geometry, of `hparams`."""
    options = config.hparams.filter
    return {key: getattr(options, key) for key in FILTER_SETTINGS} | {"buckets": config.hparams.buckets}


def given_filter(config: configs.Config, geometry: Geometry) -> PathFilter:
    """The path filter that a config names.

    Raises:
        UserError: its file cannot be read, or it was made with other settings or for another search space.
    """
    options = config.hparams.filter
    expected = {key: value for key, value in filter_settings(config).items() if key in (*TRANSFERRED_SETTINGS, "buckets")}
    loaded = PathFilter.load(options.weights, **expected)
    ours, theirs = Tokenizer(geometry, options.stem_tokens), loaded.tokenizer
    if ours.vocabulary != theirs.vocabulary or ours.blocks.tolist() != theirs.blocks.tolist():
        raise UserError(f"the path filter in {options.weights} was trained for another search space than this run's")
    return loaded.extended(options.ensemble, options.linear_skip)
