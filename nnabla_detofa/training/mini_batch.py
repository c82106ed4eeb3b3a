"""Size of mini-batches, and the number of processes that can share a batch with it."""

from __future__ import annotations

from pathlib import Path as FilePath

from .. import config as configs
from ..common.errors import UserError
from ..common.reading import read_json
from ..runs import result_files
from ..runs.lock import MINI_BATCH
from ..runs.phases import training_phases


def kept_mini_batch(output: FilePath) -> int | None:
    """Read the mini-batch size of the run in `output`.

    Returns:
        Number of images; None if the run uses the mini-batch size of one process, or if there is no run.

    Raises:
        UserError: the file is damaged.
    """
    file = output / MINI_BATCH
    if not file.exists():
        return None
    content = read_json(file, "the mini-batch")
    try:
        return result_files.mini_batch(content)["mini_batch"]
    except UserError as error:
        raise UserError(
            f"{file} is damaged ({error}): write the mini-batch of the run's start into it, or discard the run with --restart"
        ) from error


def mini_batch(config: configs.Config, processes: int, output: FilePath, restart: bool = False) -> int:
    """Return the mini-batch size, the number of images in one forward pass of the network.

    It is `hparams.mini_batch`, or else each process' share of a batch. A resumed run keeps its mini-batch size, because
    batch normalization makes results depend on it. It can be resumed with another number of processes if they can share each
    batch in mini-batches of this size. The restriction does not apply to a finished run, which is not trained again.

    Args:
        config: config of the run.
        processes: number of processes that share each batch.
        output: folder of the run.
        restart: the run in the folder, if any, will be discarded.

    Raises:
        UserError: a batch cannot be divided into mini-batches of this size.
    """
    own, batch = config.hparams.mini_batch, config.hparams.batch_size
    goes_on = (output / "config.json").exists() and not (output / "summary.json").exists() and not restart
    kept = (kept_mini_batch(output) or own or batch) if goes_on else None
    mini = kept or own or max(1, batch // processes)
    key = f"the share of hparams.batch_size of each of {processes} processes" if processes > 1 else "hparams.batch_size"
    configs.check_batch_norm(config.network, config.dataloader, key, mini)
    for name, size in _batch_sizes(config).items():
        if size % (mini * processes):
            if kept and not own:
                raise UserError(
                    f"{output} was started with mini-batches of {mini}, which {processes} processes cannot make of {size} "
                    "images: use fewer processes, or pass --restart to discard that run"
                )
            raise UserError(
                f"{name} must be a multiple of mini_batch times the number of processes ({mini} x {processes}), got {size}"
            )
    return mini


def most_processes(config: configs.Config, most: int, output: FilePath, restart: bool = False) -> int:
    """Return the largest number of processes, at most `most`, that can share each batch in the mini-batches of one process.

    With this number, the results of a run do not depend on the number of cores. It is 1 for a new run without
    `hparams.mini_batch`. For the other arguments see `mini_batch`.
    """
    mini, sizes = mini_batch(config, 1, output, restart), _batch_sizes(config).values()
    return max(n for n in range(1, most + 1) if all(size % (mini * n) == 0 for size in sizes))


def _batch_sizes(config: configs.Config) -> dict[str, int]:
    """Map the name of each batch size in error messages to its number of images per step, over all processes."""
    phases = {f"the batch_size of the phase {phase.name}": phase.batch_size for phase in training_phases(config)}
    return {"hparams.batch_size": config.hparams.batch_size} | phases
