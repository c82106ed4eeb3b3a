"""Pilot of the study: the choice of training images, steps and augmentation for which methods can differ at all.

The criteria do not depend on DetOFA. Each is measured in one cell of a grid, with a seed that no result uses:

(a) the validation loss of the fullnet still decreases in its last epoch, so it does not overfit;
(b) there is room for improvement: random paths under the weights of OFA (w/o PS), one of each FLOPs bucket, have an AP50 at
    least `ROOM` points below that of the same paths trained alone, from the same fullnet and for as many steps;
(c) random paths differ: the standard deviation of their validation losses inside a bucket is at least `SPREAD` times its noise,
    which is measured from two halves of the validation images.

The first cell that meets all criteria is chosen, from the fewest steps. The paper has no pilot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from .. import config as configs
from ..backend.compat import Device
from ..common.files import write_json, write_text
from ..common.progress import ProgressBar
from ..common.reading import read_json
from ..data.digits import write_digits
from ..evaluation.path_sampling import sample_in_buckets
from ..evaluation.reestimation import reestimate
from ..evaluation.validation import validation_loss
from ..methods import algorithm1
from ..methods.baselines import BaselineSearcher
from ..networks import weights
from ..path_filter.model import PathFilter
from ..runs.cost_ledger import totals
from ..runs.provenance import revision
from ..runs.run_folder import points
from ..space.paths import Path
from ..space.search_space import SearchSpace
from ..tools.report import markdown_row
from ..training.loop import OnePath
from .profiles import Profile
from .run import check_config

SEED = 9
ROOM = 2.0
SPREAD = 3.0
PATHS = 8
"""Random paths of each bucket, for criterion (c)."""
AUGMENTATION = {True: ("true", "[0.8, 1.2]", "true"), False: ("false", "[1.0, 1.0]", "false")}
"""Whether images are augmented -> crop, scale_range and color of the data section."""
FOLDER = FilePath("runs", "pilot")


@dataclass(frozen=True)
class Cell:
    """A cell of the grid.

    Attributes:
        images: number of training images.
        steps_per_epoch: training steps of an epoch, for the fullnet and for the supernet.
        augmented: whether images are augmented.
    """

    images: int
    steps_per_epoch: int
    augmented: bool

    @property
    def name(self) -> str:
        return f"{self.images}-{self.steps_per_epoch}-{'augmented' if self.augmented else 'plain'}"

    def has_fewer_steps(self, other: Cell) -> bool:
        """Return whether `other` is this cell with fewer steps."""
        same = (self.images, self.augmented) == (other.images, other.augmented)
        return same and other.steps_per_epoch < self.steps_per_epoch


@dataclass(frozen=True)
class Grid:
    """All cells and their data. A larger training set starts with the images of a smaller one.

    Attributes:
        cells: the cells, from the fewest steps.
        val, test, image_size: see `data.digits.write_digits`.
        folder: folder of the data sets.
    """

    cells: tuple[Cell, ...]
    val: int = 256
    test: int = 2000
    image_size: int = 128
    folder: FilePath = FilePath("data")

    def data(self, cell: Cell) -> FilePath:
        """Return the data set of a cell, which is written if it does not exist."""
        return write_digits(
            self.folder / f"digits_{cell.images}",
            train=cell.images,
            val=self.val,
            test=self.test,
            image_size=self.image_size,
            crops_train=0,
            crops_val=0,
        )


GRID = Grid(
    tuple(
        Cell(images, steps, augmented) for steps in (32, 64, 128) for augmented in (True, False) for images in (1600, 4000, 400)
    )
)
"""With the 14 epochs of the study: 448, 896 and 1,792 steps. Cells with the same number of steps cost the same, so the grid
starts with those that overfit least."""


def cell_config(profile: Profile, cell: Cell, root: FilePath) -> configs.Config:
    """Return the profile's config for a cell. AP is measured on the validation images, and the method is OFA (w/o PS)."""
    data_set = next(iter(profile.data_sets.values()))
    section = f"dataloader.{configs.load(data_set.config).dataloader_name}"
    crop, scale, color = AUGMENTATION[cell.augmented]
    return configs.load(
        data_set.config,
        [
            "args.runner=ofa",
            f"args.seed={SEED}",
            f"hparams.steps_per_epoch={cell.steps_per_epoch}",
            f"{section}.root={root}",
            f'{section}.test=["val"]',
            f"{section}.crop={crop}",
            f"{section}.scale_range={scale}",
            f"{section}.color={color}",
        ],
    )


class PilotSearcher(BaselineSearcher):
    """OFA (w/o PS) that evaluates random paths, and trains some of them alone, instead of the search."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        alone = [f"alone {bucket + 1}" for bucket in range(self.buckets.n)]
        self.phases = (*self.training, "random paths", *alone)
        self.fullnet_losses: list[float] = self.files.read("fullnet_losses", [])

    def callback_on_epoch_end(self) -> None:
        """Store the fullnet's validation loss after each of its epochs; a repeated epoch gives the same loss."""
        if self.costs.phase != "fullnet":
            return
        statistics = reestimate(self.model, self.space.largest, self.evaluator.statistics_batches)
        loss = validation_loss(self.model, self.space.largest, statistics, self.evaluator.validation_batches)
        if self.fullnet_losses[-1:] != [loss]:
            self.fullnet_losses.append(loss)
            self.files.write("fullnet_losses", self.fullnet_losses)

    def find_subnets(self, space: SearchSpace, path_filter: PathFilter, seen: Sequence = ()) -> dict:
        """Measure what the criteria need, and store it in pilot.json."""
        paths = sample_in_buckets(self.buckets, PATHS, self.rng("pilot paths"), space, self.log)
        buckets = self.buckets.index(self.cost.flops(paths)).tolist()
        first = {bucket: buckets.index(bucket) for bucket in sorted(set(buckets))}
        halves = self.files.read("halves", [])
        with self.phase("random paths"):
            for path in list(paths)[len(halves) :]:
                statistics = reestimate(self.model, path, self.evaluator.statistics_batches)
                batches = self.evaluator.validation_batches
                parts = (batches[::2], batches[1::2] or batches)
                halves.append([validation_loss(self.model, path, statistics, part) for part in parts])
                self.files.write("halves", halves)
                self.pause()
            shared = [points(self.evaluate_detector(f"shared {bucket + 1}", paths[at])) for bucket, at in first.items()]
        alone = [self.train_alone(f"alone {bucket + 1}", paths[at]) for bucket, at in first.items()]
        found = {"fullnet_losses": self.fullnet_losses, "halves": halves, "buckets": buckets, "shared": shared, "alone": alone}
        found |= {"unit": self.costs.ledger["unit"], "seconds": totals(self.costs.ledger)["fullnet"]}
        self.files.write("pilot", found)
        return found

    def train_alone(self, name: str, path: Path) -> float:
        """Train a path alone, from the fullnet and for as many steps as the supernet, and return its AP in points."""
        schedule = self.training["fine-tuning"]
        phase = replace(schedule, name=name, epochs=range(schedule.schedule_epochs), continues="")
        with self.phase(name):
            weights.load(
                self.model, self.folder / "fullnet" / "weights.h5", weights.read(self.folder / "fullnet" / "weights.h5")
            )
            self.train_phase(phase, OnePath(path), self.new_optimizer(phase))
            return points(self.evaluate_detector(name, path))


@dataclass(frozen=True)
class Outcome:
    """Measurements in a cell.

    Attributes:
        cell: the cell.
        last, best_before: validation loss of the fullnet after its last epoch, and the lowest before.
        room: mean AP50, in points, of the paths trained alone minus that in the supernet.
        spread, noise: standard deviation of the random paths' losses inside a bucket, and its noise.
        seconds: device time of a training step of the fullnet.
        unit: unit of `seconds`.
    """

    cell: Cell
    last: float
    best_before: float
    room: float
    spread: float
    noise: float
    seconds: float
    unit: str

    @property
    def met(self) -> tuple[bool, bool, bool]:
        """Whether the criteria (a), (b) and (c) are met."""
        return self.last < self.best_before, self.room >= ROOM, self.spread >= SPREAD * self.noise

    @classmethod
    def of(cls, cell: Cell, found: Mapping, steps: int) -> Outcome:
        """Return the outcome from the content of a cell's pilot.json.

        Args:
            cell: the cell.
            found: the content.
            steps: training steps of the fullnet.
        """
        losses = found["fullnet_losses"]
        halves, buckets = np.array(found["halves"], float), np.array(found["buckets"])
        spreads, noises = [], []
        for bucket in np.unique(buckets):
            inside = halves[buckets == bucket]
            spreads.append(inside.mean(axis=1).var(ddof=1))
            noises.append((inside[:, 0] - inside[:, 1]).var(ddof=1) / 4)  # variance of the mean of two halves
        return cls(
            cell,
            losses[-1],
            min(losses[:-1], default=float("inf")),
            float(np.mean(np.subtract(found["alone"], found["shared"]))),
            float(np.sqrt(np.mean(spreads))),
            float(np.sqrt(np.mean(noises))),
            found["seconds"] / steps,
            found["unit"],
        )


def run_pilot(
    profile: Profile, grid: Grid, device: Device, everything: bool = False, log: Callable[[str], None] | None = None
) -> FilePath:
    """Run the cells in order until one meets all criteria; finished cells are not repeated.

    A cell is skipped if the same images with fewer steps did not meet (a) or (b), because more steps overfit more and leave
    less room.

    Args:
        profile: profile whose first data set's config is varied.
        grid: the cells.
        device: device of the runs.
        everything: run all cells.
        log: called with each message; None: printed above the progress bar.

    Returns:
        pilot.md among the profile's results. The measurements are in pilot.json beside it.
    """
    outcomes: list[Outcome] = []
    skipped: list[Cell] = []
    work = sum(cell.steps_per_epoch for cell in grid.cells)
    with ProgressBar(total=work, desc="pilot", unit="steps of an epoch") as bar:
        say = log or bar.write
        for cell in grid.cells:
            failed = [o for o in outcomes if cell.has_fewer_steps(o.cell) and not all(o.met[:2])]
            if failed and not everything:
                skipped.append(cell)
                say(f"{cell.name} is skipped because {failed[0].cell.name}, with fewer steps, did not meet (a) and (b)")
            else:
                outcomes.append(measure(profile, grid, cell, device))
                met = ", ".join(f"({name}) {ok}" for name, ok in zip("abc", _words(outcomes[-1])))
                say(f"{cell.name}: {met}; {outcomes[-1].seconds:.3g} {outcomes[-1].unit} per step of the fullnet")
                file = write(profile, outcomes, skipped, grid)
                if all(outcomes[-1].met) and not everything:
                    break
            bar.update(cell.steps_per_epoch)
    return file


def measure(profile: Profile, grid: Grid, cell: Cell, device: Device) -> Outcome:
    """Run a cell, or read the results of an earlier run.

    Raises:
        UserError: the earlier run has another config.
    """
    config, folder = cell_config(profile, cell, grid.data(cell)), FOLDER / profile.name / cell.name
    file = folder / "pilot.json"
    check_config(config, folder)
    if not file.is_file():
        algorithm1.run(config, device, folder, searcher=PilotSearcher)
    return Outcome.of(cell, read_json(file, "the pilot's cell"), config.hparams.fullnet_epochs * cell.steps_per_epoch)


def chosen(outcomes: Sequence[Outcome]) -> Outcome | None:
    """Return the cell with the fewest steps that meets all criteria, the first of the grid if several do; None if none does."""
    good = [outcome for outcome in outcomes if all(outcome.met)]
    return min(good, key=lambda outcome: outcome.cell.steps_per_epoch, default=None)


# --- Files ------------------------------------------------------------------------------------------------------------

INTRODUCTION = (
    f"Seed {SEED}, which no other result uses; only OFA (w/o PS) and its fullnet. (a): the fullnet's validation loss still "
    f"decreases in its last epoch. (b): paths trained alone are at least {ROOM:g} points above the same paths in the supernet. "
    f"(c): the spread of random paths inside a bucket is at least {SPREAD:g} times its noise."
)


def write(profile: Profile, outcomes: Sequence[Outcome], skipped: Sequence[Cell], grid: Grid) -> FilePath:
    """Write pilot.md, the table of the finished cells with the choice, and pilot.json; return pilot.md."""
    epochs = configs.load(next(iter(profile.data_sets.values())).config).hparams.fullnet_epochs
    header = ["images", "steps", "augmented", "fullnet's loss: last; best before", "(a)", "room [AP50 points]", "(b)"]
    header += ["spread; noise", "(c)", "step of the fullnet"]
    lines = [
        f"# Pilot of the profile {profile.name}",
        "",
        f"{INTRODUCTION} There are {grid.val} validation images.",
        "",
        markdown_row(header),
        markdown_row(["---:"] * len(header)),
        *(_row(outcome, epochs) for outcome in outcomes),
        "",
        choice(outcomes, skipped, grid),
        "",
        f"Made by `make pilot PROFILE={profile.name}` at {revision()}.",
        "",
    ]
    profile.results.mkdir(parents=True, exist_ok=True)
    content = [{"cell": vars(o.cell), **{k: v for k, v in vars(o).items() if k != "cell"}, "met": o.met} for o in outcomes]
    write_json(profile.results / "pilot.json", content)
    file = profile.results / "pilot.md"
    write_text(file, "\n".join(lines))
    return file


def _row(outcome: Outcome, epochs: int) -> str:
    cell, (decreases, room, spread) = outcome.cell, _words(outcome)
    cells = [str(cell.images), str(epochs * cell.steps_per_epoch), "yes" if cell.augmented else "no"]
    cells += [f"{outcome.last:.3f}; {outcome.best_before:.3f}", decreases, f"{outcome.room:+.1f}", room]
    cells += [f"{outcome.spread:.3f}; {outcome.noise:.3f}", spread, f"{outcome.seconds:.3g} {outcome.unit}"]
    return markdown_row(cells)


def choice(outcomes: Sequence[Outcome], skipped: Sequence[Cell], grid: Grid) -> str:
    """Describe the chosen cell, the skipped cells, and how many are not run."""
    if best := chosen(outcomes):
        values = f"{best.cell.images} images, hparams.steps_per_epoch={best.cell.steps_per_epoch}"
        augmentation = "with" if best.cell.augmented else "without"
        text = f"Chosen: {values}, {augmentation} augmentation, the first cell that meets all criteria."
    else:
        text = "So far no cell meets all criteria."
    if skipped:
        text += f" Skipped because fewer steps did not meet (a) or (b): {', '.join(cell.name for cell in skipped)}."
    return f"{text} Not run: {len(grid.cells) - len(outcomes) - len(skipped)} of {len(grid.cells)} cells."


def _words(outcome: Outcome) -> list[str]:
    return ["yes" if ok else "no" for ok in outcome.met]
