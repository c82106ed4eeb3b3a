"""Training of one phase of a run, with checkpoints, reports and stops (Alg. 1 lines 8 to 17)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..backend.compat import Optimizer
from ..backend.launch import Stopped
from ..common.errors import UserError
from ..common.reading import shown
from ..networks.weights import digest
from ..runs.phases import TrainingPhase, slug
from .checkpoint import Checkpoint
from .loop import NotFinite, Objective, PathSampler, Progress, train

if TYPE_CHECKING:
    from ..common.progress import ProgressBar
    from .runner import SupernetRunner


class PhaseTraining:
    """Trains the epochs of one phase, resuming from its last checkpoint.

    When the phase is complete, weights and optimizer are saved in the folder <name>/ of the run.

    Args:
        run: run that the phase belongs to.
        phase: phase to train.
        paths: sampler of the path of each step.
        optimizer: optimizer of the supernet's parameters.
        objective: training objective. Default: the network's own loss.
    """

    def __init__(
        self,
        run: SupernetRunner,
        phase: TrainingPhase,
        paths: PathSampler,
        optimizer: Optimizer,
        objective: Objective | None = None,
    ):
        self.run, self.phase, self.paths, self.optimizer, self.objective = run, phase, paths, optimizer, objective
        self.loss_names = objective.names if objective else run.model.loss_names
        self.complete = Checkpoint(run.folder / slug(phase.name), run.log)
        self.checkpoint = Checkpoint(run.folder / "checkpoint" / slug(phase.name), run.log)
        self.steps_per_epoch = phase.steps_per_epoch(len(run.dataloader["train"]))
        self.steps = range(phase.epochs.start * self.steps_per_epoch, phase.epochs.stop * self.steps_per_epoch)
        self.config_hash = run.config.config_hash
        self.state = self._state(self.steps.start, paths.state())
        self.saved_step: int | None = None

    def train(self) -> None:
        """Train the phase. If it was completed before, only its weights and its optimizer are loaded.

        Raises:
            NotFinite: the loss is NaN or infinite.
            Stopped: a stop was requested; a checkpoint was saved.
            UserError: a checkpoint is damaged or belongs to another config; or an image cannot be loaded or device memory is
                exhausted, in which case a checkpoint of the last complete step was saved.
        """
        if self._load(self.complete) is None:
            self._resume()
            bar = self.run.log.progress(self.phase.name, len(self.steps), self.state["step"] - self.steps.start)
            with bar, self.run.stop.deferred():
                self._train_steps(bar)
                self._save(self.complete)
        if self.run.comm.rank == 0:
            self.checkpoint.remove()
        self.run.comm.barrier()

    def _train_steps(self, bar: ProgressBar) -> None:
        """Run the remaining steps."""
        run, phase = self.run, self.phase
        try:
            train(
                run.model,
                self.optimizer,
                self.paths,
                run.loader(phase),
                run.inputs(),
                range(self.state["step"], self.steps.stop),
                accumulate=phase.batch_size // run.comm.n_procs // run.mbs_train,
                paths_per_step=phase.paths_per_step,
                objective=self.objective,
                comm=run.comm,
                event=run.event,
                on_step=lambda progress: self._on_step(progress, bar),
            )
        except NotFinite as error:
            kept = "no checkpoint of this phase was saved yet"
            if self.saved_step is not None:
                kept = f"the last checkpoint, of step {self.saved_step}, is {self.checkpoint.folder}"
            raise NotFinite(f"{phase.name}: {error}; {kept}") from error
        except UserError:  # e.g. an image is missing or broken; the weights are those of the last complete step
            if self.state["step"] != self.saved_step:
                self._save(self.checkpoint)
            raise

    def _on_step(self, progress: Progress, bar: ProgressBar) -> None:
        """Report a training step, and save a checkpoint if one is due or a stop was requested."""
        run, step = self.run, progress.step + 1
        run.mark_started()
        self.state = self._state(step, progress.paths)
        bar.update()
        self._report(progress, bar)
        if step % self.steps_per_epoch == 0:
            run.callback_on_epoch_end()
        stopping = run.stop.agreed()
        due = step < self.steps.stop and step % (run.hparams.checkpoint_every_epochs * self.steps_per_epoch) == 0
        if stopping or due:  # after the last step `train` saves the complete phase
            self._save(self.checkpoint)
        if stopping:
            raise Stopped("checkpoint saved")

    def _report(self, progress: Progress, bar: ProgressBar) -> None:
        """Report mean losses and the learning rate every `print_frequency` steps and after the last step of the phase."""
        log, name, step = self.run.log, self.phase.name, progress.step + 1
        log.add_losses(name, self.loss_names, progress.losses)
        if step == self.steps.stop or step % self.run.config.args.print_frequency == 0:
            loss = log.report_losses(name, self.loss_names, step, progress.rate)
            bar.set_postfix(loss=f"{loss:.3f}", whole_run=self.run.time_left(bar.n / bar.total if bar.total else 0.0))
            if (share := getattr(self.paths, "rejected_share", None)) is not None:
                log.scalar(f"share of paths rejected/{name}", share, step)

    # --- States -----------------------------------------------------------------------------------------------------

    def _state(self, step: int, paths: dict) -> dict:
        """Return the state after `step` steps of the schedule, with that of the sampler, without weights and optimizer."""
        return {
            "phase": self.phase.name,
            "line": self.run.lines.get(self.phase.name),
            "config": self.config_hash,
            "epoch": step // self.steps_per_epoch,
            "step": step,
            "paths": paths,
        }

    def _save(self, where: Checkpoint) -> None:
        """Save the state of the last complete step, and record the cost."""
        if self.run.comm.rank == 0:
            where.save(self.run.model, self.optimizer, self.state)
        self.saved_step = self.state["step"]
        self.run.costs.record()

    def _resume(self) -> None:
        """Load the checkpoint of the phase, if there is one.

        Raises:
            UserError: the checkpoint is damaged or belongs to another config.
        """
        if (state := self._load(self.checkpoint)) is None:
            return
        if state.get("config", self.config_hash) != self.config_hash:
            raise UserError(
                f"the checkpoint {self.checkpoint.folder} belongs to a run with another config: remove it to start this phase "
                "over"
            )
        self.state = self._state(state["step"], self.paths.state())
        self.saved_step = state["step"]
        self.run.log(f"{self.phase.name} resumes at step {state['step']} of {self.steps.stop}")

    def _load(self, checkpoint: Checkpoint) -> dict | None:
        """Load a checkpoint on all ranks, and verify that their weights are equal.

        Returns:
            The JSON of the state; None if there is no checkpoint.

        Raises:
            UserError: the weights differ, because the ranks read different files.
        """
        run = self.run
        state = checkpoint.load(run.model, self.optimizer, self._restore)
        weights = digest(run.model.get_parameters()) if run.comm.n_procs > 1 else ""
        if len(set(run.comm.gather((state is None, weights)))) > 1:
            raise UserError(
                f"the ranks have different weights: {run.folder}, and the weights files that the config names, must be the "
                "same files for all ranks"
            )
        return state

    def _restore(self, state: dict) -> None:
        """Restore the sampler from the JSON of a state; ValueError if the state is not one of this phase."""
        if not isinstance(state["step"], int) or not self.steps.start <= state["step"] <= self.steps.stop:
            raise ValueError(f"its step must be in [{self.steps.start}, {self.steps.stop}], got {shown(state['step'])}")
        self.paths.restore(state["paths"])
