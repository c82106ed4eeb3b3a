"""Export of one path as a static network in NNP or ONNX format, verified by running the file.

The file contains the path alone: its slice of the weights and its re-estimated BatchNorm statistics. The network maps pixels
to heatmap, offset and size. Peaks are found outside of it, by `decoding.decode` or, with NumPy alone, by
`examples/onnx_detect.py`, because top-k and gather cannot be converted.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
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
from ..data.sets import DetectionSets
from ..evaluation.metrics import ap_keys
from ..evaluation.reestimation import Statistics
from ..networks.centernet import Detector
from ..networks.layers import STORED, ConvBN, GivenStatistics, Plain
from ..runs.provenance import revision
from ..runs.run_folder import number, read_result, reading
from ..space.paths import Path, PathBatch
from .evaluate import OpenDetector, detector_weights, detectors_of, static_detector

OUTPUTS = ("heatmap", "offset", "size")
"""Outputs of the network: heatmap (B, classes, h, w) in [0, 1]; offset x, y and size width, height (B, 2, h, w) in cells."""
TOLERANCE = 1e-4
"""Largest allowed difference between the outputs of a file and of the path in the supernet; see `largest_difference`."""
CHECKED_IMAGES = 4
MAX_SIDE, MAX_BATCH = 16384, 1024
NETWORK = "detector"
ENVIRONMENT = FilePath(".venv-export")
COMPLETE = ".ready"
"""Marker file in `ENVIRONMENT`, which `make setup-export` writes last."""
CONVERT = ("-m", "nnabla.utils.cli.cli", "convert")
RUN_ONNX = f"""
import sys
import numpy, onnxruntime
network, images, outputs = sys.argv[1:]
session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
found = [session.run({list(OUTPUTS)}, {{"image": batch}}) for batch in numpy.load(images)]
numpy.savez(outputs, *map(numpy.concatenate, zip(*found)))
"""
"""Script for the export environment, which has ONNX Runtime but not this package."""
FIX_SINGLE_CHANNEL = """
import sys
import onnx
file = sys.argv[1]
model = onnx.load(file)
for tensor in model.graph.initializer:
    if list(tensor.dims) == [0] and len(tensor.raw_data) == 4:
        tensor.dims[:] = [1]
onnx.save(model, file)
"""
"""Script that fixes BatchNorm layers with one channel: nnabla-converter 1.39 computes the length of BatchNorm parameters
(1, C, 1, 1) as the sum of the sides above 1, which is 0 for C = 1. No reader accepts a value in a tensor of length 0."""


# --- The network ------------------------------------------------------------------------------------------------------


class NamedFolding(Plain, GivenStatistics):
    """Folds BatchNorm statistics into the convolutions, and collects the folded weights and biases by name in `folded`."""

    def __init__(self, statistics: Statistics):
        super().__init__(statistics)
        self.folded: dict[str, nn.Variable] = {}

    def __call__(
        self,
        layer: ConvBN,
        convolve: Callable[..., nn.Variable],
        weight: nn.Variable,
        gamma: nn.Variable,
        beta: nn.Variable,
        relu: bool = False,
    ) -> nn.Variable:
        def named(weight: nn.Variable, bias: nn.Variable) -> nn.Variable:
            self.folded[f"{layer.name}/W"], self.folded[f"{layer.name}/b"] = weight, bias
            return convolve(weight, bias)

        return super().__call__(layer, named, weight, gamma, beta, relu)


class StaticGraph:
    """Static graph of one path.

    Args:
        net: the static network of the path, with its statistics (`evaluate.static_detector`).
        path: the path.
        shape: shape of the input, (B, 3, H, W).
        normalize: True: the input is pixels from 0 to 255, which the graph normalizes; False: the input is normalized.
        fold: BatchNorm statistics to fold into the convolutions; None keeps BatchNorm as layers.

    Attributes:
        image: the input, with channels blue, green, red.
        outputs: name of `OUTPUTS` -> output.
        parameters: name -> every other variable that the graph reads.
    """

    def __init__(self, net: Detector, path: Path, shape: Sequence[int], normalize: bool = True, fold: Statistics | None = None):
        folding = NamedFolding(fold) if fold else None
        self.image = x = nn.Variable(shape)
        self.parameters: dict[str, nn.Variable] = {}
        if normalize:
            mean, std = (np.array(v).reshape(1, 3, 1, 1) for v in (net.normalization.mean, net.normalization.std))
            scale, shift = (nn.Variable.from_numpy_array(v.astype(np.float32)) for v in (1 / (255 * std), -mean / std))
            self.parameters = {"normalize/scale": scale, "normalize/shift": shift}
            x = F.add2(F.mul2(x, scale), shift)
        y = net(x, path, folding or STORED)
        self.outputs = dict(zip(OUTPUTS, (F.sigmoid(y.heatmap), y.offset, y.size)))
        self.parameters |= net.get_parameters()
        if folding:
            layers = tuple(f"{name}/" for name, module in net.get_modules() if isinstance(module, ConvBN))
            self.parameters = {name: p for name, p in self.parameters.items() if not name.startswith(layers)}
            self.parameters |= folding.folded

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """Compute the arrays of `OUTPUTS` for images (B, 3, H, W)."""
        self.image.d = images
        nn.forward_all(list(self.outputs.values()))
        return [output.d.copy() for output in self.outputs.values()]

    def save(self, file: FilePath) -> None:
        """Write the graph as NNP, with the network "detector" and the executor "runtime"."""
        networks = [
            {"name": NETWORK, "batch_size": self.image.shape[0], "names": {"image": self.image}, "outputs": self.outputs}
        ]
        executors = [{"name": "runtime", "network": NETWORK, "data": ["image"], "output": list(OUTPUTS)}]
        with nn.parameter_scope("", OrderedDict()):
            for name, parameter in self.parameters.items():
                nn.parameter.set_parameter(name, parameter)
            from nnabla.utils.save import save

            save(str(file), {"networks": networks, "executors": executors}, variable_batch_size=False)


# --- Running exported files -------------------------------------------------------------------------------------------


def run_nnp(file: FilePath, batches: np.ndarray) -> list[np.ndarray]:
    """Run an NNP file that `export` wrote on images (n, B, 3, H, W); returns an array (n * B, ...) per output of `OUTPUTS`."""
    from nnabla.utils.nnp_graph import NnpLoader

    network = NnpLoader(str(file)).get_network(NETWORK, batch_size=batches.shape[1])
    outputs, found = [network.outputs[name] for name in OUTPUTS], []
    for batch in batches:
        network.inputs["image"].d = batch
        nn.forward_all(outputs)
        found.append([output.d.copy() for output in outputs])
    return [np.concatenate(part) for part in zip(*found)]


def run_onnx(file: FilePath, batches: np.ndarray) -> list[np.ndarray]:
    """Run an ONNX file like `run_nnp`, with ONNX Runtime in the export environment."""
    with tempfile.TemporaryDirectory() as folder:
        images, outputs = FilePath(folder, "images.npy"), FilePath(folder, "outputs.npz")
        np.save(images, batches)
        in_environment("-c", RUN_ONNX, file, images, outputs, failure=f"ONNX Runtime could not run {file.name}")
        with np.load(outputs) as found:
            return [found[name] for name in found.files]


def export_python() -> FilePath:
    """Return the Python of the export environment, in the working directory or next to this package.

    Raises:
        UserError: the environment is missing or incomplete.
    """
    places = (ENVIRONMENT, REPOSITORY / ENVIRONMENT)
    found = next((place for place in places if (place / COMPLETE).exists()), None)
    if found is None:
        raise UserError(
            f"writing ONNX needs the environment {ENVIRONMENT}, which is missing or incomplete; run make setup-export"
        )
    return (found / "bin" / "python").absolute()


def in_environment(*arguments: str | FilePath, failure: str) -> None:
    """Run the Python of the export environment; raises UserError with the prefix `failure` if it fails."""
    done = subprocess.run([export_python(), *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise UserError(f"{failure}: {lines[-1] if lines else f'status {done.returncode}'}")


def convert(nnp: FilePath, onnx: FilePath, batch: int) -> None:
    """Convert an NNP file to ONNX with a fixed batch size.

    Raises:
        UserError: the export environment is missing, or the converter fails.
    """
    failure = "nnabla-converter could not write ONNX"
    in_environment(*CONVERT, "-b", str(batch), nnp, onnx, failure=failure)
    if not onnx.exists():  # on some failures the converter only prints a line and exits with status 0
        raise UserError(f"{failure}; the converter gave no reason")
    in_environment("-c", FIX_SINGLE_CHANNEL, onnx, failure=failure)


FORMATS = {".nnp": run_nnp, ".onnx": run_onnx}


def largest_difference(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """Return the largest difference between outputs, relative where the absolute expected value is above 1."""
    return max(float(np.max(np.abs(f - e) / np.maximum(1.0, np.abs(e)))) for f, e in zip(found, expected, strict=True))


def path_outputs(net: Detector, path: Path, statistics: Statistics, batches: np.ndarray) -> list[np.ndarray]:
    """Compute the reference of an export: `OUTPUTS` of the path in the supernet for normalized images (n, B, 3, H, W)."""
    x, found = nn.Variable(batches.shape[1:]), []
    y = net(x, path, GivenStatistics(statistics))
    outputs = F.sigmoid(y.heatmap), y.offset, y.size
    for batch in batches:
        x.d = batch
        nn.forward_all(outputs)
        found.append([output.d.copy() for output in outputs])
    return [np.concatenate(part) for part in zip(*found)]


# --- The file ---------------------------------------------------------------------------------------------------------


def check_output(file: FilePath) -> None:
    """Check, before the work starts, that the file can be written.

    Raises:
        UserError: the suffix is not .nnp or .onnx, the file is a folder, its folder does not exist, or the export environment
            for ONNX is missing.
    """
    if file.suffix not in FORMATS:
        raise UserError(f"the name of an exported detector must end in {' or '.join(FORMATS)}, got {file}")
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise UserError(f"--output must be a file in an existing folder, got {file}")
    if file.suffix == ".onnx":
        export_python()


def check_request(run: FilePath, detector: str, config: Config, size: tuple[int, int] | None, batch: int) -> dict:
    """Check the arguments of `export` before the weights are read, and read the detector's measured AP.

    Returns:
        Key of `metrics.ap_keys` -> AP of the run's detector; empty if `detector` is a file with a path.

    Raises:
        UserError: the size or the batch is not allowed, or the detector's weights or result are missing or damaged.
    """
    stride = config.network.geometry.total_stride
    if size and any(not 32 <= side <= MAX_SIDE or side % stride for side in size):
        raise UserError(
            f"--size must be from 32 to {MAX_SIDE} and a multiple of {stride} pixels, got {' '.join(map(str, size))}"
        )
    if not 1 <= batch <= MAX_BATCH:
        raise UserError(f"--batch must be from 1 to {MAX_BATCH}, got {batch}")
    if detector not in detectors_of(run):
        return {}
    detector_weights(run, detector, config)
    found = read_result(run, detector)
    with reading(run / f"{detector}.json"):
        return {key: found[key] if found[key] is None else number(found[key]) for key in ap_keys(found)}


def about_file(file: FilePath) -> FilePath:
    """Return the file of the metadata, such as detector.onnx.json; it cannot collide with a run's subnet_1.json."""
    return file.with_name(file.name + ".json")


def export(
    opened: OpenDetector,
    run: FilePath,
    detector: str,
    file: FilePath,
    size: tuple[int, int] | None = None,
    batch: int = 1,
    normalize: bool = True,
    fold: bool = False,
) -> dict:
    """Write a detector as NNP or ONNX, verify the file by running it, and write its metadata next to it (`about_file`).

    Args:
        opened: the result of `evaluate.open_detector` for `run` and `detector`.
        run, detector: the run's folder, and the name of the detector; see `evaluate.evaluate`.
        file: the output file; its suffix, .nnp or .onnx, selects the format.
        size: (height, width) of the input in pixels; None is the run's size. BatchNorm statistics are re-estimated at the
            run's size, as `evaluate` does for other scales.
        batch: fixed number of images of the input.
        normalize: True: the network takes pixels from 0 to 255; False: it takes normalized images.
        fold: fold BatchNorm into the convolutions.

    Returns:
        The metadata.

    Raises:
        UserError: the size, the batch or their memory is not allowed, the detector's result is missing or damaged, the
            export environment is missing, or the outputs of the file differ from those of the path in the supernet by more
            than `TOLERANCE`. Nothing is written in these cases.
    """
    check_output(file)
    sets, path, size = opened.sets, opened.path, size or opened.sets.image_size
    precision = check_request(run, detector, opened.config, size, batch)
    one = PathBatch.from_paths([path], opened.config.network.geometry)
    cost = replace(opened.cost, scope="detector", image_size=size)
    check_memory(batch * int(cost.memory(one)[0]), size, batch)
    statistics = opened.statistics()
    net = static_detector(opened.network, opened.net, path, statistics)
    graph = StaticGraph(net, path, (batch, 3, *size), normalize, statistics if fold else None)
    pixels, images = comparison_images(sets, size, batch)
    expected = path_outputs(opened.net, path, statistics, images)
    difference = write_verified(graph, file, pixels if normalize else images, expected)
    about = {
        "run": run.name,
        "detector": detector,
        "path": path.to_ofa(opened.config.network.geometry),
        "flops": int(cost.flops(one)[0]),
        "parameters": int(cost.params(one)[0]),
        **(precision | {"ap_image_size": list(sets.image_size)} if precision else {}),
        "classes": list(sets.classes),
        "input": _about_input(net, (batch, 3, *size), normalize),
        "outputs": {name: list(output.shape) for name, output in graph.outputs.items()},
        "stride": sets.stride,
        "batch_normalization": "folded" if fold else "layers",
        "largest_difference": difference,
        "compared_images": images.shape[0] * batch,
        "made_by": revision(),
    }
    write_json(about_file(file), about)
    return about


def write_verified(graph: StaticGraph, file: FilePath, inputs: np.ndarray, expected: Sequence[np.ndarray]) -> float:
    """Write a graph to a file in the format of its suffix, if the file gives the expected outputs when it is run.

    Args:
        graph: the graph.
        file: the file, .nnp or .onnx.
        inputs: (n, B, 3, H, W), inputs of the graph.
        expected: the array (n * B, ...) of each output of `OUTPUTS`.

    Returns:
        The largest difference between the outputs and `expected`.

    Raises:
        UserError: the conversion fails, or the outputs differ by more than `TOLERANCE`; nothing is written.
    """
    with tempfile.TemporaryDirectory(dir=file.absolute().parent, prefix=".export-") as folder:
        written = FilePath(folder, file.name).with_suffix(".nnp")
        graph.save(written)
        if file.suffix == ".onnx":
            convert(written, written := written.with_suffix(".onnx"), inputs.shape[1])
        difference = largest_difference(FORMATS[file.suffix](written, inputs), expected)
        if not difference <= TOLERANCE:
            raise UserError(
                f"{file} is not written: its outputs differ by {difference:.2g} from those of the path in the supernet, more "
                f"than {TOLERANCE:g}"
            )
        written.replace(file)
    return difference


def _about_input(net: Detector, shape: Sequence[int], normalize: bool) -> dict:
    """Return the metadata of the input."""
    return {
        "name": "image",
        "shape": list(shape),
        "channels": ["blue", "green", "red"],
        "values": "pixels from 0 to 255" if normalize else "(pixels / 255 - mean) / std",
        "normalized_by_user": not normalize,
        "mean": list(net.normalization.mean),
        "std": list(net.normalization.std),
    }


def check_memory(needed: int, size: tuple[int, int], batch: int) -> None:
    """Raise UserError if this machine has less memory than the activations need.

    Args:
        needed: peak memory of the activations of all images of the batch, in bytes (`CostModel.memory`).
        size, batch: arguments of `export`, for the message.
    """
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > available:
        raise UserError(
            f"--batch {batch} and --size {' '.join(map(str, size))} need more than {needed / 1e9:.3g} GB of memory, but this "
            f"machine has {available / 1e9:.3g} GB; choose smaller values"
        )


def comparison_images(sets: DetectionSets, size: tuple[int, int], batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Load at least `CHECKED_IMAGES` test images, as pixels and normalized as in training; both are (n, B, 3, H, W)."""
    count = -(-CHECKED_IMAGES // batch) * batch
    samples = [sets.test.load(index % len(sets.test)) for index in range(count)]
    fitted = [
        cv2.warpAffine(sample.image, letterbox_matrix(sample.image.shape[:2], size), size[::-1]).transpose(2, 0, 1)
        for sample in samples
    ]
    pixels = np.stack(fitted).astype(np.float32)
    images = np.stack([letterbox(sample.image, size, sets.normalization)[0] for sample in samples])
    shape = (-1, batch, *pixels.shape[1:])
    return pixels.reshape(shape), images.reshape(shape)
