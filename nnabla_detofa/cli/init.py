"""Command that writes a config for a user's own dataset."""

import argparse
import os
import re
import shlex
import tempfile
from pathlib import Path

from ..common.errors import UserError
from ..common.files import real
from .shared import check_output_file

LAYOUTS = {
    "voc": "a VOC tree: Annotations, ImageSets/Main and JPEGImages",
    "coco": "COCO's format: annotations/instances_<split>.json and <split>/, or Roboflow's export of it",
    "yolo": "YOLO's layout: data.yaml, images/<split>/ and labels/<split>/, or Roboflow's export of it",
}


def init_arguments(parser: argparse.ArgumentParser) -> None:
    layout = parser.add_mutually_exclusive_group(required=True)
    for name, what in LAYOUTS.items():
        layout.add_argument(f"--{name}", metavar="FOLDER", help=what)
    parser.add_argument("-o", "--output", metavar="FILE", help="the config to write (default: <name of the folder>.yaml)")
    parser.add_argument(
        "--size",
        choices=("small", "full"),
        default="small",
        help="small: an eighth of ResNet50's width, for CPUs; full: the paper's network, for GPUs (default: %(default)s)",
    )
    parser.add_argument("--weights", metavar="FILE", help="a pre-trained supernet (default: the shipped one for small)")
    parser.add_argument(
        "--make-splits", action="store_true", help="for a VOC tree without splits: write them, 70%% train, 15%% val, 15%% test"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing config")


def init(args: argparse.Namespace) -> None:
    """Look at a dataset and write a config for it."""
    kind = next(name for name in LAYOUTS if getattr(args, name))
    root = Path(getattr(args, kind))
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", real(root).name).lstrip("-")  # a leading dash would look like an option
    file = Path(args.output or f"{name or kind}.yaml")
    if file.suffix not in (".yaml", ".yml"):
        raise UserError(f"--output must end in .yaml, got {file}")
    if file.exists() and not args.force:
        raise UserError(f"{file} exists: choose another --output, or replace it with --force")
    check_output_file(file)
    if args.make_splits and kind != "voc":
        raise UserError("--make-splits is for --voc")
    from .. import config as configs
    from ..common.files import write_text
    from ..tools.new_config import write_config, write_splits

    if args.make_splits:
        print(f"written: {', '.join(map(str, write_splits(root)))}")
    if file.absolute().parent != Path.cwd() and not root.is_absolute():
        root = Path(os.path.abspath(root))
    text, report = write_config(kind, root, args.size, args.weights, file)
    print(report)
    with tempfile.TemporaryDirectory() as folder:  # a config that cannot be read replaces nothing
        draft = Path(folder, f"draft{file.suffix}")
        write_text(draft, text)
        configs.load(draft)
    write_text(file, text)
    print(f"written: {file}")
    args.written = file


def after_init(args: argparse.Namespace) -> dict[str, str]:
    file = shlex.quote(str(args.written))
    return {f"train {file} --dry-run": "sizes, memory and schedules, half a minute", f"train {file}": "train on it"}
