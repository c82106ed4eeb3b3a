"""Controls of the comparison (ours, not in the paper): what more steps gain, what training and what the choice of paths gain.

Methods and `experiments.CONTROLS` are compared by what they found; and under the final weights of each, paths that are not its
own are evaluated on the test images: the largest one, random paths of A, the same for all methods of a seed, and in the
supernet of OFA (w/o PS) the paths that ours found.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from ..common import figures
from ..common.files import whole_text, write_json
from ..common.reading import read_json
from ..common.seeds import rng_for
from ..evaluation.detections import BoxDetector, average_precision
from ..evaluation.images import EvaluationImages
from ..evaluation.path_sampling import sample_in_buckets
from ..evaluation.reestimation import reestimate
from ..methods.build import make_cost
from ..runs.phases import training_phases
from ..runs.run_folder import final_weights, points
from ..space.counting import Buckets
from ..space.paths import Path
from ..space.search_space import ofa_resnet50
from ..tools.report import markdown_row
from ..tools.sampled_paths import open_supernet
from .experiments import CONTROLS, DETOFA, DETOFA_LONG, METHODS, OFA, OFA_PS, UNIFORM_LONG, UNIFORM_RESTARTS
from .image_errors import standard_error
from .intervals import Values, differences
from .run import Run, profile_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RANDOM_PATHS = 5
"""Of each FLOPs bucket of A, the same for all methods of a seed."""
FILE = "controls.json"
LARGEST, RANDOM, OURS_FOUND = "largest", "random", "found by ours"
EXPERIMENTS = (*METHODS, *CONTROLS)
PAIRS = (
    (DETOFA, OFA),
    (DETOFA, OFA_PS),
    (OFA_PS, UNIFORM_RESTARTS),
    (OFA_PS, UNIFORM_LONG),
    (DETOFA_LONG, OFA_PS),
    (DETOFA_LONG, UNIFORM_LONG),
)
"""Whose differences are shown: the second is what the first is compared with."""


@dataclass(frozen=True)
class Asked:
    """A path to evaluate under the final weights of a run.

    Attributes:
        kind: `LARGEST`, `RANDOM` or `OURS_FOUND`. place: FLOPs bucket or budget that it is of, from 1.
    """

    kind: str
    place: int
    path: Path


def asked_of(run: Run, ours: Mapping | None) -> list[Asked]:
    """What is evaluated under a run's final weights.

    Args:
        ours: the summary of our method's run of the same seed.
    """
    config = run.config
    geometry = config.network.geometry
    space = ofa_resnet50(geometry, config.network.elastic_stem)
    found = [Asked(LARGEST, config.hparams.buckets, space.largest)]
    if run.experiment.name not in (DETOFA.name, OFA.name, OFA_PS.name):  # CompOFA* has not trained A's paths
        return found
    side, classes = config.dataloader.image_size, 1  # the number of classes moves all edges alike
    buckets = Buckets(space, make_cost(config, classes, (side, side)).flops, config.hparams.buckets)
    paths = sample_in_buckets(buckets, RANDOM_PATHS, rng_for(run.seed, "controls"), space, tqdm.write)
    found += [Asked(RANDOM, 1 + number // RANDOM_PATHS, path) for number, path in enumerate(paths)]
    if run.experiment.name == OFA.name and ours:
        subnets = enumerate(ours["subnets"], 1)
        found += [Asked(OURS_FOUND, number, Path.from_ofa(subnet["path"], geometry)) for number, subnet in subnets]
    return found


def measured(run: Run, asked: Sequence[Asked]) -> list[dict]:
    """The paths with their AP on the test images, in points, and its standard error: {"kind", "place", "ap", "se", "path"}.

    What was measured before is kept; where results are made from kept files, that is all there is.
    """
    if run.profile.archives:
        file = run.folder / FILE
        return read_json(file, "the controls") if file.is_file() else []
    file, geometry = controls_file(run), run.config.network.geometry
    known = read_json(file, "the controls") if file.is_file() else []
    if known and file.stat().st_mtime < (run.folder / "summary.json").stat().st_mtime:
        known = []  # of a run that was begun again
    done = [(entry["kind"], entry["place"], Path.from_ofa(entry["path"], geometry)) for entry in known]
    missing = [item for item in asked if (item.kind, item.place, item.path) not in done]
    if not missing:
        return known
    model, sets, _ = open_supernet(run.config, final_weights(run.folder, run.config))
    hparams = run.config.hparams
    images = EvaluationImages.choose(sets, hparams, run.seed).statistics_batches()
    file.parent.mkdir(parents=True, exist_ok=True)
    for item in tqdm(missing, desc=f"{run.name}: controls", unit="path", dynamic_ncols=True):
        detector = BoxDetector(model, item.path, reestimate(model, item.path, images), flip=hparams.flip_test)
        metric = run.config.dataloader.ap_metric
        multiple = run.config.network.geometry.total_stride
        ap, detections = average_precision(
            detector, sets, hparams.bn_batch, metric, lambda count: None, scales=hparams.test_scales, multiple=multiple
        )
        error = standard_error(detections, sets, metric)
        place = {"kind": item.kind, "place": item.place, "path": item.path.to_ofa(geometry)}
        known.append({**place, "ap": round(points(ap), 3), "se": error and round(error, 3)})
        write_json(file, known)
    return known


def controls_file(run: Run) -> FilePath:
    """Where they are kept."""
    return profile_folder(run.profile) / "controls" / f"{run.folder.name}.json"


@dataclass(frozen=True, eq=False)
class Evidence:
    """What one run has for the controls, in points.

    Attributes:
        title: of its experiment. name: of its experiment. seed: of the run.
        steps: that its supernet was trained for, without the fullnet's; None where the data do not say.
        found: (b,) AP of the found subnets. fullnet: that of the largest path after line 2. measured: see `measured`.
    """

    title: str
    name: str
    seed: int
    steps: int | None
    found: np.ndarray
    fullnet: float
    measured: Sequence[Mapping]

    def of(self, kind: str, place: int | None = None) -> np.ndarray:
        """AP of the measured paths of a kind."""
        chosen = (entry for entry in self.measured if entry["kind"] == kind and place in (None, entry["place"]))
        return np.array([entry["ap"] for entry in chosen], float)


def evidence_of(run: Run, summary: Mapping, ours: Mapping | None, images: int | None) -> Evidence:
    """Evaluate what is missing, and read the rest.

    Args:
        summary: of the run. ours: of our method's run of the same seed. images: for training.
    """
    found = np.array([points(subnet) for subnet in summary["subnets"]])
    measured_now = measured(run, asked_of(run, ours))
    steps = training_steps(run, images)
    return Evidence(run.experiment.title, run.experiment.name, run.seed, steps, found, points(summary["fullnet"]), measured_now)


def training_steps(run: Run, images: int | None) -> int | None:
    """Steps of the supernet, without the fullnet's; None where neither the config nor `images` says how long an epoch is."""
    if images is None and run.config.hparams.steps_per_epoch is None:
        return None
    phases = [phase for phase in training_phases(run.config) if not phase.largest_only]
    return sum(len(phase.epochs) * phase.steps_per_epoch(images or 0) for phase in phases)


def by_experiment(evidence: Sequence[Evidence]) -> dict[str, list[Evidence]]:
    """Experiment -> its runs, by seed."""
    groups: dict[str, list[Evidence]] = {}
    for item in sorted(evidence, key=lambda item: item.seed):
        groups.setdefault(item.name, []).append(item)
    return groups


def tables(evidence: Sequence[Evidence]) -> list[str]:
    """Markdown: what each found for its steps, the differences, and the paths under its final weights."""
    groups = by_experiment(evidence)
    header = ["method", "steps", "found, mean over the budgets", "fullnet", "largest path under the final weights", "25 random"]
    lines = ["## Steps", "", markdown_row(header), markdown_row(["---"] + ["---:"] * 5)]
    for runs in groups.values():
        cells = [Values(tuple(run.found.mean() for run in runs)), Values(tuple(run.fullnet for run in runs))]
        cells += [_values(runs, LARGEST), _values(runs, RANDOM)]
        steps = "-" if runs[0].steps is None else str(runs[0].steps)
        lines.append(markdown_row([runs[0].title, steps, *(cell.text(1, False) if cell else "-" for cell in cells)]))
    lines += ["", "## Differences of the found subnets, mean over the budgets", ""]
    for one, other in PAIRS:
        if one.name in groups and other.name in groups:
            gain = paired(groups[one.name], groups[other.name])
            lines.append(f"- {one.title} above {other.title}: {gain.text()}")
    if {DETOFA.name, OFA.name} <= set(groups):
        lines += ["", *_training_and_choice(groups[DETOFA.name], groups[OFA.name])]
    lines += ["", "## Random paths of A beside the found ones", ""]
    places = range(1, 1 + max(len(item.found) for item in evidence))
    lines += [markdown_row(["AP, mean of random; found", *map(str, places)]), markdown_row(["---"] + ["---:"] * len(places))]
    for runs in groups.values():
        cells = []
        for place in places:
            drawn = np.concatenate([run.of(RANDOM, place) for run in runs])
            found = np.mean([run.found[place - 1] for run in runs])
            cells.append(f"{f'{drawn.mean():.1f}' if len(drawn) else '-'}; {found:.1f}")
        lines.append(markdown_row([runs[0].title, *cells]))
    return lines


def paired(one: Sequence[Evidence], other: Sequence[Evidence]) -> Values:
    """Mean AP of what was found, `one` minus `other`, for the seeds that both have."""
    others = {run.seed: run.found.mean() for run in other}
    both = [run for run in one if run.seed in others]
    return differences([run.found.mean() for run in both], [others[run.seed] for run in both])


def _values(runs: Sequence[Evidence], kind: str) -> Values | None:
    found = [run.of(kind) for run in runs]
    return Values(tuple(values.mean() for values in found)) if all(map(len, found)) else None


def training_gain(ours: Sequence[Evidence], ofa: Sequence[Evidence], kind: str = RANDOM) -> Values | None:
    """AP of the same paths under ours' weights above that under OFA's, seed by seed: the 25 random ones, or ours' found."""
    others = {run.seed: run for run in ofa}
    gains = []
    for run in ours:
        theirs = others[run.seed].of(kind) if run.seed in others else []
        own = run.of(RANDOM) if kind == RANDOM else run.found
        if len(theirs) == len(own) and len(own):
            gains.append(float(np.mean(own - theirs)))
    return Values(tuple(gains)) if gains else None


def _training_and_choice(ours: Sequence[Evidence], ofa: Sequence[Evidence]) -> list[str]:
    """What training gained against what the choice of paths gained."""
    lines = ["## Training and choice", ""]
    random, found = training_gain(ours, ofa), training_gain(ours, ofa, OURS_FOUND)
    others = {run.seed: run for run in ofa}
    choice = [
        float(others[run.seed].of(OURS_FOUND).mean() - others[run.seed].found.mean())
        for run in ours
        if run.seed in others and len(others[run.seed].of(OURS_FOUND))
    ]
    for what, gain in (
        ("Training, on the same random paths: ours' supernet above that of OFA (w/o PS)", random),
        ("Training, on the paths that ours found", found),
        ("Choice: those paths above the ones that OFA (w/o PS) found, both in its supernet", Values(tuple(choice))),
    ):
        lines.append(f"- {what}: {gain.text() if gain and gain.values else 'not measured'}")
    return lines


def write_csv(file: FilePath, evidence: Sequence[Evidence]) -> None:
    """One line for each path: those found, the fullnet, and those under the final weights."""
    with whole_text(file) as opened:
        writer = csv.writer(opened)
        writer.writerow(["experiment", "seed", "steps", "path", "bucket or budget", "AP [points]", "SE over the test images"])
        for run in evidence:
            start = [run.title, run.seed, run.steps]
            writer.writerow([*start, "fullnet", "", f"{run.fullnet:.3f}", ""])
            writer.writerows([*start, "found", place, f"{ap:.3f}", ""] for place, ap in enumerate(run.found, 1))
            for entry in run.measured:
                writer.writerow([*start, entry["kind"], entry["place"], entry["ap"], entry["se"]])


def draw(evidence: Sequence[Evidence]) -> Figure:
    """Mean AP of the found subnets over the steps of training, a point for each run."""
    figure, axes = figures.subplots(figsize=(6.5, 4.5), layout="constrained")
    for number, runs in enumerate(by_experiment(evidence).values()):
        steps = [run.steps if run.steps is not None else np.nan for run in runs]
        aps = [run.found.mean() for run in runs]
        axes.scatter(steps, aps, s=26, color=f"C{number}", label=runs[0].title)
    axes.set(xlabel="training steps of the supernet", ylabel="AP of the found subnets, mean over the budgets [points]")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure
