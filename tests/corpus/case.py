"""One malformed input, and how the command line must answer it."""

import io
import json
import logging
import os
import resource
import shutil
import signal
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from nnabla_detofa.cli import program as cli

SECRET = "the content of a file that is none of ours"
"""What stands in ../secret.txt of a case's folder: no answer may show it."""
CANARY = "canary"
"""File beside a case's folder that code in an input would make."""
SECONDS, BYTES = 20, 3 << 29
"""What one answer may take: CPU time, which is the same on a busy machine, and address space on top of what the process has."""
HANGS = 600
"""Seconds after which an answer that waits for something is given up."""


@dataclass(frozen=True)
class Case:
    """A command line and its broken input.

    Attributes:
        kind: what is broken. name: in which way.
        command: arguments of the command line, run in the case's folder.
        words: what the message must hold: the thing, the value, what is allowed.
        make: breaks the input in the case's folder.
        parts: entries of `template.make` that the folder begins with.
    """

    kind: str
    name: str
    command: tuple[str, ...]
    words: tuple[str, ...]
    make: Callable[[Path], object] = lambda folder: None
    parts: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}"


def put(name: str, content: object) -> Callable[[Path], None]:
    """Write a file of the case's folder: bytes and strings as they are, anything else as JSON."""

    def make(folder: Path) -> None:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            file.write_text(content if isinstance(content, str) else json.dumps(content))

    return make


def changed(name: str, change: Callable[[object], object]) -> Callable[[Path], None]:
    """Replace the content of a JSON file by what `change` returns, or by what it made of it where that is None."""

    def make(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        result = change(content)
        put(name, content if result is None else result)(folder)

    return make


def fault(case: Case, template: Path, scratch: Path) -> str:
    """What is wrong with the answer to a case; empty where it is right.

    Args:
        template: what `template.make` made. scratch: an empty folder.
    """
    folder = scratch / "case"
    folder.mkdir()
    (scratch / "secret.txt").write_text(SECRET)
    for part in case.parts:
        copy = shutil.copytree if (template / part).is_dir() else shutil.copy
        copy(template / part, folder / part)
    case.make(folder)
    before = snapshot(scratch)
    status, out, err = answer(case, folder)
    lines = [line for line in err.split("\n") if line and "\r" not in line]  # a progress bar is no sentence
    after = snapshot(scratch)
    if (scratch / CANARY).exists():
        return "code in the input was run"
    if "Traceback" in out + err or status != 2:
        return f"status {status}: {err[-1500:]}"
    if len(lines) != 1 or not lines[0].startswith("error: "):
        return f"not one sentence: {lines}"
    if len(lines[0]) > 1000:
        return f"{len(lines[0])} characters: {lines[0][:300]}"
    if SECRET in out + err:
        return "a file outside was read"
    if missing := [word for word in case.words if word not in lines[0]]:
        return f"{missing} not in: {lines[0]}"
    if before != after:
        return f"written: {sorted(str(path) for path, _ in before ^ after)}"
    return ""


def answer(case: Case, folder: Path) -> tuple[object, str, str]:
    """Exit status, or what else was raised, and what `caught` tells of stdout and stderr."""
    with caught() as streams, limits(), inside(folder):
        try:
            status: object = cli.main(case.command)
        except SystemExit as stop:
            status = stop.code
        except BaseException as error:  # a defect, whatever it is
            status = f"{type(error).__name__}: {error}"[:300]
    return status, *streams


class _Logs(logging.Handler):
    """Writes log lines of level INFO and lower to stdout, and the others to stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stdout if record.levelno <= logging.INFO else sys.stderr)


@contextmanager
def caught() -> Iterator[list[str]]:
    """Everything written to stdout, and to stderr by libraries in C too; it is there after the block.

    Log lines of level INFO, which may precede an error, are told with stdout; those of higher levels with stderr.
    """
    streams: list[str] = []
    handlers, logging.root.handlers = logging.root.handlers, [_Logs()]
    kept, python = os.dup(2), sys.stderr
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="backslashreplace", newline="") as file:
        os.dup2(file.fileno(), 2)
        sys.stderr = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace", newline="")
        try:
            with redirect_stdout(io.StringIO()) as out:
                yield streams
        finally:
            sys.stderr.close()
            sys.stderr = python
            os.dup2(kept, 2)
            os.close(kept)
            logging.root.handlers = handlers
        file.seek(0)
        streams += [out.getvalue(), file.read()]


@contextmanager
def limits() -> Iterator[None]:
    """Raise MemoryError, or TimeoutError, where an answer takes more than `BYTES` or `SECONDS`, or hangs."""

    def late(number: int, frame: object) -> None:
        raise TimeoutError(
            f"no answer within {SECONDS} seconds of CPU time" if number == signal.SIGPROF else "no answer: it hangs"
        )

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    usual = resource.getrlimit(resource.RLIMIT_AS)
    before = {number: signal.signal(number, late) for number in (signal.SIGALRM, signal.SIGPROF)}
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + BYTES, usual[1]))
    signal.alarm(HANGS)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)
        resource.setrlimit(resource.RLIMIT_AS, usual)


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """With `folder` as the working folder."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def snapshot(folder: Path) -> set[tuple[Path, object]]:
    """Every path below a folder with its kind and, of a file, what any writing changes: its size, inode and times."""
    found: set[tuple[Path, object]] = set()
    for path in folder.rglob("*"):
        state = path.lstat()
        written = (state.st_size, state.st_ino, state.st_mtime_ns, state.st_ctime_ns)
        found.add((path, (state.st_mode, *(() if stat.S_ISDIR(state.st_mode) else written))))
    return found
