"""Average precision of one detector of a run, optionally with the flip and multi-scale tests of CenterNet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from ..common.errors import UserError
from ..common.progress import ProgressBar
from ..common.reading import read_json
from ..config import CenternetOfaResnet50, Config, DetofaHparams
from ..config.detection import detection_sections
from ..data.sets import DetectionSets
from ..evaluation.detections import BoxDetector, average_precision
from ..evaluation.images import EvaluationImages
from ..evaluation.metrics import AP_TITLES, ap_keys
from ..evaluation.reestimation import Statistics, reestimate
from ..methods.build import build
from ..networks import weights
from ..networks.centernet import Detector, detector_of
from ..networks.supernet import take_over
from ..runs import result_files
from ..runs.phases import FINE_TUNED
from ..runs.run_folder import (
    check_classes,
    check_has_detectors,
    final_weights,
    fine_tuned,
    number,
    read_result,
    reading,
    run_config,
)
from ..space.costs import CostModel
from ..space.paths import Path
from ..space.search_space import SearchSpace
from .report import markdown_row


@dataclass(frozen=True)
class OpenDetector:
    """A detector of a run with its weights.

    Attributes:
        config, sets, cost: config, datasets and cost model of the run.
        net: the network with its weights: the supernet, or the static network of a fine-tuned path.
        path: the detector's path.
    """

    config: Config
    sets: DetectionSets
    cost: CostModel
    net: Detector
    path: Path

    @property
    def network(self) -> CenternetOfaResnet50:
        """The section `network` of the config."""
        return detection_sections(self.config).network

    @property
    def hparams(self) -> DetofaHparams:
        """The hyperparameters of the config."""
        return detection_sections(self.config).hparams

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the input in pixels."""
        return self.sets.at(self.path.resolution).image_size

    def statistics(self) -> Statistics:
        """Re-estimate the path's BatchNorm statistics on the training images that the config selects."""
        images = EvaluationImages.choose(self.sets, self.hparams, self.config.args.seed).at(self.path.resolution)
        return reestimate(self.net, self.path, images.statistics_batches())

    def boxes(self, flip: bool | None = None) -> BoxDetector:
        """Make the box detector; `flip` overrides the config's `flip_test` unless it is None."""
        flip = self.hparams.flip_test if flip is None else flip
        return BoxDetector(self.net, self.path, self.statistics(), flip=flip)

    def scaling(self, scales: Sequence[float] | None = None) -> dict:
        """Return the scale arguments of `detections.detect_images`; `scales` overrides the config's `test_scales`."""
        scales = tuple(scales or self.hparams.test_scales)
        return {"scales": scales, "multiple": self.config.network.geometry.total_stride}


def open_detector(run: FilePath, detector: str, overrides: Sequence[str] = ()) -> OpenDetector:
    """Open a detector of a run with its weights and data; for arguments and errors see `evaluate`."""
    config = run_config(run, overrides)
    check_has_detectors(run, config, "a detector")
    path = find_path(run, detector, config.network.space)
    file = detector_weights(run, detector, config)
    net, sets, cost = build(config, pretrained=False, quiet=not overrides)
    assert isinstance(sets, DetectionSets)  # the run trains detectors
    check_classes(run, sets.classes)
    if detector == FINE_TUNED:
        net = static_detector(detection_sections(config).network, net, path)
    weights.load(net, file)
    return OpenDetector(config, sets, cost, net, path)


def detector_weights(run: FilePath, detector: str, config: Config) -> FilePath:
    """Return the weights file of a detector; raises UserError if it does not exist yet."""
    file = run / "fullnet" / "weights.h5" if detector == "fullnet" else final_weights(run, config)
    if not file.exists():
        raise UserError(f"{run} has no weights of {detector} yet: {file} does not exist")
    return file


def static_detector(network: CenternetOfaResnet50, net: Detector, path: Path, statistics: Statistics | None = None) -> Detector:
    """Copy one path out of a network into a static network, which is called like the original: `net(x, path)`.

    Args:
        network: section `network` of the config of the original.
        net: the original.
        path: the path to copy.
        statistics: BatchNorm statistics of the path; None copies the stored ones (see `supernet.take_over`).
    """
    cut_out = detector_of(network, net.num_classes, path)
    cut_out.space = net.space
    take_over(cut_out, net, statistics)
    return cut_out


def evaluate(
    run: FilePath,
    detector: str,
    overrides: Sequence[str] = (),
    flip: bool | None = None,
    scales: Sequence[float] | None = None,
) -> dict:
    """Compute the average precision of a detector on the test split.

    Args:
        run: the folder of a run of Algorithm 1, of a baseline, or of a fine-tuning.
        detector: "fullnet", with the weights of Algorithm 1 line 2; "subnet_1", "subnet_2", ..., with the supernet's final
            weights; or a JSON file with a path in OFA's notation, alone or under the key "path", as `search` writes it. For a
            fine-tuning, "finetuned".
        overrides: "key=value" strings that replace settings of the run's config, such as the data folder.
        flip: average each image with its mirror image; None is the config's `flip_test`.
        scales: input sizes relative to the size in training; None is the config's `test_scales`.

    Returns:
        The dict that `metrics.summarize` returns, AP in [0, 1].

    Raises:
        UserError: the folder does not hold a run that has trained the detector, the data are missing or have other classes,
            or the path is not in the run's space.
    """
    opened = open_detector(run, detector, overrides)
    sets, boxes = opened.sets, opened.boxes(flip)
    metric = detection_sections(opened.config).data.ap_metric
    with ProgressBar(total=len(sets.test), desc=f"test images of {detector}", unit="image") as bar:
        result, _ = average_precision(boxes, sets, opened.hparams.bn_batch, metric, bar.update, **opened.scaling(scales))
    return result


def detectors_of(run: FilePath) -> list[str]:
    """List the detectors of a run: the fullnet and, after the end of the run, the subnets; or the fine-tuned detector.

    Raises:
        UserError: the folder does not hold a run, holds a pre-training, or contains a damaged file.
    """
    if fine_tuned(run):
        return [FINE_TUNED]
    check_has_detectors(run, run_config(run), "a detector")
    return ["fullnet", *(f"subnet_{number}" for number in range(1, len(_subnets(run)) + 1))]


def _subnets(run: FilePath) -> list[dict]:
    """Return path and budget of each subnet that a run found; an empty list before the end of the run."""
    if not (run / "summary.json").exists():
        return []
    summary = read_result(run, "summary", result_files.bounded)
    with reading(run / "summary.json"):
        return [{"path": subnet["path"], "budget": number(subnet["budget"])} for subnet in summary["subnets"]]


def default_detector(run: FilePath) -> str:
    """Name the subnet of the largest budget, the fullnet if the run has found no subnet (yet), or the fine-tuned detector."""
    known = detectors_of(run)
    if found := _subnets(run):
        budgets = [subnet["budget"] for subnet in found]
        return f"subnet_{1 + budgets.index(max(budgets))}"
    return known[0]


def find_path(run: FilePath, detector: str, space: SearchSpace) -> Path:
    """Return the path of a detector; for arguments and errors see `evaluate`."""
    if origin := fine_tuned(run):
        if detector != FINE_TUNED:
            raise UserError(f"the only detector of {run} is {FINE_TUNED}, got {detector}")
        return _path_of(run / "origin.json", origin["path"], space)
    if detector == "fullnet":
        return space.largest
    known = detectors_of(run)
    if detector in known:
        return _path_of(run / "summary.json", _subnets(run)[known.index(detector) - 1]["path"], space)
    file = FilePath(detector)
    if not file.is_file():
        later = "" if (run / "summary.json").exists() else "; the subnets are available once the run has finished"
        raise UserError(f"a detector of {run} must be {', '.join(known)} or a JSON file with a path, got {detector!r}{later}")
    content = read_json(file, "the path")
    path = _path_of(file, content.get("path", content) if isinstance(content, dict) else content, space)
    if path not in space:
        raise UserError(
            f"the path in {file} must be in the run's space {space.name}, but is not; its stem may have been elastic"
        )
    return path


def _path_of(file: FilePath, notation: Any, space: SearchSpace) -> Path:
    """Parse a path in OFA's notation, which was read from `file`; raises UserError if it is not one."""
    try:
        return Path.from_ofa(notation, space.geometry)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"the path in {file} is not in OFA's notation ({error})") from error


def table(results: dict[str, dict]) -> str:
    """Format results of `evaluate` as Markdown: one row per class, and per detector one column for each AP metric."""
    columns = [(name, key) for name, result in results.items() for key in ap_keys(result)]
    titles = [f"{name} {AP_TITLES[key]}" for name, key in columns]
    first = next(iter(results.values()))

    def cells(name: str, values: list[float | None]) -> str:
        return markdown_row([name, *("-" if value is None else f"{value:.3f}" for value in values)])

    lines = [markdown_row(["class", *titles]), markdown_row(["---", *["---:"] * len(columns)])]
    lines += [cells(cls, [results[name][f"{key}_per_class"][cls] for name, key in columns]) for cls in first["ap50_per_class"]]
    return "\n".join([*lines, cells("all", [results[name][key] for name, key in columns])])
