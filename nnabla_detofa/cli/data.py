"""Commands for datasets: write the digits dataset, convert a dataset, check a dataset."""

import argparse
from pathlib import Path

from ..common.errors import UserError

DIGITS = {"train": 400, "val": 128, "test": 150}
"""Images of each split of the digits dataset by default."""


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
    """Write the digits dataset, convert a dataset, or check one."""
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
    """Print the content of a dataset and all of its errors.

    Raises:
        UserError: the arguments are invalid, or the dataset has errors that prevent training.
    """

    from ..common.progress import ProgressBar
    from ..data import check

    if sum(map(bool, (args.voc, args.coco, args.file))) != 1:
        raise UserError("data check needs one of --voc FOLDER, --coco FOLDER and -f CONFIG")
    if args.overrides and not args.file:
        raise UserError(f"entries of a config need the config, -f CONFIG, got {args.overrides[0]}")
    if args.splits and not args.voc:
        raise UserError("--splits are those of --voc")
    with ProgressBar(desc="photographs", unit="image", leave=False) as bar:
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
