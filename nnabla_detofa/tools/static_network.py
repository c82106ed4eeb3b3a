"""The static network of one path as NNP and ONNX files, and the running of these files.

The network maps pixels to heatmap, offset and size, or to the maps of other heads. Peaks are found outside of it, by
`Detector.decode` or, with NumPy alone, by `examples/onnx_detect.py`, because top-k and gather cannot be converted.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from ..backend.compat import F, nn
from ..common.errors import UserError
from ..common.shipped import install_command
from ..common.version import REPOSITORY
from ..evaluation.reestimation import Statistics
from ..networks.centernet import Detector
from ..networks.layers import STORED, ConvBN, GivenStatistics, Plain
from ..space.paths import Path

OUTPUTS = Detector.map_names
NETWORK = "detector"
ENVIRONMENT = FilePath(".venv-export")
COMPLETE = ".ready"
"""Marker file in `ENVIRONMENT`, which `make setup-export` writes last."""
CONVERT = ("-m", "nnabla.utils.cli.cli", "convert")
RUN_ONNX = """
import sys
import numpy, onnxruntime
network, images, outputs, *names = sys.argv[1:]
session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
found = [session.run(names, {"image": batch}) for batch in numpy.load(images)]
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
        outputs: name -> output, the maps of `Detector.maps`: for CenterNet heatmap (B, classes, h, w) in [0, 1], offset x, y
            and size width, height (B, 2, h, w) in cells.
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
        self.outputs = dict(zip(net.map_names, net.maps(y), strict=True))
        self.parameters |= net.get_parameters()
        if folding:
            layers = tuple(f"{name}/" for name, module in net.get_modules() if isinstance(module, ConvBN))
            self.parameters = {name: p for name, p in self.parameters.items() if not name.startswith(layers)}
            self.parameters |= folding.folded

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """Compute the array of each output for images (B, 3, H, W)."""
        self.image.d = images
        nn.forward_all(list(self.outputs.values()))
        return [output.d.copy() for output in self.outputs.values()]

    def save(self, file: FilePath) -> None:
        """Write the graph as NNP, with the network "detector" and the executor "runtime"."""
        networks = [
            {"name": NETWORK, "batch_size": self.image.shape[0], "names": {"image": self.image}, "outputs": self.outputs}
        ]
        executors = [{"name": "runtime", "network": NETWORK, "data": ["image"], "output": list(self.outputs)}]
        with nn.parameter_scope("", OrderedDict()):
            for name, parameter in self.parameters.items():
                nn.parameter.set_parameter(name, parameter)
            from nnabla.utils.save import save

            save(str(file), {"networks": networks, "executors": executors}, variable_batch_size=False)


# --- Running exported files -------------------------------------------------------------------------------------------


def read_network(file: FilePath, batch: int) -> Any:
    """Read the network of an NNP file, for inputs of `batch` images. NNabla's global parameters are left unchanged."""
    from nnabla.utils.nnp_graph import NnpLoader

    with nn.parameter_scope("", OrderedDict()):  # the reader puts the network's parameters into the current scope
        return NnpLoader(str(file)).get_network(NETWORK, batch_size=batch)


def run_nnp(file: FilePath, batches: np.ndarray, names: Sequence[str] = OUTPUTS) -> list[np.ndarray]:
    """Run an NNP file that `export` wrote on images (n, B, 3, H, W); returns an array (n * B, ...) for each named output."""
    network = read_network(file, batches.shape[1])
    outputs, found = [network.outputs[name] for name in names], []
    for batch in batches:
        network.inputs["image"].d = batch
        nn.forward_all(outputs)
        found.append([output.d.copy() for output in outputs])
    return [np.concatenate(part) for part in zip(*found)]


def run_onnx(file: FilePath, batches: np.ndarray, names: Sequence[str] = OUTPUTS) -> list[np.ndarray]:
    """Run an ONNX file like `run_nnp`, with ONNX Runtime in the export environment."""
    with tempfile.TemporaryDirectory() as folder:
        images, outputs = FilePath(folder, "images.npy"), FilePath(folder, "outputs.npz")
        np.save(images, batches)
        in_environment("-c", RUN_ONNX, file, images, outputs, *names, failure=f"ONNX Runtime could not run {file.name}")
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
            f"writing ONNX needs the environment {ENVIRONMENT}, which is missing or incomplete; "
            f"run {install_command('setup-export')}"
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
    """Compute the reference of an export: the maps of the path in the supernet for normalized images (n, B, 3, H, W)."""
    x, found = nn.Variable(batches.shape[1:]), []
    outputs = net.maps(net(x, path, GivenStatistics(statistics)))
    for batch in batches:
        x.d = batch
        nn.forward_all(outputs)
        found.append([output.d.copy() for output in outputs])
    return [np.concatenate(part) for part in zip(*found)]
