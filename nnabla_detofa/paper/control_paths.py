"""Paths that are evaluated under the final weights of each method, for the controls of the comparison.

They are not the subnets that the method found: the largest path, random paths of the search space A, which are the same for all
methods of a seed, and, in the supernet of OFA (w/o PS), the paths that DetOFA found. The paper has no such controls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath

import numpy as np

from ..common.errors import UserError
from ..common.files import write_json
from ..common.progress import ProgressBar
from ..common.reading import read_json
from ..common.seeds import rng_for
from ..data.sets import DetectionSets
from ..evaluation.detections import BoxDetector, average_precision
from ..evaluation.images import EvaluationImages
from ..evaluation.path_sampling import sample_in_buckets
from ..evaluation.reestimation import reestimate
from ..methods.build import make_cost
from ..runs.run_folder import final_weights, points
from ..space.counting import Buckets
from ..space.paths import Path
from ..tools.sampled_paths import open_supernet
from .experiments import DETOFA, OFA, OFA_PS
from .run import Run, profile_folder
from .run_results import subnet_points, summary_of, supernet_steps
from .standard_errors import standard_error

RANDOM_PATHS = 5
"""Random paths of each FLOPs bucket of A."""
FILE = "controls.json"
"""Name in a run's archive."""
LARGEST, RANDOM, FOUND_BY_DETOFA = "largest", "random", "found by ours"
"""Kinds of paths, as in the file."""


@dataclass(frozen=True)
class ControlPath:
    """A path to evaluate under the final weights of a run.

    Attributes:
        kind: `LARGEST`, `RANDOM` or `FOUND_BY_DETOFA`.
        place: number of its FLOPs bucket or budget, from 1.
        path: the path.
    """

    kind: str
    place: int
    path: Path


@dataclass(frozen=True, eq=False)
class RunResults:
    """Results of one run, for the comparison of methods.

    Attributes:
        title: title of the experiment.
        name: name of the experiment.
        seed: seed of the run.
        steps: training steps of the supernet, without the fullnet's; None if unknown.
        found: (b,) AP of the subnet found for each budget, in points.
        fullnet: AP of the fullnet, in points.
        measured: control paths with their AP, as returned by `measured`.
    """

    title: str
    name: str
    seed: int
    steps: int | None
    found: np.ndarray
    fullnet: float
    measured: Sequence[Mapping]

    def of(self, kind: str, place: int | None = None) -> np.ndarray:
        """Return the AP of the control paths of a kind, in points.

        Args:
            kind: the kind.
            place: number of the FLOPs bucket or budget; None: all.
        """
        return np.array([e["ap"] for e in self.measured if e["kind"] == kind and place in (None, e["place"])], float)


def results_of(runs: Sequence[Run]) -> list[RunResults]:
    """Return the results of runs; missing control paths are evaluated."""
    summaries = {run.name: summary_of(run) for run in runs}
    detofa = {run.seed: summaries[run.name] for run in runs if run.experiment.name == DETOFA.name}
    return [_results(run, summaries[run.name], detofa.get(run.seed)) for run in runs]


def _results(run: Run, summary: Mapping, detofa: Mapping | None) -> RunResults:
    return RunResults(
        run.experiment.title,
        run.experiment.name,
        run.seed,
        supernet_steps(run),
        subnet_points(summary),
        points(summary["fullnet"]),
        measured(run, control_paths(run, detofa)),
    )


def control_paths(run: Run, detofa: Mapping | None) -> list[ControlPath]:
    """Return the paths to evaluate under a run's final weights.

    Args:
        run: the run.
        detofa: content of summary.json of the run of Algorithm 1 with the same seed, if there is one.
    """
    config, hparams = run.config, run.hparams
    geometry = config.network.geometry
    space = config.network.space
    found = [ControlPath(LARGEST, hparams.buckets, space.largest)]
    if run.experiment.name not in (DETOFA.name, OFA.name, OFA_PS.name):  # CompOFA* does not train the paths of A
        return found
    side, classes = config.dataloader.image_size, 1  # the number of classes shifts all bucket edges equally
    buckets = Buckets(space, make_cost(config, classes, (side, side)).flops, hparams.buckets)
    paths = sample_in_buckets(buckets, RANDOM_PATHS, rng_for(run.seed, "controls"), space, ProgressBar.write)
    found += [ControlPath(RANDOM, 1 + number // RANDOM_PATHS, path) for number, path in enumerate(paths)]
    if run.experiment.name == OFA.name and detofa:
        subnets = enumerate(detofa["subnets"], 1)
        found += [ControlPath(FOUND_BY_DETOFA, number, Path.from_ofa(subnet["path"], geometry)) for number, subnet in subnets]
    return found


def measured(run: Run, paths: Sequence[ControlPath]) -> list[dict]:
    """Return control paths with their AP on the test images, evaluating those that are not stored yet.

    Of a run whose results are read from an archive, paths are evaluated only if its weights exist, too, and the profile starts
    runs; otherwise only kinds of which all paths are stored are returned.

    Returns:
        Dictionaries with the keys "kind", "place", "path" (in OFA's notation), "ap" and its standard error "se" (in points).
    """
    folder = None if run.archive and not run.profile.starts_runs else run.folder_with_weights
    if folder is None:
        return _asked(_stored(run.folder / FILE), paths, run)
    file, geometry = stored_file(run), run.config.network.geometry
    known = _stored(file)
    if known and not run.is_older_than(file):
        known = []
    done = [_item(entry, run) for entry in known]
    missing = [item for item in paths if item not in done]
    if not missing:
        return _asked(known, paths, run)
    model, sets, _ = open_supernet(run.config, final_weights(folder, run.config))
    if not isinstance(sets, DetectionSets):
        raise UserError(f"{folder} must be a run that trains detectors, got args.runner={run.config.args.runner}")
    hparams, metric = run.hparams, run.dataloader.ap_metric
    images = EvaluationImages.choose(sets, hparams, run.seed).statistics_batches()
    file.parent.mkdir(parents=True, exist_ok=True)
    with ProgressBar(total=len(missing), desc=f"{run.name}: controls", unit="path") as bar:
        for item in missing:
            detector = BoxDetector(model, item.path, reestimate(model, item.path, images), flip=hparams.flip_test)
            multiple = geometry.total_stride
            ap, detections = average_precision(
                detector, sets, hparams.bn_batch, metric, lambda count: None, scales=hparams.test_scales, multiple=multiple
            )
            error = standard_error(detections, sets, metric)
            place = {"kind": item.kind, "place": item.place, "path": item.path.to_ofa(geometry)}
            known.append({**place, "ap": round(points(ap), 3), "se": error and round(error, 3)})
            write_json(file, known)
            bar.update()
    return _asked(known, paths, run)


def _asked(entries: Sequence[dict], paths: Sequence[ControlPath], run: Run) -> list[dict]:
    """Return the stored entries of the given paths, without the kinds of which one is missing.

    Other entries belong to subnets of an earlier run of Algorithm 1.
    """
    known = {_item(entry, run): entry for entry in entries}
    lacking = {item.kind for item in paths if item not in known}
    return [known[item] for item in paths if item.kind not in lacking]


def _item(entry: Mapping, run: Run) -> ControlPath:
    """Return the control path of a stored entry."""
    return ControlPath(entry["kind"], entry["place"], Path.from_ofa(entry["path"], run.config.network.geometry))


def _stored(file: FilePath) -> list[dict]:
    return read_json(file, "the controls") if file.is_file() else []


def stored_file(run: Run) -> FilePath:
    """Return the file in which a run's control paths are stored."""
    return profile_folder(run.profile) / "controls" / f"{run.folder.name}.json"
