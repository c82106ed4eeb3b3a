"""Average precision of one detector of a finished run, with the tests that CenterNet knows: flipped, and at several scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath

from tqdm import tqdm

from . import config as configs
from . import weights
from .algorithm1 import build
from .data.sets import DetectionSets
from .errors import UserError
from .path_evaluation import statistics_images
from .reading import read_json
from .report import markdown_row
from .run_folder import final_weights, read_result, reading, refuse_other_classes, run_config
from .search_space import Path, SearchSpace
from .validation import BoxDetector, average_precision, reestimate


@dataclass(frozen=True)
class OpenDetector:
    """One detector of a run, ready to run.

    Attributes:
        config: the run's. sets: its data sets.
        boxes: the path, under its weights and with its batch-normalisation statistics.
        scales: of the input, as the config's `test_scales`.
    """

    config: configs.Config
    sets: DetectionSets
    boxes: BoxDetector
    scales: tuple[float, ...]

    @property
    def scaling(self) -> dict:
        """What `validation.detect_images` needs besides images and their size."""
        return {"scales": self.scales, "multiple": self.config.network.geometry.total_stride}


def open_detector(
    run: FilePath,
    detector: str,
    overrides: Sequence[str] = (),
    flip: bool | None = None,
    scales: Sequence[float] | None = None,
) -> OpenDetector:
    """A detector of a run: its statistics are re-estimated on the run's training images, which must be there.

    Args and errors are `evaluate`'s.
    """
    config = run_config(run, overrides)
    if config.args.runner == "pretrain":
        raise UserError(f"{run} is not the folder of a run that trains detectors: its config.json is a pre-training's")
    model, sets, _ = build(config, pretrained=False)
    refuse_other_classes(run, sets.classes)
    path = find_path(run, detector, model.space)
    file = run / "fullnet" / "weights.h5" if detector == "fullnet" else final_weights(run, config)
    if not file.exists():
        raise UserError(f"{run} has no weights of {detector} yet: {file} is missing")
    weights.load(model, file)
    statistics = reestimate(model, path, statistics_images(sets, config))
    boxes = BoxDetector(model, path, statistics, flip=config.hparams.flip_test if flip is None else flip)
    return OpenDetector(config, sets, boxes, tuple(scales or config.hparams.test_scales))


def evaluate(
    run: FilePath,
    detector: str,
    overrides: Sequence[str] = (),
    flip: bool | None = None,
    scales: Sequence[float] | None = None,
) -> dict:
    """Average precision on the test split.

    Args:
        run: the folder of a run of Algorithm 1.
        detector: "fullnet" (with its own weights, of line 2), "subnet_1", "subnet_2", ... (with the supernet's), or a JSON
            file with a path in OFA's notation, alone or as its "path" (what `search` writes).
        overrides: "key=value" entries of the run's config to replace, such as the place of the data.
        flip, scales: instead of the config's `flip_test` and `test_scales`.

    Returns:
        what `metrics.summarise` gives.

    Raises:
        UserError: the folder is not that of a run that got so far, or the path is not one of its space.
    """
    opened = open_detector(run, detector, overrides, flip, scales)
    sets, config = opened.sets, opened.config
    with tqdm(total=len(sets.test), desc=f"test images of {detector}", unit="image", dynamic_ncols=True) as bar:
        result, _ = average_precision(
            opened.boxes, sets, config.hparams.bn_batch, config.dataloader.ap_metric, bar.update, **opened.scaling
        )
    return result


def detectors_of(run: FilePath) -> list[str]:
    """The names of a run's detectors: the fullnet, and once the run is over the subnets that it found."""
    return ["fullnet", *(f"subnet_{number}" for number in range(1, len(_subnets(run)) + 1))]


def _subnets(run: FilePath) -> list[dict]:
    """What a run found, with the path of each; nothing before its end."""
    if not (run / "summary.json").exists():
        return []
    summary = read_result(run, "summary")
    with reading(run / "summary.json"):
        return [{"path": subnet["path"]} for subnet in summary["subnets"]]


def default_detector(run: FilePath) -> str:
    """The subnet of the largest budget; the fullnet where the run has found none (yet)."""
    if len(detectors_of(run)) == 1:
        return "fullnet"
    budgets = [subnet["budget"] for subnet in read_result(run, "summary")["subnets"]]
    return f"subnet_{1 + budgets.index(max(budgets))}"


def find_path(run: FilePath, detector: str, space: SearchSpace) -> Path:
    """The path that `detector` names; see `evaluate`."""
    if detector == "fullnet":
        return space.largest
    known = detectors_of(run)
    if detector in known:
        with reading(run / "summary.json"):
            return Path.from_ofa(_subnets(run)[known.index(detector) - 1]["path"], space.geometry)
    file = FilePath(detector)
    if not file.is_file():
        raise UserError(f"a detector of {run} must be {', '.join(known)} or a JSON file with a path, got {detector!r}")
    content = read_json(file, "the path")
    try:
        path = Path.from_ofa(content.get("path", content), space.geometry)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"the path in {file} is not one in OFA's notation ({error})") from error
    if path not in space:
        raise UserError(f"the path in {file} must be one of the run's space {space.name}, and is not: was its stem elastic?")
    return path


def table(results: dict[str, dict]) -> str:
    """Markdown: a row for each class, a column for each detector; AP beside AP50 where COCO's rules are used."""
    columns = [(name, key) for name, result in results.items() for key in ("ap", "ap50") if key in result]
    titles = [f"{name} {'AP' if key == 'ap' else 'AP50'}" for name, key in columns]
    first = next(iter(results.values()))

    def cells(name: str, values: list[float | None]) -> str:
        return markdown_row([name, *("-" if value is None else f"{value:.3f}" for value in values)])

    lines = [markdown_row(["class", *titles]), markdown_row(["---", *["---:"] * len(columns)])]
    lines += [cells(cls, [results[name][f"{key}_per_class"][cls] for name, key in columns]) for cls in first["ap50_per_class"]]
    return "\n".join([*lines, cells("all", [results[name][key] for name, key in columns])])
