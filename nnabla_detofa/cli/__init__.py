"""The command line: the arguments of each command and the call that it makes."""

from .program import main

__all__ = ["main"]
