"""Runs with a fault, and the sentence that a failed command prints."""

import errno
import os
import subprocess
import sys

import forking

DRIVER = """
import os, resource, signal, sys
from nnabla_detofa.cli.program import main
from nnabla_detofa.path_filter import evaluated_paths
from nnabla_detofa.training import loop as training

fault, *arguments = sys.argv[1:]
kind, _, name = fault.partition(":")
replace, write_line, step, steps = os.replace, evaluated_paths._write_line, training.step, []


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def replace_or_die(source, target):
    hit = str(target).endswith(name)
    if hit and kind == "before":
        die()
    replace(source, target)
    if hit and kind == "after":
        die()


def half_a_line(opened, entry):
    if kind == "half" and len(entry) > 4 and opened.name.endswith(name) and opened.tell() > 2000:
        opened.write(b'{"path": {"d"')
        opened.flush()
        die()
    return write_line(opened, entry)


def faulty_step(graph):
    steps.append(graph)
    if kind == "limit" and len(steps) == 3:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(name), resource.RLIM_INFINITY))
    if kind == "stop" and len(steps) == int(name):
        os.kill(os.getpid(), signal.SIGTERM)
    step(graph)


os.replace, evaluated_paths._write_line, training.step = replace_or_die, half_a_line, faulty_step
sys.exit(main(arguments))
"""
"""A command line with a fault: "before:NAME" and "after:NAME" kill at the renaming to NAME, "half:NAME" in the middle of a
line, "stop:N" asks to stop in the Nth step, "limit:N" lets files have no more than N bytes from the third step on."""


def with_fault(fault: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", DRIVER, fault, *arguments]
    return forking.run(command, capture_output=True, text=True)


def the_error(text: str) -> str:
    """The one sentence of a failed command, which shows no traceback."""
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in text, text
    return errors[0]


def no_room(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
