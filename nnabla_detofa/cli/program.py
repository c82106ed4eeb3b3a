"""Main function of the command line, `nnabla_nas -f CONFIG` and the other commands, and the only place that sets exit statuses.

Errors that the user can fix print one sentence to stderr and exit with status 2. A run that was stopped exits with status
130. All other errors are defects and show a traceback. With several ranks, one rank prints the error, and all ranks end.
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
"""Write errors that the user can fix, but that may not name a file."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        argv: arguments. Default: those of the process.

    Returns:
        The exit status: 0, or 2 for an error that the user can fix, 130 for a stopped run, 141 for a training command whose
        output pipe was closed, or the status of the MPI launcher. `--help` of a command exits here, as usual for argparse.

    Raises:
        Exception: a defect. With several ranks, its traceback is printed instead, and all ranks end with status 1.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    _open_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file name may contain bytes or characters that cannot be encoded
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
    """Run a command line that starts with a command."""
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
        with redirect_stderr(sys.stderr if rank == 0 else io.StringIO()):  # only rank 0 reports usage errors
            arguments = _parser(program, name).parse_intermixed_args(rest)
        arguments.command_line = [name, *rest]
        check_runs_exist(arguments)
        with _terminated_as_interrupted():
            return COMMANDS[name].run(arguments) or 0
    except UserError as error:
        return _failed(f"error: {_one_line(str(error))}", 2)
    except BrokenPipeError:  # the reader of the output, such as head, has closed the pipe
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
"""Commands that are incomplete if their output pipe is closed: they exit with status 141, the shell's status for SIGPIPE."""


STOPPED = "stopped; the same command goes on"


def _failed(message: str, status: int) -> int:
    """Print the message and return the status; with several ranks, end all ranks."""
    if launch.launched()[1] > 1:
        launch.end(message, status)
    print(message, file=sys.stderr)
    return status


def _one_line(message: str) -> str:
    """Escape line breaks and terminal control characters, which a message may quote from user input or files."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in message)


class _Parser(argparse.ArgumentParser):
    """Argument parser that raises a UserError of one sentence, instead of printing the usage and exiting."""

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (--?[^\s=]+)", message)
        if unknown:
            message += nearest(unknown[1], self._option_string_actions)
        raise UserError(f"{message}; {self.prog} --help says what is allowed")


def _open_streams() -> None:
    """Open closed standard streams to the null device; otherwise, files opened later would take their descriptors."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # open() returns the lowest free descriptor, which is `number`
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r"))  # noqa: SIM115


def _check_surroundings() -> None:
    """Raise a UserError if the working directory was removed, because relative paths could not be resolved."""
    try:
        os.getcwd()
    except OSError as error:
        raise UserError("the working folder was removed: change to one that is there, and run the command again") from error


def check_runs_exist(args: argparse.Namespace) -> None:
    """Raise a UserError for the first RUN argument that is not the folder of a run, before the slow imports."""
    named = vars(args).get("runs") or [vars(args).get("run")]
    for run in named:
        if isinstance(run, str) and not Path(run, "config.json").is_file() and not (vars(args).get("file") and "=" in run):
            raise UserError(f"{run} is not the folder of a run: config.json is missing")


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Raise KeyboardInterrupt for every stop signal, not only for Ctrl-C, also while a command is still opening its data."""

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
    """Format the output of `--help` without a command."""
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
