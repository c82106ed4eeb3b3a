"""One path -> a static network in a file of its own, NNP or ONNX, that is run before it is handed over.

What is written is the path alone: its slice of the weights, and its re-estimated batch-normalisation statistics. The network
takes pixels and gives heat map, offset and size; peaks are looked for outside of it (`centernet.decode`, or in numpy alone
`examples/onnx_detect.py`), since top-k and gather do not convert.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path as FilePath

import cv2
import numpy as np

from ..backend.compat import F, nn
from ..common.errors import UserError
from ..common.files import write_json
from ..common.version import REPOSITORY
from ..config import Config
from ..data.augment import letterbox, letterbox_matrix
from ..evaluation.metrics import ap_keys
from ..evaluation.validation import Statistics
from ..networks.centernet import Detector
from ..networks.supernet import STORED, ConvBN, GivenStatistics, Plain
from ..runs.provenance import revision
from ..runs.run_folder import number, read_result, reading
from ..space.paths import Path, PathBatch
from .evaluate import OpenDetector, alone, detector_weights, detectors_of

OUTPUTS = ("heat_map", "offset", "size")
"""Of the network: (B, classes, h, w) in [0, 1], then (B, 2, h, w) x, y and width, height in cells."""
TOLERANCE = 1e-4
"""Largest difference between a file and the supernet's path."""
CHECKED_IMAGES = 4
MOST_SIDE, MOST_BATCH = 16384, 1024
NETWORK = "detector"
ENVIRONMENT = FilePath(".venv-export")
COMPLETE = ".ready"
"""A file in it, which `make setup-export` writes last."""
CONVERT = ("-m", "nnabla.utils.cli.cli", "convert")
RUN_ONNX = f"""
import sys
import numpy, onnxruntime
network, images, outputs = sys.argv[1:]
session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
found = [session.run({list(OUTPUTS)}, {{"image": batch}}) for batch in numpy.load(images)]
numpy.savez(outputs, *map(numpy.concatenate, zip(*found)))
"""
"""Runs in the export environment, which has ONNX Runtime and not this package."""
MEND_ONNX = """
import sys
import onnx
file = sys.argv[1]
model = onnx.load(file)
for tensor in model.graph.initializer:
    if list(tensor.dims) == [0] and len(tensor.raw_data) == 4:
        tensor.dims[:] = [1]
onnx.save(model, file)
"""
"""For networks with a layer of one channel: nnabla-converter 1.39 takes the sum of the sides above 1 for the length of a batch
normalisation's parameters, 0 where (1, C, 1, 1) is (1, 1, 1, 1), and no reader accepts one number in a tensor of none."""


# --- The network ------------------------------------------------------------------------------------------------------


class NamedFolding(Plain, GivenStatistics):
    """Statistics folded into the convolutions, whose weights and biases are collected under names of their own."""

    def __init__(self, statistics: Statistics):
        super().__init__(statistics)
        self.folded: dict[str, nn.Variable] = {}

    def __call__(self, layer, convolve, weight, gamma, beta, relu=False) -> nn.Variable:
        def named(weight: nn.Variable, bias: nn.Variable) -> nn.Variable:
            self.folded[f"{layer.name}/W"], self.folded[f"{layer.name}/b"] = weight, bias
            return convolve(weight, bias)

        return super().__call__(layer, named, weight, gamma, beta, relu)


class StaticGraph:
    """The graph of one path that is not part of a supernet any more.

    Args:
        net: a network of this path alone, with its statistics (`evaluate.alone`).
        path: the path.
        shape: of the input, (B, 3, H, W).
        normalise: take pixels from 0 to 255, and normalize them in the graph as the network's images are; else they come so.
        fold: these statistics are folded into the convolutions; None keeps the batch normalisations as layers.

    Attributes:
        image: the input, blue, green, red.
        outputs: by the names of `OUTPUTS`.
        parameters: everything else the graph reads, by name.
    """

    def __init__(self, net: Detector, path: Path, shape: Sequence[int], normalise: bool = True, fold: Statistics | None = None):
        statistics = NamedFolding(fold) if fold else STORED
        self.image = x = nn.Variable(shape)
        self.parameters = {}
        if normalise:
            mean, std = (np.array(v).reshape(1, 3, 1, 1) for v in (net.normalization.mean, net.normalization.std))
            scale, shift = (nn.Variable.from_numpy_array(v.astype(np.float32)) for v in (1 / (255 * std), -mean / std))
            self.parameters = {"normalise/scale": scale, "normalise/shift": shift}
            x = F.add2(F.mul2(x, scale), shift)
        y = net(x, path, statistics)
        self.outputs = dict(zip(OUTPUTS, (F.sigmoid(y.heat_map), y.offset, y.size)))
        self.parameters |= net.get_parameters()
        if fold:
            layers = tuple(f"{name}/" for name, module in net.get_modules() if isinstance(module, ConvBN))
            self.parameters = {name: p for name, p in self.parameters.items() if not name.startswith(layers)}
            self.parameters |= statistics.folded

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """Outputs for images of the input's shape."""
        self.image.d = images
        nn.forward_all(list(self.outputs.values()))
        return [output.d.copy() for output in self.outputs.values()]

    def save(self, file: FilePath) -> None:
        """Write it as NNP, with the network "detector" and its executor "runtime"."""
        networks = [
            {"name": NETWORK, "batch_size": self.image.shape[0], "names": {"image": self.image}, "outputs": self.outputs}
        ]
        executors = [{"name": "runtime", "network": NETWORK, "data": ["image"], "output": list(OUTPUTS)}]
        with nn.parameter_scope("", OrderedDict()):
            for name, parameter in self.parameters.items():
                nn.parameter.set_parameter(name, parameter)
            from nnabla.utils.save import save

            save(str(file), {"networks": networks, "executors": executors}, variable_batch_size=False)


# --- Running what was written -----------------------------------------------------------------------------------------


def run_nnp(file: FilePath, batches: np.ndarray) -> list[np.ndarray]:
    """The outputs of an NNP file of ours for images (n, B, 3, H, W): an array of n x B images for each of `OUTPUTS`."""
    from nnabla.utils.nnp_graph import NnpLoader

    network = NnpLoader(str(file)).get_network(NETWORK, batch_size=batches.shape[1])
    outputs, found = [network.outputs[name] for name in OUTPUTS], []
    for batch in batches:
        network.inputs["image"].d = batch
        nn.forward_all(outputs)
        found.append([output.d.copy() for output in outputs])
    return [np.concatenate(part) for part in zip(*found)]


def run_onnx(file: FilePath, batches: np.ndarray) -> list[np.ndarray]:
    """As `run_nnp`, of an ONNX file, by ONNX Runtime in the export environment."""
    with tempfile.TemporaryDirectory() as folder:
        images, outputs = FilePath(folder, "images.npy"), FilePath(folder, "outputs.npz")
        np.save(images, batches)
        in_environment("-c", RUN_ONNX, file, images, outputs, failure=f"ONNX Runtime could not run {file.name}")
        with np.load(outputs) as found:
            return [found[name] for name in found.files]


def export_python() -> FilePath:
    """The Python of the export environment, in the working folder or beside this package.

    Raises:
        UserError: there is none, or only a half-made one.
    """
    places = (ENVIRONMENT, REPOSITORY / ENVIRONMENT)
    found = next((place for place in places if (place / COMPLETE).exists()), None)
    if found is None:
        raise UserError(f"ONNX is written from {ENVIRONMENT}, which is missing or half made: run make setup-export")
    return (found / "bin" / "python").absolute()


def in_environment(*arguments: str | FilePath, failure: str) -> None:
    """Run the export environment's Python; raises UserError, which begins with `failure`, if that fails."""
    done = subprocess.run([export_python(), *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise UserError(f"{failure}: {lines[-1] if lines else f'status {done.returncode}'}")


def convert(nnp: FilePath, onnx: FilePath, batch: int) -> None:
    """Turn an NNP file into ONNX.

    Raises:
        UserError: the export environment is missing, or the converter fails.
    """
    failure = "nnabla-converter could not write ONNX"
    in_environment(*CONVERT, "-b", str(batch), nnp, onnx, failure=failure)
    if not onnx.exists():  # the converter leaves some failures at a printed line and status 0
        raise UserError(f"{failure}, without saying why")
    in_environment("-c", MEND_ONNX, onnx, failure=failure)


FORMATS = {".nnp": run_nnp, ".onnx": run_onnx}


def largest_difference(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """Between outputs: absolute, and relative where the expected value is above 1."""
    return max(float(np.max(np.abs(f - e) / np.maximum(1.0, np.abs(e)))) for f, e in zip(found, expected, strict=True))


def path_outputs(net: Detector, path: Path, statistics: Statistics, batches: np.ndarray) -> list[np.ndarray]:
    """What an export is held against: `OUTPUTS` of the path in the supernet, of normalised images (n, B, 3, H, W)."""
    x, found = nn.Variable(batches.shape[1:]), []
    y = net(x, path, GivenStatistics(statistics))
    outputs = F.sigmoid(y.heat_map), y.offset, y.size
    for batch in batches:
        x.d = batch
        nn.forward_all(outputs)
        found.append([output.d.copy() for output in outputs])
    return [np.concatenate(part) for part in zip(*found)]


# --- The file ---------------------------------------------------------------------------------------------------------


def check_output(file: FilePath) -> None:
    """Raise UserError before the work if the file could not be written."""
    if file.suffix not in FORMATS:
        raise UserError(f"an exported detector's name must end in {' or '.join(FORMATS)}, got {file}")
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise UserError(f"--output must be a file in a folder that is there, got {file}")
    if file.suffix == ".onnx":
        export_python()


def check_request(run: FilePath, detector: str, config: Config, size: tuple[int, int] | None, batch: int) -> dict:
    """Before the weights are read: whether the input's shape is allowed, and what the run measured; see `export`.

    Returns:
        the `metrics.ap_keys` of the run's own detector; empty for a path from elsewhere.
    """
    stride = config.network.geometry.total_stride
    if size and any(not 32 <= side <= MOST_SIDE or side % stride for side in size):
        raise UserError(f"--size must be 32 to {MOST_SIDE} and a multiple of {stride} pixels, got {' '.join(map(str, size))}")
    if not 1 <= batch <= MOST_BATCH:
        raise UserError(f"--batch must be 1 to {MOST_BATCH}, got {batch}")
    if detector not in detectors_of(run):
        return {}
    detector_weights(run, detector, config)
    found = read_result(run, detector)
    with reading(run / f"{detector}.json"):
        return {key: found[key] if found[key] is None else number(found[key]) for key in ap_keys(found)}


def about_file(file: FilePath) -> FilePath:
    """Where the file's metadata are: detector.onnx has detector.onnx.json beside it, never a run's subnet_1.json."""
    return file.with_name(file.name + ".json")


def export(
    opened: OpenDetector,
    run: FilePath,
    detector: str,
    file: FilePath,
    size: tuple[int, int] | None = None,
    batch: int = 1,
    normalise: bool = True,
    fold: bool = False,
) -> dict:
    """Write a detector as NNP or ONNX, run it, and write what its user must know beside it (`about_file`).

    Args:
        opened: `evaluate.open_detector` of `run` and `detector`.
        file: its ending says the format.
        size: (height, width) of the input; None is the run's. Statistics are those of the run's size, as `evaluate` has
            them for other scales.
        batch: images of the input; it is fixed.
        normalise: the network takes pixels from 0 to 255, rather than normalised images.
        fold: fold batch normalisation into the convolutions.

    Returns:
        the metadata.

    Raises:
        UserError: a size does not fit, the run's result of the detector is missing or damaged, the export environment is
            missing, or the file differs from the supernet's path by more than `TOLERANCE`: nothing is written then.
    """
    check_output(file)
    sets, path = opened.sets, opened.path
    size = tuple(size or sets.image_size)
    precision = check_request(run, detector, opened.config, size, batch)
    one = PathBatch.from_paths([path], opened.config.network.geometry)
    cost = replace(opened.cost, scope="detector", image_size=size)
    refuse_memory(batch * int(cost.memory(one)[0]), size, batch)
    statistics = opened.statistics()
    net = alone(opened.config, opened.net, path, statistics)
    graph = StaticGraph(net, path, (batch, 3, *size), normalise, statistics if fold else None)

    pixels, images = check_images(sets, size, batch)
    with tempfile.TemporaryDirectory(dir=file.absolute().parent, prefix=".export-") as folder:
        fresh = FilePath(folder, file.name).with_suffix(".nnp")
        graph.save(fresh)
        if file.suffix == ".onnx":
            convert(fresh, fresh := fresh.with_suffix(".onnx"), batch)
        found = FORMATS[file.suffix](fresh, pixels if normalise else images)
        difference = largest_difference(found, path_outputs(opened.net, path, statistics, images))
        if not difference <= TOLERANCE:
            raise UserError(f"{file} would differ from the supernet's path by {difference:.2g}, more than {TOLERANCE:g}")
        fresh.replace(file)

    about = {
        "run": run.name,
        "detector": detector,
        "path": path.to_ofa(opened.config.network.geometry),
        "flops": int(cost.flops(one)[0]),
        "parameters": int(cost.params(one)[0]),
        **(precision | {"ap_image_size": list(sets.image_size)} if precision else {}),
        "classes": list(sets.classes),
        "input": {
            "name": "image",
            "shape": [batch, 3, *size],
            "channels": ["blue", "green", "red"],
            "values": "pixels from 0 to 255" if normalise else "(pixels / 255 - mean) / std",
            "normalised_by_user": not normalise,
            "mean": list(net.normalization.mean),
            "std": list(net.normalization.std),
        },
        "outputs": {name: list(output.shape) for name, output in graph.outputs.items()},
        "stride": sets.stride,
        "batch_normalisation": "folded" if fold else "layers",
        "largest_difference": difference,
        "compared_images": images.shape[0] * batch,
        "made_by": revision(),
    }
    write_json(about_file(file), about)
    return about


def refuse_memory(needed: int, size: tuple[int, int], batch: int) -> None:
    """Raise UserError if this machine has less memory than a layer and its neighbours need.

    Args:
        needed: bytes.
    """
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise UserError(
            f"--batch {batch} and --size {' '.join(map(str, size))} need more than {needed / 1e9:.3g} GB of memory, "
            f"and there are {there / 1e9:.3g} GB: take smaller ones"
        )


def check_images(sets, size: tuple[int, int], batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Test images as pixels, and normalised as training had them: (n, B, 3, H, W) each, at least `CHECKED_IMAGES` in all."""
    count = -(-CHECKED_IMAGES // batch) * batch
    photographs = [sets.test.load(index % len(sets.test)).image for index in range(count)]
    fitted = [cv2.warpAffine(image, letterbox_matrix(image.shape[:2], size), size[::-1]) for image in photographs]
    pixels = np.stack([image.transpose(2, 0, 1) for image in fitted]).astype(np.float32)
    images = np.stack([letterbox(image, size, sets.normalization)[0] for image in photographs])
    return tuple(part.reshape(-1, batch, *part.shape[1:]) for part in (pixels, images))
