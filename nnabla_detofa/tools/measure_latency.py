"""Latency of paths, predicted from a table of layer latencies measured on the current device with one image at a time.

Every distinct layer of the supernet is timed alone, as a static layer: the stem, the first layer of a stage, a later layer
of a stage, and everything after the last stage. The latency of a path is the sum over its layers. The sum ignores warm and
cold caches, and counts the overhead of starting a forward pass once per layer instead of once per network; `validate`
measures the resulting error.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from pathlib import Path as FilePath

import numpy as np
from scipy.stats import spearmanr

from ..backend.compat import F, nn
from ..common.errors import UserError
from ..common.files import write_text
from ..common.reading import read_json
from ..config import CenternetOfaResnet50, Config, OwnClassifier, OwnDetector
from ..networks.centernet import Detector, detector_of
from ..networks.layers import STORED
from ..networks.resnet50 import Bottleneck, ElasticResNet50, LayerPlan, Plan
from ..networks.supernet import Classifier, classifier_of
from ..space.costs import CostModel
from ..space.geometry import Geometry, HeadGeometry
from ..space.layer_costs import AdditiveCost
from ..space.paths import Path
from ..space.search_space import SearchSpace, ofa_resnet50

FORMAT = "latency table, version 1"
WARM_UP = 2  # untimed forward passes: the first ones choose algorithms and allocate memory

Synchronize = Callable[[], None]


class Latency(AdditiveCost):
    """Latency in nanoseconds on the device of the table; called with n paths, it returns (n,) int64."""

    def to_json(self) -> dict:
        """Return the tables and the geometry of the supernet as plain JSON values, for `from_json`."""
        return {
            "geometry": self.geometry.to_json(),
            "stem": self.stem.tolist(),
            "first": [table.tolist() for table in self.first],
            "other": [table.tolist() for table in self.other],
            "head": self.head.tolist(),
        }

    @classmethod
    def from_json(cls, data: dict, geometry_type: type[Geometry] = Geometry) -> Latency:
        """Restore a table from the values that `to_json` returned, for a geometry of this class.

        Raises:
            ValueError: a table has the wrong shape, or holds a value that is not an integer.
        """
        geometry = geometry_type.from_json(data["geometry"])
        stem, head = (_whole(data[name]) for name in ("stem", "head"))
        first, other = (tuple(map(_whole, data[name])) for name in ("first", "other"))
        shapes = [stem.shape, head.shape, *(t.shape for t in first), *(t.shape for t in other)]
        if shapes != _shapes(geometry):
            raise ValueError(f"its tables have the shapes {shapes}")
        return cls("latency", "ms", 1e6, geometry, stem, first, other, head)


def _shapes(geometry: Geometry) -> list[tuple[int, ...]]:
    """Return the shapes of the tables: stem, head, first and other layers; only the head depends on named choices."""
    w, e, stages = len(geometry.widths), len(geometry.ratios), geometry.stages
    named = tuple(len(values) for _, values in geometry.named)
    ones = (1,) * len(named)
    return [(2, w, w, *ones), (w, *named), *[(w, w, e, *ones)] * stages, *[(w, e + 1, *ones)] * stages]


def _whole(table: list) -> np.ndarray:
    """Convert a table to int64; raises ValueError if a value is not an integer."""
    array = np.array(table)
    if array.dtype != np.int64:
        raise ValueError("a latency is not an integer number of nanoseconds")
    return array


def read(file: FilePath, model: CostModel) -> Latency:
    """Read a latency table from a file.

    Args:
        file: a file that `write` wrote.
        model: the cost model of the networks that the table must fit.

    Raises:
        UserError: the file is missing or damaged, or was measured for other networks.
    """
    try:
        data = read_json(file, "the latency table")
        if data["format"] != FORMAT:
            raise ValueError(f"its format is {data['format']!r}")
        latency, size = Latency.from_json(data, type(model.backbone)), tuple(int(side) for side in data["image_size"])
        if len(size) != 2 or any(np.min(table) < 0 for table in (latency.stem, latency.head, *latency.first, *latency.other)):
            raise ValueError("an image size must have two sides, and latencies must not be negative")
        measured = {"scope": data["scope"], "num_classes": data["num_classes"], "head": data["head_filters"]}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{file} is not a valid latency table ({error})") from error
    if latency.geometry != model.backbone:
        raise UserError(f"the latency table {file} is for {latency.geometry}, but the run's supernet is {model.backbone}")
    if size != model.size:
        raise UserError(
            f"the latency table {file} is for images of {size[0]} x {size[1]}, the run's are {model.size[0]} x {model.size[1]}"
        )
    expected = {"scope": model.scope, "num_classes": model.num_classes, "head": _head_filters(model)}
    for name, value in expected.items():
        if measured[name] != value:
            raise UserError(f"the latency table {file} was measured with {name} {measured[name]}, but the run has {value}")
    return latency


def _head_filters(model: CostModel) -> list[int]:
    """Return the numbers of filters of the up-convolutions and of the heads; an empty list without a detector."""
    return [*model.head.deconv_channels, model.head.head_channels] if model.head else []


def model_of(config: Config, image_size: tuple[int, int] | None = None, num_classes: int | None = None) -> CostModel:
    """Make the cost model of the networks that a config trains, without opening its data.

    Args:
        config: the config.
        image_size: (height, width) in pixels; None is the config's size.
        num_classes: number of classes; None is the config's number, or 20 if the config gives none.

    Raises:
        UserError: the image size is not a multiple of the detector's stride.
    """
    network, side = config.network, config.dataloader.image_size
    size, classes = image_size or (side, side), num_classes or network.num_classes or 20
    if isinstance(network, CenternetOfaResnet50):
        stride = network.geometry.total_stride
        if any(pixels < 1 or pixels % stride for pixels in size):
            raise UserError(f"--image-size must be multiples of the detector's stride {stride}, got {' '.join(map(str, size))}")
        return network.cost_model(size, classes, "detector")
    return network.cost_model(size, classes, "classifier")


Make = Callable[[Path], Detector | Classifier]
"""Function that makes the static network of a path."""


def maker_of(config: Config, model: CostModel) -> Make:
    """Return the function that makes the static networks of a config."""
    network = config.network
    if isinstance(network, OwnDetector):
        return lambda path: detector_of(network, model.num_classes, path)
    if isinstance(network, OwnClassifier):
        return lambda path: classifier_of(network, model.num_classes, path)
    return partial(network_of, model)


def network_of(model: CostModel, path: Path) -> Detector | Classifier:
    """Make the static network of one path of OFA-ResNet50."""
    if model.scope == "detector":
        return Detector(model.head or HeadGeometry(model.num_classes), model.backbone, path=path)
    return Classifier(model.num_classes, model.backbone, path=path)


def forward_time(output: nn.Variable, repeats: int, synchronize: Synchronize) -> int:
    """Return the median duration of `repeats` forward passes in nanoseconds, after `WARM_UP` untimed ones."""
    times = []
    for _ in range(WARM_UP + repeats):
        start = time.perf_counter_ns()
        output.forward(clear_buffer=True)
        synchronize()
        times.append(time.perf_counter_ns() - start)
    return round(float(np.median(times[WARM_UP:])))


def image_of(*shape: int) -> nn.Variable:
    """Make an input (1, *shape) of Gaussian noise that survives `clear_buffer`."""
    x = nn.Variable.from_numpy_array(np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32))
    x.persistent = True
    return x


@dataclass(frozen=True)
class Layer:
    """A distinct layer and the table cells that hold its latency.

    Attributes:
        build: builds the layer's graph and returns its output.
        places: (table, index) of each cell.
    """

    build: Callable[[], nn.Variable]
    places: list[tuple[np.ndarray, tuple[int, ...]]]


def layers_of(model: CostModel, latency: Latency, make: Make) -> list[Layer]:
    """Return every distinct layer of the model's networks with its cells in the tables of `latency`."""
    layers: dict[tuple, Layer] = {}
    for key, build, table, index in (
        *_stems(model, latency.stem, make),
        *_bottlenecks(model, latency.first, latency.other, make),
        *_heads(model, latency.head, make),
    ):
        layers.setdefault(key, Layer(build, [])).places.append((table, index))
    return list(layers.values())


Cell = tuple[tuple, Callable[[], nn.Variable], np.ndarray, tuple[int, ...]]
"""Key of a layer (equal for equal layers), function that builds its graph, table, and index of the cell in the table."""


def _smallest_path(
    net: Geometry, stem_depth: int, stem_widths: tuple[float, float], last_width: float, named: tuple | None = None
) -> Path:
    """Return the smallest path with this depth and these widths of the stem, last width, and values of the named choices."""
    depth, ratio = min(net.depths), min(net.ratios)
    widths = (*[min(net.widths)] * (net.stages - 1), last_width)
    ratios = tuple((ratio,) * (base + depth) for base in net.base_depths)
    named = named or tuple(values[0] for _, values in net.named)
    choices = tuple((name, value) for (name, _), value in zip(net.named, named))
    return Path(stem_depth, stem_widths, (depth,) * net.stages, widths, ratios, choices)


def _stems(model: CostModel, table: np.ndarray, make: Make) -> Iterator[Cell]:
    """Yield the cells of the stem: residual layer, width of the first and of the second convolution."""
    net = model.backbone

    def build(path: Path) -> nn.Variable:
        return _backbone(make(path)).stem(image_of(3, *model.size), Plan.of(path, net))

    for residual, depth in enumerate(net.stem_depths):
        for w0, first in enumerate(net.widths):
            for w1, second in enumerate(net.widths):
                path = _smallest_path(net, depth, (first, second), min(net.widths))
                yield (
                    ("stem", residual, net.stem_mid(first), net.stem_out(second)),
                    partial(build, path),
                    table,
                    (residual, w0, w1),
                )


def _backbone(static: Detector | Classifier) -> ElasticResNet50:
    """Return the backbone of a static network; raises UserError if it has no layers of OFA-ResNet50's kind."""
    backbone = static.backbone if isinstance(static, Detector) else static
    if not isinstance(backbone, ElasticResNet50):
        raise UserError(
            f"latency is measured layer by layer, which needs a backbone based on ElasticResNet50, got {type(backbone)}"
        )
    return backbone


def _bottlenecks(model: CostModel, first: Sequence[np.ndarray], other: Sequence[np.ndarray], make: Make) -> Iterator[Cell]:
    """Yield the cells of the bottlenecks of each stage: of its first layer, and of a later layer."""
    net = model.backbone
    kind = _backbone(make(ofa_resnet50(net).largest)).layer_type
    size = _strided(model.size, 4)
    inputs = [net.stem_out(width) for width in net.widths]
    for stage, stride in enumerate(net.strides):
        outputs = [net.stage_out(stage, width) for width in net.widths]
        after = _strided(size, stride)
        for w, out in enumerate(outputs):
            for e, ratio in enumerate(net.ratios):
                mid = net.middle(out, ratio)
                later = LayerPlan(out, mid, out, ratio), 1, False, after
                kept = None if isinstance(ratio, Real) else ratio  # a number only says how many channels
                yield (*later, kept), partial(_bottleneck, kind, *later), other[stage], (w, e)
                for before, channels in enumerate(inputs):
                    entry = LayerPlan(channels, mid, out, ratio), stride, True, size
                    yield (*entry, kept), partial(_bottleneck, kind, *entry), first[stage], (before, w, e)
        inputs, size = outputs, after


def _bottleneck(kind: type[Bottleneck], plan: LayerPlan, stride: int, first: bool, size: tuple[int, int]) -> nn.Variable:
    """Build the graph of one bottleneck on an input of (height, width)."""
    layer = kind("layer", plan, stride, first, False, np.random.default_rng(0))
    return layer(image_of(plan.inputs, *size), plan, STORED)


def _heads(model: CostModel, table: np.ndarray, make: Make) -> Iterator[Cell]:
    """Yield the cells of everything after the last stage: its width, and the named choices."""
    net = model.backbone
    size = model.size
    for stride in (4, *net.strides):
        size = _strided(size, stride)

    def build(path: Path, channels: int) -> nn.Variable:
        static, x = make(path), image_of(channels, *size)
        if isinstance(static, Detector):
            return F.sink(*static.heads(static.up(x, path), path))
        return static.classifier(F.mean(x, axis=(2, 3)))

    smallest = min(net.widths)
    for w, width in enumerate(net.widths):
        channels = net.stage_out(net.stages - 1, width)
        for index in np.ndindex(table.shape[1:]):
            named = tuple(values[i] for (_, values), i in zip(net.named, index))
            path = _smallest_path(net, min(net.depths), (smallest, smallest), width, named)
            yield ("head", channels, named), partial(build, path, channels), table, (w, *index)


def _strided(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Return the (height, width) of a feature map after a layer with this stride."""
    return -(-size[0] // stride), -(-size[1] // stride)


def measure(
    model: CostModel,
    repeats: int,
    synchronize: Synchronize,
    progress: Callable[[int, int], None] = lambda done, total: None,
    make: Make | None = None,
) -> Latency:
    """Time every distinct layer of the model's networks in nnabla's default context.

    Args:
        model: the cost model of the networks.
        repeats: number of timed forward passes per layer; the table holds their median.
        synchronize: waits until the device has finished; on the CPU it does nothing.
        progress: called after each layer with the numbers of finished and of all layers.
        make: makes the static network of a path, see `maker_of`; None: of OFA-ResNet50.

    Returns:
        The table of latencies in nanoseconds.
    """
    net, flops = model.backbone, model.flops
    axes = [table.shape[table.ndim - len(net.named) :] for table in (flops.stem, *flops.first, *flops.other)]
    if any(size > 1 for sizes in axes for size in sizes):
        raise UserError("latency is measured for named choices of up-convolutions and heads; the backbone depends on another")
    stem, head, *layers = (np.zeros(shape, np.int64) for shape in _shapes(net))
    first, other = tuple(layers[: net.stages]), tuple(layers[net.stages :])
    latency = Latency("latency", "ms", 1e6, net, stem, first, other, head)
    cells = layers_of(model, latency, make or partial(network_of, model))
    for number, layer in enumerate(cells, 1):
        nanoseconds = forward_time(layer.build(), repeats, synchronize)
        for table, index in layer.places:
            table[index] = nanoseconds
        progress(number, len(cells))
    return latency


def validate(
    latency: Latency,
    model: CostModel,
    rng: np.random.Generator,
    paths: int,
    repeats: int,
    synchronize: Synchronize,
    space: SearchSpace | None = None,
    make: Make | None = None,
) -> dict:
    """Compare predicted latencies of random paths with measured latencies of their whole networks.

    Args:
        latency: the table.
        model: the cost model of the networks.
        rng: generator for sampling paths.
        paths: number of paths.
        repeats, synchronize: see `measure`.
        space: the space to sample from; None is the whole search space.
        make: see `measure`.

    Returns:
        A dict with "mean_relative_error", "rank_correlation" (Spearman's; None if all predicted or all measured values are
        equal), and the lists "predicted_ms" and "measured_ms", in milliseconds.
    """
    batch = (space or ofa_resnet50(model.backbone)).sample_many(rng, paths)
    make = make or partial(network_of, model)
    times = []
    for path in batch:
        outputs = make(path)(image_of(3, *model.size), path)
        output = F.sink(*outputs) if model.scope == "detector" else outputs
        times.append(forward_time(output, repeats, synchronize))
    predicted, measured = latency(batch), np.array(times)
    ranked = min(len(set(predicted.tolist())), len(set(measured.tolist()))) > 1  # equal values have no rank order
    return {
        "mean_relative_error": float(np.mean(np.abs(predicted - measured) / measured)),
        "rank_correlation": float(spearmanr(predicted, measured).statistic) if ranked else None,
        "predicted_ms": (predicted / 1e6).round(4).tolist(),
        "measured_ms": (measured / 1e6).round(4).tolist(),
    }


def write(file: FilePath, latency: Latency, model: CostModel, device: str, repeats: int, validation: dict) -> None:
    """Write a latency table for `read`, with the networks it is for and the result of `validate`.

    Args:
        file: the JSON file; its folder is created if it does not exist.
        latency, model, repeats: the table, and the arguments of `measure` that made it.
        device: description of the device.
        validation: the result of `validate`.
    """
    content = {
        "format": FORMAT,
        "unit": "ns",
        "device": device,
        "repeats": repeats,
        "scope": model.scope,
        "image_size": list(model.size),
        "num_classes": model.num_classes,
        "head_filters": _head_filters(model),
        **latency.to_json(),
        "validation": validation,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(content) + "\n")
