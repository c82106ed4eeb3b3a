"""The command line: `nnabla_nas -f CONFIG`, and the tools around it. The only place that exits.

What the user can mend is one sentence on stderr and status 2; a run that was stopped is status 130; anything else that
goes wrong is a defect, and shows its traceback.
"""

import argparse
import errno
import importlib
import json
import logging
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import __version__
from .errors import UserError

# Imports inside the functions: `--help` answers at once, without nnabla.

RUNNERS = {
    "detofa": "nnabla_detofa.algorithm1",
    "pretrain": "nnabla_detofa.pretrain",
    **dict.fromkeys(("fullnet", "ofa", "ofa_ps", "compofa"), "nnabla_detofa.baselines"),
}
"""Where `args.runner` finds its module, which has a function run(config, device, output, restart=False)."""


@dataclass(frozen=True)
class Command:
    """A subcommand: what `--help` says of it, the arguments it takes, and what it does with them."""

    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]
    examples: tuple[str, ...] = ()


def run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--file", required=True, metavar="FILE", help="the config, .json or .yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="entries that replace those of the config")
    parser.add_argument("-c", "--context", choices=("cpu", "cudnn", "auto"), help="replaces args.context")
    parser.add_argument("-d", "--device-id", metavar="DEVICE", help="replaces args.device_id: a GPU, or one per rank: 0,1")
    parser.add_argument("-o", "--output-path", metavar="OUTPUT", help="replaces args.output_path (default: runs/<config>)")
    parser.add_argument("--restart", action="store_true", help="start anew instead of going on where the run was stopped")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be run, try one step of each phase on the CPU, write nothing"
    )


def run(args: argparse.Namespace) -> None:
    """Run a config: read it, choose the device, hand both to the runner."""
    from . import config as configs

    flags = {"context": args.context, "device_id": args.device_id, "output_path": args.output_path}
    overrides = [f"args.{key}={json.dumps(value)}" for key, value in flags.items() if value is not None]
    config = configs.load(args.file, [*args.overrides, *overrides])
    if args.dry_run:
        from .dry_run import dry_run

        for line in dry_run(config):
            print(line, flush=True)
        return

    from .compat import Device

    runner = importlib.import_module(RUNNERS[config.args.runner])
    device = Device.open(config.args.context, config.args.device_id, config.args.type_config)
    runner.run(config, device, config.output_path, restart=args.restart)


def data_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name",
        choices=("digits", "to-coco"),
        help="digits: handwritten digits on photographs, in VOC's layout; to-coco: a copy of a VOC tree in COCO's format",
    )
    parser.add_argument("--root", metavar="FOLDER", help="where to write it (default: data/<name>)")
    parser.add_argument("--seed", type=int, default=0, help="digits: another seed draws another set (default: %(default)s)")
    parser.add_argument("--voc", metavar="FOLDER", help="to-coco: the VOC tree to copy")
    parser.add_argument(
        "--splits", nargs="+", metavar="SPLIT", default=("train", "val", "test"), help="to-coco: default: train val test"
    )


def data(args: argparse.Namespace) -> None:
    """Make a data set that needs no download."""
    if args.name == "to-coco":
        from .data.coco import write_coco

        if not args.voc:
            raise UserError("data to-coco needs --voc, the folder of the VOC tree to copy")
        root = write_coco(Path(args.voc), Path(args.root or "data/to-coco"), args.splits)
        print(f"{args.voc} in COCO's format is in {root}")
        return
    from .data.digits import write_digits

    if args.seed < 0:
        raise UserError(f"--seed must be 0 or more, got {args.seed}")
    root = write_digits(args.root or Path("data", args.name), seed=args.seed)
    print(f"the data set {args.name} is in {root}")


def report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the folder of a finished run of Algorithm 1")
    parser.add_argument("-o", "--output", metavar="FOLDER", help="where to write (default: results/<run>)")


def report(args: argparse.Namespace) -> None:
    """Write the tables and figures of a run, and print its table."""
    from .report import write_report

    output = Path(args.output or Path("results", Path(args.run).name))
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


def evaluate(args: argparse.Namespace) -> None:
    """Print the average precision of a run's detectors, class by class."""
    from .compat import Device
    from .evaluate import detectors_of, evaluate, table

    if args.scales and not all(0 < scale <= 8 for scale in args.scales):
        raise UserError(f"--scales must be numbers in (0, 8], got {', '.join(map(str, args.scales))}")
    refuse_output(args.output)
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
    from .search_run import UNITS, find, load_run, parse_bound, table

    refuse_output(args.output)
    bounds = {name: parse_bound(name, getattr(args, name)) for name in UNITS if getattr(args, name) is not None}
    if args.generations is not None and args.generations < 0:
        raise UserError(f"--generations must be 0 or more, got {args.generations}")

    from tqdm import tqdm

    from .compat import Device

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
    from . import config as configs
    from .compat import Device
    from .run_folder import run_config, run_weights

    for name in ("per_bucket", "images", "bn_images"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be 1 or more, got {getattr(args, name)}")
    overrides = list(args.overrides)
    if args.file and args.run and "=" in args.run:
        overrides, args.run = [args.run, *overrides], None
    if bool(args.run) == bool(args.file):
        raise UserError("either the folder of a run or -f with a config must say which supernet is meant, and not both")
    if args.file and not args.weights:
        raise UserError("-f needs --weights, the supernet's weights file")
    config = run_config(Path(args.run), overrides) if args.run else configs.load(args.file, overrides)
    weights = run_weights(Path(args.run), config, args.weights) if args.run else Path(args.weights)
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
    from .evaluate_paths import evaluate_sampled
    from .run_folder import searched_space

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
    if args.pairs < 1:
        raise UserError(f"--pairs must be 1 or more, got {args.pairs}")
    from tqdm import tqdm

    command = f"python -m nnabla_detofa {shlex.join(args.command_line)}"
    config, weights = supernet_of(args)
    from .evaluation_study import markdown, study

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
    from .pretrain import ship

    print(f"written: {', '.join(map(str, ship(Path(args.run), Path(args.folder), args.name)))}")


def table1_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", metavar="FOLDER", default="results/table1", help="default: %(default)s")


def table1(args: argparse.Namespace) -> None:
    """Write and print the sizes of the search spaces."""
    from .table1 import write

    files = write(Path(args.output))
    print(files[0].read_text())
    print(f"written: {', '.join(map(str, files))}")


def reproduce_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "targets",
        nargs="+",
        metavar="TARGET",
        help="table2, table3, tableA1 to tableA3, figure3 to figure10, figureA1, figureA2",
    )
    parser.add_argument("--set", action="append", default=[], metavar="key=value", help="an entry of the configs to replace")
    parser.add_argument("--profile", default="demo", help="demo, bccd, paper, or a .json file (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="the seeds 0 to N - 1 (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="runs at a time (default: %(default)s)")
    parser.add_argument("-c", "--context", choices=("cpu", "cudnn", "auto"), default="auto", help="default: %(default)s")
    parser.add_argument("-d", "--device-id", metavar="DEVICE", default="0", help="a GPU (default: %(default)s)")
    parser.add_argument("-o", "--output", metavar="FOLDER", help="default: results/<profile>")


def reproduce(args: argparse.Namespace) -> None:
    """Make tables and figures of the paper, with the runs that they need, and print them."""
    from .compat import Device
    from .profiles import load
    from .reproduce import Order, reproduce

    for name in ("seeds", "jobs"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} must be 1 or more, got {getattr(args, name)}")
    Device.open(args.context, args.device_id)
    profile = load(args.profile)
    overrides = [entry for text in args.set for entry in re.split(r"\s+(?=[\w.]+=)", text.strip())]  # values may have spaces
    flags = {"context": args.context, "device_id": args.device_id}
    overrides += [f"args.{key}={value}" for key, value in flags.items() if value not in ("auto", "0")]
    output = Path(args.output or Path("results", profile.name))
    for file in reproduce(args.targets, Order(profile, args.seeds, tuple(overrides), output, args.jobs)):
        print(file.read_text())
        written = [file.with_suffix(suffix) for suffix in (".md", ".csv", ".png")]
        print(f"written: {', '.join(str(path) for path in written if path.exists())}")  # some tables have no picture


def page_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", default="demo", help="demo, bccd, paper, or a .json file (default: %(default)s)")
    parser.add_argument("--results", metavar="FOLDER", help="where reproduce and report wrote (default: results/<profile>)")
    parser.add_argument("-o", "--output", metavar="FILE", help="default: report.html among the results")


def page(args: argparse.Namespace) -> None:
    """Write all results of a profile as one HTML page."""
    from .html_page import write_page
    from .profiles import load

    refuse_output(args.output)
    profile = load(args.profile)
    results = Path(args.results or Path("results", profile.name))
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
    for name in ("repeats", "paths", "classes"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name} must be 1 or more, got {getattr(args, name)}")
    if args.image_size and len(args.image_size) > 2:
        raise UserError(f"--image-size must be a side, or height and width, got {' '.join(map(str, args.image_size))}")
    import numpy as np
    from tqdm import tqdm

    from . import config as configs
    from .compat import Device
    from .latency import measure, model_of, validate, write

    config = configs.load(args.file, args.overrides)
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
    from .import_ofa import import_checkpoint

    if Path(args.output).suffix != ".h5":
        raise UserError(f"the weights file to write must end in .h5, got {args.output}")
    found = import_checkpoint(args.checkpoint, args.output, args.keep_channels)
    print(f"{found.placed + found.dropped} tensors read, {found.placed} placed, {found.dropped} dropped (num_batches_tracked)")
    print(f"{found.classes} classes")
    print(f"the first convolution {'is as it was' if args.keep_channels else 'now takes blue, green, red images'}")
    print(f"written: {args.output}")


COMMANDS = {
    "run": Command(
        "train and search as a config says",
        run_arguments,
        run,
        (
            "-f configs/digits_detofa.json",
            "-f configs/voc_detofa.json -c cudnn -d 0 dataloader.voc.root=/data/VOCdevkit hparams.r_path=0.5",
            "-f configs/voc_detofa.json --dry-run",
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
        "make a data set that needs no download",
        data_arguments,
        data,
        ("digits --root data/digits", "to-coco --voc data/digits --root data/digits_coco"),
    ),
    "import-ofa": Command(
        "turn a PyTorch checkpoint of OFA's ResNet50 supernet into a weights file",
        import_ofa_arguments,
        import_ofa,
        ("ofa_resnet50_d=0+1+2_e=0.2+0.25+0.35_w=0.65+0.8+1.0 -o configs/weights/ofa_resnet50.h5",),
    ),
}
"""Every subcommand; the first is meant where none is named."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Returns:
        The exit status: 0, 2 for what the user can mend, 130 when stopped. Wrong usage exits with 2 here, as argparse does.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
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
    try:
        if name not in COMMANDS:
            raise UserError(f"there is no command {name}; known are {', '.join(COMMANDS)}")
        logging.basicConfig(format="%(message)s")
        logging.getLogger(__package__).setLevel(logging.INFO)
        arguments = _parser(program, name).parse_intermixed_args(rest)
        arguments.command_line = [name, *rest]
        COMMANDS[name].run(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"error: {error.filename + ': ' if error.filename else ''}{error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    return 0


def _parser(program: str, name: str) -> argparse.ArgumentParser:
    command = COMMANDS[name]
    parser = argparse.ArgumentParser(
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
