"""Commands for datasets: write the digits dataset, convert a dataset, check a dataset."""

import argparse
import shlex
from pathlib import Path

from ..common.errors import UserError
from .shared import config_arguments

DIGITS = {"train": 400, "val": 128, "test": 150}
"""Images of each split of the digits dataset by default."""


def digits_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", metavar="FOLDER", default="data/digits", help="folder to write to (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives another data set (default: %(default)s)")
    for split, count in DIGITS.items():
        help = f"images of the {split} split (default: %(default)s)"
        parser.add_argument(f"--{split}", type=int, metavar="N", default=count, help=help)
    parser.add_argument("--no-crops", action="store_true", help="leave out the single digits for pre-training")


def digits(args: argparse.Namespace) -> None:
    """Write the digits dataset."""
    from ..data.digits import write_digits

    if args.seed < 0:
        raise UserError(f"--seed must be 0 or more, got {args.seed}")
    counts = {split: getattr(args, split) for split in DIGITS}
    crops = {"crops_train": 0, "crops_val": 0} if args.no_crops else {}
    root = write_digits(args.root, seed=args.seed, **counts, **crops)
    print(f"the data set digits is in {root}")


def after_digits(args: argparse.Namespace) -> dict[str, str]:
    root = "" if args.root == "data/digits" else f" dataloader.voc.root={shlex.quote(args.root)}"
    return {f"train digits_detofa{root}": "Algorithm 1 on it, four to ten minutes on two cores"}


def to_coco_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--voc", metavar="FOLDER", required=True, help="the VOC tree to copy")
    parser.add_argument("--root", metavar="FOLDER", default="data/to-coco", help="folder to write to (default: %(default)s)")
    what = "splits to copy (default: those of train, val, and test that the tree has)"
    parser.add_argument("--splits", nargs="+", metavar="SPLIT", help=what)


def to_coco(args: argparse.Namespace) -> None:
    """Copy a VOC tree in COCO's format."""
    from ..data.coco import write_coco
    from ..data.voc import split_names

    usual = ("train", "val", "test")
    there = split_names(Path(args.voc))
    splits = args.splits or [name for name in usual if name in there] or usual  # of none, the error names those that exist
    root = write_coco(Path(args.voc), Path(args.root), splits)
    print(f"{args.voc} in COCO's format is in {root}")


def after_to_coco(args: argparse.Namespace) -> dict[str, str]:
    root = shlex.quote(args.root)
    return {f"data check --coco {root}": "check the copy", f"init --coco {root}": "write a config for it"}


def check_arguments(parser: argparse.ArgumentParser) -> None:
    config_arguments(parser, "a config whose data set, splits and classes are checked; otherwise give --voc, --coco or --yolo")
    parser.add_argument("--voc", metavar="FOLDER", help="a VOC tree")
    parser.add_argument("--splits", nargs="+", metavar="SPLIT", help="splits of --voc (default: all that it has)")
    parser.add_argument(
        "--coco", metavar="FOLDER", help="a folder with annotations/instances_<split>.json and <split>/, or Roboflow's export"
    )
    parser.add_argument("--yolo", metavar="FOLDER", help="a folder with data.yaml, images/<split>/ and labels/<split>/")
    parser.add_argument(
        "--whole",
        action="store_true",
        help="decode every image, which takes minutes for large sets and finds damage in the middle, and "
        "images that are in two splits under two names",
    )


def check(args: argparse.Namespace) -> None:
    """Print the content of a dataset and all of its errors.

    Raises:
        UserError: the arguments are invalid, or the dataset has errors that prevent training.
    """

    from ..common.progress import ProgressBar
    from ..data import check

    if sum(map(bool, (args.voc, args.coco, args.yolo, args.file))) != 1:
        raise UserError("detofa data check needs one of CONFIG, --voc FOLDER, --coco FOLDER and --yolo FOLDER")
    if args.overrides and not args.file:
        raise UserError(f"overrides need a config: detofa data check CONFIG {args.overrides[0]}")
    if args.splits and not args.voc:
        raise UserError("--splits needs --voc")
    with ProgressBar(desc="images", unit="image", leave=False) as bar:
        if args.voc:
            splits = args.splits and {name: (name,) for name in args.splits}
            report = check.check_voc(args.voc, splits, whole=args.whole, on_image=bar.update)
        elif args.coco:
            report = check.check_coco(args.coco, whole=args.whole, on_image=bar.update)
        elif args.yolo:
            report = check.check_yolo(args.yolo, whole=args.whole, on_image=bar.update)
        else:
            from .. import config as configs

            report = check.check_config(configs.load(args.file, args.overrides), args.whole, bar.update)
    if len(report.splits) == 1 and not (args.splits or args.file):
        report.warnings.append(f"{report.splits[0].name} is the only split: a config needs one to train on and one to test on")
    print(report)
    if report.fatal:
        raise UserError(f"{report.source}, is not ready for training")


def after_check(args: argparse.Namespace) -> dict[str, str]:
    if args.file:
        return {f"train {shlex.join([args.file, *args.overrides])}": "train on it"}
    kind = next(kind for kind in ("voc", "coco", "yolo") if getattr(args, kind))
    return {f"init --{kind} {shlex.quote(getattr(args, kind))}": "write a config for it"}
