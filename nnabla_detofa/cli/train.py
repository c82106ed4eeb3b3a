"""Commands that train a run or fine-tune a detector, and commands for the weights from which runs start."""

from __future__ import annotations

import argparse
import importlib.util
import json
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..backend import launch
from ..common.errors import UserError
from .shared import check_output_folder, check_replaces_no_result, config_arguments, count_or_auto, detector_arguments

if TYPE_CHECKING:
    from ..config import Config

RUNNERS = {
    "detofa": "nnabla_detofa.methods.algorithm1",
    "pretrain": "nnabla_detofa.methods.pretrain",
    **dict.fromkeys(("fullnet", "ofa", "ofa_ps", "compofa"), "nnabla_detofa.methods.baselines"),
}
"""Maps `args.runner` to the module that implements it in a function run(config, device, output, restart=False)."""


def runner_of(config: Config) -> Callable[..., dict]:
    """Return the function that runs a config, called as run(config, device, output, restart=False)."""
    from ..config.imported import imported

    run, name = importlib.import_module(RUNNERS[config.method]).run, config.args.runner
    return run if name in RUNNERS else partial(run, searcher=imported("args.runner", name))


def resume_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the choice between resuming an interrupted run and discarding it."""
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--resume", action="store_true", help="resume an interrupted run (the default)")
    either.add_argument("--restart", action="store_true", help="discard an interrupted run and start over")


def run_arguments(parser: argparse.ArgumentParser) -> None:
    config_arguments(parser, "a .json or .yaml file, or the name of a shipped config, such as digits_detofa")
    parser.add_argument("-c", "--context", choices=("cpu", "cudnn", "auto"), help="device to run on; overrides args.context")
    parser.add_argument(
        "-d",
        "--device-id",
        metavar="DEVICE",
        help="number of a GPU, or one for each process, as in 0,1; overrides args.device_id",
    )
    parser.add_argument(
        "-o", "--output-path", metavar="OUTPUT", help="folder of the run; overrides args.output_path (default: runs/<config>)"
    )
    parser.add_argument(
        "--processes",
        type=count_or_auto,
        metavar="N",
        help="number of processes on this machine that share the work (starts mpirun); auto: one for each GPU of --device-id, "
        "or on CPUs as many as there are cores, but at most one for each mini-batch of hparams.mini_batch images",
    )
    resume_arguments(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print sizes, memory and schedules, and run one step of each phase on the CPU; writes nothing",
    )


def run(args: argparse.Namespace) -> int | None:
    """Run a config: load it, open the device, and call the runner; launch several processes if requested."""
    if not args.file:
        raise UserError("a config is needed: detofa train CONFIG; see detofa train --help")
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

        args.wrong, args.missing = 0, False
        for line in dry_run(config):
            args.wrong += "checked: WRONG" in line
            args.missing |= line.endswith("(missing)")
            print(line, flush=True)
        if args.wrong:
            print(f"checks that are WRONG above: {args.wrong}; correct your network or its cost_model before you train")
        return None
    if size == 1:
        from ..training.mini_batch import mini_batch

        processes = _processes(config, args.processes, args.restart)
        mini_batch(config, processes, config.output_path, args.restart)  # raises if batches cannot be shared
        if processes > 1:
            return launch.launch(processes, [sys.executable, "-m", "nnabla_detofa", *args.command_line])

    from ..backend.compat import Device

    run = runner_of(config)
    device = Device.open(config.args.context, config.args.device_id)
    run(config, device, config.output_path, restart=args.restart)
    args.trained = config
    if launch.launched()[0] == 0:
        print(f"finished: the results are in {config.output_path}")
    return None


def after_run(args: argparse.Namespace) -> dict[str, str]:
    """Return the commands that follow a finished run or a dry run."""
    words = " ".join(map(shlex.quote, [args.file, *args.overrides]))
    if args.dry_run:
        follows = {f"doctor {words}": "data or weights are missing"} if args.missing else {f"train {words}": "run it"}
        return {} if args.wrong else follows
    if not hasattr(args, "trained"):
        return {}  # rank 0 of the launched processes says it
    folder = shlex.quote(str(args.trained.output_path))
    if args.trained.method == "pretrain":
        return {f"export-weights {folder} FOLDER": "copy the weights that detectors start from"}
    following = {f"report {folder}": "the table and the figures", f"detect {folder} IMAGE": "boxes in your own images"}
    if args.trained.method != "fullnet":
        following[f"search {folder} --flops BOUND"] = "the best subnet for another budget"
    return following


def _processes(config, wanted: int | str | None, restart: bool) -> int:
    """Return the number of processes for `--processes`.

    Without MPI, "auto" is one process on CPUs, which still evaluates paths on all cores.
    """
    if wanted != "auto":
        return wanted or 1
    from ..training.mini_batch import most_processes

    if config.args.context != "cpu" and importlib.util.find_spec("nnabla_ext.cuda"):
        return config.args.device_id.count(",") + 1
    return most_processes(config, launch.cores(), config.output_path, restart) if launch.can_launch() else 1


def export_weights_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the folder of a finished pre-training")
    parser.add_argument("folder", metavar="FOLDER", help="folder of the copies")
    parser.add_argument("--name", default="digits", help="first part of the files' names (default: %(default)s)")


def export_weights(args: argparse.Namespace) -> None:
    """Copy pre-trained weights in half precision."""
    check_output_folder(Path(args.folder))
    from ..methods.pretrain import export_weights

    print(f"written: {', '.join(map(str, export_weights(Path(args.run), Path(args.folder), args.name)))}")


def after_export_weights(args: argparse.Namespace) -> dict[str, str]:
    weights = shlex.quote(f"network.centernet_ofa_resnet50.weights={args.folder}/{args.name}_supernet.h5")
    return {f"train CONFIG {weights}": "start a detection supernet from them"}


def import_ofa_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="OFA's ResNet50 supernet as PyTorch saved it, or weights.h5 of NNablaNAS' own ofa_resnet50",
    )
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="weights file to write, .h5")
    parser.add_argument(
        "--keep-channels",
        action="store_true",
        help="keep the first convolution for images in red, green, blue order, to compare with PyTorch; "
        "by default it is reversed, because this package's images are blue, green, red",
    )


def import_ofa(args: argparse.Namespace) -> None:
    """Convert a PyTorch checkpoint to a weights file, and print a summary of its tensors."""
    from ..networks.import_ofa import import_checkpoint

    if Path(args.output).suffix != ".h5":
        raise UserError(f"the weights file to write must end in .h5, got {args.output}")
    if Path(args.output).is_dir():
        raise UserError(f"the weights file to write must be a file, and {args.output} is a folder")
    check_output_folder(Path(args.output).parent)
    check_replaces_no_result(args.output)
    found = import_checkpoint(args.checkpoint, args.output, args.keep_channels)
    print(f"{found.placed + found.dropped} tensors read, {found.placed} placed, {found.dropped} dropped (num_batches_tracked)")
    print(f"{found.classes} classes")
    print(f"the first convolution {'is as it was' if args.keep_channels else 'now takes blue, green, red images'}")
    print(f"written: {args.output}")


def after_import_ofa(args: argparse.Namespace) -> dict[str, str]:
    weights = shlex.quote(f"network.centernet_ofa_resnet50.weights={args.output}")
    return {f"train CONFIG {weights}": "start a detection supernet from it"}


def finetune_arguments(parser: argparse.ArgumentParser) -> None:
    detector_arguments(parser)
    parser.add_argument("--epochs", type=int, required=True, metavar="N", help="epochs over the training images")
    parser.add_argument("--lr", type=float, metavar="RATE", help="learning rate at the start (default: a tenth of the run's)")
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", required=True, help="folder of the new run; its detector is named finetuned"
    )
    resume_arguments(parser)


def finetune(args: argparse.Namespace) -> None:
    """Fine-tune a single detector, and print its average precision before and after."""
    from ..runs.run_folder import run_config

    run = Path(args.run)
    run_config(run, args.overrides)  # raises errors before the device is opened
    from ..backend.compat import Device
    from ..tools.evaluate import open_detector, table
    from ..tools.finetune import check_request, finetune

    check_request(Path(args.output), args.epochs, args.lr, args.overrides)
    device = Device.open(args.context, args.device_id)
    opened = open_detector(run, args.detector, args.overrides)
    results = finetune(opened, run, args.detector, Path(args.output), args.epochs, device, lr=args.lr, restart=args.restart)
    print(table(results))
    print(f"written: {args.output}; its detector is finetuned")


def after_finetune(args: argparse.Namespace) -> dict[str, str]:
    return {f"export {shlex.quote(args.output)} --detector finetuned -o FILE.nnp": "the detector as a separate network"}
