"""How several processes that do one job together ("ranks") talk.

All ranks run the same program. What decides how it goes on (a path, a file that is there, a wish to stop) is rank 0's word,
told to the others; only rank 0 writes files.
"""

from __future__ import annotations

import logging
import pickle
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.errors import UserError
from .launch import Stopped

if TYPE_CHECKING:
    import nnabla as nn

WHOLE = 248
"""Bytes of a message that needs no second exchange."""


class Communicator:
    """One process alone, and the interface of those that are not: more than upstream's CommunicatorWrapper.

    Of these, `all_reduce` and `barrier` are what a kind of communicator must bring along.

    Attributes:
        ctx: the context this process computes in.
        rank: number of this process, from 0; rank 0 writes files and logs.
        local_rank: number of this process on its machine, from 0.
        n_procs: how many processes train together.
    """

    def __init__(self, ctx: nn.Context | None = None, rank: int = 0, local_rank: int = 0, n_procs: int = 1):
        self.ctx = ctx
        self.rank = rank
        self.local_rank = local_rank
        self.n_procs = n_procs

    @property
    def size(self) -> int:
        return self.n_procs

    def all_reduce(self, arrays: Sequence[nn.NdArray], division: bool = False, inplace: bool = True) -> None:
        """Replace each array by the sum over all processes, or with `division` by the mean.

        Args:
            inplace: add up array by array, without one packed buffer (slower for many small arrays, no extra memory).
        """

    def barrier(self) -> None:
        """Return once every process has called this."""

    def gather(self, value: Any) -> list:
        """The values of all processes, in the order of their ranks; all get the list, and all must call this.

        Values are pickled, and their bytes added up as numbers, each process having zeros where others have bytes: so
        this works wherever gradients can be added.
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
        """Each process' bytes, filled up with zeros to `width`."""
        from nnabla import NdArray

        rows = np.zeros((self.n_procs, width), np.float32)
        rows[self.rank, : len(content)] = np.frombuffer(content, np.uint8)
        array = NdArray.from_numpy_array(rows)
        self.all_reduce([array])
        return [row.astype(np.uint8).tobytes() for row in array.data]

    def each(self, function: Callable[[], Any]) -> list:
        """What `function()` returns on each process, in the order of their ranks; what it raises on one is raised on all.

        Raises:
            UserError, OSError: as it was raised on a process.
            Stopped: KeyboardInterrupt on a process.
            RuntimeError: any other exception, on the processes that did not raise it.
        """
        if self.n_procs == 1:
            return [function()]
        value = own = told = None
        try:
            value = function()
        except (UserError, OSError) as error:
            own = told = error
        except KeyboardInterrupt:
            own = told = Stopped()
        except Exception as error:
            own, told = error, RuntimeError(f"rank {self.rank} failed:\n{traceback.format_exc()}")
        outcomes = self.gather((value, told))
        for rank, (_, error) in enumerate(outcomes):
            if error is not None:
                raise own if rank == self.rank else error
        return [value for value, _ in outcomes]

    def once(self, function: Callable[[], Any]) -> Any:
        """What `function()` returns, or raises, on rank 0, where alone it is called; `each` says how it is told."""
        return self.each(function if self.rank == 0 else lambda: None)[0]

    def map(self, function: Callable[[Any], Any], items: Iterable) -> Iterator:
        """`map(function, items)`, shared out: rank r does every n-th item from the r-th on, and all get all results."""
        items, n = list(items), self.n_procs
        for start in range(0, len(items), n):
            mine = items[start : start + n][self.rank : self.rank + 1]
            for results in self.each(lambda mine=mine: [function(item) for item in mine]):
                yield from results


def _communicators():
    """nnabla.communicators, without its warning that an Open MPI of version 1 may need libmpi.so on the loader's path."""
    log = logging.getLogger("nnabla")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        import nnabla.communicators
    finally:
        log.setLevel(level)
    return nnabla.communicators


class NnablaCommunicator(Communicator):
    """Processes on GPUs, one on each, joined by nnabla's own communicator (NCCL)."""

    def __init__(self, ctx: nn.Context):
        try:
            self._comm = _communicators().MultiProcessDataParallelCommunicator(ctx)
            self._comm.init()
        except Exception as error:  # nnabla raises RuntimeError, or what a missing MPI or NCCL library makes of it
            # Its messages are several lines: the kind of error, the place in its sources, and the reason.
            lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("/")]
            reason = "; ".join(lines) or type(error).__name__
            raise UserError(
                f"several ranks were launched, but nnabla has no communicator here ({reason}): it loads OMPI_HOME/lib/libmpi.so"
                " and libnccl.so.2, which make setup and make setup-cuda install; or start one process"
            ) from error
        super().__init__(ctx, self._comm.rank, self._comm.local_rank, self._comm.size)
        ctx.device_id = str(self.local_rank)

    def all_reduce(self, arrays: Sequence[nn.NdArray], division: bool = False, inplace: bool = True) -> None:
        self._comm.all_reduce(list(arrays), division=division, inplace=inplace)

    def barrier(self) -> None:
        self._comm.barrier()


class MpiCommunicator(Communicator):
    """Processes on CPUs, joined by mpi4py: nnabla's CPU build has no communicator of its own."""

    def __init__(self, ctx: nn.Context):
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py finds no MPI library
            raise UserError(
                "several ranks were launched, but on the CPU they talk through mpi4py, which does not load "
                f"({' '.join(str(error).split())}): install nnabla-detofa[mpi], or start one process"
            ) from error
        self._world, self._buffers = MPI.COMM_WORLD, {}
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
            for array, part in zip(group, np.split(packed[: ends[-1]], ends[:-1])):
                array.data = part.reshape(array.shape)

    def _sum(self, values: np.ndarray) -> None:
        """Replace the values by their sums over ranks, in their order: MPI's Allreduce may add in any, which changes last bits.

        Each rank adds up its part of the values of all ranks, and the parts are put together.
        """
        parts = self._buffer("parts", values.size, values.dtype).reshape(self.n_procs, -1)
        self.barrier()
        self._world.Alltoall(values, parts)
        total = parts[0]
        for part in parts[1:]:
            total += part
        self._world.Allgather(total, values)

    def _buffer(self, name: str, size: int, dtype: np.dtype) -> np.ndarray:
        """Memory that is used again where the next step needs as much: the system clears fresh memory, which takes its time."""
        kept = self._buffers.get(name)
        if kept is None or (kept.size, kept.dtype) != (size, dtype):
            self._buffers[name] = kept = np.empty(size, dtype)
        return kept

    def barrier(self) -> None:
        """MPI's own waiting takes a whole core and hears no signals: so look ever more rarely whether all have come."""
        request, start = self._world.Ibarrier(), time.perf_counter()
        while not request.Test():
            waited = time.perf_counter() - start
            if waited > 1e-3:
                time.sleep(min(max(2e-4, waited / 8), 5e-3))

    def gather(self, value: Any) -> list:
        self.barrier()
        return self._world.allgather(value)
