"""Command line: the arguments of each command, and the functions that run them."""

from .program import main

__all__ = ["main"]
