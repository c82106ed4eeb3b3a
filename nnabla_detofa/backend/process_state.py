"""What a command or a training run changes in its process, and gives back when it ends."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

GPUS = "CUDA_VISIBLE_DEVICES"


@contextmanager
def given_back() -> Iterator[None]:
    """Run a block, after which logging, NNabla's context and the visible GPUs are what they were.

    NNabla is not imported for it. Where the block does so, its context is afterwards the one that a process starts with.
    """
    root, package = logging.getLogger(), logging.getLogger(__name__.partition(".")[0])
    handlers, levels, gpus = list(root.handlers), (root.level, package.level), os.environ.get(GPUS)
    nnabla = sys.modules.get("nnabla.context")
    context = nnabla and nnabla.current_ctx
    try:
        yield
    finally:
        for handler in [handler for handler in root.handlers if handler not in handlers]:
            root.removeHandler(handler)
        root.setLevel(levels[0])
        package.setLevel(levels[1])
        if gpus is None:
            os.environ.pop(GPUS, None)
        else:
            os.environ[GPUS] = gpus
        if nnabla := sys.modules.get("nnabla.context"):
            nnabla.current_ctx = context or nnabla.Context()
