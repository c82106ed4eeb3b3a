"""The command line: `nnabla_nas -f CONFIG`, and the tools around it. The only place that exits.

What the user can fix is one sentence on stderr and status 2; a run that was stopped is status 130; anything else that goes
wrong is a defect, and shows its traceback. Of several ranks, one says it, and all end.
"""

import argparse
import errno
import io
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import NoReturn

from ..backend import launch
from ..backend.process_state import given_back
from ..common.checked import nearest
from ..common.errors import UserError
from ..common.reading import short
from ..common.version import __version__
from .commands import COMMANDS

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
"""Errors of writing, which the user can mend and which may name no file."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Returns:
        The exit status: 0, 2 for what the user can mend, 130 when stopped. `--help` exits here, as argparse does.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    _open_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name may be no text, or none that the terminal knows
    program = "nnabla_nas" if Path(sys.argv[0]).name == "nnabla_nas" else "python -m nnabla_detofa"
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview(program), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    if argv[0] == "--version":
        print(__version__)
        return 0
    if argv[0].startswith("-"):
        argv.insert(0, next(iter(COMMANDS)))
    with given_back():
        return _main(program, argv)


def _main(program: str, argv: list[str]) -> int:
    """Run a command line that names a command."""
    name, *rest = argv
    rank, size = launch.launched()
    try:
        _check_surroundings()
        if name not in COMMANDS:
            near = nearest(name, COMMANDS)
            raise UserError(f"there is no command {short(name)}{near}; known are {', '.join(COMMANDS)}")
        if size > 1 and name != "run":
            raise UserError(f"{size} ranks were launched, but only run is shared out: start {name} as one process")
        logging.basicConfig(format="%(message)s")
        logging.getLogger("nnabla_detofa").setLevel(logging.INFO if rank == 0 else logging.ERROR)
        with redirect_stderr(sys.stderr if rank == 0 else io.StringIO()):  # wrong usage is rank 0's to tell
            arguments = _parser(program, name).parse_intermixed_args(rest)
        arguments.command_line = [name, *rest]
        refuse_missing_runs(arguments)
        with _terminated_as_interrupted():
            return COMMANDS[name].run(arguments) or 0
    except UserError as error:
        return _failed(f"error: {_one_line(str(error))}", 2)
    except BrokenPipeError:  # the reader of what is printed, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return _failed(STOPPED, 141) if name in TRAIN else 0
    except OSError as error:
        known = error.filename is not None or error.errno in DISK_ERRORS
        if not known and size == 1:
            raise
        sentence = f"{error.filename or 'a file cannot be written'}: {error.strerror}"
        return _failed(f"error: {_one_line(sentence)}" if known else traceback.format_exc(), 2 if known else 1)
    except launch.Stopped:
        if rank == 0:
            print(STOPPED, file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        return _failed(STOPPED, 130)
    except Exception:
        if size == 1:
            raise
        return _failed(traceback.format_exc(), 1)


TRAIN = ("run", "finetune")
"""Commands that a reader who has seen enough cuts short: their status says so, as the shell's for SIGPIPE."""


STOPPED = "stopped; the same command goes on"


def _failed(message: str, status: int) -> int:
    """Say it and return the status; where there are other ranks, end with them."""
    if launch.launched()[1] > 1:
        launch.end(message, status)
    print(message, file=sys.stderr)
    return status


def _one_line(message: str) -> str:
    """A message that quotes what others wrote: line breaks and what steers a terminal are shown, not obeyed."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in message)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, as all errors here, instead of printing the usage above it."""

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (--?[^\s=]+)", message)
        if unknown:
            message += nearest(unknown[1], self._option_string_actions)
        raise UserError(f"{message}; {self.prog} --help says what is allowed")


def _open_streams() -> None:
    """Lead input, output and errors nowhere where they are closed: files opened later would take their place."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r"))  # noqa: SIM115


def _check_surroundings() -> None:
    """Raise UserError if the working folder is gone: nothing that a command line names could be found."""
    try:
        os.getcwd()
    except OSError as error:
        raise UserError("the working folder was removed: change to one that is there, and run the command again") from error


def refuse_missing_runs(args: argparse.Namespace) -> None:
    """Raise UserError for the first run's folder that is none, before the slow imports."""
    named = vars(args).get("runs") or [vars(args).get("run")]
    for run in named:
        if isinstance(run, str) and not Path(run, "config.json").is_file() and not (vars(args).get("file") and "=" in run):
            raise UserError(f"{run} is not the folder of a run: config.json is missing")


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """The other stop signals are as good as Ctrl-C, from the first moment on: a command may take long to open its data."""

    def stop(number: int, frame) -> None:
        raise KeyboardInterrupt

    with launch.handling(stop):
        yield


def _parser(program: str, name: str) -> argparse.ArgumentParser:
    command = COMMANDS[name]
    parser = _Parser(
        prog=f"{program} {name}",
        description=f"{command.help[0].upper()}{command.help[1:]}.",
        epilog="\n".join(["examples:", *(f"  {program} {name} {example}" for example in command.examples)]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.arguments(parser)
    return parser


def _overview(program: str) -> str:
    """What `--help` says without a command."""
    default = next(iter(COMMANDS))
    return "\n".join(
        [
            f"usage: {program} COMMAND ...      ({program} COMMAND --help says more)",
            f"       {program} -f FILE ...      short for: {program} {default} -f FILE ...",
            "",
            "DetOFA in NNabla: once-for-all training of object detectors.",
            "",
            "commands:",
            *(f"  {name:<17}{command.help}" for name, command in COMMANDS.items()),
            "",
            "examples:",
            *(f"  {program} {name} {example}" for name, command in COMMANDS.items() for example in command.examples),
        ]
    )
