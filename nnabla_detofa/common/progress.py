"""Progress bars on the terminal."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from tqdm import tqdm


class ProgressBar(tqdm):
    """Progress bar that appears with the first update and is removed if an error ends its block.

    If the process has no stderr, nothing is shown. Each update is considered, so that no thread need watch for slow ones;
    tqdm's would outlive the bar.

    Args:
        options: passed to `tqdm`.
    """

    monitor_interval = 0

    def __init__(self, **options: Any) -> None:
        hidden = {"disable": True} if sys.stderr is None else {}
        super().__init__(**({"dynamic_ncols": True, "delay": 1e-3, "miniters": 1} | options | hidden))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            self.leave = False
        super().__exit__(kind, error, trace)
