"""Main function of the command line, `detofa train CONFIG` and the other commands, and the only place that sets exit statuses.

The program has three names: `detofa`, `nnabla_nas` (NNablaNAS' own) and `python -m nnabla_detofa`.

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
import textwrap
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from shlex import quote
from typing import Any, NoReturn

from ..backend import launch
from ..backend.process_state import restored_state
from ..common.checked import nearest
from ..common.errors import UserError
from ..common.reading import one_line, short
from ..common.shipped import SUFFIXES
from ..common.version import __version__
from . import neighbor
from .commands import COMMANDS, DEFAULT, OTHER_NAMES, SECTIONS
from .shared import Command, Group, settle_config

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
"""Write errors that the user can fix, but that may not name a file."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        argv: arguments. Default: those of the process.

    Returns:
        The exit status: 0, or 2 for an error that the user can fix, 130 for a stopped run, 141 for a command of `UNFINISHED`
        whose output pipe was closed, or the status of the MPI launcher. `--help` of a command exits here, as is usual for
        argparse.

    Raises:
        Exception: a defect. With several ranks, its traceback is printed instead, and all ranks end with status 1.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    _prepare_streams()
    called = Path(sys.argv[0]).name
    program = called if called in ("detofa", "nnabla_nas") else "python -m nnabla_detofa"
    if argv[:1] == ["help"] and len(argv) > 1:
        argv = [*argv[1:], "--help"]
    if not argv or argv[0] in ("-h", "--help", "help"):
        return _print_overview(_overview(program), bool(argv))
    if argv[0] == "--version":
        return _print_overview(__version__, True)
    if program == "nnabla_nas" and neighbor.is_meant(argv, _parser(program, (DEFAULT,))._option_string_actions):
        try:
            return neighbor.hand_over(argv)
        except UserError as error:
            return _failed(f"error: {one_line(str(error))}", 2)
    if argv[0].startswith("-"):
        argv.insert(0, DEFAULT)
    with restored_state():
        return _main(program, argv)


def _main(program: str, argv: list[str]) -> int:
    """Run a command line that starts with a command."""
    rank, size = launch.launched()
    name = argv[0]
    try:
        _check_surroundings()
        found, rest = find(argv)
        name = " ".join(found)
        command = command_of(found)
        if isinstance(command, Group):
            return _print_overview(_group_overview(program, name, command), rest[:1] in (["-h"], ["--help"]))
        if size > 1 and name != DEFAULT:
            raise UserError(f"{size} ranks were launched, but only train runs on several: start {name} as one process")
        logging.basicConfig(handlers=[_log_handler()])
        logging.getLogger("nnabla_detofa").setLevel(logging.INFO if rank == 0 else logging.ERROR)
        with redirect_stderr(sys.stderr if rank == 0 else io.StringIO()):  # only rank 0 reports usage errors
            arguments = parsed(program, found, rest)
        arguments.command_line = [*found, *rest]
        arguments.exported = name == "detect" and arguments.run.endswith(".nnp") and not Path(arguments.run).is_dir()
        check_runs_exist(arguments)
        with _terminated_as_interrupted():
            status = command.run(arguments) or 0
        if rank == 0 and not status and not getattr(arguments, "json", False):
            _say_what_follows(program, command.following(arguments))
        sys.stdout.flush()  # a closed pipe is noticed here at the latest
        return status
    except UserError as error:
        return _failed(f"error: {one_line(str(error))}", 2)
    except BrokenPipeError:
        _leave_closed_pipe()
        return _failed(_interrupted(name), 141) if name in UNFINISHED else 0
    except OSError as error:
        known = error.filename is not None or error.errno in DISK_ERRORS
        if not known and size == 1:
            raise
        named = "a file cannot be written" if error.filename is None else short(str(error.filename))
        sentence = f"{named}: {error.strerror}"
        return _failed(f"error: {one_line(sentence)}" if known else traceback.format_exc(), 2 if known else 1)
    except launch.Stopped as error:
        if rank == 0:
            print(_interrupted(name, *error.args), file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        return _failed(_interrupted(name), 130)
    except Exception:
        if size == 1:
            raise
        return _failed(traceback.format_exc(), 1)


def find(argv: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Find the command at the beginning of a command line.

    Returns:
        The command's place in `COMMANDS`, such as ("data", "check"), and the remaining arguments. The place of a group is
        returned if none of its commands is named.

    Raises:
        UserError: there is no such command.
    """
    name, *rest = argv
    place = OTHER_NAMES.get(name, (name,))
    if place[0] not in COMMANDS:
        if Path(name).suffix in (".json", ".yaml", ".yml"):
            raise UserError(f"{quote(short(name))} is not a command; to train with a config, write train before it")
        names = (*COMMANDS, *OTHER_NAMES)
        raise UserError(f"there is no command {quote(short(name))}{nearest(name, names)}; known are {', '.join(COMMANDS)}")
    group = COMMANDS[place[0]]
    if not isinstance(group, Group) or len(place) > 1 or not rest or rest[0] in ("-h", "--help"):
        return place, rest
    if rest[0] in group.commands:
        return (*place, rest[0]), rest[1:]
    if group.other and not rest[0].startswith("-"):
        return (*place, group.other), rest
    known = ", ".join(group.commands)
    raise UserError(f"there is no command {name} {quote(short(rest[0]))}{nearest(rest[0], group.commands)}; known are {known}")


def command_of(place: Sequence[str]) -> Command | Group:
    """Return the command or the group at a place in `COMMANDS`."""
    found = COMMANDS[place[0]]
    return found.commands[place[1]] if isinstance(found, Group) and len(place) > 1 else found


def all_commands() -> Iterator[tuple[tuple[str, ...], Command]]:
    """Yield the place of every command and the command, those of groups included."""
    for name, found in COMMANDS.items():
        if isinstance(found, Group):
            yield from (((name, inner), command) for inner, command in found.commands.items())
        else:
            yield (name,), found


def parsed(program: str, place: Sequence[str], rest: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of a command.

    Raises:
        UserError: an argument is not allowed.
    """
    arguments = _parser(program, place).parse_intermixed_args(rest)
    settle_config(arguments)
    return arguments


def _say_what_follows(program: str, following: Mapping[str, str]) -> None:
    """Print the commands that are useful after the one that has ended."""
    lines = [f"{program} {line}" for line in following]
    width = max(map(len, lines), default=0)
    for number, (line, reason) in enumerate(zip(lines, following.values())):
        print(f"{'     ' if number else 'next:'} {line:<{width}}  # {reason}")


RESUMABLE = ("train", "finetune", "evaluate-paths", "paper reproduce", "paper pilot", "paper filter-study")
"""Commands that save their work and, run again after an interruption, continue from it."""
UNFINISHED = (*RESUMABLE, "paper results")
"""Commands that are incomplete if their output pipe is closed: they exit with status 141, the shell's status for SIGPIPE."""


def _interrupted(name: str, *saved: str) -> str:
    """Return the message of an interrupted command; `saved` says what was saved last, if that is known."""
    what = "; ".join(("Interrupted", *saved))
    return f"{what}. Run the same command again to resume." if name in RESUMABLE else f"{what}."


def _failed(message: str, status: int) -> int:
    """Print the message and return the status; with several ranks, end all ranks."""
    if launch.launched()[1] > 1:
        launch.end(message, status)
    with suppress(OSError):  # such as a full disk: the status still tells
        print(message, file=sys.stderr, flush=True)
    return status


class _Formatter(logging.Formatter):
    """Formats log messages without terminal control characters."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(one_line, super().format(record).split("\n")))


def _log_handler() -> logging.Handler:
    """Return the handler that prints log messages to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(message)s"))
    return handler


class _Parser(argparse.ArgumentParser):
    """Argument parser that raises a UserError of one sentence, instead of printing the usage and exiting.

    Attributes:
        command: program and command whose `--help` describes the arguments.
    """

    command = ""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._negative_number_matcher = re.compile(r"-\.?\d")  # argparse would take the value -3M for an option

    def print_help(self, file: Any = None) -> None:
        try:
            super().print_help(file)
            sys.stdout.flush()  # a closed pipe is noticed here, not after the end of the program
        except BrokenPipeError:
            _leave_closed_pipe()

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (--?[^\s=]+)", message)
        if unknown:
            options = [option.removeprefix("--") for option in self._option_string_actions if option.startswith("--")]
            hint = nearest(unknown[1].removeprefix("--"), options).replace("you mean ", "you mean --")
            if not hint and any(action.dest == "overrides" for action in self._actions):
                hint = "; keys of the config are set by key=value, such as hparams.epochs=3"
            message += hint
        message = message.replace(", key=value", "")  # argparse takes it for required
        raise UserError(f"{message}; see {self.command} --help")


def _prepare_streams() -> None:
    """Make the standard streams ready for any output.

    Closed streams are opened to the null device; otherwise, files opened later would take their descriptors. What cannot be
    encoded, as in a file name, is escaped. What is printed after the terminal is gone is discarded.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # open() returns the lowest free descriptor, which is `number`
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r"))  # noqa: SIM115
        stream = getattr(sys, name)
        if number and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    launch.outlive_terminal()


def _check_surroundings() -> None:
    """Raise a UserError if the working directory was removed, because relative paths could not be resolved."""
    try:
        os.getcwd()
    except OSError as error:
        raise UserError("the working folder was removed: change to an existing folder, and run the command again") from error


def check_runs_exist(args: argparse.Namespace) -> None:
    """Raise a UserError for the first RUN argument that is not the folder of a run, before the slow imports."""
    if vars(args).get("exported"):
        return
    named = vars(args).get("runs") or [vars(args).get("run")]
    for run in named:
        if isinstance(run, str) and not Path(run, "config.json").is_file() and not (vars(args).get("file") and "=" in run):
            reason = "it is a file" if Path(run).is_file() else "config.json is missing"
            hint = f"; to use a config, write -f {run}" if "file" in vars(args) and run.endswith(SUFFIXES) else ""
            if isinstance(vars(args).get("images"), list) and Path(run).is_file():  # the command is detect
                hint = "; a detector in a file must be exported as .nnp"
            raise UserError(f"{run} is not the folder of a run: {reason}{hint}")


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Raise KeyboardInterrupt for every stop signal, not only for Ctrl-C, also while a command is still opening its data."""

    def stop(number: int, frame) -> None:
        raise KeyboardInterrupt

    with launch.handling(stop):
        yield


def _parser(program: str, place: Sequence[str]) -> argparse.ArgumentParser:
    command, group = command_of(place), COMMANDS[place[0]]
    short_form = isinstance(group, Group) and place[1:] == (group.other,)  # its name may be left out
    name = " ".join(place[:1] if short_form else place)
    parser = _Parser(
        prog=f"{program} {name}",
        description=f"{command.help[0].upper()}{command.help[1:]}.",
        epilog="\n".join(["examples:", *(_wrapped(f"{program} {name} {example}".rstrip()) for example in command.examples)]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.command = f"{program} {' '.join(place)}"
    command.arguments(parser)
    return parser


def _wrapped(line: str) -> str:
    """Indent a command line, and continue it on further lines with backslashes where it is long."""
    found = textwrap.wrap(line, 84, subsequent_indent="      ", break_long_words=False, break_on_hyphens=False)
    return "  " + " \\\n".join(found)


def _print_overview(text: str, requested: bool) -> int:
    """Print the version, or the help of the program or of a group, and return the exit status: 2 if it was not requested."""
    try:
        print(text, file=sys.stdout if requested else sys.stderr, flush=True)
    except BrokenPipeError:
        _leave_closed_pipe()
    except OSError as error:  # such as a full disk
        _leave_closed_pipe()
        return _failed(f"error: the output cannot be written: {error.strerror}", 2)
    return 0 if requested else 2


def _leave_closed_pipe() -> None:
    """Open stdout to the null device after the reader of the output, such as head, has closed the pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _overview(program: str) -> str:
    """Format the output of `--help` without a command."""
    lines = [
        f"usage: {program} COMMAND ...    ({program} COMMAND --help explains a command)",
        "",
        "DetOFA: train one supernet for object detection, then extract a detector for any budget.",
    ]
    for title, names in SECTIONS.items():
        lines += ["", f"{title}:", *(f"  {name:<18}{COMMANDS[name].help}" for name in names)]
    if program == "nnabla_nas":
        lines.append(f"NNablaNAS' command of this name: {neighbor.OFFER}; there, nnabla_nas experiment=... starts it too.")
    return "\n".join([*lines, f"first steps: {program} doctor, then {program} init --voc MYDATA"])


def _group_overview(program: str, name: str, group: Group) -> str:
    """Format the help of a group of commands."""
    usage = f"usage: {program} {name} COMMAND ...    ({program} {name} COMMAND --help explains a command)"
    other = (
        [f"       {program} {name} TARGET ...     short for: {program} {name} {group.other} TARGET ..."] if group.other else []
    )
    commands = [f"  {inner:<18}{command.help}" for inner, command in group.commands.items()]
    return "\n".join([usage, *other, "", f"{group.help[0].upper()}{group.help[1:]}.", *group.about, "", "commands:", *commands])
