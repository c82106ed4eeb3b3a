"""The pilot of a study: in which regime of images, steps and augmentation can methods differ at all? (ours)

Criteria that never look at our method, each measured in one cell of a grid with a seed that no result uses:

(a) the fullnet's validation loss still falls at its last epoch: no plateau by overfitting;
(b) there is room: random paths under the weights of OFA (w/o PS), one of each FLOPs bucket, have at least `ROOM` points of AP50
    less than the same paths trained alone, from the same fullnet and for as many steps;
(c) random paths differ: the standard deviation of their validation losses inside a bucket is at least `SPREAD` times its noise,
    which two halves of the validation images tell.

The smallest regime that meets all three is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path as FilePath

import numpy as np
from tqdm import tqdm

from .. import config as configs
from ..backend.compat import Device
from ..common.files import write_json, write_text
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
from ..space.search_space import SearchSpace
from ..tools.report import markdown_row
from ..training.loop import OnePath
from .profiles import Profile

SEED = 9
ROOM = 2.0
SPREAD = 3.0
PATHS = 8
"""Random paths of each bucket, for the third criterion."""
AUGMENTATION = {True: ("true", "[0.8, 1.2]", "true"), False: ("false", "[1.0, 1.0]", "false")}
"""Whether images are augmented -> the data's crop, scale_range and color."""
FOLDER = FilePath("runs", "pilot")


@dataclass(frozen=True)
class Cell:
    """A regime.

    Attributes:
        images: for training. steps_per_epoch: of 14 epochs, for the fullnet and again for the supernet. augmented: or not.
    """

    images: int
    steps_per_epoch: int
    augmented: bool

    @property
    def name(self) -> str:
        return f"{self.images}-{self.steps_per_epoch}-{'augmented' if self.augmented else 'plain'}"

    def shorter(self, other: Cell) -> bool:
        """Is `other` this regime with fewer steps?"""
        same = (self.images, self.augmented) == (other.images, other.augmented)
        return same and other.steps_per_epoch < self.steps_per_epoch


@dataclass(frozen=True)
class Grid:
    """The cells, from the smallest regime on, and the data that they share: a set of more images begins with the same ones.

    Attributes:
        val, test, image_size: see `data.digits.write_digits`. folder: of the data sets.
    """

    cells: tuple[Cell, ...]
    val: int = 256
    test: int = 2000
    image_size: int = 128
    folder: FilePath = FilePath("data")

    def data(self, cell: Cell) -> FilePath:
        """The data set of a cell, written where it is not there."""
        sizes = {"train": cell.images, "val": self.val, "test": self.test, "image_size": self.image_size}
        return write_digits(self.folder / f"digits_{cell.images}", **sizes, crops_train=0, crops_val=0)


GRID = Grid(
    tuple(
        Cell(images, steps, augmented) for steps in (32, 64, 128) for images in (400, 1600, 4000) for augmented in (False, True)
    )
)
"""14 epochs: 448, 896 and 1,792 steps."""


def cell_config(profile: Profile, cell: Cell, root: FilePath) -> configs.Config:
    """The profile's config in a cell; AP is measured on the validation images, and our method has no part in it."""
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
    """OFA (w/o PS) without its search: random paths are evaluated instead, and some of them trained alone."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        alone = [f"alone {bucket + 1}" for bucket in range(self.buckets.n)]
        self.phases = (*self.training, "random paths", *alone)
        self.fullnet_losses: list[float] = self.files.read("fullnet_losses", [])

    def callback_on_epoch_end(self) -> None:
        """Validation loss of the fullnet after each of its epochs; an epoch that is done again gives the same."""
        if self.costs.phase != "fullnet":
            return
        statistics = reestimate(self.model, self.space.largest, self.evaluator.statistics_batches)
        loss = validation_loss(self.model, self.space.largest, statistics, self.evaluator.validation_batches)
        if self.fullnet_losses[-1:] != [loss]:
            self.fullnet_losses.append(loss)
            self.files.write("fullnet_losses", self.fullnet_losses)

    def find_subnets(self, space: SearchSpace, path_filter: PathFilter, seen: Sequence = ()) -> dict:
        """What the criteria need, in pilot.json."""
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

    def train_alone(self, name: str, path) -> float:
        """AP, in points, of a path that was trained alone from the fullnet, for the supernet's steps."""
        whole = self.training["fine-tuning"]
        phase = replace(whole, name=name, epochs=range(whole.schedule_epochs), continues="")
        with self.phase(name):
            weights.load(
                self.model, self.folder / "fullnet" / "weights.h5", weights.read(self.folder / "fullnet" / "weights.h5")
            )
            self.train_phase(phase, OnePath(path), self.new_optimizer(phase))
            return points(self.evaluate_detector(name, path))


@dataclass(frozen=True)
class Outcome:
    """What a cell has for the criteria.

    Attributes:
        last, best_before: validation loss of the fullnet after its last epoch, and the least before.
        room: points of AP50 that the paths trained alone have more, on average.
        spread, noise: of the random paths' losses inside a bucket.
        seconds: of the device for a training step of the fullnet. unit: of these.
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
        """The criteria (a), (b) and (c)."""
        return self.last < self.best_before, self.room >= ROOM, self.spread >= SPREAD * self.noise

    @classmethod
    def of(cls, cell: Cell, found: Mapping, steps: int) -> Outcome:
        """From a cell's pilot.json; `steps` are the fullnet's."""
        losses = found["fullnet_losses"]
        halves, buckets = np.array(found["halves"], float), np.array(found["buckets"])
        spreads, noises = [], []
        for bucket in np.unique(buckets):
            inside = halves[buckets == bucket]
            spreads.append(inside.mean(axis=1).var(ddof=1))
            noises.append((inside[:, 0] - inside[:, 1]).var(ddof=1) / 4)  # of the mean of two halves
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
    profile: Profile, grid: Grid, device: Device, everything: bool = False, log: Callable[[str], None] = tqdm.write
) -> FilePath:
    """Run the cells one by one, from the smallest on, until one meets all criteria; what was done before is kept.

    A cell is skipped where the same images for fewer steps have failed (a) or (b): more steps overfit more and leave less room.

    Args:
        everything: go on where a cell meets all criteria, and skip none.

    Returns:
        pilot.md among the profile's results; pilot.json beside it has the numbers.
    """
    outcomes: list[Outcome] = []
    skipped: list[Cell] = []
    work = sum(cell.steps_per_epoch for cell in grid.cells)
    with tqdm(total=work, desc="pilot", unit="steps of an epoch", dynamic_ncols=True) as bar:
        for cell in grid.cells:
            failed = [o for o in outcomes if cell.shorter(o.cell) and not all(o.met[:2])]
            if failed and not everything:
                skipped.append(cell)
                log(f"{cell.name} is skipped: {failed[0].cell.name} has failed with fewer steps")
            else:
                outcomes.append(measure(profile, grid, cell, device))
                passed = ", ".join(f"({name}) {ok}" for name, ok in zip("abc", _words(outcomes[-1])))
                log(f"{cell.name}: {passed}; {outcomes[-1].seconds:.3g} {outcomes[-1].unit} a step of the fullnet")
                file = write(profile, outcomes, skipped, grid)
                if all(outcomes[-1].met) and not everything:
                    break
            bar.update(cell.steps_per_epoch)
    return file


def measure(profile: Profile, grid: Grid, cell: Cell, device: Device) -> Outcome:
    """Run a cell to its end, or read what it left."""
    config, folder = cell_config(profile, cell, grid.data(cell)), FOLDER / profile.name / cell.name
    file = folder / "pilot.json"
    if not file.is_file():
        partial(algorithm1.run, searcher=PilotSearcher)(config, device, folder)
    return Outcome.of(cell, read_json(file, "the pilot's cell"), config.hparams.fullnet_epochs * cell.steps_per_epoch)


def chosen(outcomes: Sequence[Outcome]) -> Outcome | None:
    """The smallest regime that meets all criteria: fewest steps, then fewest images."""
    good = [outcome for outcome in outcomes if all(outcome.met)]
    return min(good, key=lambda o: (o.cell.steps_per_epoch, o.cell.images, o.cell.augmented), default=None)


def write(profile: Profile, outcomes: Sequence[Outcome], skipped: Sequence[Cell], grid: Grid) -> FilePath:
    """The table of the cells so far, and the choice."""
    epochs = configs.load(next(iter(profile.data_sets.values())).config).hparams.fullnet_epochs
    header = ["images", "steps", "augmented", "fullnet's loss: last; best before", "(a)", "room [AP50 points]", "(b)"]
    header += ["spread; noise", "(c)", "a step of the fullnet"]
    lines = [
        f"# Pilot of the profile {profile.name}: the regime of the study",
        "",
        f"Seed {SEED}, which no other result uses; OFA (w/o PS) and its fullnet alone, {grid.val} validation images. (a): the "
        f"fullnet's validation loss still falls at its last epoch. (b): paths trained alone have at least {ROOM:g} points more "
        f"than under the supernet. (c): random paths spread inside a bucket at least {SPREAD:g} times the noise.",
        "",
        markdown_row(header),
        markdown_row(["---:"] * len(header)),
    ]
    for outcome in outcomes:
        cell, (falls, room, spread) = outcome.cell, _words(outcome)
        numbers = [str(cell.images), str(epochs * cell.steps_per_epoch), "yes" if cell.augmented else "no"]
        numbers += [f"{outcome.last:.3f}; {outcome.best_before:.3f}", falls, f"{outcome.room:+.1f}", room]
        numbers += [f"{outcome.spread:.3f}; {outcome.noise:.3f}", spread, f"{outcome.seconds:.3g} {outcome.unit}"]
        lines.append(markdown_row(numbers))
    best = chosen(outcomes)
    if best:
        values = f"{best.cell.images} images, hparams.steps_per_epoch={best.cell.steps_per_epoch}"
        verdict = f"Chosen: {values}, {'with' if best.cell.augmented else 'without'} augmentation, the smallest that meets all."
    else:
        verdict = "No cell so far meets all three."
    left = len(grid.cells) - len(outcomes) - len(skipped)
    if skipped:
        verdict += f" Skipped, since fewer steps have failed (a) or (b): {', '.join(cell.name for cell in skipped)}."
    verdict += f" Not run: {left} of {len(grid.cells)} cells."
    lines += ["", verdict, "", f"Made by `make pilot PROFILE={profile.name}` at {revision()}.", ""]
    profile.results.mkdir(parents=True, exist_ok=True)
    kept = [{"cell": vars(o.cell), **{k: v for k, v in vars(o).items() if k != "cell"}, "met": o.met} for o in outcomes]
    write_json(profile.results / "pilot.json", kept)
    file = profile.results / "pilot.md"
    write_text(file, "\n".join(lines))
    return file


def _words(outcome: Outcome) -> list[str]:
    return ["yes" if ok else "no" for ok in outcome.met]
