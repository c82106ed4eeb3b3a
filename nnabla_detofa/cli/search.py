"""Commands that search for a path, evaluate many paths, or measure the latency of layers."""

import argparse
import shlex
from pathlib import Path

from ..common.errors import UserError
from .shared import (
    check_numbers,
    check_output_file,
    config_arguments,
    device_arguments,
    progress_of,
    supernet_arguments,
    supernet_of,
)


def search_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the folder of a finished run of Algorithm 1")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a key of the run's config")
    parser.add_argument(
        "--flops",
        metavar="BOUND",
        help="upper bound on multiply-accumulates, such as 3G or 250M, of the run's hparams.cost_scope",
    )
    parser.add_argument(
        "--latency", metavar="BOUND", help="upper bound on the latency, such as 40ms or 900us; needs a table of measure-latency"
    )
    parser.add_argument("--params", metavar="BOUND", help="upper bound on the parameters of the detector, such as 20M")
    parser.add_argument(
        "--memory", metavar="BOUND", help="upper bound on the memory of the activations, such as 200MB (float32, one image)"
    )
    parser.add_argument(
        "--latency-table", metavar="FILE", help="table of measure-latency (default: RUN/latency.json, if it exists)"
    )
    parser.add_argument(
        "--front", action="store_true", help="return the Pareto front of FLOPs and score of each bucket (needs pymoo)"
    )
    parser.add_argument(
        "--by-score",
        action="store_true",
        help="compare winners of buckets by score, as hparams.search.across_buckets=score does; needs no weights and data",
    )
    parser.add_argument("--generations", type=int, metavar="N", help="generations of each search (default: the run's)")
    device_arguments(parser)
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE or FOLDER",
        help="file of the result, or a folder for a file named by the bounds (default: RUN)",
    )


def search(args: argparse.Namespace) -> None:
    """Search a finished run for the best path under hard bounds."""
    from ..tools.bounds import UNITS, parse_bound, result_name

    texts = {name: getattr(args, name) for name in UNITS if getattr(args, name) is not None}
    bounds = {name: parse_bound(name, text) for name, text in texts.items()}
    output = Path(args.output or args.run)
    if output.is_dir() or not args.output:
        output /= result_name(texts, args.front)
    check_output_file(output)
    if args.generations is not None and not 0 <= args.generations <= 10**6:
        raise UserError(f"--generations must be from 0 to {10**6}, got {args.generations}")
    from ..backend.compat import Device
    from ..common.files import write_json
    from ..common.progress import ProgressBar
    from ..tools.search import find, load_run, table

    Device.open(args.context, args.device_id)
    folder = Path(args.run)
    run = load_run(folder, args.overrides, args.latency_table and Path(args.latency_table))
    with ProgressBar(desc="generations", unit="generation") as bar:
        result = find(run, bounds, args.by_score, args.front, args.generations, bar.update, bar.write)
    print(table(result))
    write_json(output, result)
    print(f"written: {output}")
    args.written = output


def after_search(args: argparse.Namespace) -> dict[str, str]:
    """Return the commands that use the path found; a front has many, and a search under bounds chooses one."""
    run, file = shlex.quote(args.run), shlex.quote(str(args.written))
    if args.front:
        return {f"search {run} --flops BOUND": "the best subnet under one bound"}
    return {
        f"evaluate {run} --detector {file}": "its average precision",
        f"export {run} --detector {file} -o FILE.nnp": "the subnet as a separate network",
    }


def evaluate_paths_arguments(parser: argparse.ArgumentParser) -> None:
    supernet_arguments(parser)
    parser.add_argument("--pruned", action="store_true", help="sample from the run's pruned space instead of the full one")
    parser.add_argument("--exclude", nargs="+", metavar="FILE", default=[], help="do not sample the paths in these files")
    parser.add_argument("--ap", action="store_true", help="measure AP50 on the validation images too")
    parser.add_argument(
        "-o", "--output", metavar="FILE", required=True, help="file of evaluated paths (.jsonl), created or extended"
    )


def evaluate_paths(args: argparse.Namespace) -> None:
    """Evaluate paths of each FLOPs bucket of a supernet, and write the results to a file."""
    check_output_file(args.output)
    if args.pruned and args.file:
        raise UserError("--pruned samples from the pruned space of a run: give the folder of a run instead of -f")
    from ..common.progress import ProgressBar

    config, weights = supernet_of(args)
    from ..runs.run_folder import searched_space
    from ..tools.sampled_paths import evaluate_sampled_paths

    space = searched_space(Path(args.run), config) if args.pruned else None
    with ProgressBar(desc="paths", unit="path") as bar:
        found = evaluate_sampled_paths(
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
    print(f"written: {args.output}, with {len(found)} paths of the weights {weights}")


def after_evaluate_paths(args: argparse.Namespace) -> dict[str, str]:
    return {f"image-count-study {_supernet(args)} --per-bucket 8": "how much of the losses is noise, for fewer images"}


def _supernet(args: argparse.Namespace) -> str:
    """Return the arguments that select the supernet of a command."""
    flags = {"-f": args.file, "--weights": args.weights}
    words = [args.run, *(word for flag, value in flags.items() if value for word in (flag, value))]
    return shlex.join([word for word in words if word] + args.overrides)


def image_count_study_arguments(parser: argparse.ArgumentParser) -> None:
    supernet_arguments(parser)
    parser.add_argument(
        "--pairs", type=int, default=1, metavar="N", help="pairs of subsets for re-estimation (default: %(default)s)"
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="also write the tables as Markdown")


def image_count_study(args: argparse.Namespace) -> None:
    """Print how the ranking of paths depends on the number of images used for their evaluation."""
    check_output_file(args.output)
    check_numbers(args, pairs=1000)
    from ..common.files import write_text
    from ..common.progress import ProgressBar

    command = f"detofa {shlex.join(args.command_line)}"
    config, weights = supernet_of(args)
    from ..tools.image_count_study import image_count_study as study
    from ..tools.image_count_study import markdown

    numbers = (args.per_bucket, args.name, args.images, args.bn_images, args.pairs)
    with ProgressBar(desc="paths", unit="path") as bar:
        result = study(config, weights, *numbers, progress_of(bar), bar.write)
    text = markdown(result, f"{config.name}, {weights}", command)
    print(text)
    if args.output:
        write_text(args.output, text)
        print(f"written: {args.output}")


def after_image_count_study(args: argparse.Namespace) -> dict[str, str]:
    config = shlex.quote(args.file or str(Path(args.run, "config.json")))
    return {f"train {config} -o FOLDER hparams.val_images=N hparams.bn_images=N": "train with other numbers of images"}


def measure_latency_arguments(parser: argparse.ArgumentParser) -> None:
    config_arguments(parser, "a .json or .yaml file, or the name of a shipped config, such as digits_detofa")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="file of the table, JSON")
    parser.add_argument(
        "--image-size",
        type=int,
        nargs="+",
        metavar="PIXELS",
        help="input size: side, or height and width (default: the config's)",
    )
    parser.add_argument("--classes", type=int, metavar="N", help="number of classes (default: the config's, or 20)")
    parser.add_argument(
        "--repeats", type=int, default=20, metavar="N", help="timed passes of each layer (default: %(default)s)"
    )
    parser.add_argument(
        "--paths", type=int, default=20, metavar="N", help="whole networks to compare with (default: %(default)s)"
    )
    device_arguments(parser)


def measure_latency(args: argparse.Namespace) -> None:
    """Measure the latency of a supernet's layers, and print how well their sums predict the latency of whole networks."""
    if not args.file:
        raise UserError("a config is needed: detofa measure-latency CONFIG; see detofa measure-latency --help")
    check_output_file(args.output)
    check_numbers(args, repeats=10**6, paths=10**6, classes=10**5)
    if args.image_size and (len(args.image_size) > 2 or max(args.image_size) > 16384):
        sides = " ".join(map(str, args.image_size))
        raise UserError(f"--image-size must be a side, or height and width, of at most 16384 pixels, got {sides}")
    from .. import config as configs

    config = configs.load(args.file, args.overrides)
    import numpy as np

    from ..backend.compat import Device
    from ..common.progress import ProgressBar
    from ..tools.measure_latency import maker_of, measure, model_of, validate, write

    size = (args.image_size * 2)[:2] if args.image_size else None
    model = model_of(config, size and tuple(size), args.classes)
    make, device = maker_of(config, model), Device.open(args.context, args.device_id)
    synchronize = device.event.default_stream_synchronize
    with ProgressBar(desc="layers", unit="layer") as bar:

        def on_layer(done: int, total: int) -> None:
            bar.total = total
            bar.update()

        latency = measure(model, args.repeats, synchronize, on_layer, make)
    rng = np.random.default_rng(config.args.seed)
    found = validate(latency, model, rng, args.paths, args.repeats, synchronize, config.network.space, make)
    write(Path(args.output), latency, model, device.name, args.repeats, found)
    correlation = found["rank_correlation"]
    print(
        f"{args.paths} random paths on {device.name}: mean relative error {found['mean_relative_error']:.1%}, "
        f"rank correlation {'-' if correlation is None else f'{correlation:.3f}'}, "
        f"{min(found['measured_ms']):.3g} to {max(found['measured_ms']):.3g} ms"
    )
    if args.classes is None:
        print(f"the head was measured with {model.num_classes} classes; --classes sets the number, which must be the run's")
    print(f"written: {args.output}")


def after_measure_latency(args: argparse.Namespace) -> dict[str, str]:
    return {f"search RUN --latency BOUND --latency-table {shlex.quote(args.output)}": "the best subnet for a latency"}
