"""Batches as a pure function of (seed, epoch, position), prepared ahead by threads (OpenCV works outside Python's lock)."""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any

import numpy as np

from ..common.errors import UserError

Arrays = tuple[np.ndarray, ...]
Transform = Callable[[Any, int, np.random.Generator], Arrays]
"""(data set, index, generator) -> the arrays of one item, of the same shapes for every item."""


class Loader:
    """Stacks transformed items into batches.

    Batch `step` depends on the arguments and on nothing else: not on the batches before it, on threads or on their
    timing. So a resumed run sees the batches it would have seen, and ranks together see what one process would.

    Args:
        dataset: anything with a length; only `transform` looks into it.
        transform: called as transform(dataset, index, rng), from several threads at once. `rng` is seeded by (*seed, epoch,
            index).
        batch_size: items of a global batch, over all ranks.
        seed: of the order and of the items' generators, one number or several, none negative. Loaders with equal seeds
            have equal batches.
        workers: threads; with 0 the consumer does the work itself.
        shuffle: whether each epoch has an order of its own; otherwise it is 0, 1, 2, ...
        drop_last: whether the items that do not fill a batch are left out of an epoch (which ones changes with the order);
            otherwise the last batch is smaller.
        rank, size: this process and their number; rank r gets the r-th part of each batch.
        ahead: batches prepared before they are asked for.
        sizes: sides of the input; each batch has one, drawn from the seed and the step, which `transform` gets as its
            keyword `size`. Empty: the transform decides.

    Raises:
        UserError: no batch can be filled, or batches cannot be divided by `size`.
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
        self._order = -1, np.arange(0)  # of the epoch that was asked for last

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.dataset) // self.batch_size if self.drop_last else -(-len(self.dataset) // self.batch_size)

    def indices(self, step: int) -> np.ndarray:
        """The items of this rank's part of batch `step` (counted over all epochs)."""
        epoch, position = divmod(step, len(self))
        batch = self.order(epoch)[position * self.batch_size : (position + 1) * self.batch_size]
        share = self.batch_size // self.size
        return batch[self.rank * share : (self.rank + 1) * share]

    def order(self, epoch: int) -> np.ndarray:
        """All items in the order of an epoch, read-only; that of the last epoch is kept, for its other steps."""
        if self._order[0] != epoch:
            count = len(self.dataset)
            # The generator of an epoch's order is named by `count`, which is no item's index, so it is no item's generator.
            rng = np.random.default_rng((*self.seed, epoch, count))
            order = rng.permutation(count) if self.shuffle else np.arange(count)
            order.flags.writeable = False
            self._order = epoch, order
        return self._order[1]

    def batch(self, step: int) -> Arrays:
        """Batch `step`, made in this thread: each of the transform's arrays, stacked along a new first axis."""
        return _stack([self.item(step, index) for index in self.indices(step)])

    def batches(self, start_step: int = 0) -> "Batches":
        """Batches `start_step`, `start_step` + 1, ... without end, epoch after epoch."""
        return Batches(self, start_step)

    def item(self, step: int, index: int) -> Arrays:
        """The arrays of item `index` as they are in batch `step`, or in any of the same epoch."""
        options = {"size": self.side(step)} if self.sizes else {}
        rng = np.random.default_rng((*self.seed, step // len(self), int(index)))
        return self.transform(self.dataset, int(index), rng, **options)

    def side(self, step: int) -> int:
        """The side of batch `step`'s images, where there are `sizes`; every rank draws the same."""
        # One more number names this generator, so it is no item's and no epoch's.
        return int(np.random.default_rng((*self.seed, step, len(self.dataset), 1)).choice(self.sizes))


class Batches:
    """An endless iterator over a loader's batches; `close` it, or use it in a `with` statement, to end its threads.

    An error in a thread is raised by the `next` that would have returned its batch, and closes the iterator.
    """

    def __init__(self, loader: Loader, start_step: int):
        self._loader, self._step = loader, start_step
        self._pool = ThreadPoolExecutor(loader.workers, thread_name_prefix="loader") if loader.workers else None
        self._pending: deque[list[Future]] = deque()
        self._closed = False

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Arrays:
        if self._closed:
            raise StopIteration
        try:
            return self._prepared() if self._pool else self._made_here()
        except BaseException:
            self.close()
            raise

    def _made_here(self) -> Arrays:
        self._step += 1
        return self._loader.batch(self._step - 1)

    def _prepared(self) -> Arrays:
        while len(self._pending) <= self._loader.ahead:
            loader, step = self._loader, self._step
            self._pending.append([self._pool.submit(loader.item, step, index) for index in loader.indices(step)])
            self._step += 1
        return _stack([future.result() for future in self._pending.popleft()])

    def close(self) -> None:
        """End the threads after the items they are at; the iterator is then exhausted."""
        self._closed = True
        self._pending.clear()
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class CachedDataset:
    """A data set that keeps loaded items, and so their decoded images, in memory until `max_bytes` of pixels are kept.

    Items must have an `image`; it is made read-only, since every epoch gets the same array. Everything but `load` is the
    wrapped data set's.
    """

    def __init__(self, dataset: Any, max_bytes: int = 2**30):
        self.dataset, self.max_bytes = dataset, max_bytes
        self._items: dict[int, Any] = {}
        self._bytes = 0
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # not there yet while unpickling: no endless search
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def load(self, index: int) -> Any:
        """Item `index`, from memory where it is kept."""
        if index in self._items:
            return self._items[index]
        item = self.dataset.load(index)
        with self._lock:
            if index not in self._items and self._bytes + item.image.nbytes <= self.max_bytes:
                item.image.flags.writeable = False
                self._items[index] = item
                self._bytes += item.image.nbytes
        return item


def _stack(items: list[Arrays]) -> Arrays:
    return tuple(np.stack(arrays) for arrays in zip(*items))
