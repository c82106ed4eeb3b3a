"""Forked processes that are killed, or whose parent is."""

import os
import signal
import time
from pathlib import Path

import pytest

from nnabla_detofa.common.errors import UserError
from nnabla_detofa.evaluation import forked

pytestmark = pytest.mark.thorough


def test_forked_processes_end_with_a_killed_parent():
    reading, writing = os.pipe()
    parent = os.fork()
    if not parent:
        list(forked.map_forked(lambda _: (os.write(writing, b"%d\n" % os.getpid()), signal.pause()), range(2), 2))
        os._exit(0)
    pids = b""
    while pids.count(b"\n") < 2:
        pids += os.read(reading, 100)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    while any(map(alive, map(int, pids.split()))):
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Is it there, and not only waiting to be collected?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_forked_process_that_is_killed_is_told():
    with pytest.raises(UserError, match="a process that evaluated paths was killed"):
        list(forked.map_forked(lambda n: os.kill(os.getpid(), signal.SIGKILL) if n == 1 else n, range(3), 2))
