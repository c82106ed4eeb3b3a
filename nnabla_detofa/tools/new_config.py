"""A config for a user's own dataset, with every value chosen from the data and explained in a comment.

The rules are ours, of the scale of the configs in configs/: they give a run that is not wrong, and a start to change from.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import config as configs
from ..common.checked import listed
from ..common.errors import UserError
from ..common.files import write_text
from ..common.reading import one_line
from ..config import Config
from ..data.check import check_coco, check_voc, check_yolo
from ..data.check_coco import coco_splits
from ..data.check_report import DataReport
from ..data.sets import DetectionSets, open_sets
from ..methods.build import make_cost
from ..space.costs import cost_range

SHIPPED = "configs/weights/digits_supernet.h5"
"""Weights that small networks start from."""
SMALL_SIDES, FULL_SIDES = (96, 112, 128, 160, 192, 224, 256, 320, 384), (256, 320, 384, 448, 512, 640, 768)
"""Sides of the input to choose from, in pixels, for small networks and for those of full size; multiples of the stride."""
LEAST_PIXELS = 24
"""Side that 90% of the objects should have in the input at least: six cells of the output map."""
SMALLER = 0.1
"""Fraction of the objects that may be smaller."""
FILTER = (
    "  filter:  # as in configs/digits_base.json: for few paths",
    "    {pooling: concat, linear_skip: true, ensemble: 4, margin: logit, pairs: both, regression: 1.0, lr: 1e-4,",
    "     epochs: 40, patience: 10}",
)
BUDGETS = (0.4, 0.6, 0.8)
"""Budgets, as fractions of the way from the cheapest to the most expensive path."""
SPLITS = {"train": ("train", "trainval", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
"""Part of a config -> last parts of the names of splits, without years, the preferred one first."""
HOW_TO_SPLIT = {
    "voc": "list the images of the missing one in ImageSets/Main/<split>.txt",
    "coco": "add annotations/instances_<split>.json and the images of the missing one",
    "yolo": "name the images of the missing one in data.yaml",
}
"""What to do in each layout if a split is missing."""
SHARES = {"test": 0.15, "val": 0.15}
"""Shares of the images that `write_splits` puts into these splits; the others are for training."""


@dataclass(frozen=True)
class Chosen:
    """The splits of a dataset, as a config names them.

    Attributes:
        parts: "train", "val" and "test" -> values of these keys of the config; without "val" images are held out.
        notes: part -> what a reader should know of its choice.
    """

    parts: Mapping[str, Any]
    notes: Mapping[str, str]


def write_config(
    kind: str, root: Path, size: str = "small", weights: str | None = None, file: Path | None = None
) -> tuple[str, DataReport]:
    """Look at a dataset and return the text of a YAML config for it.

    Args:
        kind: layout of the dataset, "voc", "coco" or "yolo".
        root: folder of the dataset.
        size: "small", an eighth of ResNet50's width for CPUs, which starts from the shipped weights; or "full", the paper's.
        weights: file of a pre-trained classification supernet. Default: the shipped one for "small", none for "full".
        file: where the text will be, for the commands in its comments.

    Returns:
        The text, and the report of the check of the dataset.

    Raises:
        UserError: the dataset cannot be used for training, or has no test split.
    """
    report, named = _checked(kind, root)
    if report.fatal:
        first, *more = report.fatal
        all_of_them = f"; detofa data check --{kind} {shlex.quote(str(root))} lists all {len(report.fatal)} problems"
        raise UserError(f"{root} is not ready for training: {first}{all_of_them if more else ''}")
    chosen = choose_splits(root, named, kind)
    small, held_out = size == "small", "val" not in chosen.parts
    if kind == "yolo" and held_out:
        chosen = Chosen({**chosen.parts, "val": None}, chosen.notes)  # the default names a split
    network = _network(small, weights or (SHIPPED if small else None))
    data: dict[str, Any] = {"root": str(root), **chosen.parts, **({"holdout": 1} if held_out else {})}
    draft = configs.from_dict({"network": network, "dataloader": {kind: data}}, "draft")
    sets = open_sets(draft, quiet=True)  # the report already has the warnings
    assert isinstance(sets, DetectionSets)
    plan = _plan(kind, root, small, sets, held_out)
    data["image_size"] = plan.side
    budgets = _budgets(configs.from_dict({"network": network, "dataloader": {kind: data}}, "draft"), len(sets.classes))
    plan = replace(plan, budgets=tuple(budgets))
    lines = [
        *_header(plan, file or Path(f"{root.name}.yaml")),
        *_network_lines(plan, network["centernet_ofa_resnet50"]),
        *_data_lines(plan, chosen),
        *_training_lines(plan),
    ]
    return "\n".join(lines) + "\n", report


def _checked(kind: str, root: Path) -> tuple[DataReport, dict[str, Any]]:
    """Check all splits of a dataset; return the report, and the value of each split in a config by the split's name."""
    if kind == "voc":
        report = check_voc(root)
        return report, {split.name: [split.name] for split in report.splits}
    if kind == "yolo":
        report = check_yolo(root)
        return report, {split.name: split.name for split in report.splits}
    splits = coco_splits(root)
    return check_coco(root, splits), {name: vars(places) for name, places in splits.items()}


def choose_splits(root: Path, named: Mapping[str, Any], kind: str) -> Chosen:
    """Choose the splits for training, for the evaluation of paths and for the test by their names.

    Raises:
        UserError: there are not two splits, one for training and one for the test.
    """
    parts: dict[str, Any] = {}
    for part, known in SPLITS.items():
        for word in known:
            found = [value for name, value in named.items() if name.rpartition("/")[2].rstrip("0123456789") == word]
            if found and part not in parts:
                joined = all(isinstance(value, list) for value in found)
                parts[part] = [name for value in found for name in value] if joined else found[0]
    notes = {}
    if "test" not in parts and "val" in parts:
        parts["test"] = parts.pop("val")
        notes["test"] = "there is no test split, so the validation split is the test, and paths are judged on held-out images"
    if "train" not in parts or "test" not in parts:
        raise UserError(
            f"{root} must have a split to train on and one to test on, such as train and test, got {listed(named, 'and')}; "
            f"{HOW_TO_SPLIT[kind]}"
        )
    return Chosen(parts, notes)


def write_splits(root: Path) -> list[Path]:
    """Write ImageSets/Main/train.txt, val.txt and test.txt of a VOC tree that has none, by a fixed random order.

    Raises:
        UserError: one of the files exists, there are fewer than 10 annotations, or the name of one is not UTF-8.
    """
    folder = root / "ImageSets" / "Main"
    files = {name: folder / f"{name}.txt" for name in ("train", *SHARES)}
    if there := [file for file in files.values() if file.exists()]:
        raise UserError(f"--make-splits is for data without splits, and there is {there[0]}")
    below = root / "Annotations"
    found = (file for file in below.rglob("*") if file.suffix.lower() == ".xml" and file.is_file())
    names = sorted(file.relative_to(below).with_suffix("").as_posix() for file in found)
    if len(names) < 10:
        raise UserError(f"--make-splits needs at least 10 annotations in {root / 'Annotations'}, got {len(names)}")
    if wrong := [name for name in names if any("\ud800" <= char <= "\udfff" for char in name)]:
        raise UserError(f"{below / wrong[0]}.xml must have a name in UTF-8: rename it and its image")
    order = [names[index] for index in np.random.default_rng(0).permutation(len(names))]
    chosen = {}
    for name, share in SHARES.items():
        count = max(1, round(share * len(names)))
        chosen[name], order = order[:count], order[count:]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for name, file in files.items():
            write_text(file, "".join(f"{image}\n" for image in sorted(chosen.get(name, order))))
    except OSError:
        for file in files.values():  # the others would be taken for splits of the user's own
            file.unlink(missing_ok=True)
        raise
    return list(files.values())


def _network(small: bool, weights: str | None) -> dict[str, Any]:
    narrow = {"width_scale": 0.125, "strides": [1, 2, 2, 1], "deconv_channels": [64, 64], "head_channels": 16}
    settings: dict[str, Any] = {**narrow, "heatmap_std": 0.1} if small else {}
    return {"centernet_ofa_resnet50": settings | ({"weights": weights} if weights else {})}


def image_side(sizes: np.ndarray, small: bool) -> tuple[int, float]:
    """Choose the side of the input by the sizes of the objects.

    Args:
        sizes: square roots of the objects' areas, as fractions of the longer side of their images.
        small: whether the network is small.

    Returns:
        The smallest side at which 90% of the objects are at least `LEAST_PIXELS` large, or the largest possible one; and
        the fraction of the objects that are smaller there.
    """
    for side in SMALL_SIDES if small else FULL_SIDES:
        smaller = float(np.mean(sizes * side < LEAST_PIXELS))
        if smaller <= SMALLER:
            break
    return side, smaller


def epochs(images: int, small: bool) -> tuple[int, int, int]:
    """Choose the epochs of the fullnet, of the warm-up and of the fine-tuning for a number of training images."""
    if not small:
        return (70, 5, 65) if images < 50000 else (140, 10, 60)
    fullnet = min(60, max(4, round(3300 / images)))
    return fullnet, max(1, fullnet // 8), max(2, fullnet // 2)


def _object_sizes(sets: DetectionSets) -> tuple[np.ndarray, int]:
    """Return the sizes of all training objects (see `image_side`), and the largest number of objects of an image."""
    found, most = [], 1
    for part in (sets.train, sets.val):
        for index in range(len(part)):
            boxes = part.objects(index)[0]
            most = max(most, len(boxes))
            found.append(np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)) / max(part.size(index)))
    return np.concatenate(found), most


def _budgets(config: Config, classes: int) -> list[str]:
    cost = make_cost(config, classes, config.dataloader.image_size)
    space = config.network.space
    least, most = cost_range(space, cost.flops)
    return [f"{(least + share * (most - least)) / 1e6:.3g}M" for share in BUDGETS]


@dataclass(frozen=True)
class Plan:
    """What is decided about a new config; see `write_config` for the first four.

    Attributes:
        images: images of the training split.
        holdout: how many of them are held out; 0 if there is a split for that.
        side: side of the input in pixels. smaller: fraction of the objects that are smaller than `LEAST_PIXELS` there.
        most: the largest number of objects in one image.
        budgets: of the search.
    """

    kind: str
    root: Path
    small: bool
    sets: DetectionSets
    images: int
    holdout: int
    side: int
    smaller: float
    most: int
    budgets: tuple[str, ...] = ()

    @property
    def training(self) -> int:
        """Images that are trained on."""
        return self.images - self.holdout


def _plan(kind: str, root: Path, small: bool, sets: DetectionSets, held_out: bool) -> Plan:
    """Decide everything but the budgets; `held_out`: `sets.val` is one image of the training split."""
    sizes, most = _object_sizes(sets)
    side, smaller = image_side(sizes, small)
    images = len(sets.train) + held_out
    holdout = min(1000, max(1, round(0.15 * images))) if held_out else 0
    return Plan(kind, root, small, sets, images, holdout, side, smaller, most)


def _header(plan: Plan, file: Path) -> list[str]:
    about = f"Algorithm 1 on {plan.root.name}: {plan.training} training images, classes: {len(plan.sets.classes)}"
    name, root, config = map(one_line, (plan.root.name, shlex.quote(str(plan.root)), shlex.quote(str(file))))
    return [
        f"# DetOFA's Algorithm 1 on {name}, written by: detofa init --{plan.kind} {root}",
        f"#   try:   detofa train {config} --dry-run    (sizes, memory, schedules, one step of each phase)",
        f"#   train: detofa train {config}",
        "# Keys that are not given here have the paper's values; docs/reference/config.md in the repository explains all keys.",
        f"about: {_yaml(about)}",
        "",
    ]


def _network_lines(plan: Plan, network: Mapping[str, Any]) -> list[str]:
    what = "An eighth of ResNet50's width, for CPUs; `detofa init --size full` writes the paper's."
    lines = ["network:", "  centernet_ofa_resnet50:", f"    # {what if plan.small else 'The network of the paper, for GPUs.'}"]
    lines += [f"    {key}: {_yaml(value)}" for key, value in network.items()]
    if network.get("weights") == SHIPPED:
        lines[-1] += "  # shipped; pre-trained on digits"
    if "weights" not in network:
        lines += [
            "    # The method needs a pre-trained supernet: `detofa import-ofa` converts the published one of OFA.",
            "    # weights: ofa.h5",
            "    zero_init_residual: true",
        ]
    return [*lines, ""]


def _data_lines(plan: Plan, chosen: Chosen) -> list[str]:
    lines = ["dataloader:", f"  {plan.kind}:", f"    root: {_yaml(str(plan.root))}"]
    for part, value in chosen.parts.items():
        lines += [f"    # {chosen.notes[part]}"] if part in chosen.notes else []
        lines.append(f"    {part}: {_yaml(value)}")
    if plan.holdout:
        lines.append(f"    holdout: {plan.holdout}  # of the {plan.images} training images, since no split is for paths")
    lines.append(f"    classes: {_yaml(list(plan.sets.classes))}")
    if plan.kind == "voc":
        lines.append("    ap_metric: area  # area under the curve; 11point is the metric of VOC 2007")
    reached = f"{1 - plan.smaller:.0%} of the objects are at least {LEAST_PIXELS} pixels large"
    lines += [
        f"    image_size: {plan.side}  # {reached}" + (": larger is not tried" if plan.smaller > SMALLER else ""),
        f"    max_objects: {min(10000, max(16, -(-plan.most // 8) * 8))}  # the most in one image: {plan.most}",
        "    flip: true  # false where left and right matter, as in text",
    ]
    if plan.small:
        lines += ["    scale_range: [0.9, 1.1]  # wider for longer training", "    color: false  # true for longer training"]
    return [*lines, ""]


def _training_lines(plan: Plan) -> list[str]:
    small, training = plan.small, plan.training
    batch = next(count for count in ((8, 4, 2, 1) if small else (32, 16, 8, 4, 2, 1)) if count <= training)
    fullnet, warm_up, fine_tuning = epochs(training, small)
    judged = min(plan.holdout or len(plan.sets.val), 128 if small else 1000)
    shortest = min(fullnet, warm_up + fine_tuning) * (training // batch)
    rate = f"lr: 3e-3, schedule: cosine, warmup_steps: {min(50, shortest // 2)}" if small else "lr: 5e-4, schedule: cosine"
    lines = ["optimizer:", f"  train: {{name: Adam, {rate}}}", "", "hparams:", f"  batch_size: {batch}"]
    if small:
        lines.append(f"  mini_batch: {min(4, batch)}  # images of one pass, so that several processes can share a batch")
    lines += [
        f"  # Epochs of {training} images: of the largest path, then of the supernet's warm-up and fine-tuning.",
        f"  fullnet_epochs: {fullnet}",
        f"  warmup_epochs: {warm_up}",
        f"  epochs: {fine_tuning}",
        "  # Paths evaluated in each of the five FLOPs buckets: more make the path filter better, and take longer.",
        f"  paths_per_bucket: {16 if small else 100}",
        f"  heldout_paths_per_bucket: {8 if small else 20}",
        f"  bn_images: {min(training, 64 if small else 1024)}",
        f"  bn_batch: {min(training, 16 if small else 32)}",
        f"  val_images: {judged}",
        *(FILTER if small else ()),
        "  # One subnet is searched for each budget, in multiply-accumulates of the whole detector.",
        f"  search: {{budgets: {_yaml(plan.budgets)}{', generations: 60, population: 50' if small else ''}}}",
    ]
    return lines


def _yaml(value: Any) -> str:
    """Format a value as YAML on one line: as JSON, with YAML's escapes of characters that must not be in a YAML file."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in text)
