"""Command that checks the installation and the requirements of a config."""

import argparse
import shlex

from ..common.errors import UserError
from .shared import config_arguments


def doctor_arguments(parser: argparse.ArgumentParser) -> None:
    config_arguments(parser, "also check what a run of this config needs; the exit status is 2 if it could not run")


def doctor(args: argparse.Namespace) -> None:
    """Print the state of the installation, and whether a config can be run.

    Raises:
        UserError: there are problems, or overrides are given without a config.
    """
    from ..tools.doctor import examine, lines
    from ..tools.installation import PROBLEM

    if args.overrides and not args.file:
        raise UserError(f"overrides need a config: detofa doctor CONFIG {args.overrides[0]}")
    problems = 0
    for finding in examine(args.file, args.overrides):
        print(lines(finding), flush=True)
        problems += finding.state == PROBLEM
    if problems:
        what = f"{args.file} cannot be run" if args.file else "this installation does not work"
        raise UserError(f"{what}: {problems} problem{'s' * (problems > 1)} above")


def after_doctor(args: argparse.Namespace) -> dict[str, str]:
    """Return the commands that follow when nothing is wrong."""
    if args.file:
        words = shlex.join([args.file, *args.overrides])
        return {f"train {words} --dry-run": "sizes, memory and schedules", f"train {words}": "run it"}
    return {"init --voc FOLDER": "write a config for your own data"}
