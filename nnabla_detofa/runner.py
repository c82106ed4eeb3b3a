"""What Algorithm 1 and its baselines share: an NNablaNAS runner whose run is a sequence of named phases.

A phase leaves its result in the run's folder and is not done again: the same command goes on where it was stopped.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path as FilePath

import numpy as np
from tqdm import tqdm

from . import config as configs
from .compat import Device, Optimizer, Runner, hydra_state
from .costs import Buckets, CostModel
from .data.loader import Loader
from .errors import UserError
from .evaluated_paths import EvaluatedPaths
from .ledger import DeviceClock, entry
from .path_evaluation import KeptEvaluation, named_rng, sample_in_buckets
from .path_filter import PathFilter, PathScorer, Tokenizer
from .phases import TrainingPhase, training_phases
from .ranking import fit
from .search_space import PathBatch, SearchSpace
from .training import Checkpoint, Objective, PathSampler, Progress, new_optimizer, train
from .validation import PathEvaluator, timing, validation_loss


class StopRequest:
    """Turns the first SIGINT or SIGTERM into a request that is honoured between two steps; the second stops at once."""

    def __init__(self):
        self.requested = False

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._hear) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def check(self) -> None:
        """Raise KeyboardInterrupt if a stop was asked for."""
        if self.requested:
            raise KeyboardInterrupt


def slug(name: str) -> str:
    """A phase's name as a file's."""
    return name.replace(" ", "_").replace("-", "_")


def write_json(file: FilePath, content) -> None:
    """Write JSON that is there completely or not at all."""
    fresh = file.with_name(file.name + ".new")
    fresh.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(fresh, file)


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
    """

    phases: tuple[str, ...] = ()
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
        self.stop = StopRequest()
        self.results: dict = {}
        self.seconds: dict[str, float] = self.recall("seconds", {})
        self.clock = DeviceClock(self.comm.ctx.backend != ["cpu:float"], self.comm.n_procs)
        self.ledger: dict = {"unit": self.clock.unit, "phases": {}} | self.recall("ledger", {})

    # NNablaNAS' names for what happens on a batch; the phases call both by their own.
    train_on_batch = staticmethod(train)
    valid_on_batch = staticmethod(validation_loss)

    def callback_on_start(self) -> None:
        """Say what is trained."""
        edges = ", ".join(f"{edge / 1e9:.4g}" for edge in self.buckets.edges)
        self.log(f"search space {self.space.name}: {self.space.size():.4g} paths; FLOPs buckets at {edges} GFLOPs")

    def callback_on_epoch_end(self) -> None:
        """Called after each epoch of a training phase; for subclasses."""

    def callback_on_finish(self) -> None:
        """Close the log."""
        self.monitor.close()

    # --- Phases and their results -----------------------------------------------------------------------------------

    def remember(self, name: str, content) -> None:
        """Keep something as <name>.json in the run's folder."""
        write_json(self.folder / f"{name}.json", content)

    def recall(self, name: str, default=None):
        """What was remembered as `name`, or `default`.

        Raises:
            UserError: the file is damaged, as a machine that lost its power may leave it.
        """
        file = self.folder / f"{name}.json"
        try:
            return json.loads(file.read_text()) if file.exists() else default
        except ValueError as error:
            raise UserError(f"{file} is damaged: it is not JSON ({error}); remove it, and it is made again") from error

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Announce a phase, and add its time to what the run has cost so far, interrupted or not."""
        number = self.phases.index(name) + 1
        self.log(f"[{number}/{len(self.phases)}] {name}")
        start, device_start = time.perf_counter(), self.clock()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            self.remember("seconds", self.seconds)
            spent = self.ledger["phases"].get(name, {"seconds": 0.0})["seconds"]
            self.ledger["phases"][name] = entry(name, spent + self.clock() - device_start)
            self.remember("ledger", self.ledger)

    def log(self, message: str) -> None:
        """A line of the log, on the screen and in the file."""
        self.monitor.info(message + "\n")

    def progress(self, name: str, total: int, done: int = 0, unit: str = "step") -> tqdm:
        """A progress bar with the time left."""
        return tqdm(total=total, initial=done, desc=name, unit=unit, disable=self.comm.rank > 0, dynamic_ncols=True)

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
        done, checkpoint = Checkpoint(self.folder / slug(name)), Checkpoint(self.folder / "checkpoint" / slug(name))
        if (state := done.load(self.model, optimizer)) is not None:
            paths.restore(state["paths"])
            return
        per_epoch = phase.steps_per_epoch(len(self.dataloader["train"]))
        first, last = epochs.start * per_epoch, epochs.stop * per_epoch
        if (state := checkpoint.load(self.model, optimizer)) is not None:
            first = state["step"]
            paths.restore(state["paths"])
            self.log(f"{name} goes on at step {first} of {last}")
        every = self.config.hparams.checkpoint_every_epochs * per_epoch
        bar = self.progress(name, last - epochs.start * per_epoch, first - epochs.start * per_epoch)

        def state_now(step: int) -> dict:
            return {"step": step, "paths": paths.state()}

        def on_step(progress: Progress) -> None:
            bar.update()
            self._report(name, tags, progress, bar)
            if self.stop.requested or (progress.step + 1) % every == 0:
                checkpoint.save(self.model, optimizer, state_now(progress.step + 1))
            if (progress.step + 1) % per_epoch == 0:
                self.callback_on_epoch_end()
            self.stop.check()

        with bar:
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
        done.save(self.model, optimizer, state_now(last))
        checkpoint.remove()

    def _report(self, name: str, tags: Sequence[str], progress: Progress, bar: tqdm) -> None:
        """TensorBoard at every step; a line of the log every `print_frequency` steps."""
        step = progress.step + 1
        for tag, value in zip(tags, progress.losses):
            self.monitor.update(f"{tag}/{name}", value)
        self.monitor.update(f"learning_rate/{name}", progress.rate)
        if step % self.config.args.print_frequency == 0:
            bar.set_postfix(loss=f"{self.monitor[f'loss/{name}'].avg:.3f}")
            self.monitor.write(step)
            shown = ", ".join(f"{tag} {self.monitor[f'{tag}/{name}'].avg:.4f}" for tag in tags)
            self.monitor.info(f"{name} step {step}: {shown}, rate {progress.rate:.2e}\n", view=False)
            self.monitor.reset()

    def loader(self, phase: TrainingPhase) -> Loader:
        """Training batches of a phase: a function of the seed, the epoch and the step alone."""
        return Loader(
            self.dataloader["train"],
            self.sets.train_item,
            phase.batch_size,
            self.config.args.seed,
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
        return KeptEvaluation.of(self.model, self.sets, self.config, self.cost, self.buckets)

    @property
    def evaluator(self) -> PathEvaluator:
        """The images and the network of `evaluation`."""
        return self.evaluation.evaluator

    def evaluate_paths(self, name: str, paths: PathBatch) -> EvaluatedPaths:
        """Validation losses of `paths` under the present weights, kept in <name>.jsonl as they come."""
        kept = self.evaluation.open(self.folder / f"{slug(name)}.jsonl")
        missing = self.evaluation.missing(kept, paths)
        total = len(np.unique(paths.keys))
        with self.progress(name, total, total - len(missing), "path") as bar:

            def progress() -> None:
                bar.update()
                self.stop.check()

            evaluations = self.evaluation.add(kept, missing, progress)
        if evaluations:
            self.log(f"{name}: {timing(evaluations, self.evaluator.processes)}")
        return kept

    def sample_paths(self, name: str, per_bucket: int, space: SearchSpace) -> PathBatch:
        """`per_bucket` paths of each FLOPs bucket, uniform inside it (Alg. 1 line 4); an empty bucket gives none."""
        return sample_in_buckets(self.buckets, per_bucket, self.rng(name), space, self.log)

    # --- The path filter --------------------------------------------------------------------------------------------

    def scorer(self, path_filter: PathFilter) -> PathScorer:
        """The filter as a function of paths, with this run's costs and buckets."""
        return PathScorer(path_filter, self.cost.flops, self.buckets.index)

    def new_filter(self) -> PathFilter:
        """The filter of `hparams.filter`: from its weights file, or with fresh weights."""
        options = self.config.hparams.filter
        settings = {key: getattr(options, key) for key in FILTER_SETTINGS} | {"buckets": self.config.hparams.buckets}
        if not options.weights:
            return PathFilter(self.space.geometry, **settings, rng=self.rng("path filter weights"))
        loaded = PathFilter.load(options.weights, **settings)
        ours, theirs = Tokenizer(self.space.geometry, options.stem_tokens), loaded.tokenizer
        if ours.vocabulary != theirs.vocabulary or ours.blocks.tolist() != theirs.blocks.tolist():
            raise UserError(f"the path filter in {options.weights} was trained for another search space than this run's")
        return loaded

    def train_filter(self, name: str, start: PathFilter, paths: EvaluatedPaths) -> PathScorer:
        """Fit a copy of `start` to evaluated paths with Eq. 5 and 6, and keep it as <name>.h5."""
        file, options = self.folder / f"{slug(name)}.h5", self.config.hparams.filter
        with self.phase(name):
            if file.exists():
                return self.scorer(PathFilter.load(file))
            trained = start.copy()
            with self.progress(name, options.epochs, unit="epoch") as bar:

                def on_epoch(epoch: int, train_loss: float, validation_loss: float) -> None:
                    bar.update()
                    bar.set_postfix(loss=f"{train_loss:.3f}", validation=f"{validation_loss:.3f}")
                    self.stop.check()

                result = fit(
                    trained,
                    paths.batch,
                    paths.buckets,
                    paths.losses,
                    self.rng(name),
                    epochs=options.epochs,
                    lr=options.lr,
                    batch_size=options.batch_size,
                    patience=options.patience,
                    flops_bounded=options.flops_bounded,
                    progress=on_epoch,
                )
            self.log(
                f"{name}: best of {len(result.validation_losses) - 1} epochs is {result.best_epoch}, validation loss "
                f"{result.validation_losses[result.best_epoch]:.4f} (before: {result.validation_losses[0]:.4f})"
            )
            trained.save(file)
        return self.scorer(trained)


def claim(output: FilePath, config: configs.Config, restart: bool) -> None:
    """Make `output` the folder of this config's run; with `restart` the run that is there is set aside first.

    Raises:
        UserError: it holds the run of a config with another result, or something that is not a run.
    """
    file = output / "config.json"
    try:
        before = json.loads(file.read_text()) if file.is_file() else None
    except ValueError:
        before = {}
    if before is not None and not (isinstance(before, dict) and {"args", "network", "hparams"} <= before.keys()):
        raise UserError(f"args.output_path {output} holds a config.json that is not a run's: take another folder")
    if before is not None and restart:
        shutil.rmtree(aside(output), ignore_errors=True)
        os.replace(output, aside(output))
    if output.exists() and not output.is_dir():
        raise UserError(f"args.output_path must be a folder, and {output} is a file")
    if output.exists() and not file.exists() and any(output.iterdir()):
        raise UserError(f"args.output_path {output} holds something that is not a run: take a new or an empty folder")
    if file.exists():
        changed = [key for key in differences(before, config.to_dict()) if not configs.without_effect(key)]
        if changed:
            raise UserError(
                f"{output} holds a run with another config (differing: {', '.join(changed)}): "
                "take another -o, or --restart to lose that run"
            )
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_json(file, config.to_dict())
    except OSError as error:
        raise UserError(f"args.output_path must be a folder that can be written, got {output} ({error.strerror})") from error


def aside(output: FilePath) -> FilePath:
    """Where a run waits while `--restart` checks what replaces it."""
    return output.with_name(output.name + ".before")


def differences(before: dict, now: dict, prefix: str = "") -> list[str]:
    """Dotted keys whose values differ."""
    found: list[str] = []
    for key in sorted(before.keys() | now.keys()):
        left, right = before.get(key), now.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            found += differences(left, right, f"{prefix}{key}.")
        elif left != right:
            found.append(prefix + key)
    return found


FILTER_SETTINGS = ("dim", "heads", "layers", "feed_forward", "stem_tokens", "block_encoding", "encoding", "pooling")


def start(
    searcher: type[SupernetRunner],
    model,
    sets,
    cost: CostModel,
    config: configs.Config,
    device: Device,
    output: FilePath,
    restart: bool = False,
) -> dict:
    """Make the runner as NNablaNAS does, and run it.

    Args:
        model: a `SearchNet`. sets: the data sets. cost: what a path costs.
        output: the run's folder. restart: begin anew what is there.
    """
    size, batch = list(sets.image_size), config.hparams.batch_size
    mini = config.hparams.mini_batch or batch // device.comm.n_procs
    if batch % (mini * device.comm.n_procs):
        raise UserError(
            f"hparams.batch_size must be a multiple of mini_batch times the number of processes "
            f"({mini} x {device.comm.n_procs}), got {batch}"
        )
    for phase in training_phases(config):
        if phase.batch_size % (mini * device.comm.n_procs):
            raise UserError(
                f"the batch_size of the phase {phase.name} must be a multiple of mini_batch times the number of processes "
                f"({mini} x {device.comm.n_procs}), got {phase.batch_size}"
            )
    hparams = {
        "batch_size_train": batch,
        "mini_batch_train": mini,
        "batch_size_valid": batch,
        "mini_batch_valid": mini,
        "input_shapes": [[3, *size]],
        "target_shapes": sets.target_shapes(),
        "loss_weights": None,
    }
    goes_on = (output / "config.json").exists() and not restart
    if device.comm.rank == 0:
        claim(output, config, restart)
    args = {"comm": device.comm, "event": device.event, "output_path": "", "config": config, "cost": cost, "sets": sets}
    with hydra_state(output):
        runner = searcher(model, {}, {}, {"train": sets.train, "valid": sets.val}, hparams, args)
        try:
            for phase in runner.training.values():
                runner.loader(phase)  # is there a batch to be had?
            runner.callback_on_start()
        except UserError:
            runner.callback_on_finish()
            if not goes_on:
                shutil.rmtree(output)
                if aside(output).exists():
                    os.replace(aside(output), output)
            raise
        shutil.rmtree(aside(output), ignore_errors=True)
        with runner.stop:
            try:
                return runner.run()
            finally:
                runner.callback_on_finish()
