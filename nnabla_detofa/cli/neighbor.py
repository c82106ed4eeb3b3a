"""NNablaNAS' own command `nnabla_nas`, which this package's command of the same name replaces.

NNablaNAS' command is `python main.py` in its source checkout, with Hydra's arguments: `experiment=...`, `--config-name ...`.
The console script of its wheel cannot run: it calls a function without the argument that the function requires.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import runpy
import shlex
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from ..backend import cuda_libraries
from ..common.errors import UserError
from ..common.files import real
from ..common.reading import short

PARTS = ("main.py", "conf/config.yaml", "nnabla_nas/utils/cli/cli.py")
"""Files of a source checkout that its command needs."""
OFFER = "python main.py experiment=... in a source checkout of NNablaNAS runs its own searchers"
"""What NNablaNAS' command does."""


def is_meant(argv: Sequence[str], ours: Collection[str]) -> bool:
    """Return whether arguments are NNablaNAS' and not this package's: no -f, and one of Hydra's options or overrides.

    Args:
        argv: the arguments, without the program.
        ours: this package's options before which a command may be left out.
    """
    if any(word.startswith(("-f", "--file")) for word in argv):
        return False
    first = argv[0]
    if first.startswith("-"):
        return first.partition("=")[0] not in ours and first[:2] not in ours
    return re.match(r"(\+{0,2}|~)[A-Za-z_][\w./@:-]*=|~\w", first) is not None and not Path(first).is_file()


def hand_over(argv: Sequence[str]) -> int:
    """Run NNablaNAS' own command in this process, and return its exit status.

    Raises:
        UserError: it cannot run here.
    """
    folder = _checkout()
    reason = "no source checkout is in this folder or installed" if folder is None else _cuda_missing()
    if folder is None or reason:
        raise UserError(
            f"{shlex.quote(short(argv[0]))} belongs to NNablaNAS' own command, which cannot run here ({reason}): {OFFER}, and "
            "this command trains and searches detectors from a config, nnabla_nas -f CONFIG (see nnabla_nas --help)"
        )
    before = sys.path, sys.argv
    sys.path, sys.argv = [str(folder), *sys.path], [str(folder / PARTS[0]), *argv]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.path, sys.argv = before
    return 0


def _checkout() -> Path | None:
    """Find a source checkout of NNablaNAS: the working folder, or the one from which nnabla-nas is installed."""
    found = importlib.util.find_spec("nnabla_nas")
    places = [Path(), *(Path(place).parent for place in (found and found.submodule_search_locations) or ())]
    return next((real(place) for place in places if all((place / part).is_file() for part in PARTS)), None)


def _cuda_missing() -> str:
    """Return why NNabla's CUDA extension, without which NNablaNAS' command ends, cannot be imported; empty if it can."""
    try:
        with cuda_libraries.quiet():
            cuda_libraries.load()
            importlib.import_module("nnabla_ext.cuda")
    except Exception as error:  # ImportError for a missing library, NVML errors
        return f"it needs a GPU, and {cuda_libraries.explain(error)[0]}"
    return ""
