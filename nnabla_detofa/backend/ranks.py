"""Communication between the processes ("ranks") that run one job together.

All ranks run the same program. Rank 0 makes every decision that changes the control flow (a path, the existence of a file, a
request to stop) and broadcasts it; only rank 0 writes files.
"""

from __future__ import annotations

import logging
import pickle
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.errors import UserError
from .cuda_libraries import reason
from .launch import Stopped

if TYPE_CHECKING:
    import nnabla as nn

WHOLE = 248
"""Largest size in bytes of a pickled value that `Communicator.gather` sends in one exchange."""


class Communicator:
    """Communicator of a single process, and base class of communicators of several.

    It extends the interface of NNablaNAS' CommunicatorWrapper. A subclass must implement `all_reduce` and `barrier`.

    Attributes:
        ctx: the context this process computes in.
        rank: number of this process, from 0; rank 0 writes files and logs.
        local_rank: number of this process on its machine, from 0.
        n_procs: number of processes that train together.
    """

    def __init__(self, ctx: nn.Context | None = None, rank: int = 0, local_rank: int = 0, n_procs: int = 1):
        self.ctx: Any = ctx
        self.rank = rank
        self.local_rank = local_rank
        self.n_procs = n_procs

    @property
    def size(self) -> int:
        return self.n_procs

    def all_reduce(self, arrays: Sequence[nn.NdArray], division: bool = False, inplace: bool = True) -> None:
        """Replace each array by its sum over all processes, or with `division` by its mean.

        Args:
            arrays: the arrays, of equal shapes on all processes.
            division: compute the mean.
            inplace: reduce array by array, without one packed buffer (slower for many small arrays, no extra memory).
        """

    def barrier(self) -> None:
        """Wait until every process has called this method."""

    def gather(self, value: Any) -> list:
        """Return the values of all processes, in the order of their ranks, on every process. All processes must call it.

        Values are pickled, and their bytes are summed as numbers, where each process has zeros in the rows of the others. So
        this needs no operation other than `all_reduce`.
        """
        if self.n_procs == 1:
            return [value]
        sent = pickle.dumps(value)
        heads = self._rows(len(sent).to_bytes(8, "little") + sent[:WHOLE], 8 + WHOLE)
        sizes = [int.from_bytes(head[:8], "little") for head in heads]
        whole = max(sizes) <= WHOLE
        rows = [head[8:] for head in heads] if whole else self._rows(sent, max(sizes))
        return [pickle.loads(row[:size]) for row, size in zip(rows, sizes)]

    def _rows(self, content: bytes, width: int) -> list[bytes]:
        """Return the bytes of each process, zero-padded to `width`."""
        from nnabla import NdArray

        rows = np.zeros((self.n_procs, width), np.float32)
        rows[self.rank, : len(content)] = np.frombuffer(content, np.uint8)
        array = NdArray.from_numpy_array(rows)
        self.all_reduce([array])
        return [row.astype(np.uint8).tobytes() for row in array.data]

    def each(self, function: Callable[[], Any]) -> list:
        """Call `function` on each process and return all results, in the order of the ranks.

        An exception on one process is raised on all.

        Raises:
            UserError, OSError: as raised on a process.
            Stopped: KeyboardInterrupt on a process.
            RuntimeError: any other exception, on the processes that did not raise it.
        """
        if self.n_procs == 1:
            return [function()]
        value: Any = None
        own: BaseException | None = None
        shared: BaseException | None = None
        try:
            value = function()
        except (UserError, OSError) as error:
            own = shared = error
        except KeyboardInterrupt:
            own = shared = Stopped()
        except Exception as error:
            own, shared = error, RuntimeError(f"rank {self.rank} failed:\n{traceback.format_exc()}")
        outcomes: list[tuple[Any, BaseException | None]] = self.gather((value, shared))
        for rank, (_, theirs) in enumerate(outcomes):
            if theirs is not None:
                raise own if own is not None and rank == self.rank else theirs
        return [value for value, _ in outcomes]

    def once(self, function: Callable[[], Any]) -> Any:
        """Call `function` on rank 0 only; return its result, or raise its exception (see `each`), on all processes."""
        return self.each(function if self.rank == 0 else lambda: None)[0]

    def map(self, function: Callable[[Any], Any], items: Iterable) -> Iterator:
        """Compute `map(function, items)` in parallel: of n ranks, rank r takes items r, r + n, ...; all get all results.

        Ranks exchange results about every `EXCHANGE` seconds, or after each item that takes longer, so that a rank with a
        slow item does not keep the others waiting. The results do not depend on when that is.
        """
        items, n = list(items), self.n_procs
        if n == 1:
            yield from map(function, items)
        start, per_rank = 0, 1
        while n > 1 and start < len(items):
            block = items[start : start + n * per_rank]
            found = self.each(partial(_timed, function, block[self.rank :: n]))
            for place in range(len(block)):
                results, _ = found[place % n]
                yield results[place // n]
            start += len(block)
            slowest = max(seconds for _, seconds in found) / per_rank
            per_rank = max(1, min(MAX_PER_RANK, int(EXCHANGE / max(slowest, 1e-9))))


EXCHANGE = 4.0
"""Seconds between the exchanges of `Communicator.map`: as much work as a rank may lose when the run is stopped."""
MAX_PER_RANK = 64
"""Maximum number of items of a rank between exchanges."""


def _timed(function: Callable[[Any], Any], items: Sequence) -> tuple[list, float]:
    """Return the results for the items and the seconds they took."""
    start = time.perf_counter()
    return [function(item) for item in items], time.perf_counter() - start


def _communicators() -> ModuleType:
    """Import nnabla.communicators without its warning that Open MPI 1 may need libmpi.so on the loader's path."""
    log = logging.getLogger("nnabla")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        import nnabla.communicators
    finally:
        log.setLevel(level)
    return nnabla.communicators


class NnablaCommunicator(Communicator):
    """Communicator of processes on GPUs, one process per GPU, through nnabla's own communicator (NCCL).

    Raises:
        UserError: nnabla cannot create its communicator.
    """

    def __init__(self, ctx: nn.Context):
        try:
            self._comm = _communicators().MultiProcessDataParallelCommunicator(ctx)
            self._comm.init()
        except Exception as error:  # nnabla raises RuntimeError, or other types if MPI or NCCL is missing
            raise UserError(
                f"several ranks were launched, but nnabla has no communicator here ({reason(error)}): it loads "
                "OMPI_HOME/lib/libmpi.so and libnccl.so.2, which make setup and make setup-cuda install; or start one process"
            ) from error
        super().__init__(ctx, self._comm.rank, self._comm.local_rank, self._comm.size)
        ctx.device_id = str(self.local_rank)

    def all_reduce(self, arrays: Sequence[nn.NdArray], division: bool = False, inplace: bool = True) -> None:
        self._comm.all_reduce(list(arrays), division=division, inplace=inplace)

    def barrier(self) -> None:
        self._comm.barrier()


class MpiCommunicator(Communicator):
    """Communicator of processes on CPUs, through mpi4py: nnabla's CPU build has no communicator.

    Raises:
        UserError: mpi4py or its MPI library cannot be loaded.
    """

    def __init__(self, ctx: nn.Context):
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py finds no MPI library
            raise UserError(
                "several ranks were launched, but on the CPU they communicate through mpi4py, which cannot be loaded "
                f"({' '.join(str(error).split())}): install nnabla-detofa[mpi], or start one process"
            ) from error
        self._world = MPI.COMM_WORLD
        self._buffers: dict[str, np.ndarray] = {}
        local = self._world.Split_type(MPI.COMM_TYPE_SHARED)
        super().__init__(ctx, self._world.Get_rank(), local.Get_rank(), self._world.Get_size())

    def all_reduce(self, arrays: Sequence[nn.NdArray], division: bool = False, inplace: bool = True) -> None:
        groups = [[array] for array in arrays] if inplace else [list(arrays)]
        for group in filter(None, groups):
            values = [array.data.ravel() for array in group]
            ends = np.cumsum([value.size for value in values])
            packed = self._buffer("packed", -(-ends[-1] // self.n_procs) * self.n_procs, np.result_type(*values))
            np.concatenate(values, out=packed[: ends[-1]])
            packed[ends[-1] :] = 0
            self._sum(packed)
            if division:
                packed /= self.n_procs
            for array, value, part in zip(group, values, np.split(packed[: ends[-1]], ends[:-1])):
                if array.zeroing:  # what is written into a view would be lost
                    array.data = part.reshape(array.shape)
                else:
                    value[:] = part

    def _sum(self, values: np.ndarray) -> None:
        """Replace the values by their sums over ranks, added in rank order.

        MPI's Allreduce may add in any order, which changes the last bits. Here each rank sums one part of the values of all
        ranks, and the parts are gathered.
        """
        parts = self._buffer("parts", values.size, values.dtype).reshape(self.n_procs, -1)
        self.barrier()
        self._world.Alltoall(values, parts)
        total = parts[0]
        for part in parts[1:]:
            total += part
        self._world.Allgather(total, values)

    def _buffer(self, name: str, size: int, dtype: np.dtype) -> np.ndarray:
        """Return a buffer that is reused if size and dtype match: the system clears new memory, which is slow."""
        kept = self._buffers.get(name)
        if kept is None or (kept.size, kept.dtype) != (size, dtype):
            self._buffers[name] = kept = np.empty(size, dtype)
        return kept

    def barrier(self) -> None:
        """Wait for all ranks by polling at growing intervals: MPI's blocking wait uses a whole core and delays signals."""
        request, start = self._world.Ibarrier(), time.perf_counter()
        while not request.Test():
            waited = time.perf_counter() - start
            if waited > 1e-3:
                time.sleep(min(max(2e-4, waited / 8), 5e-3))

    def gather(self, value: Any) -> list:
        self.barrier()
        return self._world.allgather(value)
