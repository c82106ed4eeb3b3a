"""Progress bars on the terminal."""

import sys
from typing import Any

from tqdm import tqdm


class ProgressBar(tqdm):
    """A bar that is first shown when something is done, and that is removed where an error ends its block.

    Args:
        options: of `tqdm`. Where the process has no stderr, nothing is shown.
    """

    def __init__(self, **options: Any):
        hidden = {"disable": True} if sys.stderr is None else {}
        super().__init__(**({"dynamic_ncols": True, "delay": 1e-3} | options | hidden))

    def __exit__(self, kind, error, trace) -> None:
        if kind is not None:
            self.leave = False
        super().__exit__(kind, error, trace)
