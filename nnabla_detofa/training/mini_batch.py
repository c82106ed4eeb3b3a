"""How many images go through the network at once, and how many processes can share a batch so."""

from __future__ import annotations

from pathlib import Path as FilePath

from .. import config as configs
from ..common.errors import UserError
from ..common.reading import read_json
from ..runs import result_files
from ..runs.lock import MINI_BATCH
from ..runs.phases import training_phases


def kept_mini_batch(output: FilePath) -> int | None:
    """The mini-batch of the run in `output`; None where it is that of one process, or there is no run.

    Raises:
        UserError: its file is damaged.
    """
    file = output / MINI_BATCH
    if not file.exists():
        return None
    content = read_json(file, "the mini-batch")
    try:
        return result_files.mini_batch(content)["mini_batch"]
    except UserError as error:
        raise UserError(
            f"{file} is damaged ({error}): write the mini-batch there that the run began with, or --restart to lose that run"
        ) from error


def mini_batch(config: configs.Config, processes: int, output: FilePath, restart: bool = False) -> int:
    """Images of one pass through the network: each process' share of a batch, or `hparams.mini_batch`.

    A run keeps what it began with, since batch normalisation makes of other mini-batches other numbers: so another number of
    processes may go on with it if they can share a batch so. A finished run trains no more, and takes any.

    Raises:
        UserError: batches cannot be cut so.
    """
    own, batch = config.hparams.mini_batch, config.hparams.batch_size
    goes_on = (output / "config.json").exists() and not (output / "summary.json").exists() and not restart
    kept = (kept_mini_batch(output) or own or batch) if goes_on else None
    mini = kept or own or max(1, batch // processes)
    key = f"the share of hparams.batch_size of each of {processes} processes" if processes > 1 else "hparams.batch_size"
    configs.refuse_single_values(config.network, config.dataloader, key, mini)
    for name, size in _batch_sizes(config).items():
        if size % (mini * processes):
            if kept and not own:
                raise UserError(
                    f"{output} was begun with mini-batches of {mini}, and {processes} processes cannot share {size} images so: "
                    "go on with fewer processes, or --restart to lose that run"
                )
            raise UserError(
                f"{name} must be a multiple of mini_batch times the number of processes ({mini} x {processes}), got {size}"
            )
    return mini


def most_processes(config: configs.Config, most: int, output: FilePath, restart: bool = False) -> int:
    """The largest number of processes, at most `most`, that can share each batch with the mini-batches of one process.

    So the run's numbers are the same for any number of cores; without `hparams.mini_batch` that is one process.
    """
    mini, sizes = mini_batch(config, 1, output, restart), _batch_sizes(config).values()
    return max(n for n in range(1, most + 1) if all(size % (mini * n) == 0 for size in sizes))


def _batch_sizes(config: configs.Config) -> dict[str, int]:
    """What an error calls each of the batch sizes -> images of a step over all processes."""
    phases = {f"the batch_size of the phase {phase.name}": phase.batch_size for phase in training_phases(config)}
    return {"hparams.batch_size": config.hparams.batch_size} | phases
