"""Ranks without MPI: processes joined by pipes."""

import multiprocessing

import nnabla as nn

from nnabla_detofa.backend.ranks import Communicator


class PipeCommunicator(Communicator):
    """Rank 0 adds up what the others send it, in the order of their ranks. Everything else is the base class's."""

    def __init__(self, rank, pipes):
        super().__init__(nn.get_current_context(), rank, rank, len(pipes) + 1 if rank == 0 else pipes[1])
        self.pipes = pipes

    def all_reduce(self, arrays, division=False, inplace=True):
        values = [array.data.copy() for array in arrays]
        if self.rank == 0:
            for pipe in self.pipes:
                for value, other in zip(values, pipe.recv()):
                    value += other
            for pipe in self.pipes:
                pipe.send(values)
        else:
            self.pipes[0].send(values)
            values = self.pipes[0].recv()
        for array, value in zip(arrays, values):
            array.data = value / self.n_procs if division else value

    def barrier(self):
        self.all_reduce([])


def child(function, rank, pipes, result):
    try:
        result.send((function(PipeCommunicator(rank, pipes)), None))
    except BaseException as error:
        result.send((None, f"{type(error).__name__}: {error}"))


def together(function, ranks=2, seconds=1200):
    """[(what function(comm) returned, its exception in words)] of each rank."""
    fork = multiprocessing.get_context("fork")
    pairs = [fork.Pipe() for _ in range(ranks - 1)]
    mine = [[pair[0] for pair in pairs], *([pair[1], ranks] for pair in pairs)]
    results = [fork.Pipe(duplex=False) for _ in range(ranks)]
    started = [fork.Process(target=child, args=(function, rank, mine[rank], results[rank][1])) for rank in range(ranks)]
    for process in started:
        process.start()
    try:
        for number, (receiver, _) in enumerate(results):
            assert receiver.poll(seconds), f"rank {number} hangs"
        return [receiver.recv() for receiver, _ in results]
    finally:
        for process in started:
            process.kill()
            process.join()


def values_of(outcomes):
    assert [error for _, error in outcomes] == [None] * len(outcomes)
    return [value for value, _ in outcomes]
