"""Targets of `reproduce`: one for each table or figure, and the writing of their Markdown files and pictures."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Literal

from ..common import figures
from ..common.files import digest, write_text
from ..runs.provenance import revision
from .experiments import Experiment
from .profiles import Profile
from .run import Run, plan

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER_DATA_SETS = {"voc": "Pascal VOC", "coco": "COCO"}
"""Key of each data set of the paper -> its name."""


@dataclass(frozen=True)
class Request:
    """Parameters of a call of `reproduce`.

    Attributes:
        profile: the scale.
        output: folder of the results.
        seeds: number of seeds: 0, 1, ...
        overrides: "key=value" strings that change the data sets' configs.
        jobs: number of runs at a time.
        cores: number of cores that all runs together may use; a single run uses several processes.
    """

    profile: Profile
    output: FilePath
    seeds: int = 1
    overrides: tuple[str, ...] = ()
    jobs: int = 2
    cores: int = 1

    def command(self, target: Target) -> str:
        """Return the command line that makes a target: `make`, or the program itself for another output folder."""
        seeds, replaced, source = self.seeds_of(target), " ".join(self.overrides), shlex.quote(self.profile.source)
        if self.output == self.profile.results:
            assignments = [f"SET={shlex.quote(replaced)}"] if replaced else []
            return " ".join(["make", target.name, f"PROFILE={source}", f"SEEDS={seeds}", *assignments])
        flags = ["--set", shlex.quote(replaced)] if replaced else []
        program = f"detofa paper {target.name} --profile {source} --seeds {seeds}"
        return " ".join([program, *flags, "-o", shlex.quote(str(self.output))])

    def seeds_of(self, target: Target) -> int:
        """Return the number of seeds that a target uses."""
        return 1 if target.one_seed or target.runs == "none" else self.seeds

    def runs(self, target: Target) -> list[Run]:
        """Return all runs that a target uses."""
        return plan(self.profile, target.keys, target.of(self.profile), self.seeds_of(target), self.overrides)

    def origin(self, target: Target) -> str:
        """Describe the command and the code that make a target."""
        return f"`{self.command(target)}` at {revision()}"


@dataclass(frozen=True)
class Target:
    """One table or figure.

    Attributes:
        name: name on the command line and stem of its files.
        title: its heading.
        keys: keys of the paper's data sets for it.
        experiments: experiments whose runs it uses, or a function of the profile that returns them.
        write: function (request, target, runs) that writes its files and returns the Markdown files.
        paper: the paper's result in words, if it is not part of the table.
        runs: "needed"; "optional": runs that the profile does not start may be missing; "none": only configs are used.
        one_seed: whether it uses only seed 0, however many seeds are requested.
        evaluates: whether it evaluates paths itself, which needs the data.
        names_data: whether the paper says which data set it is about; otherwise `keys` is our assumption.
    """

    name: str
    title: str
    keys: tuple[str, ...]
    experiments: tuple[Experiment, ...] | Callable[[Profile], tuple[Experiment, ...]]
    write: Callable[[Request, Target, Sequence[Run]], list[FilePath]]
    paper: str = ""
    runs: Literal["needed", "optional", "none"] = "needed"
    one_seed: bool = False
    evaluates: bool = False
    names_data: bool = True

    def of(self, profile: Profile) -> tuple[Experiment, ...]:
        """Return the experiments for a profile."""
        return self.experiments(profile) if callable(self.experiments) else self.experiments


def write_markdown(request: Request, target: Target, lines: Sequence[str]) -> list[FilePath]:
    """Write a target's Markdown file: heading, data sets, the paper's result, `lines`, and the command that made it.

    Returns:
        A list of the file, for use as the result of `Target.write`.
    """
    file = request.output / f"{target.name}.md"
    head = [f"# {target.title}", "", *data_note(request, target)]
    paper = [f"In the paper: {target.paper}", ""] if target.paper else []
    write_text(file, "\n".join([*head, *paper, *lines, "", f"Made by {request.origin(target)}.", ""]))
    return [file]


def data_note(request: Request, target: Target) -> list[str]:
    """Return a line that names the data sets if they differ from the paper's, or if the paper names none."""
    titles = [data_set.title for data_set in request.profile.chosen(target.keys).values()]
    papers = [PAPER_DATA_SETS[key] for key in target.keys]
    used = " and ".join(titles)
    if not target.names_data:
        return [f"The paper does not name the data set; here: {used}.", ""]
    return [] if titles == papers else [f"Data set in the paper: {' and '.join(papers)}; here: {used}.", ""]


def save_picture(request: Request, target: Target, figure: Figure) -> None:
    """Write a target's picture as a PNG file."""
    figures.save(figure, request.output / f"{target.name}.png", dpi=110)


def picture_line(target: Target) -> str:
    """Return the Markdown line that shows a target's picture."""
    return f"![{target.title}]({target.name}.png)"


def csv_file(request: Request, target: Target) -> FilePath:
    """Return a target's CSV file."""
    return request.output / f"{target.name}.csv"


def weights_file(file: str) -> str:
    """Describe a weights file by its path and checksum."""
    return f"`{file}` (sha256 {digest(FilePath(file).read_bytes())[:12]})"
