"""Commands that use a detector: evaluate, detect, export."""

import argparse
import os
import re
import shlex
import sys
from pathlib import Path

from ..common.errors import UserError
from .shared import check_output_file, check_output_folder, detector_arguments, device_arguments


def evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the folder of a run of Algorithm 1")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a key of the run's config")
    parser.add_argument(
        "--detector",
        action="append",
        metavar="NAME",
        help="fullnet, subnet_1, ... or a JSON file with a path in OFA's notation; may be repeated (default: all of the run's)",
    )
    parser.add_argument("--flip", action="store_true", default=None, help="average each image with its mirror image")
    parser.add_argument(
        "--scales",
        type=float,
        nargs="+",
        metavar="S",
        help="input sizes relative to the training size; the detections are merged by soft-NMS",
    )
    device_arguments(parser)
    parser.add_argument("-o", "--output", metavar="FILE", help="also write the results as JSON")


def evaluate(args: argparse.Namespace) -> None:
    """Print the average precision of a run's detectors, class by class."""
    from ..backend.compat import Device
    from ..common.files import write_json
    from ..tools.evaluate import detectors_of, evaluate, table

    if args.scales and not all(0 < scale <= 8 for scale in args.scales):
        raise UserError(f"--scales must be numbers in (0, 8], got {', '.join(map(str, args.scales))}")
    check_output_file(args.output)

    Device.open(args.context, args.device_id)
    run = Path(args.run)
    names = args.detector or detectors_of(run)
    results = {name: evaluate(run, name, args.overrides, args.flip, args.scales) for name in names}
    print(table(results))
    if args.output:
        write_json(args.output, results)
        print(f"written: {args.output}")


def after_evaluate(args: argparse.Namespace) -> dict[str, str]:
    return {f"detect {shlex.quote(args.run)} IMAGE": "boxes in your own images"}


def detect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the folder of a run of Algorithm 1, or a detector exported as .nnp")
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="JPEG or PNG images, and folders of them (without subfolders); key=value overrides a key of the run's config",
    )
    parser.add_argument(
        "--detector",
        metavar="NAME",
        help="fullnet, subnet_1, ... or a JSON file with a path, as for evaluate (default: the subnet of the largest budget)",
    )
    parser.add_argument(
        "--threshold", type=float, default=0.3, metavar="SCORE", help="lowest score of a detection (default: %(default)s)"
    )
    device_arguments(parser)
    parser.add_argument(
        "-o",
        "--output",
        metavar="FOLDER",
        help="folder for the pictures and detections.json, with boxes in pixels of the images (default: RUN/detections, or "
        "detections for an exported detector)",
    )


def detect(args: argparse.Namespace) -> None:
    """Draw the detections of a run's detector in images, and print the number of objects in each image."""
    if not 0 <= args.threshold <= 1:
        raise UserError(f"--threshold must be in [0, 1], got {args.threshold:g}")
    output = Path(args.output or Path("" if args.exported else args.run, "detections"))
    if output.exists() and not output.is_dir():
        raise UserError(f"--output must be a folder, and {output} is a file")
    check_output_folder(output)
    overrides = [text for text in args.images if re.match(r"[a-z_]+\.[\w.:]+=", text) and not os.path.exists(text)]

    def note(text: str) -> None:
        print(text, file=sys.stderr)

    if args.exported and (args.detector or overrides):
        raise UserError(
            f"{args.run} is one detector with its own settings: leave out {args.detector and '--detector' or overrides[0]}"
        )
    from ..tools.detect import check_files, detect, find_images, load_detector
    from ..tools.exported import load_exported

    empty: list[str] = []
    files = find_images([Path(text) for text in args.images if text not in overrides], empty.append)
    check_files(files, output)
    from ..backend.compat import Device

    Device.open(args.context, args.device_id)
    detector = load_exported(Path(args.run)) if args.exported else load_detector(Path(args.run), args.detector, overrides)

    def report_image(file: Path, found: list) -> None:
        while empty:  # reported with the first image, like the files that `detect` skips
            note(empty.pop(0))
        counts = {name: sum(item.name == name for item in found) for name in detector.classes}
        listed = ", ".join(f"{name}: {count}" for name, count in counts.items() if count)
        print(f"{file}: {len(found)} object{'s' * (len(found) != 1)}{f' ({listed})' if listed else ''}", flush=True)

    file = detect(detector, files, output, args.threshold, note, report_image)
    print(f"written: pictures of {detector.name} and {file.name} in {output}")


def after_detect(args: argparse.Namespace) -> dict[str, str]:
    if args.exported:
        return {"init --voc FOLDER": "write a config for your own data"}
    return {f"evaluate {shlex.quote(args.run)}": "average precision on the test images"}


def after_export(args: argparse.Namespace) -> dict[str, str]:
    if args.output.endswith(".nnp"):
        return {f"detect {shlex.quote(args.output)} IMAGE": "boxes in images, without the run and its data"}
    words = shlex.join([args.run, "IMAGE", "--detector", args.detector])
    return {f"detect {words}": "boxes in images; examples/onnx_detect.py gets them from the file"}


def export_arguments(parser: argparse.ArgumentParser) -> None:
    detector_arguments(parser)
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="file to write, .nnp or .onnx")
    parser.add_argument(
        "--size",
        type=int,
        nargs="+",
        metavar="PIXELS",
        help="input size: side, or height and width (default: that of the detector in the run)",
    )
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images in one input (default: %(default)s)")
    parser.add_argument(
        "--normalized",
        action="store_true",
        help="the input is (pixels / 255 - mean) / std; by default pixels from 0 to 255, normalized in the network",
    )
    parser.add_argument("--normalised", dest="normalized", action="store_true", help=argparse.SUPPRESS)  # the older spelling
    parser.add_argument("--fold", action="store_true", help="fold batch normalization into the convolutions")


def export(args: argparse.Namespace) -> None:
    """Export one detector as a static network, and compare its outputs with those of the supernet's path."""
    file, run = Path(args.output), Path(args.run)
    if args.size and len(args.size) > 2:
        raise UserError(f"--size must be a side, or height and width, got {' '.join(map(str, args.size))}")
    check_output_folder(file.parent)
    from ..backend.compat import Device
    from ..runs.run_folder import run_config
    from ..tools.evaluate import open_detector
    from ..tools.export import about_file, check_output, check_request, export

    check_output(file)

    size = tuple((args.size * 2)[:2]) if args.size else None
    check_request(run, args.detector, run_config(run, args.overrides), size, args.batch)
    Device.open(args.context, args.device_id)
    opened = open_detector(run, args.detector, args.overrides)
    about = export(opened, run, args.detector, file, size, args.batch, not args.normalized, args.fold)
    difference, images = about["largest_difference"], about["compared_images"]
    print(f"largest difference from the supernet's path on {images} test images: {difference:.2g}")
    print(f"written: {file}, {file.stat().st_size / 1e6:.2f} MB, and {about_file(file)}")
