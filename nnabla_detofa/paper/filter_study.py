"""The filter study (section 4.4): each part of the path filter switched on in turn, fitted with several seeds."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path as FilePath
from typing import Literal

import numpy as np

from ..common.errors import UserError
from ..config import Filter
from ..evaluation.forked import map_forked
from ..path_filter.evaluated_paths import EvaluatedPaths
from ..path_filter.fitting import FitResult, fit, fit_options, transfer
from ..path_filter.metrics import baseline_scores
from ..path_filter.model import PathFilter
from ..path_filter.rankers import ENTROPY, GAUSSIAN, PAIRWISE, SKIP, TREES, rival_scores, true_orders
from ..path_filter.tokens import Tokenizer
from .score_file import ScoreFile

RANDOM, FLOPS, RIDGE = "random", "FLOPs", "ridge"
BASELINES = (RANDOM, FLOPS, ENTROPY, RIDGE, SKIP, PAIRWISE, GAUSSIAN, TREES)
CEILING, PRUNED_BY = "true order", "the filter that pruned"
"""Rows without a fit: the best ranking that the noise of the losses allows, and the filter of the studied run itself."""
CEILING_DRAWS = 20


@dataclass(frozen=True)
class Setting:
    """Parts of the path filter that are switched on.

    Attributes:
        name: key of the row in tables and in scores.jsonl.
        pretraining: fit the filter to paths of the classification supernet first.
        flops_bounded: the loss (Eq. 6) compares only paths of one FLOPs bucket.
        block_encoding: tokens have the encoding of their block.
        encoding: positional encoding; see `config.Filter`.
        fine_tuning: fit the filter to paths of the detection supernet; otherwise the pre-trained filter is used.
        configured: use all options of the config, such as an ensemble; otherwise those that the paper describes.
    """

    name: str
    pretraining: bool = False
    flops_bounded: bool = False
    block_encoding: bool = False
    encoding: Literal["paper", "transformer"] = "paper"
    fine_tuning: bool = True
    configured: bool = False

    @property
    def pretrained(self) -> str:
        """Part of the file name of the pre-trained filter; settings with the same value share it."""
        loss, block = "bounded" if self.flops_bounded else "all_pairs", "block" if self.block_encoding else "no_block"
        return f"{self.encoding}_{block}_{'extended' if self.configured else loss}"

    def options(self, given: Filter, paper_epochs: int = 200) -> Filter:
        """Return the options of the filter, where those of the config are `given`; see `StudyInputs`."""
        given = replace(given, block_encoding=self.block_encoding, encoding=self.encoding)
        if self.configured:
            return given
        return replace(as_in_paper(given), epochs=paper_epochs, pairs="bounded" if self.flops_bounded else "all")

    def to_json(self) -> dict:
        """Return the parts as written to scores.jsonl, where `configured` is called "ours"."""
        parts = asdict(self)
        parts["ours"] = parts.pop("configured")
        if self.configured and self.pretraining:
            parts["pretrained_members"] = 1  # older versions pre-trained each member
        return parts


EXTENSIONS = ("linear_skip", "ensemble", "margin", "regression", "patience", "weight_decay", "dropout")
"""Filter options that `as_in_paper` sets."""


def as_in_paper(given: Filter) -> Filter:
    """Return filter options without extensions of the paper's filter; where the paper is silent, they are switched off."""
    return replace(
        given,
        linear_skip=False,
        ensemble=1,
        margin="score",
        regression=0.0,
        patience=30,
        weight_decay=0.0,
        dropout=0.0,
    )


CONFIGURED, CONFIGURED_FRESH = "ours", "ours, fresh"
"""Keys of the settings with all options of the config, with and without pre-training."""
EVERYTHING = Setting("all three", pretraining=True, flops_bounded=True, block_encoding=True)
SETTINGS = (
    # the rows of Table 3 as interpreted in `table3.READING`
    Setting("none"),
    Setting("block encoding", block_encoding=True),
    Setting("block encoding, FLOPs-bounded loss", block_encoding=True, flops_bounded=True),
    EVERYTHING,
    # not in the paper
    Setting(CONFIGURED_FRESH, block_encoding=True, flops_bounded=True, configured=True),
    Setting(CONFIGURED, True, True, True, configured=True),
    Setting("all three, usual positions", True, True, True, encoding="transformer"),
    Setting("all three, not fine-tuned", True, True, True, fine_tuning=False),
)


@dataclass(frozen=True, eq=False)
class StudyInputs:
    """Evaluated paths and filter options of a study.

    Attributes:
        label: description of the paths, such as "digits, detection supernet after warm-up".
        train: paths of the detection supernet that filters are fitted to.
        test: other paths of the same supernet, on which filters are judged.
        options: filter options of the config. `weights`, `block_encoding` and `encoding` are determined by the settings.
        pretraining: paths of the classification supernet; None omits the settings with pre-training.
        buckets: number of FLOPs buckets.
        paper_epochs: epochs of a filter as in the paper, which learns more slowly than an extended one.
        noise: share of the variance of the test losses inside a bucket that is noise; None: unknown.
        pruned_by: (n,) scores of the test paths by the path filter of the run whose supernet is studied; None: unknown.

    Raises:
        UserError: the sets do not match.
    """

    label: str
    train: EvaluatedPaths
    test: EvaluatedPaths
    options: Filter
    pretraining: EvaluatedPaths | None = None
    buckets: int = 5
    paper_epochs: int = 200
    noise: float | None = None
    pruned_by: np.ndarray | None = None

    def __post_init__(self) -> None:
        for paths in self.sets.values():
            if paths.geometry != self.train.geometry:
                raise UserError(f"the paths of {paths.file} and {self.train.file} must have the same search space")
            if not len(paths):
                raise UserError(f"{paths.file} must have at least one path for the filter study, got none")
            if paths.buckets.max() >= self.buckets:
                raise UserError(f"the FLOPs buckets of {paths.file} must be 0 to {self.buckets - 1}, got {paths.buckets.max()}")
        if self.test.header["weights"] != self.train.header["weights"]:
            raise UserError(f"the paths of {self.test.file} and {self.train.file} must be of the same supernet")
        shared = sum(item.path in self.train for item in self.test.items)
        if shared:
            raise UserError(f"{shared} of the test paths of {self.test.file} are also training paths in {self.train.file}")

    @property
    def sets(self) -> dict[str, EvaluatedPaths]:
        """The existing sets of paths by name."""
        sets = {"train": self.train, "test": self.test, "pretraining": self.pretraining}
        return {name: paths for name, paths in sets.items() if paths is not None}

    @property
    def settings(self) -> tuple[Setting, ...]:
        """The settings that are possible with these paths."""
        return tuple(setting for setting in SETTINGS if self.pretraining or not setting.pretraining)

    @cached_property
    def fingerprint(self) -> dict:
        """Everything that affects scores apart from setting and seed, as JSON values."""
        parts = ("weights", "block_encoding", "encoding")
        options = {name: value for name, value in asdict(self.options).items() if name not in parts}
        digests = {name: digest(paths) for name, paths in self.sets.items()}
        epochs = {"letter_epochs": self.paper_epochs}
        return {"paths": {"pretraining": None} | digests, "options": options, "buckets": self.buckets} | epochs

    @property
    def pretraining_digest(self) -> str:
        """A short checksum of everything that affects a pre-trained filter apart from setting and seed."""
        seen = self.fingerprint | {"paths": self.fingerprint["paths"]["pretraining"]}
        return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()[:8]


@dataclass(frozen=True, eq=False)
class StudyResults:
    """Scores of the n test paths.

    Attributes:
        inputs: inputs of the study.
        seeds: seed of each row of the scores.
        scores: (seeds, n) scores by name of the setting or baseline, and the rows of `given_scores`.
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
    pretrained_in: FilePath | None = None,
) -> StudyResults:
    """Fit the filter with every setting and seed, and score the test paths.

    Scores are stored in scores.jsonl in the folder; they and pre-trained filters are reused. For one seed, all settings have
    the same initial weights, validation split and mini-batches, so they differ only by their parts.

    Args:
        inputs: the paths.
        seeds: seeds of everything random.
        folder: folder of the study.
        progress: called with a line of text for each finished setting and seed.
        processes: number of forked processes that share the fits, for the CPU.
        settings: settings of the filter, as far as the paths allow them; None: all of `SETTINGS`.
        pretrained_in: folder of the pre-trained filters, which studies of other supernets can share; None: that around the
            study's folder.

    Raises:
        UserError: the folder has scores of other paths or options, or is damaged; or the seeds are not distinct.
    """
    seeds = tuple(seeds)
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"the filter study needs one or more distinct seeds, got {list(seeds)}")
    chosen = [setting for setting in inputs.settings if settings is None or setting in settings]
    folder.mkdir(parents=True, exist_ok=True)
    store = score_file(folder, inputs)
    for seed in seeds:
        if any((name, seed) not in store.known for name in BASELINES):
            for name, scores in baselines(inputs, seed).items():
                store.append(name, seed, {}, scores)
    jobs: dict[tuple[int, str], list[Setting]] = {}  # settings that share a pre-trained filter form one job
    for seed in seeds:
        for setting in chosen:
            if (setting.name, seed) not in store.known:
                jobs.setdefault((seed, setting.pretrained if setting.pretraining else setting.name), []).append(setting)

    def work(job: tuple[int, str]) -> list[tuple[np.ndarray, str]]:
        found = [fitted(inputs, setting, job[0], pretrained_in or folder.parent) for setting in jobs[job]]
        return [(path_filter.score(inputs.test.batch, inputs.test.buckets), text) for path_filter, text in found]

    for (seed, _), group, results in zip(jobs, jobs.values(), map_forked(work, list(jobs), min(processes, len(jobs)))):
        for setting, (scores, text) in zip(group, results):
            store.append(setting.name, seed, setting.to_json(), scores)
            progress(f"{setting.name}, seed {seed}: {text}")
    names = (*BASELINES, *(setting.name for setting in chosen))
    found = {name: np.stack([store.known[name, seed] for seed in seeds]) for name in names}
    return StudyResults(inputs, seeds, found | given_scores(inputs))


def score_file(folder: FilePath, inputs: StudyInputs) -> ScoreFile:
    """Open or create the file with a study's scores; see `ScoreFile`."""
    parts = {name: {} for name in BASELINES} | {setting.name: setting.to_json() for setting in SETTINGS}
    return ScoreFile(folder / "scores.jsonl", inputs.fingerprint, parts, len(inputs.test))


def baselines(inputs: StudyInputs, seed: int) -> dict[str, np.ndarray]:
    """Return (n,) scores of the test paths by each of `BASELINES`."""
    batch, losses, test = inputs.train.batch, inputs.train.losses, inputs.test
    tokenizer = Tokenizer(inputs.train.geometry, inputs.options.stem_tokens)
    rivals = rival_scores(tokenizer, batch, losses, test.batch, seed)
    return {**rivals, **baseline_scores(tokenizer, batch, losses, test.batch, test.flops, seeded(seed, RANDOM))}


def given_scores(inputs: StudyInputs) -> dict[str, np.ndarray]:
    """Return the scores of rows without a fit: (1, n) of the run's own filter, (draws, n) of possible true orders."""
    test, scores = inputs.test, {}
    if inputs.pruned_by is not None:
        scores[PRUNED_BY] = inputs.pruned_by[None]
    if inputs.noise is not None:
        scores[CEILING] = true_orders(test.losses, test.buckets, inputs.noise, CEILING_DRAWS, seeded(0, CEILING))
    return scores


def fitted(inputs: StudyInputs, setting: Setting, seed: int, folder: FilePath) -> tuple[PathFilter, str]:
    """Return a setting's filter, and a description of its fit; for the arguments see `pretrained`."""
    path_filter = pretrained(inputs, setting, seed, folder) if setting.pretraining else fresh(inputs, setting, seed)
    text = "pre-trained only"
    if setting.fine_tuning:
        rng, given = seeded(seed, "fine-tuning"), inputs.train
        moved = transfer(path_filter, given.batch, given.buckets, given.losses, rng) if setting.pretraining else "fresh"
        options = setting.options(inputs.options, inputs.paper_epochs)
        text = f"{moved}; {outcome(_fit(path_filter, given, options, rng, setting.pretraining))}"
    return path_filter, text


def fresh(inputs: StudyInputs, setting: Setting, seed: int) -> PathFilter:
    """Return a setting's filter with the initial weights of a seed."""
    options = setting.options(inputs.options, inputs.paper_epochs)
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
    """Return a setting's filter fitted to the classification supernet's paths; it is stored in `folder` and reused.

    One filter is fitted, and every member of an ensemble starts from it, as in the runs of Algorithm 1.
    """
    file = folder / f"pretrained_{setting.pretrained}_seed{seed}_{inputs.pretraining_digest}.h5"
    if file.exists():
        path_filter = PathFilter.load(file, type(inputs.test.geometry))
    else:
        assert inputs.pretraining is not None  # `StudyInputs.settings` omits such settings otherwise
        single = replace(inputs, options=replace(inputs.options, ensemble=1))
        path_filter, options = fresh(single, setting, seed), setting.options(single.options, inputs.paper_epochs)
        _fit(path_filter, inputs.pretraining, options, seeded(seed, "pre-training"))
        path_filter.save(file)
    options = setting.options(inputs.options, inputs.paper_epochs)
    return path_filter.extended(options.ensemble, options.linear_skip)


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
    """Describe a fit: its epochs, the best of them, and its validation loss."""
    best = " and ".join(str(result.best_epoch) for result in results)
    epochs = sum(len(result.validation_losses) - 1 for result in results)
    validation = np.mean([result.validation_losses[result.best_epoch] for result in results])
    return f"{epochs} epochs, best {best}, validation loss {validation:.4f}"


def seeded(seed: int, name: str) -> np.random.Generator:
    """Return the random number generator of a seed and a purpose; it does not depend on numbers drawn before."""
    return np.random.default_rng((seed, zlib.crc32(name.encode())))


def digest(paths: EvaluatedPaths) -> str:
    """Return the SHA-256 checksum of everything that a fit uses of evaluated paths."""
    rows = [(item.path.to_ofa(paths.geometry), item.bucket, item.flops, item.loss) for item in paths.items]
    return hashlib.sha256(json.dumps([paths.geometry.to_json(), rows]).encode()).hexdigest()
