"""Restoring of the process state that a command or a training run changes."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

GPUS = "CUDA_VISIBLE_DEVICES"


@contextmanager
def restored_state() -> Iterator[None]:
    """Restore logging, NNabla's context and the visible GPUs after the block.

    NNabla is not imported here. If the block imports it, the context is reset to its default afterwards.
    """
    root, package = logging.getLogger(), logging.getLogger(__name__.partition(".")[0])
    handlers, levels, gpus = list(root.handlers), (root.level, package.level), os.environ.get(GPUS)
    nnabla: Any = sys.modules.get("nnabla.context")
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
        nnabla = sys.modules.get("nnabla.context")
        if nnabla:
            nnabla.current_ctx = context or nnabla.Context()
