"""Latency of paths, predicted from a table of layer latencies measured on the current device with one image at a time.

Every distinct layer of the supernet is timed alone, as a static layer, at every resolution that paths choose from: the stem,
the first layer of a stage, a later layer of a stage, and everything after the last stage. The latency of a path is the sum over
its layers. The sum ignores warm and cold caches, and counts the overhead of starting a forward pass once per layer instead of
once per network; `validate` measures the resulting error.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path as FilePath

import numpy as np
from scipy.stats import spearmanr

from ..backend.compat import F, nn
from ..common.errors import UserError
from ..common.files import write_text
from ..common.reading import read_json
from ..config import CenternetOfaResnet50, Config, OwnClassifier, OwnDetector
from ..networks.centernet import Detector, detector_of
from ..networks.resnet50 import LayeredBackbone, Step
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
        w, e, stages = len(geometry.widths), len(geometry.ratios), geometry.stages
        found = [stem.shape[:3], head.shape[:1], *(t.shape[:3] for t in first), *(t.shape[:2] for t in other)]
        if found != [(2, w, w), (w,), *[(w, w, e)] * stages, *[(w, e + 1)] * stages]:
            raise ValueError(f"its tables have the shapes {found}")
        return cls("latency", "ms", 1e6, geometry, stem, first, other, head)


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
            again = f"; measure again with --classes {value}" if name == "num_classes" else ""
            raise UserError(
                f"the latency table {file} was measured with {name} {measured[name]}, but the run has {value}{again}"
            )
    return latency


def _head_filters(model: CostModel) -> list[int]:
    """Return the numbers of filters of the up-convolutions and of the heads; an empty list without a detector."""
    return [*model.head.deconv_channels, model.head.head_channels] if model.head else []


def model_of(config: Config, image_size: tuple[int, int] | None = None, num_classes: int | None = None) -> CostModel:
    """Make the cost model of the networks that a config trains, without opening its data.

    Args:
        config: the config.
        image_size: (height, width) in pixels; None is the config's size.
        num_classes: number of classes; None is the number that the config or its list of classes gives, or 20.

    Raises:
        UserError: the image size is not a multiple of the detector's stride, or is given although paths choose it.
    """
    network, side = config.network, config.dataloader.image_size
    named = len(getattr(config.dataloader, "classes", None) or ())
    size, classes = image_size or (side, side), num_classes or network.num_classes or named or 20
    if image_size and network.geometry.resolutions:
        sides = ", ".join(map(str, network.geometry.resolutions))
        raise UserError(f"--image-size must be left out, since the network's paths choose among {sides} pixels")
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


Cell = tuple[Path, int, int, np.ndarray, tuple[int, ...]]
"""A path, part and place of one of its layers (see `_layer`), and the table and index of the layer's cell."""


def _cells(latency: Latency) -> Iterator[Cell]:
    """Yield every cell of the tables with the smallest path that has its layer."""
    net = latency.geometry
    for index, path in _with_index(latency.stem, net):
        depth, w0, w1 = index[:3]
        stem = replace(path, stem_depth=net.stem_depths[depth], stem_widths=(net.widths[w0], net.widths[w1]))
        yield stem, 0, 0, latency.stem, index
    for stage, (first, other) in enumerate(zip(latency.first, latency.other)):
        for index, path in _with_index(first, net):
            before, w, e = index[:3]
            widths = (path.stem_widths[1], *path.stage_widths)
            widths = (*widths[:stage], net.widths[before], net.widths[w], *widths[stage + 2 :])
            entry = replace(path, stem_widths=(path.stem_widths[0], widths[0]), stage_widths=widths[1:])
            yield _with_layer(entry, net, stage, 0, e), stage + 1, 0, first, index
        if net.layers_per_stage[stage] > 1:
            for index, path in _with_index(other[:, :-1], net):  # the last column, of inactive layers, is 0
                w, e = index[:2]
                widths = (*path.stage_widths[:stage], net.widths[w], *path.stage_widths[stage + 1 :])
                yield _with_layer(replace(path, stage_widths=widths), net, stage, 1, e), stage + 1, 1, other, index
    for index, path in _with_index(latency.head, net):
        last = replace(path, stage_widths=(*path.stage_widths[:-1], net.widths[index[0]]))
        yield last, net.stages + 1, 0, latency.head, index


def _with_index(table: np.ndarray, net: Geometry) -> Iterator[tuple[tuple[int, ...], Path]]:
    """Yield each index of a table, and the smallest path with the values of the named choices, its last indices."""
    depth, width, ratio = min(net.depths), min(net.widths), min(net.ratios)
    layers = tuple((ratio,) * (base + depth) for base in net.base_depths)
    for index in np.ndindex(table.shape):
        named = index[len(index) - len(net.named) :]
        choices = tuple((name, values[i]) for (name, values), i in zip(net.named, named))
        yield index, Path(depth, (width, width), (depth,) * net.stages, (width,) * net.stages, layers, choices)


def _with_layer(path: Path, net: Geometry, stage: int, place: int, choice: int) -> Path:
    """Return a path whose stage has as few layers as possible up to `place`, which has this choice (index)."""
    depths, layers = list(path.stage_depths), list(path.expand_ratios)
    depths[stage] = min(depth for depth in net.depths if net.base_depths[stage] + depth > place)
    ratios = [min(net.ratios)] * (net.base_depths[stage] + depths[stage])
    layers[stage] = (*ratios[:place], net.ratios[choice], *ratios[place + 1 :])
    return replace(path, stage_depths=tuple(depths), expand_ratios=tuple(layers))


def _layer(static: Detector | Classifier, image: nn.Variable, path: Path, part: int, place: int) -> nn.Variable:
    """Build the graph of the layer `place` of a part: of the stem (0), of a stage (from 1), or of all after the last stage."""
    parts, x = _steps(static, path), image
    for step in (step for number, several in enumerate(parts) for n, step in enumerate(several) if (number, n) < (part, place)):
        x = step(x)  # only for the shape of the layer's input
    x = image_of(*x.shape[1:])
    if part < len(parts):
        return parts[part][place](x)
    if isinstance(static, Detector):
        return F.sink(*static.heads(static.up(x, path), path))
    return static.classifier(F.mean(x, axis=(2, 3)))


def _steps(static: Detector | Classifier, path: Path) -> list[list[Step]]:
    """Return the layers of the backbone; raises UserError if it does not offer them."""
    backbone = static.backbone if isinstance(static, Detector) else static
    if not isinstance(backbone, LayeredBackbone):
        raise UserError(
            "latency is measured layer by layer, which needs a backbone based on networks.resnet50.LayeredBackbone, got "
            f"{type(backbone).__name__}"
        )
    return [list(part) for part in backbone.steps(path)]


def _kind(output: nn.Variable) -> tuple:
    """Return the functions and shapes of a layer's graph, which are equal for layers that compute the same."""
    functions: list[tuple] = []
    output.visit(lambda f: functions.append((f.info.type_name, *(v.shape for v in (*f.inputs, *f.outputs)))))
    return tuple(functions)


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
        progress: called after each cell of the tables with the numbers of finished and of all cells.
        make: makes the static network of a path, see `maker_of`; None: of OFA-ResNet50.

    Returns:
        The table of latencies in nanoseconds.
    """
    net, flops, make = model.backbone, model.flops, make or partial(network_of, model)
    named = tuple(len(values) for _, values in net.named)
    first, other = (tuple(np.zeros_like(table) for table in tables) for tables in (flops.first, flops.other))
    head = np.zeros((len(net.widths), *named), np.int64)
    latency = Latency("latency", "ms", 1e6, net, np.zeros_like(flops.stem), first, other, head)
    cells, known = list(_cells(latency)), dict[tuple, int]()
    for number, (path, part, place, table, index) in enumerate(cells, 1):
        output = _layer(make(path), nn.Variable((1, 3, *model.input_size(path))), path, part, place)
        if (kind := _kind(output)) not in known:
            known[kind] = forward_time(output, repeats, synchronize)
        table[index] = known[kind]
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
        outputs = make(path)(image_of(3, *model.input_size(path)), path)
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
