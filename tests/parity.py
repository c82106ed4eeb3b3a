"""Every comparison with an independent implementation's figures (tests/golden), in one place: `make parity` prints them.

The reference figures are of the PyTorch packages `ofa` (OFA-ResNet50 with weights filled from their names) and of the
original CenterNet. The tests assert the same comparisons.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path as FilePath

import numpy as np

from nnabla_detofa.backend.compat import nn
from nnabla_detofa.data.augment import affine, fit, transform_boxes
from nnabla_detofa.data.targets import Targets, gaussian_radius, make_targets
from nnabla_detofa.evaluation.reestimation import Statistics, reestimate
from nnabla_detofa.networks import centernet, supernet
from nnabla_detofa.networks.decoding import decode
from nnabla_detofa.networks.detection_loss import focal_loss, masked_l1
from nnabla_detofa.networks.import_ofa import convert
from nnabla_detofa.networks.layers import GivenStatistics
from nnabla_detofa.networks.supernet import Classifier
from nnabla_detofa.networks.weights import fill
from nnabla_detofa.space.costs import CostModel
from nnabla_detofa.space.paths import Path
from nnabla_detofa.space.search_space import ofa_resnet50

GOLDEN = FilePath(__file__).parent / "golden"
OFA = json.loads((GOLDEN / "ofa_resnet50.json").read_text())
FLOPS = json.loads((GOLDEN / "ofa_flops.json").read_text())
LOSSES = json.loads((GOLDEN / "centernet_losses.json").read_text())
IMAGES = ("BloodImage_00002", "BloodImage_00100", "BloodImage_00338")
MAX_OBJECTS = 64


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        quantity: what is compared, with its unit.
        reference, ours: the two numbers; for arrays the entries that differ most, or the largest where none differ.
        error: |ours - reference|; where `relative`, over the reference's largest absolute value.
        limit: the largest error that is allowed; 0 means equal.
    """

    quantity: str
    reference: float
    ours: float
    error: float
    limit: float
    relative: bool

    @property
    def ok(self) -> bool:
        return self.error <= self.limit  # not so for NaN

    @classmethod
    def of(cls, quantity: str, reference, ours, limit: float, relative: bool = False) -> Check:
        """Compare two numbers or two arrays of one shape.

        Raises:
            ValueError: the shapes differ.
        """
        reference, ours = np.asarray(reference, np.float64), np.asarray(ours, np.float64)
        if reference.shape != ours.shape:
            raise ValueError(f"{quantity} has the shape {ours.shape}; the reference's is {reference.shape}")
        differences = np.abs(ours - reference).ravel()
        worst = int(np.argmax(differences if differences.any() else np.abs(reference)))
        error = differences[worst] / (np.abs(reference).max() if relative else 1.0)
        return cls(quantity, float(reference.flat[worst]), float(ours.flat[worst]), float(error), limit, relative)


def failed(checks: Sequence[Check]) -> list[Check]:
    """The checks over their limit; no check at all is a mistake.

    Raises:
        ValueError: there is none.
    """
    if not checks:
        raise ValueError("nothing was compared")
    return [check for check in checks if not check.ok]


# --- The supernet -----------------------------------------------------------------------------------------------------


def reference_tensor(name: str, shape: Sequence[int]) -> np.ndarray:
    """The reference's weights: each is filled from its name."""
    random = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)
    if name.endswith("running_var"):
        values = random.uniform(0.5, 1.5, shape)
    elif name.endswith("running_mean"):
        values = random.normal(0, 0.1, shape)
    elif name.endswith("bn.weight"):
        values = random.uniform(0.8, 1.2, shape)
    elif name.endswith("bias"):
        values = random.normal(0, 0.1, shape)
    else:
        values = random.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
    return values.astype(np.float32)


@cache
def reference_tensors() -> dict[str, np.ndarray]:
    """The reference's whole state dict: treat it as read-only."""
    return {name: reference_tensor(name, shape) for name, shape in OFA["parameters"].items()}


@cache
def reference_net() -> Classifier:
    """Our network with the reference's weights, taken over as from a checkpoint."""
    net = Classifier(10)
    fill(net.get_parameters(), convert(reference_tensors(), keep_channels=True).arrays, "the reference")
    return net


def subnet_checks(number: int) -> list[Check]:
    """Logits and feature maps of the reference's subnet `number`, 0 to 7."""
    net, expected = reference_net(), OFA["outputs"][number]
    path = Path.from_ofa(expected["arch"])
    x = nn.Variable.from_numpy_array(np.random.RandomState(1234).normal(0, 1, (2, 3, 96, 96)).astype(np.float32))
    maps, logits = net.features(x, path), net(x, path)
    nn.forward_all([*maps, logits])
    checks = [Check.of("logits", expected["logits"], logits.d, 1e-4, relative=True)]
    for found, shape, mean, std in zip(maps, *(expected[f"feature_{key}"] for key in ("shapes", "mean", "std"))):
        checks.append(Check.of("feature map: shape", shape, found.shape, 0))
        checks.append(Check.of("feature map: mean", mean, found.d.mean(), 1e-4, relative=True))
        checks.append(Check.of("feature map: standard deviation", std, found.d.std(), 1e-4, relative=True))
    return checks


def flops_check(entry: Mapping) -> Check:
    """Multiply-accumulates of one of the reference's subnets at its input size."""
    model = CostModel(entry["image_size"], num_classes=10)
    found = model.flops([Path.from_ofa(entry["arch"])])[0] / 1e6
    return Check.of("FLOPs [millions of multiply-accumulates]", entry["mflops"], found, 1e-9, relative=True)


def parameter_checks() -> list[Check]:
    """Trained parameters of the largest path: the table's, and the built network's."""
    expected = sum(int(np.prod(shape)) for name, shape in OFA["parameters"].items() if "running" not in name)
    table = CostModel(num_classes=10).params([ofa_resnet50().largest])[0]
    built = sum(parameter.size for parameter in Classifier(10).get_parameters(grad_only=True).values())
    return [Check.of("parameters of the largest path", expected, found, 0) for found in (table, built)]


# --- CenterNet --------------------------------------------------------------------------------------------------------


@cache
def golden_targets() -> dict[str, np.ndarray]:
    """Everything the original computed for the photographs, by "<image>/<key>"; `gaussian_radius` alone has no image."""
    with np.load(GOLDEN / "centernet_targets.npz") as file:
        return dict(file)


def golden(image: str, key: str) -> np.ndarray:
    """A figure of one of the three photographs."""
    return golden_targets()[f"{image}/{key}"]


def radius_checks() -> list[Check]:
    """The radius of the Gaussian for boxes of several sizes."""
    radii = golden_targets()["gaussian_radius"]
    return [Check.of("Gaussian radius [cells]", radius, gaussian_radius(h, w), 1e-5) for h, w, radius in radii]


def target_checks(image: str) -> list[Check]:
    """The affine maps of a photograph, and the targets from its boxes."""
    height, width = golden(image, "image_size")
    center = np.array([width / 2, height / 2])
    maps = {
        name: affine(center, fit((height, width), (size,) * 2), (size,) * 2) for name, size in (("input", 256), ("output", 64))
    }
    boxes = transform_boxes(golden(image, "corners").astype(np.float32) - 1, maps["input"]) / 4
    checks = [Check.of(f"affine map to the {name}", golden(image, f"affine_{name}"), maps[name], 1e-5) for name in maps]
    return checks + made_target_checks(make_targets(boxes, golden(image, "labels"), 3, (64, 64), MAX_OBJECTS), image)


def made_target_checks(targets: Targets, image: str) -> list[Check]:
    """Targets of a photograph at 256 pixels, field by field."""
    limits = {"heatmap": 1e-5, "size": 1e-5, "offset": 1e-5, "index": 0, "mask": 0}  # in the order of `Targets`
    return [
        Check.of(f"target: {name}", golden(image, name), found, limit) for found, (name, limit) in zip(targets, limits.items())
    ]


def predictions() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The reference's random predictions for the three photographs: logits, size and offset."""
    random = np.random.RandomState(7)
    logits = random.normal(-2.19, 1.0, (3, 3, 64, 64)).astype(np.float32)
    size = random.normal(5, 3, (3, 2, 64, 64)).astype(np.float32)
    offset = random.uniform(0, 1, (3, 2, 64, 64)).astype(np.float32)
    return logits, size, offset


def loss_checks(objects: bool) -> list[Check]:
    """The losses of the random predictions against the photographs' targets, or against none."""

    def variable(array: np.ndarray) -> nn.Variable:
        return nn.Variable.from_numpy_array((array if objects else 0 * array).astype(np.float32))

    logits, size, offset = map(nn.Variable.from_numpy_array, predictions())
    keys = ("heatmap", "size", "offset", "index", "mask")
    heatmap, sizes, offsets, index, mask = (variable(np.stack([golden(image, key) for image in IMAGES])) for key in keys)
    losses = {
        "focal": focal_loss(logits, heatmap),
        "size_l1": masked_l1(size, sizes, index, mask),
        "offset_l1": masked_l1(offset, offsets, index, mask),
    }
    nn.forward_all(list(losses.values()))
    expected = LOSSES["loss" if objects else "loss_no_objects"]
    where = "" if objects else ", no objects"
    return [
        # Without objects the L1 losses are exactly 0: there is nothing to be relative to.
        Check.of(f"loss: {name}{where}", value, losses[name].d, 1e-5 if value else 0, relative=bool(value))
        for name, value in expected.items()
    ]


def decoding_checks() -> list[Check]:
    """The 40 best detections of the random predictions, in order."""
    logits, size, offset = predictions()
    boxes, scores, labels = decode(1 / (1 + np.exp(-logits)), offset, size, top=40)
    with np.load(GOLDEN / "centernet_decoded.npz") as file:
        expected = file["detections"]
    return [
        Check.of("decoding: boxes [cells]", expected[..., :4], boxes, 1e-5),
        Check.of("decoding: scores", expected[..., 4], scores, 1e-5, relative=True),
        Check.of("decoding: classes", expected[..., 5], labels, 0),
    ]


# --- A path cut out ---------------------------------------------------------------------------------------------------


def small_net(task: str, rng: np.random.Generator) -> supernet.SearchNet | centernet.SearchNet:
    """A supernet of a quarter of the width, weights as after training: no layer is an identity."""
    settings = {"width_scale": 0.25, "strides": (1, 2, 2, 1), "rng": rng}
    if task == "detection":
        net = centernet.SearchNet(3, **settings, deconv_channels=(16, 16), head_channels=8, heatmap_std=0.1)
    else:
        net = supernet.SearchNet(10, **settings)
    for parameter in net.get_parameters().values():
        parameter.d = parameter.d + np.abs(rng.normal(0, 0.1, parameter.shape))
    return net


def cut_out(net, path: Path, rng: np.random.Generator):
    """`path` as a network of its own, the statistics re-estimated on random images: the network, statistics, images."""
    batches = [rng.normal(size=(3, 3, 64, 48)).astype(np.float32) for _ in range(2)]
    statistics: Statistics = reestimate(net, path, batches)
    return net.get_active_subnet(path, statistics), statistics, batches[0]


def cut_out_checks(task: str, seed: int) -> list[Check]:
    """A random path of a small supernet against its `TrainNet`: outputs on random images."""
    rng = np.random.default_rng(seed)
    net = small_net(task, rng)
    path = net.space.sample(rng)
    cut, statistics, images = cut_out(net, path, rng)
    x = nn.Variable.from_numpy_array(images)
    expected, found = net(x, path, GivenStatistics(statistics)), cut(x)
    pairs = {"logits": (expected, found)} if task == "classification" else dict(zip(expected._fields, zip(expected, found)))
    nn.forward_all([variable for pair in pairs.values() for variable in pair])
    return [
        Check.of(f"TrainNet against supernet, {task}: {name}", theirs.d, ours.d, 1e-5, relative=True)
        for name, (theirs, ours) in pairs.items()
    ]


# --- The table --------------------------------------------------------------------------------------------------------


def all_checks() -> Iterator[Check]:
    for number in range(len(OFA["outputs"])):
        yield from subnet_checks(number)
    yield from map(flops_check, FLOPS)
    yield from parameter_checks()
    yield from radius_checks()
    for image in IMAGES:
        yield from target_checks(image)
    for objects in (True, False):
        yield from loss_checks(objects)
    yield from decoding_checks()
    for task in ("classification", "detection"):
        for seed in range(3):
            yield from cut_out_checks(task, seed)


def table(checks: Sequence[Check]) -> str:
    """One line a quantity: how many comparisons, and the two numbers and the error of the worst."""
    groups: dict[str, list[Check]] = {}
    for check in checks:
        groups.setdefault(check.quantity, []).append(check)
    head = ("quantity", "compared", "reference", "ours", "error", "limit", "ok")
    lines = [head]
    for quantity, group in groups.items():
        # A failing one first, and NaN before all: it compares as nothing.
        worst = max(group, key=lambda check: (not check.ok, check.error != check.error, check.error))
        kind = "equal" if worst.limit == 0 else f"{worst.limit:.0e} {'relative' if worst.relative else 'absolute'}"
        ok = "yes" if worst.ok else "NO"
        lines.append((quantity, str(len(group)), f"{worst.reference:.9g}", f"{worst.ours:.9g}", f"{worst.error:.1e}", kind, ok))
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def main() -> int:
    """Print the table; 1 where a comparison is over its limit."""
    checks = list(all_checks())
    print(table(checks))
    over = failed(checks)
    print(f"\n{len(checks)} comparisons (of arrays, the element that differs most); {len(over)} above the limit")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
