"""Start of a run: lock of its folder, checks of the data, and construction of the NNablaNAS runner."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path as FilePath
from typing import Any

from ..backend.compat import Device, Mo, hydra_state
from ..backend.launch import Stopped
from ..backend.ranks import Communicator
from ..common.errors import UserError
from ..config import Config
from ..data.content import forget_digests
from ..data.sets import read_all
from ..evaluation.images import Sets
from ..runs import provenance
from ..runs.lock import LockedRun, locked_run
from ..runs.phases import TrainingPhase, check_phases
from ..space.costs import CostModel
from .mini_batch import mini_batch
from .runner import SupernetRunner


def start(
    searcher: Callable[..., SupernetRunner],
    model: Mo.Module,
    sets: Sets,
    cost: CostModel,
    config: Config,
    training: Sequence[TrainingPhase],
    device: Device,
    output: FilePath,
    restart: bool = False,
) -> dict:
    """Create a runner as NNablaNAS does, and run it.

    Args:
        searcher: class of the runner.
        model: a `SearchNet`.
        sets: datasets.
        cost: cost model of paths.
        config: config of the run.
        training: training phases of the run.
        device: device to run on.
        output: folder of the run.
        restart: discard the run in the folder and start from the beginning.

    Returns:
        The result of the runner, the content of summary.json.

    Raises:
        UserError: the folder, the data or a stored result cannot be used, or the runner raised it.
        Stopped: a stop was requested.
    """
    comm = device.comm
    mini = comm.once(lambda: mini_batch(config, comm.n_procs, output, restart))
    check_phases(training, len(sets.train))  # before arrays of the batch size are allocated
    comm.once(lambda: read_all(sets))
    with ExitStack() as held:
        held.enter_context(_alone_in_process())
        locked = comm.once(lambda: _lock(held, config, mini, comm.n_procs, output, restart))
        held.enter_context(_writing(output))
        held.enter_context(hydra_state(output))
        held.enter_context(_quiet_threads())
        hparams = _runner_hparams(sets, config.hparams.batch_size, mini)
        args = {"comm": comm, "event": device.event, "output_path": ""}
        args |= {"config": config, "training": training, "cost": cost, "sets": sets}

        def create() -> SupernetRunner:
            return searcher(model, {}, {}, {"train": sets.train, "valid": sets.val}, hparams, args)

        runner = _checked_runner(create, locked, comm)
        if comm.rank == 0:
            runner.on_started = locked.commit
            provenance.record(output, config)
        return _run(runner, locked, restart)


def _lock(held: ExitStack, config: Config, mini: int, processes: int, output: FilePath, restart: bool) -> LockedRun:
    """Lock the folder of the run until `held` is closed, and check that the inputs of a resumed run are unchanged."""
    own = mini == (config.hparams.mini_batch or config.hparams.batch_size)
    locked = held.enter_context(
        locked_run(output, config, restart, None if own else {"mini_batch": mini, "processes": processes})
    )
    forget_digests()
    if not locked.fresh:
        provenance.check_inputs_unchanged(output, config)
    return locked


def _runner_hparams(sets: Sets, batch: int, mini: int) -> dict[str, Any]:
    """Return the hyperparameters that NNablaNAS' `Runner` reads: batch sizes and the shapes of its placeholders."""
    return {
        "batch_size_train": batch,
        "mini_batch_train": mini,
        "batch_size_valid": batch,
        "mini_batch_valid": mini,
        "input_shapes": [[3, *sets.image_size]],
        "target_shapes": sets.train_shapes(),
        "loss_weights": None,
    }


def _checked_runner(create: Callable[[], SupernetRunner], locked: LockedRun, comm: Communicator) -> SupernetRunner:
    """Create the runner and check all that would otherwise fail after hours; restore the folder if a check fails."""
    runner = None
    try:
        runner = create()
        for phase in runner.training.values():
            runner.loader(phase)  # raises if it cannot form a batch
        runner.callback_on_start()
        runner.log_data()
    except BaseException:
        if runner:
            with suppress(OSError):
                runner.callback_on_finish()
        if comm.rank == 0:
            with suppress(OSError):  # report the first error
                locked.roll_back()
        raise
    return runner


def _run(runner: SupernetRunner, locked: LockedRun, restart: bool) -> dict:
    """Run the runner; restore the run that it replaces if it fails before its first step."""
    comm = runner.comm
    with runner.stop:
        try:
            result = runner.run()
        except BaseException as error:
            with suppress(OSError):
                runner.callback_on_finish()
            if comm.rank == 0 and restart and not runner.started:
                with suppress(OSError):
                    locked.roll_back()
            if isinstance(error, Stopped):
                comm.barrier()  # the first rank to exit ends the others, which may still be writing
            raise
        runner.callback_on_finish()
        comm.barrier()
        return result


_RUNNING = threading.Lock()


@contextmanager
def _alone_in_process() -> Iterator[None]:
    """Reject a second run in the same process, because NNablaNAS reads the run's folder from Hydra's process-wide state.

    Raises:
        UserError: another thread is running a run.
    """
    if not _RUNNING.acquire(blocking=False):
        raise UserError("another run is being trained in this process: wait for its end, or start a process for each run")
    try:
        yield
    finally:
        _RUNNING.release()


@contextmanager
def _writing(output: FilePath) -> Iterator[None]:
    """Convert an OSError of a run in `output` into a UserError that says how to continue.

    A BrokenPipeError is not converted, because a pipe is not a file of the run.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(
            f"{error.filename or output} cannot be written ({error.strerror or error}): earlier results are kept; fix this "
            "and run the same command again to resume"
        ) from error


@contextmanager
def _quiet_threads() -> Iterator[None]:
    """Suppress tracebacks of OSErrors in other threads; TensorBoard's write errors are raised again in the run's thread."""
    before = threading.excepthook

    def report(args: threading.ExceptHookArgs) -> None:
        if not issubclass(args.exc_type, OSError):
            before(args)

    threading.excepthook = report
    try:
        yield
    finally:
        threading.excepthook = before
