"""Command that checks the installation and the requirements of a config."""

import argparse

from ..common.errors import UserError


def doctor_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-f",
        "--file",
        metavar="FILE",
        help="a config: examine what its run needs too; the exit status is 2 if something stops it",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="entries that replace those of the config")


def doctor(args: argparse.Namespace) -> None:
    """Print the state of the installation, and whether a config can be run.

    Raises:
        UserError: there are problems, or overrides are given without a config.
    """
    from ..tools.doctor import examine, lines
    from ..tools.installation import PROBLEM

    if args.overrides and not args.file:
        raise UserError(f"entries of a config need the config, -f CONFIG, got {args.overrides[0]}")
    problems = 0
    for finding in examine(args.file, args.overrides):
        print(lines(finding), flush=True)
        problems += finding.state == PROBLEM
    if problems:
        what = f"{args.file} cannot be run" if args.file else "this installation does not work"
        raise UserError(f"{what}: {problems} problem{'s' * (problems > 1)} above")
