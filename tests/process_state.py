"""The state of a process that calls and imports must leave as it was."""

import faulthandler
import gc
import locale
import logging
import os
import random
import resource
import signal
import socket
import sys
import threading
import warnings
from pathlib import Path


def state() -> dict:
    """What other code in the process depends on, of the standard library and of libraries that are imported already."""
    loggers = {name: found for name, found in logging.root.manager.loggerDict.items() if isinstance(found, logging.Logger)}
    found = {
        "root logger": (list(logging.root.handlers), logging.root.level, logging.root.disabled, logging.root.manager.disable),
        "loggers": {name: (list(one.handlers), one.level, one.disabled, one.propagate) for name, one in loggers.items()},
        "signal mask": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "signal handlers": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "alarm": signal.getitimer(signal.ITIMER_REAL),
        "hooks": (sys.excepthook, threading.excepthook, sys.unraisablehook, sys.displayhook, sys.gettrace()),
        "streams": (sys.stdin, sys.stdout, sys.stderr),
        "arguments": list(sys.argv),
        "search path": list(sys.path),
        "recursion limit": sys.getrecursionlimit(),
        "environment": dict(os.environ),
        "working folder": os.getcwd(),
        "mask of new files": _umask(),
        "random numbers": hash(random.getstate()),
        "locale": locale.setlocale(locale.LC_ALL),
        "limits": [resource.getrlimit(kind) for kind in (resource.RLIMIT_AS, resource.RLIMIT_NOFILE, resource.RLIMIT_CORE)],
        "others": (gc.isenabled(), faulthandler.is_enabled(), socket.getdefaulttimeout(), logging.raiseExceptions),
        "threads": {thread.name for thread in threading.enumerate()},
        "open files": sorted(filter(None, map(_target, Path("/proc/self/fd").iterdir()))),
        "children": Path(f"/proc/self/task/{os.getpid()}/children").read_text(),
        "future warnings": [item for item in warnings.filters if item[2] is FutureWarning],
    }
    for name, read in {"numpy": _numpy, "nnabla": _nnabla, "matplotlib": _matplotlib, "cv2": _cv2, "hydra": _hydra}.items():
        if name in sys.modules:
            found |= {f"{name}: {key}": value for key, value in read().items()}
    return found


def changes(before: dict, after: dict) -> list[str]:
    """Describe what differs; loggers and libraries that were not there before do not count."""
    now = after | {"loggers": {name: after["loggers"].get(name) for name in before["loggers"]}}
    return [f"{key}: {_difference(before[key], now[key])}" for key in before if before[key] != now[key]]


def _difference(before: object, after: object) -> str:
    if not isinstance(before, dict) or not isinstance(after, dict):
        return f"{before} -> {after}"
    return str({key: (before.get(key), after.get(key)) for key in before | after if before.get(key) != after.get(key)})


def _umask() -> int:
    mask = os.umask(0o22)
    os.umask(mask)
    return mask


def _target(descriptor: Path) -> str | None:
    try:
        return os.readlink(descriptor)
    except OSError:  # of the listing itself
        return None


def _numpy() -> dict:
    import numpy as np

    kind, keys, *rest = np.random.get_state()
    return {"errors": np.geterr(), "random numbers": (kind, keys.tobytes(), *rest), "printing": np.get_printoptions()}


def _nnabla() -> dict:
    import nnabla as nn

    context = nn.get_current_context()
    return {
        "context": (list(context.backend), context.array_class, context.device_id),
        "parameters": sorted(nn.get_parameters(grad_only=False)),
        "scope": id(nn.parameter.current_scope),
        "automatic forward": nn.get_auto_forward(),
        "random numbers": nn.random.prng.get_state()[1].tobytes(),
        "log level": logging.getLogger("nnabla").level,
    }


def _matplotlib() -> dict:
    import matplotlib

    settings = {name: str(value) for name, value in matplotlib.rcParams.items() if name != "backend"}
    return {
        "settings": settings,
        "backend": dict.__getitem__(matplotlib.rcParams, "backend"),
        "pyplot": "matplotlib.pyplot" in sys.modules,
    }


def _cv2() -> dict:
    import cv2

    return {"threads": cv2.getNumThreads(), "optimized": cv2.useOptimized()}


def _hydra() -> dict:
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    return {"initialized": GlobalHydra.instance().is_initialized(), "config": HydraConfig.instance().cfg is None}
