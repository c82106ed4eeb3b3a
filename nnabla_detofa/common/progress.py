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
    last_print_t: float

    def __init__(self, **options: Any) -> None:
        hidden = {"disable": True} if sys.stderr is None else {}
        super().__init__(**({"dynamic_ncols": True, "delay": 1e-3, "miniters": 1} | options | hidden))

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Print the bar; `close` then knows that there is something to end or to remove.

        tqdm's own `close` does nothing if the bar was only printed by `set_postfix`, and the next message would follow the bar
        on its line.
        """
        self.last_print_t = max(self.last_print_t, self.start_t + self.delay)
        return super().display(msg, pos)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            self.leave = False
        super().__exit__(kind, error, trace)
