"""From a config to a running runner: the folder's lock, the data, the model, and what NNablaNAS needs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path as FilePath

from .. import config as configs
from ..backend.compat import Device, hydra_state
from ..backend.launch import Stopped
from ..common.errors import UserError
from ..data.sets import read_all
from ..runs import provenance
from ..runs.lock import Claim, claimed
from ..runs.phases import training_phases
from ..space.costs import CostModel
from .mini_batch import mini_batch
from .runner import SupernetRunner


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
    comm = device.comm
    size, batch = list(sets.image_size), config.hparams.batch_size
    mini = comm.once(lambda: mini_batch(config, comm.n_procs, output, restart))
    for phase in training_phases(config):
        if phase.batch_size > len(sets.train):  # before anything of that size is made
            raise UserError(
                f"the batch_size of the phase {phase.name} must be at most the number of images, {len(sets.train)}, "
                f"got {phase.batch_size}"
            )
    comm.once(lambda: read_all(sets))
    hparams = {
        "batch_size_train": batch,
        "mini_batch_train": mini,
        "batch_size_valid": batch,
        "mini_batch_valid": mini,
        "input_shapes": [[3, *size]],
        "target_shapes": sets.target_shapes(),
        "loss_weights": None,
    }
    args = {"comm": comm, "event": device.event, "output_path": "", "config": config, "cost": cost, "sets": sets}
    first = comm.rank == 0
    with ExitStack() as held:
        held.enter_context(_alone_in_process())

        def hold() -> Claim:
            other = mini != (config.hparams.mini_batch or batch)
            kept = {"mini_batch": mini, "processes": comm.n_procs} if other else None
            held_for_it = held.enter_context(claimed(output, config, restart, kept))
            if not held_for_it.fresh:
                provenance.refuse_changed_inputs(output, config)
            return held_for_it

        claim = comm.once(hold)
        held.enter_context(_writing(output))
        held.enter_context(hydra_state(output))
        held.enter_context(_quiet_threads())
        runner = None
        try:
            runner = searcher(model, {}, {}, {"train": sets.train, "valid": sets.val}, hparams, args)
            for phase in runner.training.values():
                runner.loader(phase)  # is there a batch to be had?
            runner.callback_on_start()
            runner.log_data()
        except BaseException:
            if runner:
                with suppress(OSError):
                    runner.callback_on_finish()
            if first:
                with suppress(OSError):  # the first error says what is wrong
                    claim.withdraw()
            raise
        if first:
            runner.on_begin = claim.confirm
            provenance.record(output, config)
        with runner.stop:
            try:
                found = runner.run()
            except BaseException as error:
                with suppress(OSError):
                    runner.callback_on_finish()
                if first and restart and not runner.begun:
                    with suppress(OSError):
                        claim.withdraw()
                if isinstance(error, Stopped):
                    comm.barrier()  # the first to leave ends the others, who may still write
                raise
            runner.callback_on_finish()
            comm.barrier()
            return found


_RUNNING = threading.Lock()


@contextmanager
def _alone_in_process() -> Iterator[None]:
    """Refuse a second run in another thread: Hydra, which tells NNablaNAS the run's folder, has one state for the process.

    Raises:
        UserError: another thread runs.
    """
    if not _RUNNING.acquire(blocking=False):
        raise UserError("another run is being trained in this process: wait for its end, or start a process for each run")
    try:
        yield
    finally:
        _RUNNING.release()


@contextmanager
def _writing(output: FilePath) -> Iterator[None]:
    """Turn an OSError of a run in `output` into the sentence that says how to go on.

    A closed pipe is no file of the run: its BrokenPipeError is passed on.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(
            f"{error.filename or output} cannot be written ({error.strerror or error}): what was done before is kept, and the "
            "same command goes on once that is mended"
        ) from error


@contextmanager
def _quiet_threads() -> Iterator[None]:
    """What TensorBoard's thread cannot write is raised again in ours, so its own traceback says nothing new."""
    before = threading.excepthook

    def report(args) -> None:
        if not issubclass(args.exc_type, OSError):
            before(args)

    threading.excepthook = report
    try:
        yield
    finally:
        threading.excepthook = before
