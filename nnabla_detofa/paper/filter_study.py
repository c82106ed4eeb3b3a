"""The path filter's own study: each of its parts switched on in turn, with several seeds, on measured paths (section 4.4)."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path as FilePath

import numpy as np

from ..common.errors import UserError
from ..common.files import write_bytes
from ..common.reading import parse_json, whole_lines
from ..config import Filter
from ..evaluation.forked import map_forked
from ..path_filter.evaluated_paths import EvaluatedPaths
from ..path_filter.fitting import FitResult, fit, fit_options, transfer
from ..path_filter.metrics import baseline_scores
from ..path_filter.model import PathFilter
from ..path_filter.rankers import ENTROPY, GAUSSIAN, PAIRWISE, TREES, rival_scores, true_orders
from ..path_filter.tokens import Tokenizer

FORMAT = "scores of the filter study, version 2"
START = b'{"format": "scores of the filter study'
RANDOM, FLOPS, RIDGE = "random", "FLOPs", "ridge"
BASELINES = (RANDOM, FLOPS, ENTROPY, RIDGE, PAIRWISE, GAUSSIAN, TREES)
CEILING, PRUNED_BY = "true order", "the filter that pruned"
"""Two rows that nothing is fitted for: what noise leaves possible, and the filter of the run whose supernet is studied."""
CEILING_DRAWS = 20
PAPER_LETTER = {
    "linear_skip": False,
    "ensemble": 1,
    "margin": "score",
    "regression": 0.0,
    "patience": 30,
    "weight_decay": 0.0,
    "dropout": 0.0,
}
"""Options of a filter that has nothing of ours; `pairs` is the business of a setting."""


@dataclass(frozen=True)
class Setting:
    """Which parts the path filter has.

    Attributes:
        name: the row of the table.
        pretraining: fit it to paths of the classification supernet first.
        flops_bounded: Eq. 6 compares only paths of one FLOPs bucket.
        block_encoding: tokens carry the encoding of their block.
        encoding: see `path_filter.positional_encoding`.
        fine_tuning: fit it to paths of the detection supernet; without, the pre-trained filter is taken as it is.
        ours: with the study's options, such as an ensemble and its pairs; without, by the paper's letter.
    """

    name: str
    pretraining: bool = False
    flops_bounded: bool = False
    block_encoding: bool = False
    encoding: str = "paper"
    fine_tuning: bool = True
    ours: bool = False

    @property
    def pretrained(self) -> str:
        """A name of the pre-trained filter that this setting starts from; settings with one name share it."""
        loss, block = "bounded" if self.flops_bounded else "all_pairs", "block" if self.block_encoding else "no_block"
        return f"{self.encoding}_{block}_{'ours' if self.ours else loss}"

    def options(self, given: Filter, letter_epochs: int = 200) -> Filter:
        """The filter and its fitting, where the study's options are `given`; see `StudyInputs`."""
        parts = {"block_encoding": self.block_encoding, "encoding": self.encoding}
        if self.ours:
            return replace(given, **parts)
        pairs = "bounded" if self.flops_bounded else "all"
        return replace(given, **parts, **PAPER_LETTER, epochs=letter_epochs, pairs=pairs)


OURS, OURS_FRESH = "ours", "ours, fresh"
EVERYTHING = Setting("all three", pretraining=True, flops_bounded=True, block_encoding=True)
SETTINGS = (
    # Table 3, by our reading of its check marks, see `filter_tables.READING`
    Setting("none"),
    Setting("block encoding", block_encoding=True),
    Setting("block encoding, FLOPs-bounded loss", block_encoding=True, flops_bounded=True),
    EVERYTHING,
    # not in the paper
    Setting(OURS_FRESH, block_encoding=True, flops_bounded=True, ours=True),
    Setting(OURS, True, True, True, ours=True),
    Setting("all three, usual positions", True, True, True, encoding="transformer"),
    Setting("all three, not fine-tuned", True, True, True, fine_tuning=False),
)


@dataclass(frozen=True, eq=False)
class StudyInputs:
    """What is studied.

    Attributes:
        label: of what the paths are, such as "digits, detection supernet after warm-up".
        train: paths of the detection supernet to fit to.
        test: others of the same supernet, on which the filter is judged.
        options: the filter and its fitting; its parts are the settings' business: `weights`, `block_encoding` and
            `encoding` do not count.
        pretraining: paths of the classification supernet; None leaves the settings with pre-training out.
        buckets: number of FLOPs buckets.
        letter_epochs: of a filter by the paper's letter, which learns more slowly than ours.
        noise: the share of the test losses' variance inside a bucket that is noise; None: it is not known.
        pruned_by: file of the path filter of the run whose supernet this is; None: there is none.

    Raises:
        UserError: the sets do not fit together.
    """

    label: str
    train: EvaluatedPaths
    test: EvaluatedPaths
    options: Filter
    pretraining: EvaluatedPaths | None = None
    buckets: int = 5
    letter_epochs: int = 200
    noise: float | None = None
    pruned_by: FilePath | None = None

    def __post_init__(self):
        for paths in self.sets.values():
            if paths.geometry != self.train.geometry:
                raise UserError(f"the paths of {paths.file} are of another search space than those of {self.train.file}")
            if not len(paths):
                raise UserError(f"{paths.file} holds no paths, and the filter study needs some")
            if paths.buckets.max() >= self.buckets:
                raise UserError(
                    f"{paths.file} holds a path of FLOPs bucket {paths.buckets.max()}; "
                    f"with {self.buckets} buckets 0 to {self.buckets - 1} are allowed"
                )
        if self.test.header["weights"] != self.train.header["weights"]:
            raise UserError(f"the paths of {self.test.file} are of another supernet than those of {self.train.file}")
        shared = sum(item.path in self.train for item in self.test.items)
        if shared:
            raise UserError(f"{shared} of the test paths of {self.test.file} are among the training paths of {self.train.file}")

    @property
    def sets(self) -> dict[str, EvaluatedPaths]:
        """The sets there are, by name."""
        sets = {"train": self.train, "test": self.test, "pretraining": self.pretraining}
        return {name: paths for name, paths in sets.items() if paths is not None}

    @property
    def settings(self) -> tuple[Setting, ...]:
        """The settings that these paths allow."""
        return tuple(setting for setting in SETTINGS if self.pretraining or not setting.pretraining)

    @cached_property
    def fingerprint(self) -> dict:
        """Whatever changes a score, besides setting and seed, as plain JSON values."""
        parts = ("weights", "block_encoding", "encoding")
        options = {name: value for name, value in asdict(self.options).items() if name not in parts}
        digests = {name: digest(paths) for name, paths in self.sets.items()}
        letter = {"letter_epochs": self.letter_epochs}
        return {"paths": {"pretraining": None} | digests, "options": options, "buckets": self.buckets} | letter

    @property
    def pretraining_digest(self) -> str:
        """A short hash of whatever changes a pre-trained filter, besides setting and seed."""
        seen = self.fingerprint | {"paths": self.fingerprint["paths"]["pretraining"]}
        return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()[:8]


@dataclass(frozen=True, eq=False)
class StudyResults:
    """Scores of the test paths.

    Attributes:
        inputs: what was studied.
        seeds: of each row of the scores.
        scores: name of a setting or a baseline -> (seeds, n); and those of `given_scores`.
    """

    inputs: StudyInputs
    seeds: tuple[int, ...]
    scores: dict[str, np.ndarray]


def run(
    inputs: StudyInputs,
    seeds: Sequence[int],
    folder: FilePath,
    progress: Callable[[str], None] = lambda text: None,
    processes: int = 1,
    settings: Sequence[Setting] | None = None,
) -> StudyResults:
    """Fit the filter with every setting and seed, and score the test paths.

    What is done already is kept in the folder's scores.jsonl, and pre-trained filters beside the folder. All settings of one
    seed start from the same weights and see the same split and minibatches, so that they differ by their parts alone.

    Args:
        seeds: everything random comes from them.
        progress: hears of each setting and seed that is done, in a line.
        processes: fits are shared out over so many, which are forked: for the CPU.
        settings: of the filter, those that the paths allow; None: all of `SETTINGS`.

    Raises:
        UserError: the folder holds scores of other paths or options, or is damaged; no seed was given, or one twice.
    """
    seeds = tuple(seeds)
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"the filter study needs one or more seeds, each once, got {list(seeds)}")
    chosen = [setting for setting in inputs.settings if settings is None or setting in settings]
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "scores.jsonl"
    known = read_scores(file, inputs)
    for seed in seeds:
        if any((name, seed) not in known for name in BASELINES):
            batch, test = inputs.train.batch, inputs.test
            tokenizer = Tokenizer(inputs.train.geometry, inputs.options.stem_tokens)
            rng = seeded(seed, RANDOM)
            rivals = rival_scores(tokenizer, batch, inputs.train.losses, test.batch, seed)
            simple = baseline_scores(tokenizer, batch, inputs.train.losses, test.batch, test.flops, rng)
            for name, scores in {**rivals, **simple}.items():
                _keep(file, known, name, seed, {}, scores)
    jobs: dict[tuple[int, str], list[Setting]] = {}  # settings that share a pre-trained filter are one job
    for seed in seeds:
        for setting in chosen:
            if (setting.name, seed) not in known:
                jobs.setdefault((seed, setting.pretrained if setting.pretraining else setting.name), []).append(setting)

    def work(job: tuple[int, str]) -> list[tuple[np.ndarray, str]]:
        return [_scores(inputs, setting, job[0], folder) for setting in jobs[job]]

    for (seed, _), settings, results in zip(jobs, jobs.values(), map_forked(work, list(jobs), min(processes, len(jobs)))):
        for setting, (scores, text) in zip(settings, results):
            _keep(file, known, setting.name, seed, asdict(setting), scores)
            progress(f"{setting.name}, seed {seed}: {text}")
    names = (*BASELINES, *(setting.name for setting in chosen))
    scores = {name: np.stack([known[name, seed] for seed in seeds]) for name in names}
    return StudyResults(inputs, seeds, scores | given_scores(inputs))


def given_scores(inputs: StudyInputs) -> dict[str, np.ndarray]:
    """Rows that nothing is fitted for: name -> (draws, n) or (1, n) scores."""
    test, scores = inputs.test, {}
    if inputs.pruned_by is not None:
        path_filter = PathFilter.load(inputs.pruned_by, geometry=test.geometry, buckets=inputs.buckets)
        scores[PRUNED_BY] = path_filter.score(test.batch, test.buckets)[None]
    if inputs.noise is not None:
        scores[CEILING] = true_orders(test.losses, test.buckets, inputs.noise, CEILING_DRAWS, seeded(0, CEILING))
    return scores


def _scores(inputs: StudyInputs, setting: Setting, seed: int, folder: FilePath) -> tuple[np.ndarray, str]:
    """Scores of the test paths by the filter of a setting, and how its fit went."""
    path_filter = pretrained(inputs, setting, seed, folder) if setting.pretraining else fresh(inputs, setting, seed)
    text = "as it was pre-trained"
    if setting.fine_tuning:
        rng, given = seeded(seed, "fine-tuning"), inputs.train
        moved = transfer(path_filter, given.batch, given.buckets, given.losses, rng) if setting.pretraining else "fresh"
        options = setting.options(inputs.options, inputs.letter_epochs)
        text = f"{moved}; {outcome(_fit(path_filter, given, options, rng, setting.pretraining))}"
    return path_filter.score(inputs.test.batch, inputs.test.buckets), text


def fresh(inputs: StudyInputs, setting: Setting, seed: int) -> PathFilter:
    """The setting's filter with the seed's first weights."""
    options = setting.options(inputs.options, inputs.letter_epochs)
    return PathFilter(
        inputs.train.geometry,
        inputs.buckets,
        options.dim,
        options.heads,
        options.layers,
        options.feed_forward,
        options.stem_tokens,
        options.block_encoding,
        options.encoding,
        options.pooling,
        options.linear_skip,
        options.ensemble,
        rng=seeded(seed, "weights"),
    )


def pretrained(inputs: StudyInputs, setting: Setting, seed: int, folder: FilePath) -> PathFilter:
    """The filter fitted to the classification supernet's paths, kept beside `folder`, where other studies find it too."""
    file = folder.parent / f"pretrained_{setting.pretrained}_seed{seed}_{inputs.pretraining_digest}.h5"
    if file.exists():
        return PathFilter.load(file)
    path_filter = fresh(inputs, setting, seed)
    _fit(path_filter, inputs.pretraining, setting.options(inputs.options, inputs.letter_epochs), seeded(seed, "pre-training"))
    path_filter.save(file)
    return path_filter


def _fit(
    path_filter: PathFilter,
    paths: EvaluatedPaths,
    options: Filter,
    rng: np.random.Generator,
    transferred: bool = False,
) -> tuple[FitResult, ...]:
    given = paths.batch, paths.buckets, paths.losses
    return fit(path_filter, *given, rng, fit_options(options), transferred=transferred)


def outcome(results: Sequence[FitResult]) -> str:
    """How a fit went, in a few words."""
    best = " and ".join(str(result.best_epoch) for result in results)
    epochs = sum(len(result.validation_losses) - 1 for result in results)
    validation = np.mean([result.validation_losses[result.best_epoch] for result in results])
    return f"best of {epochs} epochs {'is' if len(results) == 1 else 'are'} {best}, validation loss {validation:.4f}"


def seeded(seed: int, name: str) -> np.random.Generator:
    """The generator of everything random that is called `name`, whatever was drawn before."""
    return np.random.default_rng((seed, zlib.crc32(name.encode())))


def digest(paths: EvaluatedPaths) -> str:
    """SHA-256 of what a fit sees of evaluated paths."""
    rows = [(item.path.to_ofa(paths.geometry), item.bucket, item.flops, item.loss) for item in paths.items]
    return hashlib.sha256(json.dumps([asdict(paths.geometry), rows]).encode()).hexdigest()


def read_scores(file: FilePath, inputs: StudyInputs) -> dict[tuple[str, int], np.ndarray]:
    """(setting or baseline, seed) -> scores, of the settings as they are now; a new file is begun, a torn line dropped.

    Raises:
        UserError: the file holds scores of other paths or options or something else, or is damaged before its last line; it
            is left as it is.
    """
    wanted = json.loads(json.dumps({"format": FORMAT} | inputs.fingerprint))
    content = file.read_bytes() if file.exists() else b""
    if not content.startswith(START[: len(content)]):
        raise UserError(f"{file} is not a file of the filter study's scores: remove or rename it")
    whole = whole_lines(content)
    known = {}
    parts = {name: {} for name in BASELINES} | {setting.name: asdict(setting) for setting in SETTINGS}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            entry = parse_json(line.decode())
            if number == 1:
                changed = [name for name in sorted(wanted | entry) if entry.get(name) != wanted.get(name)]
            elif entry["parts"] == parts.get(entry["name"]):
                known[entry["name"], entry["seed"]] = np.array(entry["scores"], float).reshape(len(inputs.test))
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"line {number} of {file} is not a result of the filter study ({error})") from error
        if changed:
            raise UserError(f"{file} holds scores of a study with other {' and '.join(changed)}: remove or rename it")
    whole = whole or (json.dumps(wanted) + "\n").encode()
    if whole != content:
        write_bytes(file, whole)
    return known


def _keep(file: FilePath, known: dict, name: str, seed: int, parts: dict, scores: np.ndarray) -> None:
    """Add scores to the file first, then to `known`."""
    entry = {"name": name, "seed": seed, "parts": parts, "scores": np.asarray(scores, float).tolist()}
    with open(file, "a", encoding="utf-8") as opened:
        opened.write(json.dumps(entry, allow_nan=False) + "\n")
        opened.flush()
        os.fsync(opened.fileno())
    known[name, seed] = np.asarray(scores, float)
