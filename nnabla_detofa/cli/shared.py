"""Arguments and checks shared by several commands."""

import argparse
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..common.errors import UserError


@dataclass(frozen=True)
class Command:
    """Definition of a subcommand.

    Attributes:
        help: one-line description for `--help`.
        arguments: adds the arguments to a parser.
        run: runs the command with the parsed arguments, and returns the exit status; None is 0.
        examples: arguments of example command lines for `--help`.
        following: returns command lines that are useful after this one, each with the reason; the program is left out.
    """

    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int | None]
    examples: tuple[str, ...]
    following: Callable[[argparse.Namespace], Mapping[str, str]]


@dataclass(frozen=True)
class Group:
    """Several commands under one name.

    Attributes:
        help: one-line description for `--help`.
        commands: the commands by name.
        other: name of the command for arguments that begin with none of these names; empty: they are an error.
        about: further lines of the group's help.
    """

    help: str
    commands: Mapping[str, Command]
    other: str = ""
    about: tuple[str, ...] = ()


def config_arguments(parser: argparse.ArgumentParser, help: str) -> None:
    """Add a config, as the first argument or after -f, and its overrides; `settle_config` tells them apart."""
    parser.add_argument("config", nargs="?", metavar="CONFIG", help=help)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a key of the config")
    parser.add_argument("-f", "--file", metavar="FILE", help="the same as CONFIG")


def settle_config(args: argparse.Namespace) -> None:
    """Set `args.file` to the config given as an argument or after -f, and `args.overrides` to the rest.

    After -f, an argument is another config only if it names one; all others are overrides, checked as such.

    Raises:
        UserError: two configs are given.
    """
    given = vars(args).pop("config", None)
    if given is None:
        return
    override = re.match(r"[\w.:]*=", given) and not os.path.isfile(given)
    if args.file is None and not override:
        args.file = given
    elif not override and _is_config(given):
        raise UserError(f"one config is allowed, got {args.file} and {given}")
    else:
        args.overrides = [given, *args.overrides]


def _is_config(text: str) -> bool:
    """Return whether an argument names a config file, which need not exist, or a shipped config."""
    from ..common.shipped import SUFFIXES, shipped_configs

    return text.endswith(SUFFIXES) or text in shipped_configs()


def count_or_auto(text: str) -> int | str:
    """Parse an argument that is an integer or "auto"."""
    if text != "auto" and not re.fullmatch(r"-?\d{1,18}", text):
        raise argparse.ArgumentTypeError(f"must be a number or auto, got {text}")
    return text if text == "auto" else int(text)


def check_writable_file(file: Path, named: Path | None = None) -> None:
    """Raise a UserError if an output file cannot be written; the message names `named`, by default the file."""
    from ..common.files import check_writable

    try:
        check_writable(file)
    except OSError as error:
        raise UserError(f"--output must be writable, got {named or file}: {error.strerror}") from error


RUNS_RESULTS = re.compile(
    r"(config|provenance|seconds|ledger|mini_batch|origin|operations|scores|search|shared|state|summary)\.json|"
    r"log(\.\d+)?\.txt|.*\.h5|"
    r"(fullnet|subnet_\d+|before|finetuned)(_detections)?\.json|(paths|paths_again|held_out_paths|winners)\.jsonl"
)
"""Files in which a run keeps its results."""


def check_output_file(output: str | Path | None) -> None:
    """Raise a UserError if an output file cannot be written, or is a run's own result; None is accepted."""
    if not output:
        return
    if Path(output).is_dir() or not Path(output).absolute().parent.is_dir():
        raise UserError(f"--output must be a file in an existing folder, got {output}")
    check_replaces_no_result(output)
    check_writable_file(Path(output))


def check_replaces_no_result(output: str | Path) -> None:
    """Raise a UserError if an output file is a run's own result."""
    name = Path(output).name
    if RUNS_RESULTS.fullmatch(name) and Path(output).exists():
        folder = Path(os.path.realpath(Path(output).parent))
        of_phase = (folder.parent, folder.parent.parent) if name in ("weights.h5", "state.json") else ()
        run = next(
            (place for place in of_phase if (place / "seconds.json").is_file()), None
        )  # RUN/fullnet, RUN/checkpoint/fullnet
        if (folder / "config.json").is_file() and (not name.endswith(".h5") or _has_begun(folder)):
            run = folder
        if run:
            raise UserError(f"--output must not replace a result of the run in {run}, got {output}: choose another name")


def _has_begun(folder: Path) -> bool:
    """Return whether a folder has files that only a run has; config.json alone may be the user's own."""
    return any((folder / name).is_file() for name in ("provenance.json", "seconds.json", "summary.json"))


def check_output_folder(output: Path) -> None:
    """Raise a UserError if an output folder cannot be written or created."""
    there = next(folder for folder in (output, *output.parents) if folder.exists())
    if not there.is_dir():
        raise UserError(f"--output must be a folder, got {output}: {there} is a file")
    check_writable_file(there / "a file", output)


def check_numbers(args: argparse.Namespace, **most: int) -> None:
    """Raise a UserError if one of the named arguments is less than 1 or greater than its limit; None is accepted."""
    for name, limit in most.items():
        value = getattr(args, name)
        if value is not None and not 1 <= value <= limit:
            raise UserError(f"--{name.replace('_', '-')} must be in [1, {limit}], got {value}")


def device_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of a command that opens a device."""
    parser.add_argument(
        "-c", "--context", choices=("cpu", "cudnn", "auto"), default="auto", help="device to run on (default: %(default)s)"
    )
    parser.add_argument("-d", "--device-id", metavar="DEVICE", default="0", help="number of the GPU (default: %(default)s)")


def supernet_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that select a supernet (of a run, or of a config and a weights file), paths and images."""
    parser.add_argument("run", nargs="?", metavar="RUN", help="the folder of a run; otherwise give -f and --weights")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a key of the config")
    parser.add_argument("-f", "--file", metavar="FILE", help="a config instead of a run")
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="the supernet's weights, such as warm_up/weights.h5 of the run (default: its last finished phase's)",
    )
    parser.add_argument("--per-bucket", type=int, metavar="N", required=True, help="paths of each FLOPs bucket")
    parser.add_argument(
        "--name", default="paths", help="seed of the sampling: another name samples other paths (default: %(default)s)"
    )
    parser.add_argument("--images", type=int, metavar="N", help="validation images (default: the config's)")
    parser.add_argument(
        "--bn-images", type=int, metavar="N", help="images for re-estimating statistics (default: the config's)"
    )
    device_arguments(parser)


def supernet_of(args: argparse.Namespace):
    """Open the device, and return the config and the weights file selected by `supernet_arguments`.

    Raises:
        UserError: the arguments are invalid or inconsistent, or the run or the config cannot be read.
    """
    from .. import config as configs
    from ..runs.run_folder import run_config, run_weights

    check_numbers(args, per_bucket=10**6, images=10**9, bn_images=10**9)
    overrides = list(args.overrides)
    if args.file and args.run and "=" in args.run:
        overrides, args.run = [args.run, *overrides], None
    if bool(args.run) == bool(args.file):
        raise UserError("either the folder of a run or -f with a config must say which supernet is meant, and not both")
    if args.file and not args.weights:
        raise UserError("-f needs --weights, the supernet's weights file")
    config = run_config(Path(args.run), overrides) if args.run else configs.load(args.file, overrides)
    weights = run_weights(Path(args.run), config, args.weights) if args.run else Path(args.weights)
    from ..backend.compat import Device

    Device.open(args.context, args.device_id)
    return config, weights


def progress_of(bar) -> Callable[[int, int], None]:
    """Return a callback that sets a progress bar to `done` of `total`."""

    def progress(done: int, total: int) -> None:
        if bar.total is None:
            bar.initial, bar.total = done, total
        bar.update(done - bar.n)

    return progress


def detector_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that select one detector of a run."""
    parser.add_argument("run", metavar="RUN", help="the folder of a run of Algorithm 1, or of a fine-tuning")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a key of the run's config")
    parser.add_argument(
        "--detector",
        required=True,
        metavar="NAME",
        help="fullnet, subnet_1, ..., finetuned, or a JSON file with a path in OFA's notation (what search writes)",
    )
    device_arguments(parser)
