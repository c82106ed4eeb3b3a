"""Python programs in forks of this process, which have NNabla imported already: for tests of anything but start-up."""

import faulthandler
import logging
import os
import runpy
import signal
import subprocess
import sys
import traceback
import types
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NoReturn
from unittest import mock

PYTHON = sys.executable
AT_START = {signal.SIGINT: signal.default_int_handler, signal.SIGPIPE: signal.SIG_IGN, signal.SIGXFSZ: signal.SIG_IGN}
"""What Python does with signals when it starts."""


class Popen(subprocess.Popen):
    """`subprocess.Popen` that runs `[PYTHON, "-m" or "-c", ...]` without starting another interpreter."""

    def __init__(self, args: Sequence[str], **options):
        if list(args[:1]) == [PYTHON] and args[1] in ("-m", "-c"):
            options["preexec_fn"] = partial(_run, list(map(str, args[1:])), options.get("env"))
        super().__init__(args, **options)


def run(command: Sequence[str], **options) -> subprocess.CompletedProcess:
    """`subprocess.run` by a fork."""
    with mock.patch.object(subprocess, "Popen", Popen):
        return subprocess.run(command, **options)


def _run(arguments: list[str], environment: Mapping[str, str] | None) -> NoReturn:
    """Run a program in the forked process and end it, as if it had been started.

    It is called where files and the working folder are the program's already, so only what Python has set up is left.
    """
    status = 1
    try:
        for number in (signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        for number, handler in AT_START.items():
            signal.signal(number, handler)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # lets the parent continue, which may send a signal at once
        faulthandler.disable()
        sys.stdin, sys.stdout, sys.stderr = (open(number, mode) for number, mode in enumerate("rww"))  # noqa: SIM115
        logging.root.handlers, logging.root.level = [], logging.WARNING
        warnings.resetwarnings()
        warnings.simplefilter("ignore", DeprecationWarning)
        if environment is not None:
            os.environ.clear()
            os.environ.update(environment)
        status = _program(*arguments)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def _program(option: str, program: str, *arguments: str) -> int:
    """Run a module (-m) or code (-c) as __main__; returns the exit status."""
    sys.argv = [program if option == "-m" else option, *arguments]
    sys.path.insert(0, os.getcwd() if option == "-m" else "")
    try:
        if option == "-m":
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        else:
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(program, "<string>", "exec"), vars(main))
    except SystemExit as stop:
        if stop.code is not None and not isinstance(stop.code, int):
            print(stop.code, file=sys.stderr)
            return 1
        return stop.code or 0
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
