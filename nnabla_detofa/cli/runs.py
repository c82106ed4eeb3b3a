"""Commands that inspect runs: inspect, compare, report."""

import argparse
import json
import math
import shlex
import sys
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from .shared import check_output_file, check_output_folder


def report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the folder of a finished run of Algorithm 1")
    parser.add_argument("-o", "--output", metavar="FOLDER", help="folder of the report (default: RUN/report)")


def report(args: argparse.Namespace) -> None:
    """Write the table and the figures of a run, and print the table."""
    output = Path(args.output or Path(args.run, "report"))
    check_output_folder(output)
    from ..tools.report import write_report

    files = write_report(Path(args.run), output)
    print((output / "table.md").read_text("utf-8"))
    print(f"written: {', '.join(map(str, files))}")


def after_report(args: argparse.Namespace) -> dict[str, str]:
    run = shlex.quote(args.run)
    if not Path(args.run, "subnet_1.json").exists():
        return {f"export {run} --detector fullnet -o FILE.nnp": "the detector as a separate network"}
    return {
        f"search {run} --flops BOUND": "the best subnet for another budget",
        f"export {run} --detector subnet_1 -o FILE.nnp": "a subnet as a separate network",
    }


def strict_json(content: Any) -> str:
    """Format plain values as JSON, with null for NaN and infinity, which a diverged loss may be and JSON does not have."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [finite(inner) for inner in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(content), indent=1, allow_nan=False)


def inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the folder of any run, finished or not")
    parser.add_argument("--json", action="store_true", help="print everything as JSON, for programs")


def inspect(args: argparse.Namespace) -> None:
    """Print the progress, cost, pruning, detectors and files of a run."""
    from ..tools.inspect import describe
    from ..tools.inspect_text import text

    args.found = describe(Path(args.run))
    print(strict_json(args.found) if args.json else text(args.found))


def after_inspect(args: argparse.Namespace) -> dict[str, str]:
    """Return the command that uses a finished run; of an unfinished one, the text itself says how to resume it."""
    run = shlex.quote(args.run)
    if not args.found["finished"]:
        return {}
    if args.found["fine_tuning"]:
        return {f"export {run} --detector finetuned -o FILE.nnp": "the detector as a separate network"}
    if args.found["method"] == "pretrain":
        return {f"export-weights {run} FOLDER": "copy the weights that detectors start from"}
    return {f"report {run}": "the table and the figures"}


def compare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="the folders of two or more finished runs")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("-o", "--output", metavar="FILE", help="also plot AP against the budgets to this .png file")


def after_compare(args: argparse.Namespace) -> dict[str, str]:
    return {f"evaluate {shlex.quote(args.runs[0])}": "average precision of each class"}


def compare(args: argparse.Namespace) -> None:
    """Print the AP of several runs at each budget, their differences, and whether the comparison is fair."""
    check_output_file(args.output)
    if args.output and Path(args.output).suffix != ".png":
        raise UserError(f"--output must end in .png, got {args.output}")
    from ..tools.compare import compare, draw, table

    found = compare([Path(run) for run in args.runs])
    print(strict_json(found) if args.json else table(found))
    if args.output:
        from ..common.figures import save

        save(draw(found), args.output, dpi=110)
        print(f"written: {args.output}", file=sys.stderr if args.json else sys.stdout)
