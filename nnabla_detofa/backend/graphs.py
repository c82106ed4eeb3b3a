"""Cache of NNabla graphs that several threads can use, one thread at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Graph = TypeVar("Graph")


class CachedGraphs(Generic[Key, Graph]):
    """Cache of graphs by a key, such as the shape of their input. Each graph is built on first use.

    The variables of a graph hold its arrays, and NNabla releases Python's global interpreter lock while it computes: two
    threads that compute one graph overwrite each other's arrays or crash the process. So one lock guards all graphs.

    It does not keep the function that builds a graph. A method of the object that has the cache would be a reference cycle, and
    the object's weights would stay in memory until Python's garbage collector runs.
    """

    def __init__(self) -> None:
        self._graphs: dict[Key, Graph] = {}
        self._lock = threading.Lock()

    @contextmanager
    def held(self, key: Key, build: Callable[[Key], Graph]) -> Iterator[Graph]:
        """Yield the graph of a key while holding the lock: set its inputs, compute it, and copy the results in the block.

        Args:
            key: key of the graph.
            build: builds the graph of a key that has none yet.
        """
        with self._lock:
            if key not in self._graphs:
                self._graphs[key] = build(key)
            yield self._graphs[key]
