"""The command line: `nnabla_nas -f CONFIG`, and the tools around it. The only place that exits.

What the user can mend is one sentence on stderr and status 2; a run that was stopped is status 130; anything else that
goes wrong is a defect, and shows its traceback. Of several ranks, one says it, and all end.
"""

import argparse
import errno
import importlib.util
import io
import json
import logging
import os
import re
import shlex
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ..backend import launch
from ..common.errors import UserError
from ..common.reading import short
from ..common.version import __version__

# Imports inside the functions: `--help` answers at once, without nnabla.

RUNNERS = {
    "detofa": "nnabla_detofa.methods.algorithm1",
    "pretrain": "nnabla_detofa.methods.pretrain",
    **dict.fromkeys(("fullnet", "ofa", "ofa_ps", "compofa"), "nnabla_detofa.methods.baselines"),
}
"""Where `args.runner` finds its module, which has a function run(config, device, output, restart=False)."""
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
"""Errors of writing, which the user can mend and which may name no file."""


@dataclass(frozen=True)
class Command:
    """A subcommand: what `--help` says of it, the arguments it takes, and what it does with them.

    What it returns is the exit status; None is 0.
    """

    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int | None]
    examples: tuple[str, ...] = ()


def count_or_auto(text: str) -> int | str:
    """The value of an argument that is a number or "auto"."""
    if text != "auto" and not re.fullmatch(r"-?\d{1,18}", text):
        raise argparse.ArgumentTypeError(f"must be a number or auto, got {text}")
    return text if text == "auto" else int(text)


def run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--file", required=True, metavar="FILE", help="the config, .json or .yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="entries that replace those of the config")
    parser.add_argument("-c", "--context", choices=("cpu", "cudnn", "auto"), help="replaces args.context")
    parser.add_argument("-d", "--device-id", metavar="DEVICE", help="replaces args.device_id: a GPU, or one per rank: 0,1")
    parser.add_argument("-o", "--output-path", metavar="OUTPUT", help="replaces args.output_path (default: runs/<config>)")
    parser.add_argument(
        "--processes",
        type=count_or_auto,
        metavar="N",
        help="processes on this machine that share the work, each a core or a GPU: starts mpirun; auto: as many as there are "
        "cores and as can share a batch in mini-batches of hparams.mini_batch, or one for each GPU of device_id",
    )
    parser.add_argument("--restart", action="store_true", help="start anew instead of going on where the run was stopped")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be run, try one step of each phase on the CPU, write nothing"
    )


def run(args: argparse.Namespace) -> int | None:
    """Run a config: read it, choose the device, hand both to the runner."""
    from .. import config as configs

    _, size = launch.launched()
    if args.processes not in (None, "auto") and args.processes < 1:
        raise UserError(f"--processes must be 1 or more, or auto, got {args.processes}")
    if size > 1 and (args.dry_run or args.processes not in (None, "auto", size)):
        other = "--dry-run is one process" if args.dry_run else f"--processes is {args.processes}"
        raise UserError(f"{size} ranks were launched, and {other}: leave out one of the two")
    flags = {"context": args.context, "device_id": args.device_id, "output_path": args.output_path}
    overrides = [f"args.{key}={json.dumps(value)}" for key, value in flags.items() if value is not None]
    config = configs.load(args.file, [*args.overrides, *overrides])
    if args.dry_run:
        from ..tools.dry_run import dry_run

        for line in dry_run(config):
            print(line, flush=True)
        return None
    if size == 1:
        from ..training.mini_batch import mini_batch

        processes = _processes(config, args.processes, args.restart)
        mini_batch(config, processes, config.output_path, args.restart)  # can the work be shared so?
        if processes > 1:
            return launch.launch(processes, [sys.executable, "-m", "nnabla_detofa", *args.command_line])

    from ..backend.compat import Device

    runner = importlib.import_module(RUNNERS[config.args.runner])
    device = Device.open(config.args.context, config.args.device_id, config.args.type_config)
    runner.run(config, device, config.output_path, restart=args.restart)
    return None


def _processes(config, wanted: int | str | None, restart: bool) -> int:
    """What `--processes` stands for. Without MPI auto is one process, which evaluates paths on all cores alone."""
    if wanted != "auto":
        return wanted or 1
    from ..training.mini_batch import most_processes

    if config.args.context != "cpu" and importlib.util.find_spec("nnabla_ext.cuda"):
        return config.args.device_id.count(",") + 1
    return most_processes(config, launch.cores(), config.output_path, restart) if launch.can_launch() else 1


DIGITS = {"train": 400, "val": 128, "test": 150}
"""Images of each split of the embedded data set, unless the command line says otherwise."""


def data_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name",
        choices=("digits", "to-coco", "check"),
        help="digits: handwritten digits on photographs, in VOC's layout; to-coco: a copy of a VOC tree in COCO's format; "
        "check: counts of objects, and everything that is wrong with a data set",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="check: entries that replace those of the config")
    parser.add_argument("--root", metavar="FOLDER", help="where to write it (default: data/<name>)")
    parser.add_argument("--seed", type=int, default=0, help="digits: another seed draws another set (default: %(default)s)")
    for split, count in DIGITS.items():
        images = f"digits: images of the {split} split (default: %(default)s)"
        parser.add_argument(f"--{split}", type=int, metavar="N", default=count, help=images)
    parser.add_argument("--no-crops", action="store_true", help="digits: leave out the single digits for pre-training")
    parser.add_argument("--voc", metavar="FOLDER", help="to-coco: the VOC tree to copy; check: a VOC tree")
    parser.add_argument(
        "--splits",
        nargs="+",
        metavar="SPLIT",
        help="to-coco: default: train val test; check --voc: default: all that are there",
    )
    parser.add_argument("--coco", metavar="FOLDER", help="check: a folder with annotations/instances_<split>.json and <split>/")
    parser.add_argument("-f", "--file", metavar="FILE", help="check: the data set of a config, its splits and classes")
    parser.add_argument(
        "--whole",
        action="store_true",
        help="check: decode every photograph, which takes minutes for large sets and finds damage in the middle, and "
        "photographs that are in two splits under two names",
    )


def data(args: argparse.Namespace) -> None:
    """Make a data set that needs no download, or check one."""
    if args.name == "check":
        check_data(args)
        return
    if args.overrides:
        raise UserError(f"data {args.name} takes no config's entries, got {args.overrides[0]}")
    if args.name == "to-coco":
        from ..data.coco import write_coco

        if not args.voc:
            raise UserError("data to-coco needs --voc, the folder of the VOC tree to copy")
        root = write_coco(Path(args.voc), Path(args.root or "data/to-coco"), args.splits or ("train", "val", "test"))
        print(f"{args.voc} in COCO's format is in {root}")
        return
    from ..data.digits import write_digits

    if args.seed < 0:
        raise UserError(f"--seed must be 0 or more, got {args.seed}")
    counts = {split: getattr(args, split) for split in DIGITS}
    crops = {"crops_train": 0, "crops_val": 0} if args.no_crops else {}
    root = write_digits(args.root or Path("data", args.name), seed=args.seed, **counts, **crops)
    print(f"the data set {args.name} is in {root}")


def check_data(args: argparse.Namespace) -> None:
    """Print what a data set holds and everything that is wrong with it.

    Raises:
        UserError: training would stop at something.
    """
    from tqdm import tqdm

    from ..data import check

    if sum(map(bool, (args.voc, args.coco, args.file))) != 1:
        raise UserError("data check needs one of --voc FOLDER, --coco FOLDER and -f CONFIG")
    if args.overrides and not args.file:
        raise UserError(f"entries of a config need the config, -f CONFIG, got {args.overrides[0]}")
    if args.splits and not args.voc:
        raise UserError("--splits are those of --voc")
    with tqdm(desc="photographs", unit="image", dynamic_ncols=True, leave=False) as bar:
        if args.voc:
            splits = args.splits and {name: (name,) for name in args.splits}
            report = check.check_voc(args.voc, splits, whole=args.whole, on_image=bar.update)
        elif args.coco:
            report = check.check_coco(args.coco, whole=args.whole, on_image=bar.update)
        else:
            from .. import config as configs

            report = check.check_config(configs.load(args.file, args.overrides), args.whole, bar.update)
    print(report)
    if report.fatal:
        raise UserError(f"{report.source} is not fit for training")


def report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the folder of a finished run of Algorithm 1")
    parser.add_argument("-o", "--output", metavar="FOLDER", help="where to write (default: results/<run>)")


def report(args: argparse.Namespace) -> None:
    """Write the tables and figures of a run, and print its table."""
    output = Path(args.output or Path("results", Path(args.run).name))
    refuse_output_folder(output)
    from ..tools.report import write_report

    files = write_report(Path(args.run), output)
    print((output / "table.md").read_text())
    print(f"written: {', '.join(map(str, files))}")


def evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the folder of a run of Algorithm 1")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="entries that replace those of the run's config")
    parser.add_argument(
        "--detector",
        action="append",
        metavar="NAME",
        help="fullnet, subnet_1, ... or a JSON file with a path in OFA's notation; may be repeated (default: all of the run's)",
    )
    parser.add_argument("--flip", action="store_true", default=None, help="average each image with its mirror image")
    parser.add_argument(
        "--scales", type=float, nargs="+", metavar="S", help="sizes of the input over that of training, merged by soft-NMS"
    )
    parser.add_argument("-c", "--context", choices=("cpu", "cudnn", "auto"), default="auto", help="default: %(default)s")
    parser.add_argument("-d", "--device-id", metavar="DEVICE", default="0", help="a GPU (default: %(default)s)")
    parser.add_argument("-o", "--output", metavar="FILE", help="also write the figures as JSON")


def refuse_output(output: str | None) -> None:
    """Raise UserError before the work if its result could not be written."""
    if output and (Path(output).is_dir() or not Path(output).absolute().parent.is_dir()):
        raise UserError(f"--output must be a file in a folder that is there, got {output}")


def refuse_output_folder(output: Path) -> None:
    """Raise UserError before the work if its results could not go into this folder, there or not."""
    there = next(folder for folder in (output, *output.parents) if folder.exists())
    if not there.is_dir():
        raise UserError(f"--output must be a folder, or the place for one, got {output}: {there} is a file")


def refuse_numbers(args: argparse.Namespace, **most: int) -> None:
    """Raise UserError for the first of these arguments that is below 1, or above its most."""
    for name, limit in most.items():
        value = getattr(args, name)
        if value is not None and not 1 <= value <= limit:
            raise UserError(f"--{name.replace('_', '-')} must be in [1, {limit}], got {value}")


def evaluate(args: argparse.Namespace) -> None:
    """Print the average precision of a run's detectors, class by class."""
    if args.scales and not all(0 < scale <= 8 for scale in args.scales):
        raise UserError(f"--scales must be numbers in (0, 8], got {', '.join(map(str, args.scales))}")
    refuse_output(args.output)
    from ..backend.compat import Device
    from ..tools.evaluate import detectors_of, evaluate, table

    Device.open(args.context, args.device_id)
    run = Path(args.run)
    names = args.detector or detectors_of(run)
    results = {name: evaluate(run, name, args.overrides, args.flip, args.scales) for name in names}
    print(table(results))
    if args.output:
        Path(args.output).write_text(json.dumps(results, indent=1) + "\n")


def search_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the folder of a finished run of Algorithm 1")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="entries that replace those of the run's config")
    parser.add_argument(
        "--flops", metavar="BOUND", help="most multiply-accumulates, like 3G or 250M; of what the run's hparams.cost_scope says"
    )
    parser.add_argument("--latency", metavar="BOUND", help="like 40ms or 900us; needs a table of measure-latency")
    parser.add_argument("--params", metavar="BOUND", help="most parameters of the detector, like 20M")
    parser.add_argument(
        "--memory", metavar="BOUND", help="most memory for the detector's activations, like 200MB (float32, one image)"
    )
    parser.add_argument("--latency-table", metavar="FILE", help="default: RUN/latency.json, if it is there")
    parser.add_argument("--front", action="store_true", help="all trades of FLOPs against score in each bucket (needs pymoo)")
    parser.add_argument(
        "--by-score",
        action="store_true",
        help="compare winners of buckets by score, as hparams.search.across_buckets=score does; needs no weights and data",
    )
    parser.add_argument("--generations", type=int, metavar="N", help="of each search (default: the run's)")
    parser.add_argument("-c", "--context", choices=("cpu", "cudnn", "auto"), default="auto", help="default: %(default)s")
    parser.add_argument("-d", "--device-id", metavar="DEVICE", default="0", help="a GPU (default: %(default)s)")
    parser.add_argument("-o", "--output", metavar="FILE", help="the result as JSON (default: RUN/found.json, or front.json)")


def search(args: argparse.Namespace) -> None:
    """Search a finished run for the best path under hard bounds."""
    refuse_output(args.output)
    if args.generations is not None and args.generations < 0:
        raise UserError(f"--generations must be 0 or more, got {args.generations}")
    from ..tools.search import UNITS, find, load_run, parse_bound, table

    bounds = {name: parse_bound(name, getattr(args, name)) for name in UNITS if getattr(args, name) is not None}
    from tqdm import tqdm

    from ..backend.compat import Device

    Device.open(args.context, args.device_id)
    folder = Path(args.run)
    run = load_run(folder, args.overrides, args.latency_table and Path(args.latency_table))
    with tqdm(desc="generations", unit="generation", dynamic_ncols=True) as bar:
        result = find(run, bounds, args.by_score, args.front, args.generations, bar.update, bar.write)
    print(table(result))
    output = Path(args.output or folder / ("front.json" if args.front else "found.json"))
    output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {output}")


def supernet_arguments(parser: argparse.ArgumentParser) -> None:
    """Which supernet: a run's, or that of a config and a weights file."""
    parser.add_argument("run", nargs="?", metavar="RUN", help="the folder of a run; or else -f and --weights")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="entries that replace those of the config")
    parser.add_argument("-f", "--file", metavar="FILE", help="a config instead of a run")
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="the supernet's weights, such as warm_up/weights.h5 of the run (default: its last finished phase's)",
    )
    parser.add_argument("--per-bucket", type=int, metavar="N", required=True, help="paths of each FLOPs bucket")
    parser.add_argument(
        "--name", default="paths", help="seeds the drawing of paths: another name, others (default: %(default)s)"
    )
    parser.add_argument("--images", type=int, metavar="N", help="validation images (default: the config's)")
    parser.add_argument(
        "--bn-images", type=int, metavar="N", help="images for re-estimating statistics (default: the config's)"
    )
    parser.add_argument("-c", "--context", choices=("cpu", "cudnn", "auto"), default="auto", help="default: %(default)s")
    parser.add_argument("-d", "--device-id", metavar="DEVICE", default="0", help="a GPU (default: %(default)s)")


def supernet_of(args: argparse.Namespace):
    """The config and the weights file that `supernet_arguments` name; opens the device."""
    from .. import config as configs
    from ..runs.run_folder import run_config, run_weights

    refuse_numbers(args, per_bucket=10**6, images=10**9, bn_images=10**9)
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

    Device.open(args.context, args.device_id, config.args.type_config)
    return config, weights


def evaluate_paths_arguments(parser: argparse.ArgumentParser) -> None:
    supernet_arguments(parser)
    parser.add_argument("--pruned", action="store_true", help="draw from the run's pruned space instead of A")
    parser.add_argument("--exclude", nargs="+", metavar="FILE", default=[], help="leave out the paths of these files")
    parser.add_argument("--ap", action="store_true", help="measure AP50 on the validation images too")
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="evaluated paths, made or extended (.jsonl)")


def evaluate_paths(args: argparse.Namespace) -> None:
    """Evaluate paths of each FLOPs bucket of a supernet into a file."""
    refuse_output(args.output)
    if args.pruned and args.file:
        raise UserError("--pruned draws from the pruned space of a run: it needs a run's folder instead of -f")
    from tqdm import tqdm

    config, weights = supernet_of(args)
    from ..runs.run_folder import searched_space
    from ..tools.evaluate_paths import evaluate_sampled

    space = searched_space(Path(args.run), config) if args.pruned else None
    with tqdm(desc="paths", unit="path", dynamic_ncols=True) as bar:
        found = evaluate_sampled(
            config,
            weights,
            args.output,
            args.per_bucket,
            args.name,
            args.exclude,
            space,
            args.images,
            args.bn_images,
            args.ap,
            progress_of(bar),
            bar.write,
        )
    print(f"{len(found)} paths of the weights {weights} are in {args.output}")


def evaluation_study_arguments(parser: argparse.ArgumentParser) -> None:
    supernet_arguments(parser)
    parser.add_argument("--pairs", type=int, default=1, metavar="N", help="of subsets for re-estimation (default: %(default)s)")
    parser.add_argument("-o", "--output", metavar="FILE", help="also write the tables as Markdown")


def evaluation_study(args: argparse.Namespace) -> None:
    """Print how the order of paths depends on the number of images that evaluate them."""
    refuse_output(args.output)
    refuse_numbers(args, pairs=1000)
    from tqdm import tqdm

    command = f"python -m nnabla_detofa {shlex.join(args.command_line)}"
    config, weights = supernet_of(args)
    from ..tools.evaluation_study import markdown, study

    numbers = (args.per_bucket, args.name, args.images, args.bn_images, args.pairs)
    with tqdm(desc="paths", unit="path", dynamic_ncols=True) as bar:
        result = study(config, weights, *numbers, progress_of(bar), bar.write)
    text = markdown(result, f"{config.name}, {weights}", command)
    print(text)
    if args.output:
        Path(args.output).write_text(text)


def progress_of(bar) -> Callable[[int, int], None]:
    """Moves a progress bar to what is done, of how much."""

    def progress(done: int, total: int) -> None:
        if bar.total is None:
            bar.initial, bar.total = done, total
        bar.update(done - bar.n)

    return progress


def ship_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the folder of a finished pre-training")
    parser.add_argument("folder", metavar="FOLDER", help="where to")
    parser.add_argument("--name", default="digits", help="first part of the files' names (default: %(default)s)")


def ship(args: argparse.Namespace) -> None:
    """Copy pre-trained weights in half precision."""
    from ..methods.pretrain import ship

    print(f"written: {', '.join(map(str, ship(Path(args.run), Path(args.folder), args.name)))}")


def table1_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", metavar="FOLDER", default="results/table1", help="default: %(default)s")


def table1(args: argparse.Namespace) -> None:
    """Write and print the sizes of the search spaces."""
    refuse_output_folder(Path(args.output))
    from ..paper.table1 import write

    files = write(Path(args.output))
    print(files[0].read_text())
    print(f"written: {', '.join(map(str, files))}")


def reproduce_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "targets",
        nargs="+",
        metavar="TARGET",
        help="table2, table3, tableA1 to tableA3, figure3 to figure10, figureA1, figureA2, controls, architectures",
    )
    parser.add_argument("--set", action="append", default=[], metavar="key=value", help="an entry of the configs to replace")
    parser.add_argument("--profile", default="demo", help="demo, bccd, paper, or a .json file (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="the seeds 0 to N - 1 (default: %(default)s)")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at a time (default: one for each core, or one GPU)")
    parser.add_argument("-c", "--context", choices=("cpu", "cudnn", "auto"), default="auto", help="default: %(default)s")
    parser.add_argument("-d", "--device-id", metavar="DEVICE", default="0", help="a GPU (default: %(default)s)")
    parser.add_argument("-o", "--output", metavar="FOLDER", help="default: results/<profile>")


def reproduce(args: argparse.Namespace) -> None:
    """Make tables and figures of the paper, with the runs that they need, and print them."""
    from ..paper.profiles import load

    refuse_numbers(args, seeds=1000, jobs=256)
    profile = load(args.profile)
    overrides = [entry for text in args.set for entry in re.split(r"\s+(?=[\w.]+=)", text.strip())]  # values may have spaces
    flags = {"context": args.context, "device_id": args.device_id}
    overrides += [f"args.{key}={value}" for key, value in flags.items() if value not in ("auto", "0")]
    output = Path(args.output or profile.results)
    refuse_output_folder(output)
    from ..backend.compat import Device
    from ..paper.reproduce import Order, reproduce

    device = Device.open(args.context, args.device_id)
    cores = launch.cores() if device.name == "cpu" else 1  # two on one GPU would each count the other's time as theirs
    for file in reproduce(args.targets, Order(profile, output, args.seeds, tuple(overrides), args.jobs or cores, cores)):
        print(file.read_text())
        written = [file.with_suffix(suffix) for suffix in (".md", ".csv", ".png")]
        print(f"written: {', '.join(str(path) for path in written if path.exists())}")  # some tables have no picture


def results_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="tables, figures, controls or claims (default: all, and the page)"
    )
    parser.add_argument("--profile", default="demo", help="demo, bccd, study, or a .json file (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="look for seeds 0 to N - 1 (default: %(default)s)")
    parser.add_argument("--kept", action="store_true", help="do not look for runs: take what results/<profile>/runs holds")


def results(args: argparse.Namespace) -> None:
    """Keep the small files of a profile's runs, and make all results from these alone."""
    from ..paper.profiles import load
    from ..paper.results import make_results

    refuse_numbers(args, seeds=1000)
    for file in make_results(load(args.profile), args.names, args.seeds, not args.kept):
        print(f"written: {file}")


def pilot_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", default="study", help="whose data set's config is varied (default: %(default)s)")
    parser.add_argument("--all", action="store_true", help="run every cell, also where a smaller one meets all criteria")
    parser.add_argument("-c", "--context", choices=("cpu", "cudnn", "auto"), default="auto", help="default: %(default)s")
    parser.add_argument("-d", "--device-id", metavar="DEVICE", default="0", help="a GPU (default: %(default)s)")


def pilot(args: argparse.Namespace) -> None:
    """Choose the regime of a study: images, steps and augmentation in which methods can differ."""
    from ..backend.compat import Device
    from ..paper.pilot import GRID, run_pilot
    from ..paper.profiles import load

    profile = load(args.profile)
    print(run_pilot(profile, GRID, Device.open(args.context, args.device_id), args.all).read_text())


def page_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", default="demo", help="demo, bccd, paper, or a .json file (default: %(default)s)")
    parser.add_argument("--results", metavar="FOLDER", help="where reproduce and report wrote (default: results/<profile>)")
    parser.add_argument("-o", "--output", metavar="FILE", help="default: report.html among the results")


def page(args: argparse.Namespace) -> None:
    """Write all results of a profile as one HTML page."""
    from ..paper.page import write_page
    from ..paper.profiles import load

    refuse_output(args.output)
    if args.output and not args.output.endswith(".html"):  # the results themselves are no output
        raise UserError(f"--output must be a file whose name ends in .html, got {args.output}")
    profile = load(args.profile)
    results = Path(args.results or profile.results)
    output = Path(args.output or results / "report.html")
    made = write_page(profile, results, output)
    print(f"written: {output}, {output.stat().st_size / 1e6:.1f} MB, with {made} of the paper's tables and figures")


def measure_latency_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--file", required=True, metavar="FILE", help="the config, .json or .yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="entries that replace those of the config")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the table, as JSON")
    parser.add_argument(
        "--image-size", type=int, nargs="+", metavar="PIXELS", help="side, or height and width (default: the config's)"
    )
    parser.add_argument("--classes", type=int, metavar="N", help="default: network.num_classes, or 20")
    parser.add_argument("--repeats", type=int, default=20, metavar="N", help="timed passes of a layer (default: %(default)s)")
    parser.add_argument("--paths", type=int, default=20, metavar="N", help="whole networks to compare (default: %(default)s)")
    parser.add_argument("-c", "--context", choices=("cpu", "cudnn", "auto"), default="auto", help="default: %(default)s")
    parser.add_argument("-d", "--device-id", metavar="DEVICE", default="0", help="a GPU (default: %(default)s)")


def measure_latency(args: argparse.Namespace) -> None:
    """Time the layers of a config's supernet, and say how well their sums predict whole networks."""
    refuse_output(args.output)
    refuse_numbers(args, repeats=10**6, paths=10**6, classes=10**5)
    if args.image_size and (len(args.image_size) > 2 or max(args.image_size) > 16384):
        sides = " ".join(map(str, args.image_size))
        raise UserError(f"--image-size must be a side, or height and width, of at most 16384 pixels, got {sides}")
    from .. import config as configs

    config = configs.load(args.file, args.overrides)
    import numpy as np
    from tqdm import tqdm

    from ..backend.compat import Device
    from ..tools.measure_latency import measure, model_of, validate, write

    size = (args.image_size * 2)[:2] if args.image_size else None
    model = model_of(config, size and tuple(size), args.classes)
    device = Device.open(args.context, args.device_id, config.args.type_config)
    synchronise = device.event.default_stream_synchronize
    with tqdm(desc="layers", unit="layer", dynamic_ncols=True) as bar:

        def on_layer(done: int, total: int) -> None:
            bar.total = total
            bar.update()

        latency = measure(model, args.repeats, synchronise, on_layer)
    found = validate(latency, model, np.random.default_rng(config.args.seed), args.paths, args.repeats, synchronise)
    write(Path(args.output), latency, model, device.name, args.repeats, found)
    correlation = found["rank_correlation"]
    print(
        f"{args.paths} random paths on {device.name}: mean relative error {found['mean_relative_error']:.1%}, "
        f"rank correlation {'-' if correlation is None else f'{correlation:.3f}'}, "
        f"{min(found['measured_ms']):.3g} to {max(found['measured_ms']):.3g} ms"
    )
    print(f"written: {args.output}")


def import_ofa_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="OFA's ResNet50 supernet as PyTorch saved it, or weights.h5 of NNablaNAS' own ofa_resnet50",
    )
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="the weights file to write, .h5")
    parser.add_argument(
        "--keep-channels",
        action="store_true",
        help="leave the first convolution for red, green, blue and ImageNet's normalisation, to compare with PyTorch; "
        "by default it is rewritten for this package's images: blue, green, red with CenterNet's mean and deviation",
    )


def import_ofa(args: argparse.Namespace) -> None:
    """Turn a PyTorch checkpoint into a weights file, and print what was found."""
    from ..networks.import_ofa import import_checkpoint

    if Path(args.output).suffix != ".h5":
        raise UserError(f"the weights file to write must end in .h5, got {args.output}")
    if Path(args.output).is_dir():
        raise UserError(f"the weights file to write must be a file, and {args.output} is a folder")
    found = import_checkpoint(args.checkpoint, args.output, args.keep_channels)
    print(f"{found.placed + found.dropped} tensors read, {found.placed} placed, {found.dropped} dropped (num_batches_tracked)")
    print(f"{found.classes} classes")
    print(f"the first convolution {'is as it was' if args.keep_channels else 'now takes blue, green, red images'}")
    print(f"written: {args.output}")


def detect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the folder of a run of Algorithm 1")
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="JPEG or PNG photographs, and folders of them (without their subfolders); "
        "key=value replaces an entry of the run's config",
    )
    parser.add_argument(
        "--detector",
        metavar="NAME",
        help="fullnet, subnet_1, ... or a JSON file with a path, as for evaluate (default: the subnet of the largest budget)",
    )
    parser.add_argument(
        "--threshold", type=float, default=0.3, metavar="SCORE", help="least score of an object (default: %(default)s)"
    )
    parser.add_argument("-c", "--context", choices=("cpu", "cudnn", "auto"), default="auto", help="default: %(default)s")
    parser.add_argument("-d", "--device-id", metavar="DEVICE", default="0", help="a GPU (default: %(default)s)")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FOLDER",
        help="for the pictures and detections.json, whose boxes are in pixels of the photographs (default: RUN/detections)",
    )


def detect(args: argparse.Namespace) -> None:
    """Draw what a run's detector finds in photographs, and print how many objects there are in each."""
    if not 0 <= args.threshold <= 1:
        raise UserError(f"--threshold must be in [0, 1], got {args.threshold:g}")
    output = Path(args.output or Path(args.run, "detections"))
    if output.exists() and not output.is_dir():
        raise UserError(f"--output must be a folder, and {output} is a file")
    overrides = [text for text in args.images if re.match(r"[a-z_]+\.[\w.]+=", text)]

    def note(text: str) -> None:
        print(text, file=sys.stderr)

    from ..tools.detect import check_files, detect, find_images, load_detector

    empty: list[str] = []
    files = find_images([Path(text) for text in args.images if text not in overrides], empty.append)
    check_files(files, output)
    from ..backend.compat import Device

    Device.open(args.context, args.device_id)
    detector = load_detector(Path(args.run), args.detector, overrides)

    def report_image(file: Path, found: list) -> None:
        while empty:  # told with the first image, as `detect` tells of what it skips
            note(empty.pop(0))
        counts = {name: sum(item.name == name for item in found) for name in detector.classes}
        listed = ", ".join(f"{name}: {count}" for name, count in counts.items() if count)
        print(f"{file}: {len(found)} object{'s' * (len(found) != 1)}{f' ({listed})' if listed else ''}", flush=True)

    file = detect(detector, files, output, args.threshold, note, report_image)
    print(f"written: pictures of {detector.name} and {file.name} in {output}")


def inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the folder of any run, finished or not")
    parser.add_argument("--json", action="store_true", help="everything as JSON instead, for programs")


def inspect(args: argparse.Namespace) -> None:
    """Print how far a run is, what it cost, what it pruned, what it found, and where everything lies."""
    from ..tools.inspect import describe, text

    found = describe(Path(args.run))
    print(json.dumps(found, indent=1) if args.json else text(found))


def compare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="the folders of two or more finished runs")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("-o", "--output", metavar="FILE", help="also draw AP over the budgets, .png")


def compare(args: argparse.Namespace) -> None:
    """Print the AP of several runs at each budget, the differences, and whether they may be compared."""
    refuse_output(args.output)
    if args.output and Path(args.output).suffix != ".png":
        raise UserError(f"--output must end in .png, got {args.output}")
    from ..tools.compare import compare, draw, table

    found = compare([Path(run) for run in args.runs])
    print(json.dumps(found, indent=1) if args.json else table(found))
    if args.output:
        draw(found).savefig(args.output, dpi=110)
        print(f"written: {args.output}", file=sys.stderr if args.json else sys.stdout)


def doctor_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-f",
        "--file",
        metavar="FILE",
        help="a config: examine what its run needs too; the exit status is 2 if something stops it",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="entries that replace those of the config")


def doctor(args: argparse.Namespace) -> None:
    """Print how the installation stands, and whether a config could be run.

    Raises:
        UserError: something stops it.
    """
    from ..tools.doctor import PROBLEM, examine, lines

    if args.overrides and not args.file:
        raise UserError(f"entries of a config need the config, -f CONFIG, got {args.overrides[0]}")
    problems = 0
    for finding in examine(args.file, args.overrides):
        print(lines(finding), flush=True)
        problems += finding.state == PROBLEM
    if problems:
        what = f"{args.file} cannot be run" if args.file else "this installation does not work"
        raise UserError(f"{what}: {problems} problem{'s' * (problems > 1)} above")


def detector_arguments(parser: argparse.ArgumentParser) -> None:
    """One detector of a run."""
    parser.add_argument("run", metavar="RUN", help="the folder of a run of Algorithm 1, or of a fine-tuning")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="entries that replace those of the run's config")
    parser.add_argument(
        "--detector",
        required=True,
        metavar="NAME",
        help="fullnet, subnet_1, ..., finetuned, or a JSON file with a path in OFA's notation (what search writes)",
    )
    parser.add_argument("-c", "--context", choices=("cpu", "cudnn", "auto"), default="auto", help="default: %(default)s")
    parser.add_argument("-d", "--device-id", metavar="DEVICE", default="0", help="a GPU (default: %(default)s)")


def export_arguments(parser: argparse.ArgumentParser) -> None:
    detector_arguments(parser)
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="what to write, .nnp or .onnx")
    parser.add_argument(
        "--size", type=int, nargs="+", metavar="PIXELS", help="of the input: side, or height and width (default: the run's)"
    )
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images of the input (default: %(default)s)")
    parser.add_argument(
        "--normalised",
        action="store_true",
        help="the input is (pixels / 255 - mean) / std; by default pixels from 0 to 255, normalised in the network",
    )
    parser.add_argument("--fold", action="store_true", help="fold batch normalisation into the convolutions")


def export(args: argparse.Namespace) -> None:
    """Write one detector as a static network, and compare it with the supernet's path."""
    file, run = Path(args.output), Path(args.run)
    if args.size and len(args.size) > 2:
        raise UserError(f"--size must be a side, or height and width, got {' '.join(map(str, args.size))}")
    from ..backend.compat import Device
    from ..runs.run_folder import run_config
    from ..tools.evaluate import open_detector
    from ..tools.export import about_file, check_output, check_request, export

    check_output(file)

    size = tuple((args.size * 2)[:2]) if args.size else None
    check_request(run, args.detector, run_config(run, args.overrides), size, args.batch)
    Device.open(args.context, args.device_id)
    opened = open_detector(run, args.detector, args.overrides)
    about = export(opened, run, args.detector, file, size, args.batch, not args.normalised, args.fold)
    difference, images = about["largest_difference"], about["compared_images"]
    print(f"largest difference from the supernet's path on {images} test images: {difference:.2g}")
    print(f"written: {file}, {file.stat().st_size / 1e6:.2f} MB, and {about_file(file)}")


def finetune_arguments(parser: argparse.ArgumentParser) -> None:
    detector_arguments(parser)
    parser.add_argument("--epochs", type=int, required=True, metavar="N", help="of the run's training images")
    parser.add_argument("--lr", type=float, metavar="RATE", help="learning rate at the start (default: a tenth of the run's)")
    parser.add_argument("-o", "--output", metavar="FOLDER", required=True, help="a run's folder, with the detector finetuned")
    parser.add_argument("--restart", action="store_true", help="start anew instead of going on where it was stopped")


def finetune(args: argparse.Namespace) -> None:
    """Train one detector further, alone, and print its average precision before and after."""
    from ..runs.run_folder import run_config

    run = Path(args.run)
    config = run_config(run, args.overrides)
    from ..backend.compat import Device
    from ..tools.evaluate import open_detector, table
    from ..tools.finetune import check_request, finetune

    check_request(Path(args.output), args.epochs, args.lr)
    device = Device.open(args.context, args.device_id, config.args.type_config)
    opened = open_detector(run, args.detector, args.overrides)
    results = finetune(opened, run, args.detector, Path(args.output), args.epochs, device, lr=args.lr, restart=args.restart)
    print(table(results))
    print(f"written: {args.output}; its detector is finetuned")


COMMANDS = {
    "run": Command(
        "train and search as a config says",
        run_arguments,
        run,
        (
            "-f configs/digits_detofa.json",
            "-f configs/voc_detofa.json -c cudnn -d 0 dataloader.voc.root=/data/VOCdevkit hparams.r_path=0.5",
            "-f configs/voc_detofa.json --dry-run",
            "-f configs/digits_detofa.json --processes 2",
        ),
    ),
    "report": Command(
        "write the table and the figures of a finished run", report_arguments, report, ("runs/digits_detofa -o results/demo",)
    ),
    "evaluate": Command(
        "average precision of a run's detectors, class by class",
        evaluate_arguments,
        evaluate,
        ("runs/digits_detofa", "runs/digits_detofa --detector subnet_1 --flip --scales 0.75 1 1.25"),
    ),
    "table1": Command("the paper's Table 1: sizes of the search spaces, exactly", table1_arguments, table1, ("",)),
    "reproduce": Command(
        "a table or a figure of the paper, with the runs that it needs",
        reproduce_arguments,
        reproduce,
        ("table3 tableA3 figure8 --profile demo", "figure9 --profile bccd --set dataloader.voc.root=FOLDER --seeds 3"),
    ),
    "results": Command(
        "all results of a profile from the small files of its runs alone",
        results_arguments,
        results,
        ("--profile demo", "claims --profile study --kept"),
    ),
    "pilot": Command(
        "choose the regime of the study by three criteria, on a grid",
        pilot_arguments,
        pilot,
        ("--profile study",),
    ),
    "page": Command(
        "all results of a profile as one HTML page",
        page_arguments,
        page,
        ("--profile demo", "--profile bccd -o bccd.html"),
    ),
    "measure-latency": Command(
        "time the layers of a config's supernet on this device",
        measure_latency_arguments,
        measure_latency,
        ("-f configs/digits_detofa.json -o latency.json", "-f configs/voc_detofa.json -c cudnn -o latency.json"),
    ),
    "search": Command(
        "the best path of a finished run under hard bounds",
        search_arguments,
        search,
        ("runs/digits_detofa --flops 90M --memory 2MB", "runs/voc_detofa --flops 15G --latency 40ms --params 20M --front"),
    ),
    "evaluate-paths": Command(
        "validation losses of many paths of a supernet, in a file",
        evaluate_paths_arguments,
        evaluate_paths,
        (
            "runs/digits_detofa --weights warm_up/weights.h5 --per-bucket 20 -o warm_up.jsonl",
            "runs/digits_detofa --pruned --per-bucket 12 --name fresh --exclude warm_up.jsonl --ap -o fresh.jsonl",
            "-f configs/digits_pretrain.json --weights configs/weights/digits_supernet.h5 --per-bucket 100 -o pretrained.jsonl",
        ),
    ),
    "evaluation-study": Command(
        "how many images the evaluation of paths needs",
        evaluation_study_arguments,
        evaluation_study,
        (
            "runs/digits_detofa --weights warm_up/weights.h5 --per-bucket 8 -o study.md",
            "-f configs/digits_pretrain.json --weights configs/weights/digits_supernet.h5 --per-bucket 12 --pairs 2",
        ),
    ),
    "ship": Command(
        "copy a pre-training's weights in half precision", ship_arguments, ship, ("runs/digits_pretrain configs/weights",)
    ),
    "data": Command(
        "make a data set that needs no download, or check one",
        data_arguments,
        data,
        (
            "digits --root data/digits",
            "digits --root data/digits_1600 --train 1600 --val 256 --test 2000 --no-crops",
            "to-coco --voc data/digits --root data/digits_coco",
            "check --voc data/digits --whole",
            "check -f configs/voc_detofa.json dataloader.voc.root=/data/VOCdevkit",
        ),
    ),
    "import-ofa": Command(
        "turn a PyTorch checkpoint of OFA's ResNet50 supernet into a weights file",
        import_ofa_arguments,
        import_ofa,
        ("ofa_resnet50_d=0+1+2_e=0.2+0.25+0.35_w=0.65+0.8+1.0 -o configs/weights/ofa_resnet50.h5",),
    ),
    "detect": Command(
        "draw what a run's detector finds in photographs",
        detect_arguments,
        detect,
        (
            "runs/digits_detofa data/digits/JPEGImages/test_00000.jpg --detector subnet_2",
            "runs/bccd_detofa photographs/ --detector fullnet --threshold 0.4 -o found",
        ),
    ),
    "inspect": Command(
        "how far a run is, what it cost, pruned and found",
        inspect_arguments,
        inspect,
        ("runs/digits_detofa", "runs/digits_detofa --json"),
    ),
    "compare": Command(
        "the fronts of two or more runs beside each other",
        compare_arguments,
        compare,
        ("runs/digits_detofa runs/digits_ofa -o front.png",),
    ),
    "doctor": Command(
        "what is wrong with this installation, or keeps a config from running",
        doctor_arguments,
        doctor,
        ("", "-f configs/voc_detofa.json dataloader.voc.root=/data/VOCdevkit"),
    ),
    "export": Command(
        "write one detector of a run as NNP or ONNX, and check the file",
        export_arguments,
        export,
        (
            "runs/digits_detofa --detector subnet_2 -o subnet_2.nnp",
            "runs/voc_detofa --detector found.json -o found.onnx",
        ),
    ),
    "finetune": Command(
        "train one detector of a run further, alone",
        finetune_arguments,
        finetune,
        ("runs/digits_detofa --detector subnet_2 --epochs 5 -o runs/subnet_2",),
    ),
}
"""Every subcommand; the first is meant where none is named."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Returns:
        The exit status: 0, 2 for what the user can mend, 130 when stopped. `--help` exits here, as argparse does.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name may be no text, or none that the terminal knows
    program = "nnabla_nas" if Path(sys.argv[0]).name == "nnabla_nas" else "python -m nnabla_detofa"
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview(program), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    if argv[0] == "--version":
        print(__version__)
        return 0
    if argv[0].startswith("-"):
        argv.insert(0, next(iter(COMMANDS)))
    name, *rest = argv
    rank, size = launch.launched()
    try:
        if name not in COMMANDS:
            raise UserError(f"there is no command {short(name)}; known are {', '.join(COMMANDS)}")
        if size > 1 and name != "run":
            raise UserError(f"{size} ranks were launched, but only run is shared out: start {name} as one process")
        logging.basicConfig(format="%(message)s")
        logging.getLogger(__package__).setLevel(logging.INFO if rank == 0 else logging.ERROR)
        with redirect_stderr(sys.stderr if rank == 0 else io.StringIO()):  # wrong usage is rank 0's to tell
            arguments = _parser(program, name).parse_intermixed_args(rest)
        arguments.command_line = [name, *rest]
        with _terminated_as_interrupted():
            return COMMANDS[name].run(arguments) or 0
    except UserError as error:
        return _failed(f"error: {_one_line(str(error))}", 2)
    except BrokenPipeError:  # the reader of what is printed, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        known = error.filename is not None or error.errno in DISK_ERRORS
        if not known and size == 1:
            raise
        sentence = f"{error.filename or 'a file cannot be written'}: {error.strerror}"
        return _failed(f"error: {_one_line(sentence)}" if known else traceback.format_exc(), 2 if known else 1)
    except launch.Stopped:
        if rank == 0:
            print(STOPPED, file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        return _failed(STOPPED, 130)
    except Exception:
        if size == 1:
            raise
        return _failed(traceback.format_exc(), 1)


STOPPED = "stopped; the same command goes on"


def _failed(message: str, status: int) -> int:
    """Say it and return the status; where there are other ranks, end with them."""
    if launch.launched()[1] > 1:
        launch.end(message, status)
    print(message, file=sys.stderr)
    return status


def _one_line(message: str) -> str:
    """A message that quotes what others wrote: line breaks and what steers a terminal are shown, not obeyed."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in message)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, as all errors here, instead of printing the usage above it."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help says what is allowed")


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """The other stop signals are as good as Ctrl-C, from the first moment on: a command may take long to open its data."""
    if threading.current_thread() is not threading.main_thread():  # only that one may say so
        yield
        return

    def stop(number: int, frame) -> None:
        raise KeyboardInterrupt

    with launch.handling(stop):
        yield


def _parser(program: str, name: str) -> argparse.ArgumentParser:
    command = COMMANDS[name]
    parser = _Parser(
        prog=f"{program} {name}",
        description=f"{command.help[0].upper()}{command.help[1:]}.",
        epilog="\n".join(["examples:", *(f"  {program} {name} {example}" for example in command.examples)]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.arguments(parser)
    return parser


def _overview(program: str) -> str:
    """What `--help` says without a command."""
    default = next(iter(COMMANDS))
    return "\n".join(
        [
            f"usage: {program} COMMAND ...      ({program} COMMAND --help says more)",
            f"       {program} -f FILE ...      short for: {program} {default} -f FILE ...",
            "",
            "DetOFA in NNabla: once-for-all training of object detectors.",
            "",
            "commands:",
            *(f"  {name:<17}{command.help}" for name, command in COMMANDS.items()),
            "",
            "examples:",
            *(f"  {program} {name} {example}" for name, command in COMMANDS.items() for example in command.examples),
        ]
    )
