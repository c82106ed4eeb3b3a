"""NNabla graphs that are built once and called from any thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Graph = TypeVar("Graph")


class CachedGraphs(Generic[Key, Graph]):
    """Graphs by a key, such as the shape of their input. Each is built when it is first needed.

    The variables of a graph are its memory, and NNabla releases Python's global lock while it computes: two threads in one
    graph overwrite each other's arrays, or crash the process. So one thread at a time has the graphs.

    Args:
        build: makes the graph of a key.
    """

    def __init__(self, build: Callable[[Key], Graph]):
        self._build = build
        self._graphs: dict[Key, Graph] = {}
        self._lock = threading.Lock()

    @contextmanager
    def held(self, key: Key) -> Iterator[Graph]:
        """The graph of a key, for this thread alone while the block lasts: fill it, compute it, and copy the results."""
        with self._lock:
            if key not in self._graphs:
                self._graphs[key] = self._build(key)
            yield self._graphs[key]
