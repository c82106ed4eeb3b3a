"""Search space pruning with the path filter: operations (Alg. 1 line 6), path thresholds (line 7), and the samplers of
paths that training draws from (lines 11 to 14)."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..common.errors import UserError
from .counting import Buckets
from .paths import Path, PathBatch, layer_stages
from .search_space import Operation, SearchSpace

logger = logging.getLogger(__name__)

Scorer = Callable[[PathBatch], np.ndarray]
DRAWN_AHEAD = 256  # paths drawn and scored at once
MOST_REFUSED = 10_000  # refusals in a row after which a sampler gives up


# --- Operations -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class OperationScores:
    """What each operation of a space is worth (section 3.2, Figure 8).

    Attributes:
        operations: n operations, in ascending order.
        scores: (n,) mean path score with the operation inserted.
        flops: (n,) mean FLOPs of its stage under it.
    """

    operations: tuple[Operation, ...]
    scores: np.ndarray
    flops: np.ndarray

    def to_json(self) -> dict:
        """Lists of plain values."""
        return {
            "operations": [[o.stage, o.depth, o.width, o.ratio] for o in self.operations],
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
) -> OperationScores:
    """Put each operation into the same `n` uniformly sampled paths, and average score and FLOPs over them.

    The operation's stage gets its D and W, and its E in all active layers. (n is not given in the paper.)

    Args:
        stem_depth: of all paths; None: as it was sampled.
    """
    paths, operations = space.sample_many(rng, n), tuple(sorted(space.operations))
    if stem_depth is not None:
        depths = paths.depths.copy()
        depths[:, 0] = stem_depth
        paths = PathBatch.canonical(depths, paths.widths, paths.ratios, paths.geometry)
    results = []
    for operation in operations:
        changed = insert(paths, operation)
        results.append((np.mean(scorer(changed)), np.mean(stage_flops(changed)[:, operation.stage])))
    scores, flops = np.array(results).T
    return OperationScores(operations, scores, flops)


def insert(paths: PathBatch, operation: Operation) -> PathBatch:
    """The paths with `operation` in its stage."""
    geometry, stage = paths.geometry, operation.stage
    depths, widths, ratios = paths.depths.copy(), paths.widths.copy(), paths.ratios.copy()
    depths[:, stage + 1] = operation.depth
    widths[:, stage + 2] = geometry.widths.index(operation.width)
    ratios[:, layer_stages(geometry) == stage] = geometry.ratios.index(operation.ratio)
    return PathBatch.canonical(depths, widths, ratios, geometry)


@dataclass(frozen=True)
class PrunedOperations:
    """Which operations go.

    Attributes:
        removed: these.
        spared: operations that the strategy would have removed and a rule kept, with the rule.
    """

    removed: frozenset[Operation]
    spared: tuple[tuple[Operation, str], ...] = ()

    def to_json(self) -> dict:
        """Lists of plain values, in ascending order."""
        return {
            "removed": [[o.stage, o.depth, o.width, o.ratio] for o in sorted(self.removed)],
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

    Operations have FLOPs buckets of their own: `buckets` intervals of equal width over their FLOPs. Two rules stand above the
    strategy (paper is silent): the operations of the largest path stay, since that is the fine-tuned fullnet; so every
    stage keeps at least one.

    Args:
        strategy: "flops" drops `r_op` of each bucket at random; "flops_score_bucket" the worst `r_op` of each bucket;
            "flops_score_all" the worst `r_op1` of all, then the worst `r_op2` of what is left of each bucket; "none".
        largest: the largest path of the space.

    Raises:
        UserError: a ratio is not in [0, 1), or the strategy is unknown.
    """
    for name, ratio in (("r_op", r_op), ("r_op1", r_op1), ("r_op2", r_op2)):
        if not 0 <= ratio < 1:
            raise UserError(f"hparams.operation_pruning.{name} must be in [0, 1), got {ratio}")
    count = len(scores.operations)
    edges = np.linspace(scores.flops.min(), scores.flops.max(), buckets + 1)
    bucket = np.searchsorted(edges[1:-1], scores.flops, side="right")
    gone = np.zeros(count, bool)

    def drop_worst(members: np.ndarray, ratio: float, order: np.ndarray) -> None:
        gone[members[np.argsort(order[members], kind="stable")][: int(round(ratio * len(members)))]] = True

    everywhere = np.arange(count)
    if strategy == "flops_score_all":
        drop_worst(everywhere, r_op1, scores.scores)
        for number in range(buckets):
            drop_worst(everywhere[(bucket == number) & ~gone], r_op2, scores.scores)
    elif strategy in ("flops", "flops_score_bucket"):
        order = scores.scores if strategy == "flops_score_bucket" else rng.random(count)
        for number in range(buckets):
            drop_worst(everywhere[bucket == number], r_op, order)
    elif strategy != "none":
        raise UserError(
            f"hparams.operation_pruning.strategy must be flops, flops_score_bucket, flops_score_all or none, got {strategy!r}"
        )
    kept = operations_of(largest)
    removed = {operation for operation, out in zip(scores.operations, gone) if out}
    spared = tuple((operation, "the largest path stays") for operation in sorted(removed & kept))
    return PrunedOperations(frozenset(removed - kept), spared)


def operations_of(path: Path) -> frozenset[Operation]:
    """The operations that a path is made of."""
    return frozenset(
        Operation(stage, depth, width, ratio)
        for stage, (depth, width, ratios) in enumerate(zip(path.stage_depths, path.stage_widths, path.expand_ratios))
        for ratio in ratios
    )


# --- Paths ------------------------------------------------------------------------------------------------------------


def path_thresholds(
    scorer: Scorer, space: SearchSpace, buckets: Buckets, r_path: float, n: int, rng: np.random.Generator
) -> np.ndarray:
    """For each FLOPs bucket the `r_path`-quantile of the scores of `n` paths of `space` in it (Alg. 1 line 7).

    Returns:
        (buckets,) thresholds; -inf for a bucket that is empty in the space, and everywhere if `r_path` is 0: the least of
        `n` scores would still refuse some other path.

    Raises:
        UserError: `r_path` is not in [0, 1).
    """
    if not 0 <= r_path < 1:
        raise UserError(f"hparams.r_path must be in [0, 1), got {r_path}")
    thresholds = np.full(buckets.n, -np.inf)
    if r_path == 0:
        return thresholds
    for bucket in range(buckets.n):
        if buckets.count(bucket, space):
            thresholds[bucket] = np.quantile(scorer(buckets.sample(bucket, n, rng, space)), r_path)
        else:
            logger.info("FLOPs bucket %d is empty in the space %s", bucket + 1, space.name)
    return thresholds


class UniformPaths:
    """Draws every path uniformly from a space: a ~ U(A) without any pruning of paths.

    Attributes:
        draws, refused: paths drawn and refused so far.
    """

    def __init__(self, space: SearchSpace, rng: np.random.Generator):
        self.space, self.rng = space, rng
        self.draws = self.refused = 0
        self._ahead: list[Path] = []
        self._kept: list[bool] = []
        self._rng_before = rng.bit_generator.state  # of the paths drawn ahead

    @property
    def refused_share(self) -> float:
        """Share of the draws that were refused."""
        return self.refused / self.draws if self.draws else 0.0

    def keep(self, paths: PathBatch) -> np.ndarray:
        """(n,) bool: which of the drawn paths training may use."""
        return np.ones(len(paths), bool)

    def next(self) -> Path:
        """The next path that is kept (Alg. 1 lines 11 to 14).

        Paths are drawn and judged `DRAWN_AHEAD` at a time, so that the filter does not slow the training step; the
        sequence is what drawing one by one gives.

        Raises:
            UserError: too many draws in a row were refused.
        """
        for _ in range(MOST_REFUSED):
            if not self._ahead:
                self._draw_ahead()
            path, kept = self._ahead.pop(0), self._kept.pop(0)
            self.draws += 1
            if kept:
                return path
            self.refused += 1
        raise UserError(
            f"{MOST_REFUSED} paths in a row of the space {self.space.name} were refused: a hparams.r_path below "
            "the present one leaves more to train"
        )

    def _draw_ahead(self) -> None:
        self._rng_before = self.rng.bit_generator.state
        paths = self.space.sample_many(self.rng, DRAWN_AHEAD)
        self._ahead, self._kept = list(paths), self.keep(paths).tolist()

    def state(self) -> dict:
        """Everything `restore` needs to go on with the very next path, as JSON."""
        rng = self._rng_before if self._ahead else self.rng.bit_generator.state
        return {"rng": rng, "left": len(self._ahead), "draws": self.draws, "refused": self.refused}

    def restore(self, state: dict) -> None:
        """Go on where `state` was taken."""
        self.draws, self.refused = state["draws"], state["refused"]
        self.rng.bit_generator.state = self._rng_before = state["rng"]
        if state["left"]:
            self._draw_ahead()
            start = DRAWN_AHEAD - state["left"]
            del self._ahead[:start], self._kept[:start]


class KeptPaths(UniformPaths):
    """Draws until the path's score reaches the threshold of its FLOPs bucket (Alg. 1 lines 11 to 14).

    Args:
        scorer: path scores. thresholds: of each bucket. bucket_of: paths -> their buckets.
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
        """Paths whose score is not below their bucket's threshold."""
        return self.scorer(paths) >= self.thresholds[self.bucket_of(paths)]


class HashedPaths(UniformPaths):
    """The paper's "Prune (Uniform)" (Figure A2): drops a share `r_path` of all paths at random, but always the same.

    A path is kept or dropped by a hash of its canonical form and a seed.
    """

    def __init__(self, space: SearchSpace, r_path: float, seed: int, rng: np.random.Generator):
        super().__init__(space, rng)
        self.r_path, self.seed = r_path, seed

    def keep(self, paths: PathBatch) -> np.ndarray:
        """Paths whose hash, as a number in [0, 1), is not below `r_path`."""
        salt = self.seed.to_bytes(8, "little")
        digests = [hashlib.blake2b(key.tobytes(), digest_size=8, salt=salt).digest() for key in paths.keys]
        return np.array([int.from_bytes(digest, "little") / 2**64 for digest in digests]) >= self.r_path
