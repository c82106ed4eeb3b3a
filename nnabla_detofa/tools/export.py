"""Export of one path as a static network in NNP or ONNX format, verified by running the file.

The file contains the path alone: its slice of the weights and its re-estimated BatchNorm statistics.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path as FilePath

import cv2
import numpy as np

from ..common.errors import UserError
from ..common.files import digest, write_json, written_together
from ..config import Config
from ..data.augment import letterbox, letterbox_matrix
from ..data.sets import DetectionSets
from ..evaluation.metrics import ap_keys
from ..networks.centernet import Detector
from ..runs.provenance import revision
from ..runs.run_folder import number, read_result, reading
from ..space.costs import CostModel
from ..space.geometry import RESOLUTION
from ..space.paths import Path, PathBatch
from .evaluate import OpenDetector, detector_weights, detectors_of, static_detector
from .static_network import FORMATS, StaticGraph, convert, export_python, largest_difference, path_outputs

TOLERANCE = 1e-4
"""Largest allowed difference between the outputs of a file and of the path in the supernet; see `largest_difference`."""
CHECKED_IMAGES = 4
"""Smallest number of test images on which a file is compared with the supernet."""
MAX_SIDE, MAX_BATCH = 16384, 1024


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
    if about_file(file).is_dir():
        raise UserError(f"the metadata are written to {about_file(file)}, which is a folder: choose another --output")
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
    """Write a detector as NNP or ONNX, verify it by running it, and write (`about_file`) and return its metadata.

    Args:
        opened: the result of `evaluate.open_detector` for `run` and `detector`.
        run, detector: the run's folder, and the name of the detector; see `evaluate.evaluate`.
        file: the output file; its suffix, .nnp or .onnx, selects the format.
        size: (height, width) of the input in pixels; None is the path's size in the run. BatchNorm statistics are re-estimated
            at this size of the run, as `evaluate` does for other scales.
        batch: fixed number of images of the input.
        normalize: True: the network takes pixels from 0 to 255; False: it takes normalized images.
        fold: fold BatchNorm into the convolutions.

    Raises:
        UserError: the size, the batch or their memory is not allowed, the detector's result is missing or damaged, the
            export environment is missing, or the outputs of the file differ from those of the path in the supernet by more
            than `TOLERANCE`. Nothing is written in these cases.
    """
    check_output(file)
    sets, path, size = opened.sets, opened.path, size or opened.image_size
    precision = check_request(run, detector, opened.config, size, batch)
    flops, parameters, memory = costs_at(size, path, opened.cost)
    check_memory(batch * memory, size, batch)
    statistics = opened.statistics()
    net = static_detector(opened.network, opened.net, path, statistics)
    graph = StaticGraph(net, path, (batch, 3, *size), normalize, statistics if fold else None)
    pixels, images = comparison_images(sets, size, batch)
    expected = path_outputs(opened.net, path, statistics, images)
    about = {
        "run": run.name,
        "detector": detector,
        "path": path.to_ofa(opened.config.network.geometry),
        "flops": flops,
        "parameters": parameters,
        **(precision | {"ap_image_size": list(opened.image_size)} if precision else {}),
        "classes": list(sets.classes),
        "input": _about_input(net, (batch, 3, *size), normalize),
        "outputs": {name: list(output.shape) for name, output in graph.outputs.items()},
        "stride": sets.stride,
        **({"network": opened.config.to_dict()["network"]} if ":" in opened.config.network_name else {}),
        "batch_normalization": "folded" if fold else "layers",
        "compared_images": images.shape[0] * batch,
        "made_by": revision(),
    }
    with written_together(file.absolute().parent) as fresh:
        written = fresh / file.name
        about["largest_difference"] = write_verified(graph, written, pixels if normalize else images, expected)
        about["sha256"] = digest(written.read_bytes())
        write_json(about_file(written), about)
    return about


def costs_at(size: tuple[int, int], path: Path, cost: CostModel) -> tuple[int, int, int]:
    """Return FLOPs, parameters and bytes of memory of the whole detector of a path on an input of any (height, width)."""
    net = replace(cost.backbone, named=tuple(choices for choices in cost.backbone.named if choices.name != RESOLUTION))
    fixed = replace(path, named=tuple(choice for choice in path.named if choice[0] != RESOLUTION))
    model, one = replace(cost, scope="detector", image_size=size, backbone=net), PathBatch.from_paths([fixed], net)
    return int(model.flops(one)[0]), int(model.params(one)[0]), int(model.memory(one)[0])


def write_verified(graph: StaticGraph, file: FilePath, inputs: np.ndarray, expected: Sequence[np.ndarray]) -> float:
    """Write a graph to a file in the format of its suffix, and check that the file gives the expected outputs when it is run.

    Args:
        graph: the graph.
        file: the file, .nnp or .onnx.
        inputs: (n, B, 3, H, W), inputs of the graph.
        expected: the array (n * B, ...) of each output.

    Returns:
        The largest difference between the outputs and `expected`.

    Raises:
        UserError: the conversion fails, or the outputs differ by more than `TOLERANCE`.
    """
    network = file.with_suffix(".nnp")
    graph.save(network)
    if file.suffix == ".onnx":
        convert(network, file, inputs.shape[1])
        network.unlink()
    difference = largest_difference(FORMATS[file.suffix](file, inputs, list(graph.outputs)), expected)
    if not difference <= TOLERANCE:
        raise UserError(
            f"{file.name} is not written: its outputs differ by {difference:.2g} from those of the path in the supernet, more "
            f"than {TOLERANCE:g}"
        )
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
