"""Search space pruning with the path filter: operation pruning (Alg. 1 line 6), path thresholds (line 7), and the samplers
of training paths (lines 11 to 14)."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from ..common.errors import UserError
from .counting import Buckets
from .operations import Operation, Option, operation_list
from .paths import Path, PathBatch, layer_stages
from .search_space import SearchSpace

logger = logging.getLogger(__name__)

Scorer = Callable[[PathBatch], np.ndarray]
Map = Callable[[Callable, Iterable], Iterable]
"""`map`, or a parallel one with the same results, such as `Communicator.map`."""
SAMPLED_AHEAD = 256  # paths sampled and scored at once
MAX_REJECTED = 10_000  # consecutive rejections after which a sampler raises


# --- Operations -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class OperationScores:
    """Score and FLOPs of each operation of a space (section 3.2, Figure 8).

    Attributes:
        operations: n operations, in ascending order.
        scores: (n,) mean path score with the operation inserted.
        flops: (n,) mean FLOPs of the operation's stage with the operation inserted; of all stages for a named choice.
    """

    operations: tuple[Operation | Option, ...]
    scores: np.ndarray
    flops: np.ndarray

    def to_json(self) -> dict:
        """Return lists of plain values."""
        return {
            "operations": [*map(operation_list, self.operations)],
            "scores": np.asarray(self.scores, float).tolist(),
            "flops": np.asarray(self.flops, float).tolist(),
        }


def operation_scores(
    space: SearchSpace,
    scorer: Scorer,
    stage_flops: Callable[[PathBatch], np.ndarray],
    n: int,
    rng: np.random.Generator,
    stem_depth: int | None = None,
    map_operations: Map = map,
) -> OperationScores:
    """Insert each operation into the same `n` uniformly sampled paths, and average score and FLOPs over them (section 3.2).

    The operation's stage gets its D and W, and its E in all active layers.

    Args:
        space: the search space.
        scorer: function of paths that returns (n,) path scores.
        stage_flops: function of paths that returns (n, stages) FLOPs.
        n: number of paths (not given in the paper).
        rng: random generator.
        stem_depth: depth of the stem in all paths; None: as sampled.
        map_operations: distributes the operations among processes.
    """
    paths, operations = space.sample_many(rng, n), tuple(sorted(space.operations))
    if stem_depth is not None:
        depths = paths.depths.copy()
        depths[:, 0] = stem_depth
        paths = PathBatch.canonical(depths, paths.widths, paths.ratios, paths.geometry, paths.named)

    def means(operation: Operation | Option) -> tuple[float, float]:
        changed = insert(paths, operation)
        found = stage_flops(changed)
        flops = found.sum(axis=1) if isinstance(operation, Option) else found[:, operation.stage]
        return np.mean(scorer(changed)), np.mean(flops)

    scores, flops = np.array(list(map_operations(means, operations))).T
    return OperationScores(operations, scores, flops)


def insert(paths: PathBatch, operation: Operation | Option) -> PathBatch:
    """Return the paths with `operation` in its stage: its D and W, and its E in all active layers; or with a named choice."""
    geometry = paths.geometry
    if isinstance(operation, Option):
        column = [name for name, _ in geometry.named].index(operation.name)
        named = paths.named.copy()
        named[:, column] = geometry.named[column].values.index(operation.value)
        return PathBatch(paths.depths, paths.widths, paths.ratios, geometry, named)
    stage = operation.stage
    depths, widths, ratios = paths.depths.copy(), paths.widths.copy(), paths.ratios.copy()
    depths[:, stage + 1] = operation.depth
    widths[:, stage + 2] = geometry.widths.index(operation.width)
    ratios[:, layer_stages(geometry) == stage] = geometry.ratios.index(operation.ratio)
    return PathBatch.canonical(depths, widths, ratios, geometry, paths.named)


@dataclass(frozen=True)
class PrunedOperations:
    """Result of operation pruning.

    Attributes:
        removed: the pruned operations.
        spared: operations that the strategy selected but a rule kept, each with the rule.
    """

    removed: frozenset[Operation | Option]
    spared: tuple[tuple[Operation | Option, str], ...] = ()

    def to_json(self) -> dict:
        """Return lists of plain values, in ascending order."""
        return {
            "removed": [*map(operation_list, sorted(self.removed))],
            "spared": [str(operation) + ": " + rule for operation, rule in self.spared],
        }


def prune_operations(
    scores: OperationScores,
    strategy: str,
    largest: Path,
    rng: np.random.Generator,
    r_op: float = 0.3,
    r_op1: float = 0.1,
    r_op2: float = 0.3,
    buckets: int = 5,
) -> PrunedOperations:
    """Choose the operations to prune (Alg. 1 line 6; the three strategies of section 3.2).

    Operations have their own FLOPs buckets: `buckets` intervals of equal width over their FLOPs. The values of named choices,
    which belong to no stage, are one more bucket. The paper is silent on exceptions; we always keep the operations of the
    largest path, since it is the fine-tuned fullnet, so every stage keeps at least one.

    Args:
        scores: score and FLOPs of all operations.
        strategy: "flops" prunes a random share `r_op` of each bucket; "flops_score_bucket" the worst `r_op` of each bucket;
            "flops_score_all" the worst `r_op1` of all, then the worst `r_op2` of the rest of each bucket; "none" nothing.
        largest: the largest path of the space.
        rng: random generator.
        r_op, r_op1, r_op2: shares of operations, in [0, 1).
        buckets: number of FLOPs buckets.

    Raises:
        UserError: a ratio is not in [0, 1), or the strategy is unknown.
    """
    for name, ratio in (("r_op", r_op), ("r_op1", r_op1), ("r_op2", r_op2)):
        if not 0 <= ratio < 1:
            raise UserError(f"hparams.operation_pruning.{name} must be in [0, 1), got {ratio}")
    count = len(scores.operations)
    named = np.array([isinstance(operation, Option) for operation in scores.operations], bool)
    flops = scores.flops[~named]
    edges = np.linspace(flops.min(), flops.max(), buckets + 1)
    bucket = np.where(named, buckets, np.searchsorted(edges[1:-1], scores.flops, side="right"))
    groups = buckets + bool(named.any())
    gone = np.zeros(count, bool)

    def drop_worst(members: np.ndarray, ratio: float, order: np.ndarray) -> None:
        gone[members[np.argsort(order[members], kind="stable")][: int(round(ratio * len(members)))]] = True

    everywhere = np.arange(count)
    if strategy == "flops_score_all":
        drop_worst(everywhere, r_op1, scores.scores)
        for number in range(groups):
            drop_worst(everywhere[(bucket == number) & ~gone], r_op2, scores.scores)
    elif strategy in ("flops", "flops_score_bucket"):
        order = scores.scores if strategy == "flops_score_bucket" else rng.random(count)
        for number in range(groups):
            drop_worst(everywhere[bucket == number], r_op, order)
    elif strategy != "none":
        raise UserError(
            f"hparams.operation_pruning.strategy must be flops, flops_score_bucket, flops_score_all or none, got {strategy!r}"
        )
    kept = operations_of(largest)
    removed = {operation for operation, out in zip(scores.operations, gone) if out}
    spared = tuple((operation, "the largest path stays") for operation in sorted(removed & kept))
    return PrunedOperations(frozenset(removed - kept), spared)


def operations_of(path: Path) -> frozenset[Operation | Option]:
    """Return the operations of which a path consists."""
    return frozenset(Option(name, value) for name, value in path.named) | frozenset(
        Operation(stage, depth, width, ratio)
        for stage, (depth, width, ratios) in enumerate(zip(path.stage_depths, path.stage_widths, path.expand_ratios))
        for ratio in ratios
    )


# --- Paths ------------------------------------------------------------------------------------------------------------


def path_thresholds(
    scorer: Scorer,
    space: SearchSpace,
    buckets: Buckets,
    r_path: float,
    n: int,
    rng: np.random.Generator,
    map_buckets: Map = map,
) -> np.ndarray:
    """Compute for each FLOPs bucket the `r_path`-quantile of the scores of `n` paths sampled from it (Alg. 1 line 7).

    Args:
        scorer: function of paths that returns (n,) path scores.
        space: space of the paths.
        buckets: the FLOPs buckets.
        r_path: path pruning ratio, in [0, 1).
        n: number of paths per bucket.
        rng: random generator.
        map_buckets: distributes the buckets among processes.

    Returns:
        (buckets,) thresholds; -inf for a bucket that is empty in the space, and for all buckets if `r_path` is 0, since the
        lowest of `n` scores would still reject some other path.

    Raises:
        UserError: `r_path` is not in [0, 1).
    """
    if not 0 <= r_path < 1:
        raise UserError(f"hparams.r_path must be in [0, 1), got {r_path}")
    thresholds = np.full(buckets.n, -np.inf)
    if r_path == 0:
        return thresholds
    sampled = {}
    for bucket in range(buckets.n):
        if buckets.count(bucket, space):
            sampled[bucket] = buckets.sample(bucket, n, rng, space)
        else:
            logger.info("FLOPs bucket %d is empty in the space %s", bucket + 1, space.name)
    found = map_buckets(lambda bucket: np.quantile(scorer(sampled[bucket]), r_path), sampled)
    thresholds[list(sampled)] = list(found)
    return thresholds


class UniformPaths:
    """Sampler of uniform paths of a space without path pruning (Alg. 1 line 11).

    Attributes:
        space: the space.
        rng: random generator.
        sampled, rejected: numbers of paths sampled and rejected so far.
    """

    def __init__(self, space: SearchSpace, rng: np.random.Generator):
        self.space, self.rng = space, rng
        self.sampled = self.rejected = 0
        self._ahead: list[Path] = []
        self._kept: list[bool] = []
        self._rng_before = rng.bit_generator.state  # before the paths in _ahead were sampled

    @property
    def rejected_share(self) -> float:
        """Share of the sampled paths that were rejected."""
        return self.rejected / self.sampled if self.sampled else 0.0

    def keep(self, paths: PathBatch) -> np.ndarray:
        """Return which of the sampled paths training uses, (n,) bool."""
        return np.ones(len(paths), bool)

    def next(self) -> Path:
        """Sample paths until one is kept, and return it (Alg. 1 lines 11 to 14).

        Paths are sampled and filtered `SAMPLED_AHEAD` at a time, so that the path filter does not slow down the training step;
        the distribution is the same as for one at a time.

        Raises:
            UserError: `MAX_REJECTED` consecutive paths were rejected.
        """
        for _ in range(MAX_REJECTED):
            if not self._ahead:
                self._sample_ahead()
            path, kept = self._ahead.pop(0), self._kept.pop(0)
            self.sampled += 1
            if kept:
                return path
            self.rejected += 1
        raise UserError(
            f"{MAX_REJECTED} consecutive paths of the space {self.space.name} were rejected: decrease hparams.r_path"
        )

    def _sample_ahead(self) -> None:
        self._rng_before = self.rng.bit_generator.state
        paths = self.space.sample_many(self.rng, SAMPLED_AHEAD)
        self._ahead, self._kept = list(paths), self.keep(paths).tolist()

    def state(self) -> dict:
        """Return the state of the sampler as JSON values, from which `restore` resumes with the next path."""
        rng = self._rng_before if self._ahead else self.rng.bit_generator.state
        return {"rng": rng, "left": len(self._ahead), "draws": self.sampled, "rejected": self.rejected}

    def restore(self, state: dict) -> None:
        """Restore the state that `state` returned."""
        self.sampled = state["draws"]
        self.rejected = state["rejected"] if "rejected" in state else state["refused"]  # the older name
        self.rng.bit_generator.state = self._rng_before = state["rng"]
        if state["left"]:
            self._sample_ahead()
            start = SAMPLED_AHEAD - state["left"]
            del self._ahead[:start], self._kept[:start]


class KeptPaths(UniformPaths):
    """Sampler of paths whose score reaches the threshold of their FLOPs bucket (Alg. 1 lines 11 to 14).

    Args:
        space: the space.
        scorer: function of paths that returns (n,) path scores.
        thresholds: (buckets,) smallest kept score of each bucket.
        bucket_of: function of paths that returns their buckets (n,).
        rng: random generator.
    """

    def __init__(
        self,
        space: SearchSpace,
        scorer: Scorer,
        thresholds: np.ndarray,
        bucket_of: Callable[[PathBatch], np.ndarray],
        rng: np.random.Generator,
    ):
        super().__init__(space, rng)
        self.scorer, self.thresholds, self.bucket_of = scorer, thresholds, bucket_of

    def keep(self, paths: PathBatch) -> np.ndarray:
        """Return which paths have a score not below the threshold of their bucket, (n,) bool."""
        return self.scorer(paths) >= self.thresholds[self.bucket_of(paths)]


class HashedPaths(UniformPaths):
    """Sampler for the paper's "Prune (Uniform)" (Figure A2), which rejects a random but fixed share `r_path` of all paths.

    A path is kept or rejected by a hash of its canonical form and a seed.

    Args:
        space: the space.
        r_path: share of rejected paths, in [0, 1).
        seed: seed of the hash, an integer in [0, 2^64).
        rng: random generator.
    """

    def __init__(self, space: SearchSpace, r_path: float, seed: int, rng: np.random.Generator):
        super().__init__(space, rng)
        self.r_path, self.seed = r_path, seed

    def keep(self, paths: PathBatch) -> np.ndarray:
        """Return which paths have a hash, as a number in [0, 1), not below `r_path`, (n,) bool."""
        salt = self.seed.to_bytes(8, "little")
        digests = [hashlib.blake2b(key.tobytes(), digest_size=8, salt=salt).digest() for key in paths.keys]
        return np.array([int.from_bytes(digest, "little") / 2**64 for digest in digests]) >= self.r_path
