"""Batches as a pure function of (seed, epoch, position), prepared ahead by threads (OpenCV releases Python's global lock)."""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from threading import Lock
from typing import Any

import numpy as np

from ..common.errors import UserError
from .compact import AnyArray, CompactArray, stacked

Arrays = tuple[AnyArray, ...]
Transform = Callable[[Any, int, np.random.Generator], Arrays]
"""(dataset, index, random generator) -> the arrays of one item; every item has the same shapes and types."""


class Loader:
    """Stacks transformed items into batches.

    Batch `step` depends only on the arguments, not on earlier batches, on threads or on their timing. A resumed run
    therefore sees the same batches as an uninterrupted one, and all ranks together see the batches of a single process.

    Args:
        dataset: any object with a length; only `transform` reads its items.
        transform: called as transform(dataset, index, rng), from several threads at once. `rng` is seeded by (*seed, epoch,
            index).
        batch_size: number of items in a global batch, over all ranks.
        seed: seed of the order and of the random generators of the items: one or several non-negative numbers. Loaders with
            equal seeds produce equal batches.
        workers: number of threads; 0 prepares batches in the calling thread.
        shuffle: whether each epoch has its own random order; otherwise the order is 0, 1, 2, ...
        drop_last: whether an epoch drops the items that do not fill a batch (which ones depends on the order); otherwise the
            last batch is smaller.
        rank, size: rank of this process and number of processes; rank r gets the r-th part of each batch.
        ahead: number of batches that are prepared in advance.
        sizes: input sides in pixels; each batch uses one, sampled from the seed and the step and passed to `transform` as
            the keyword `size`. If empty, the transform decides.

    Raises:
        UserError: the dataset is smaller than a batch, or `batch_size` is not a positive multiple of `size`.
        ValueError: `rank` is out of range, or `drop_last` is false for several processes.
    """

    def __init__(
        self,
        dataset: Any,
        transform: Transform,
        batch_size: int,
        seed: int | Sequence[int],
        workers: int = 2,
        shuffle: bool = True,
        drop_last: bool = True,
        rank: int = 0,
        size: int = 1,
        ahead: int = 3,
        sizes: Sequence[int] = (),
    ):
        if batch_size < 1 or batch_size % size:
            raise UserError(f"batch_size must be a positive multiple of the {size} processes, got {batch_size}")
        if not 0 <= rank < size:
            raise ValueError(f"rank must be in [0, {size}), got {rank}")
        if not drop_last and size > 1:
            raise ValueError(f"drop_last must be true for {size} processes: a smaller batch cannot always be divided")
        if len(dataset) < (batch_size if drop_last else 1):
            raise UserError(f"batch_size must be at most the number of images, {len(dataset)}, got {batch_size}")
        self.dataset, self.transform = dataset, transform
        self.batch_size, self.workers, self.ahead = batch_size, workers, ahead
        self.seed = (seed,) if isinstance(seed, int) else tuple(seed)
        self.shuffle, self.drop_last, self.rank, self.size = shuffle, drop_last, rank, size
        self.sizes = tuple(sizes)
        self._order = -1, np.arange(0)  # the last requested epoch and its order

    def __len__(self) -> int:
        """Return the number of batches per epoch."""
        return len(self.dataset) // self.batch_size if self.drop_last else -(-len(self.dataset) // self.batch_size)

    def indices(self, step: int) -> np.ndarray:
        """Return the item indices of this rank's part of batch `step` (counted over all epochs)."""
        epoch, position = divmod(step, len(self))
        batch = self.order(epoch)[position * self.batch_size : (position + 1) * self.batch_size]
        share = self.batch_size // self.size
        return batch[self.rank * share : (self.rank + 1) * share]

    def order(self, epoch: int) -> np.ndarray:
        """Return all item indices in the order of an epoch, as a read-only array; the last epoch's order is cached."""
        if self._order[0] != epoch:
            count = len(self.dataset)
            # `count` is not the index of any item, so this seed differs from the seeds of all items.
            rng = np.random.default_rng((*self.seed, epoch, count))
            order = rng.permutation(count) if self.shuffle else np.arange(count)
            order.flags.writeable = False
            self._order = epoch, order
        return self._order[1]

    def batch(self, step: int) -> Arrays:
        """Compute batch `step` in this thread: each array of the transform, stacked along a new first axis."""
        stack = _Stack()
        indices = self.indices(step)
        for row, index in enumerate(indices):
            stack.add(row, len(indices), self.item(step, index))
        return stack.arrays()

    def batches(self, start_step: int = 0) -> "Batches":
        """Iterate over batches `start_step`, `start_step` + 1, ... endlessly, epoch after epoch."""
        return Batches(self, start_step)

    def item(self, step: int, index: int) -> Arrays:
        """Return the arrays of item `index` in the epoch, and at the input side, of batch `step`."""
        options = {"size": self.side(step)} if self.sizes else {}
        rng = np.random.default_rng((*self.seed, step // len(self), int(index)))
        return self.transform(self.dataset, int(index), rng, **options)

    def side(self, step: int) -> int:
        """Sample the input side of batch `step` from `sizes`; it is the same on every rank."""
        # One more number in the seed keeps it different from the seeds of all items and epochs.
        return int(np.random.default_rng((*self.seed, step, len(self.dataset), 1)).choice(self.sizes))


class Batches:
    """Endless iterator over the batches of a loader. Call `close`, or use a `with` statement, to stop its threads.

    An error in a thread is raised by the `next` call that would have returned its batch, and closes the iterator.
    """

    def __init__(self, loader: Loader, start_step: int):
        self._loader, self._step = loader, start_step
        self._pool = ThreadPoolExecutor(loader.workers, thread_name_prefix="loader") if loader.workers else None
        self._pending: deque[tuple[_Stack, list[Future]]] = deque()
        self._closed = False

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Arrays:
        if self._closed:
            raise StopIteration
        try:
            return self._prepared(self._pool) if self._pool else self._made_here()
        except BaseException:
            self.close()
            raise

    def _made_here(self) -> Arrays:
        self._step += 1
        return self._loader.batch(self._step - 1)

    def _prepared(self, pool: ThreadPoolExecutor) -> Arrays:
        while len(self._pending) <= self._loader.ahead:
            stack, indices = _Stack(), self._loader.indices(self._step)
            add = partial(self._add, stack, self._step, len(indices))
            self._pending.append((stack, [pool.submit(add, row, index) for row, index in enumerate(indices)]))
            self._step += 1
        stack, futures = self._pending.popleft()
        for future in futures:
            future.result()
        return stack.arrays()

    def _add(self, stack: "_Stack", step: int, count: int, row: int, index: int) -> None:
        stack.add(row, count, self._loader.item(step, index))

    def close(self) -> None:
        """Stop the threads after their current items; the iterator is then exhausted."""
        self._closed = True
        self._pending.clear()
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class CachedDataset:
    """Wrapper that caches loaded items, including their decoded images, until the images fill `max_bytes` of memory.

    Items must have an `image` array. A cached image is made read-only, because every epoch gets the same array. All
    attributes except `load` are forwarded to the wrapped dataset.
    """

    def __init__(self, dataset: Any, max_bytes: int = 2**30):
        self.dataset, self.max_bytes = dataset, max_bytes
        self._items: dict[int, Any] = {}
        self._bytes = 0
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # not set yet while unpickling; prevents infinite recursion
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def load(self, index: int) -> Any:
        """Return item `index`, from the cache if possible."""
        if index in self._items:
            return self._items[index]
        item = self.dataset.load(index)
        with self._lock:
            if index not in self._items and self._bytes + item.image.nbytes <= self.max_bytes:
                item.image.flags.writeable = False
                self._items[index] = item
                self._bytes += item.image.nbytes
        return item


class _Stack:
    """Stacks the arrays of items along a new first axis; each thread copies its own items, so that none copies a batch."""

    def __init__(self) -> None:
        self._columns: list[np.ndarray | list] = []
        self._lock = Lock()

    def add(self, row: int, count: int, item: Arrays) -> None:
        """Make an item the row `row` of `count`.

        Raises:
            ValueError: its arrays have other shapes or types than those of another item.
        """
        with self._lock:
            if not self._columns:
                self._columns = [_rows(array, count) for array in item]
        for column, array in zip(self._columns, item, strict=True):
            if isinstance(column, np.ndarray) and (column.shape[1:], column.dtype) != (array.shape, array.dtype):
                raise ValueError(
                    f"the items of a batch must have equal shapes and types, got {array.dtype} {array.shape} beside "
                    f"{column.dtype} {column.shape[1:]}"
                )
            column[row] = array

    def arrays(self) -> Arrays:
        """Return the batch, once every row is there."""
        return tuple(column if isinstance(column, np.ndarray) else stacked(column) for column in self._columns)


def _rows(array: AnyArray, count: int) -> np.ndarray | list:
    """Return `count` unset rows for arrays like this one: an array, or for compact arrays, whose sizes differ, a list."""
    return [None] * count if isinstance(array, CompactArray) else np.empty((count, *array.shape), array.dtype)
