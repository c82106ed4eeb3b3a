"""Datasets in YOLO's layout: descriptions, lists of images, and labels."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from .case import Case, put
from .template import CLASSES

RUN = ("run", "-c", "cpu", "-o", "out", "-f", "yolo.json")
PARTS = ("yolo", "yolo.json")
FILE, LABELS = "yolo/data.yaml", "yolo/labels/train/train0.txt"
SPLITS = "train: images/train\nval: images/val\ntest: images/test\n"
NAMES = f"names: {list(CLASSES)}\n"

DESCRIPTIONS: dict[str, tuple] = {
    "empty": ("", "names"),
    "cut short": ("names: [cat", "cannot be parsed"),
    "not UTF-8": (b"\xff\xfe\xfa", "UTF-8"),
    "a list": ("[]", "names"),
    "deep lists": ("[" * 100_000, "cannot be parsed"),
    "a Python call": ("names: !!python/object/apply:os.system [touch ../canary]", "cannot be parsed"),
    "an alias": ("names: &a [*a]", "alias"),
    "a key twice": (NAMES + SPLITS + NAMES, "names", "duplicated"),
    "a name of 5,000 digits": (SPLITS + f"names: [!!int 0x{'f' * 4200}, dog]", "names must be unique strings", "16800 bits"),
    "no names": (SPLITS, "names must be a list"),
    "names that are a string": (SPLITS + "names: cat", "names must be a list", "'cat'"),
    "names with a gap": (SPLITS + "names: {0: cat, 2: dog}", "keys of names", "[0, 2]"),
    "names that are lists": (SPLITS + "names: [[cat], [dog]]", "names must be unique strings"),
    "one name twice": (SPLITS + "names: [cat, cat]", "names must be unique", "'cat'"),
    "a very long name twice": (SPLITS + f"names: [{'x' * 100_000}, {'x' * 100_000}]", "names must be unique"),
    "another number of names": (SPLITS + NAMES + "nc: 80", "nc", "2", "80"),
    "no train": (SPLITS.replace("train:", "training:") + NAMES, "'train'", "val, test"),
    "a split that is a number": (SPLITS.replace("train: images/train", "train: 3") + NAMES, "train", "a path", "3"),
    "a split that is missing": (SPLITS.replace("images/val", "images/x") + NAMES, "val", "existing", "'images/x'"),
    "a split that climbs": (SPLITS.replace("images/val", "../../secret.txt") + NAMES, "val", "inside", "'../../secret.txt'"),
    "an absolute split": (SPLITS.replace("images/val", "/etc/passwd") + NAMES, "val", "inside", "'/etc/passwd'"),
    "a folder without images": (SPLITS.replace("images/val", "labels/val") + NAMES, "val", "at least one"),
}

LINES: dict[str, tuple] = {
    "a number in Python's form": ("0 0.5 0.5 0.1_0 0.1", "fractions", "0.1_0"),
    "a word": ("cat 0.5 0.5 0.1 0.1", "integer from 0 to 1", "cat"),
    "an unknown class": ("2 0.5 0.5 0.1 0.1", "integer from 0 to 1", "got 2"),
    "a class of a million digits": ("9" * 10**6 + " 0.5 0.5 0.1 0.1", "integer from 0 to 1"),
    "pixels": ("0 32 32 8 8", "fractions", "got 32"),
    "NaN": ("0 nan 0.5 0.1 0.1", "fractions", "got nan"),
    "1e400": ("0 0.5 1e400 0.1 0.1", "fractions", "1e400"),
    "a negative width": ("0 0.5 0.5 -0.001 0.1", "negative"),
    "three numbers": ("0 0.5 0.5 0.1", "4 numbers", "got 3"),
    "an open polygon": ("0 0.1 0.1 0.2 0.2 0.3", "3 corners", "got 5"),
    "a class alone": ("0", "got 0"),
    "XML": ("<annotation/>", "integer from 0 to 1"),
}


def listed(line: str | bytes) -> Callable[[Path], None]:
    """Let the training images be those of a file with one line."""

    def make(folder: Path) -> None:
        put("yolo/list.txt", line)(folder)
        put(FILE, SPLITS.replace("images/train", "list.txt") + NAMES)(folder)

    return make


def cases() -> Iterator[Case]:
    kind = "YOLO"
    for name, (content, *words) in DESCRIPTIONS.items():
        yield Case(kind, f"data.yaml: {name}", RUN, ("data.yaml", *words), put(FILE, content), PARTS)
    for name, (line, *words) in LINES.items():
        text = f"0 0.5 0.5 0.1 0.1\n{line}\n"
        yield Case(kind, f"a label: {name}", RUN, ("train0.txt line 2", *words), put(LABELS, text), PARTS)
    yield Case(kind, "labels not in UTF-8", RUN, ("train0.txt", "UTF-8"), put(LABELS, b"\xff\xfe\xfa"), PARTS)
    for name, line in {
        "missing": "images/x.jpg",
        "climbing": "../secret.txt",
        "absolute": "/etc/passwd",
        "zero": "a\0",
    }.items():
        yield Case(kind, f"a listed image: {name}", RUN, ("list.txt", "missing"), listed(line), PARTS)
    yield Case(kind, "a list not in UTF-8", RUN, ("list.txt", "UTF-8"), listed(b"\xff\xfe\xfa"), PARTS)
    yield Case(kind, "no data.yaml", RUN, ("data.yaml", "has no data.yaml"), without_description, PARTS)
    yield Case(kind, "no labels", RUN, ("no label file", "labels/train/train0.txt"), without_labels, PARTS)
    yield Case(kind, "a device instead of labels", RUN, ("train0.txt", "not a file"), with_device, PARTS)
    broken = put("yolo/images/train/train0.jpg", b"text")
    yield Case(kind, "an image that is text", RUN, ("train0.jpg", "JPEG or PNG"), broken, PARTS)


def without_description(folder: Path) -> None:
    (folder / FILE).unlink()


def without_labels(folder: Path) -> None:
    shutil.rmtree(folder / "yolo/labels")


def with_device(folder: Path) -> None:
    (folder / LABELS).unlink()
    os.symlink("/dev/zero", folder / LABELS)
