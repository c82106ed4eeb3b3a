"""Commands that create the paper's tables and figures."""

import argparse
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..backend import launch
from ..common.checked import nearest
from ..common.errors import UserError
from .shared import check_numbers, check_output_file, check_output_folder, device_arguments

PROFILE_HELP = "demo, bccd, study, plateau, paper, or a .json file (default: %(default)s)"


def table1_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", default="results/table1", help="folder of the table (default: %(default)s)"
    )


def table1(args: argparse.Namespace) -> None:
    """Write and print the sizes of the search spaces."""
    check_output_folder(Path(args.output))
    from ..paper.table1 import write

    files = write(Path(args.output))
    print(files[0].read_text("utf-8"))
    print(f"written: {', '.join(map(str, files))}")


def reproduce_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "targets",
        nargs="+",
        metavar="TARGET",
        help="table1 to table3, tableA1 to tableA3, figure3 to figure10, figureA1, figureA2, controls, architectures; "
        "tables, figures or all",
    )
    parser.add_argument("--set", action="append", default=[], metavar="key=value", help="override a key of the configs")
    parser.add_argument("--profile", default="demo", help=PROFILE_HELP)
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="run the seeds 0 to N - 1 (default: %(default)s)")
    parser.add_argument("--kept", action="store_true", help="do not repeat runs that have an archive in results/<profile>/runs")
    parser.add_argument("--jobs", type=int, metavar="N", help="simultaneous runs (default: one for each core, or one on a GPU)")
    device_arguments(parser)
    parser.add_argument("-o", "--output", metavar="FOLDER", help="folder of the results (default: results/<profile>)")


def reproduce(args: argparse.Namespace) -> None:
    """Create tables and figures of the paper, including the runs that they need, and print them."""
    from ..paper.profiles import load

    check_numbers(args, seeds=1000, jobs=256)
    profile = load(args.profile)
    if args.kept:
        profile = replace(profile, archives=profile.results / "runs")
    overrides = [entry for text in args.set for entry in re.split(r"\s+(?=[\w.]+=)", text.strip())]  # values may have spaces
    flags = {"context": args.context, "device_id": args.device_id}
    overrides += [f"args.{key}={value}" for key, value in flags.items() if value not in ("auto", "0")]
    output = Path(args.output or profile.results)
    check_output_folder(output)
    from ..backend.compat import Device
    from ..paper.reproduce import reproduce
    from ..paper.target import Request

    if "table1" in (targets := expanded(args.targets)):
        table1(argparse.Namespace(output="results/table1"))
    device = Device.open(args.context, args.device_id)
    cores = launch.cores() if device.name == "cpu" else 1  # each of two runs on one GPU would count the other's time as its own
    for file in reproduce(
        [name for name in targets if name != "table1"],
        Request(profile, output, args.seeds, tuple(overrides), args.jobs or cores, cores),
    ):
        print(file.read_text("utf-8"))
        written = [file.with_suffix(suffix) for suffix in (".md", ".csv", ".png")]
        print(f"written: {', '.join(str(path) for path in written if path.exists())}")  # some tables have no picture


def expanded(targets: Sequence[str]) -> list[str]:
    """Replace "tables", "figures" and "all" by the targets that they stand for; each target occurs once."""
    from ..paper.reproduce import TARGETS

    groups = {kind: [name for name in ("table1", *TARGETS) if name.startswith(kind[:-1])] for kind in ("tables", "figures")}
    groups["all"] = ["table1", *TARGETS]
    for target in targets:
        if target not in groups and target not in groups["all"]:
            known = (*groups["all"], *groups)
            own = "; detofa paper results claims makes the claims" if target == "claims" else nearest(target, known)
            raise UserError(f"there is no target {shlex.quote(target)}{own}; known are {', '.join(known)}")
    return list(dict.fromkeys(name for target in targets for name in groups.get(target, [target])))


def after_reproduce(args: argparse.Namespace) -> dict[str, str]:
    """Return the command that collects the results of a profile."""
    return {f"paper page --profile {shlex.quote(args.profile)}": "all results as one HTML page"}


def after_table1(args: argparse.Namespace) -> dict[str, str]:
    return {"paper tables --profile demo": "the other tables, with the runs that they need"}


def filter_study_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", default="demo", help=PROFILE_HELP)
    parser.add_argument("--kept", action="store_true", help="do not repeat what the archive among the results holds")
    parser.add_argument(
        "--choose",
        action="store_true",
        help="compare options of the filter instead, by nested validation on the paths that are archived",
    )
    device_arguments(parser)
    parser.add_argument("-o", "--output", metavar="FOLDER", help="folder of the results (default: results/<profile>)")


def filter_study(args: argparse.Namespace) -> None:
    """Write and print learning curves of the path filter and of other rankings, training the supernets that they need."""
    from ..backend.compat import Device
    from ..paper.profiles import load

    profile = load(args.profile)
    output = Path(args.output or profile.results)
    check_output_folder(output)
    device = Device.open(args.context, args.device_id)
    from ..paper import filter_choice, filter_curves

    command = f"detofa {shlex.join(entry for entry in args.command_line if entry != '--kept')}"

    def written(files: list[Path]) -> None:
        filter_curves.archive_points(profile, output)
        print(f"{files[0].read_text('utf-8')}\nwritten: {', '.join(map(str, files))}")

    if args.kept or args.choose:
        filter_curves.restore_points(profile, output)
    if not args.choose:
        filter_curves.curves(profile, device, on_size=lambda points: written(filter_curves.write(points, output, command)))
        return
    filter_choice.choose_and_write(profile, output, command, written)


def results_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="targets, such as table2, figure5 or controls, or claims (default: all of them, and the page)",
    )
    parser.add_argument("--profile", default="demo", help=PROFILE_HELP)
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="look for seeds 0 to N - 1 (default: %(default)s)")
    parser.add_argument("--kept", action="store_true", help="do not look for runs: use the archives in results/<profile>/runs")


def results(args: argparse.Namespace) -> None:
    """Keep the small files of a profile's runs, and make all results from these alone."""
    from ..paper.profiles import load
    from ..paper.results import make_results

    check_numbers(args, seeds=1000)
    for file in make_results(load(args.profile), args.names, args.seeds, not args.kept):
        print(f"written: {file}")


def after_results(args: argparse.Namespace) -> dict[str, str]:
    """Return the command that makes all results, or after all of them the one that adds seeds."""
    return after_reproduce(args) if args.names else after_page(args)


def pilot_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", default="study", help="profile whose config is varied (default: %(default)s)")
    parser.add_argument("--all", action="store_true", help="run every cell, even if an earlier one meets all criteria")
    device_arguments(parser)


def pilot(args: argparse.Namespace) -> None:
    """Choose the regime of a study: images, steps and augmentation in which methods can differ."""
    from ..backend.compat import Device
    from ..paper.pilot import GRID, run_pilot
    from ..paper.profiles import load

    profile = load(args.profile)
    file = run_pilot(profile, GRID, Device.open(args.context, args.device_id), args.all)
    print(f"{file.read_text('utf-8')}\nwritten: {file}")


def after_pilot(args: argparse.Namespace) -> dict[str, str]:
    profile = shlex.quote(args.profile)
    return {f"paper controls architectures table2 figure5 --profile {profile} --seeds 3": "the runs of the study"}


def page_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", default="demo", help=PROFILE_HELP)
    parser.add_argument("--results", metavar="FOLDER", help="folder of the results (default: results/<profile>)")
    parser.add_argument("-o", "--output", metavar="FILE", help="file of the page (default: report.html among the results)")


def page(args: argparse.Namespace) -> None:
    """Write all results of a profile as one HTML page."""
    from ..paper.page import write_page
    from ..paper.profiles import load

    check_output_file(args.output)
    if args.output and not args.output.endswith(".html"):  # must not overwrite a result
        raise UserError(f"--output must be a file whose name ends in .html, got {args.output}")
    profile = load(args.profile)
    results = Path(args.results or profile.results)
    output = Path(args.output or results / "report.html")
    made = write_page(profile, results, output)
    print(f"written: {output}, {output.stat().st_size / 1e6:.1f} MB, with {made} of the paper's tables and figures")


def after_page(args: argparse.Namespace) -> dict[str, str]:
    return {f"paper all --profile {shlex.quote(args.profile)} --seeds 3": "all results with three seeds; runs take hours"}
