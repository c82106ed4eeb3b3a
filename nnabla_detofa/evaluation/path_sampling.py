"""Sampling of the paths to evaluate, the same number from each FLOPs bucket (Alg. 1 line 4)."""

from __future__ import annotations

from collections.abc import Callable, Container

import numpy as np

from ..common.seeds import rng_for
from ..space.counting import Buckets
from ..space.paths import Path, PathBatch
from ..space.search_space import SearchSpace

CHUNK = 64
"""Paths sampled at a time by `distinct_in_buckets`. Constant, so that a larger request starts with the same paths."""
CHUNKS = 200
"""Maximum number of chunks that `distinct_in_buckets` samples from one bucket."""


def sample_in_buckets(
    buckets: Buckets, per_bucket: int, rng: np.random.Generator, space: SearchSpace, note: Callable[[str], None]
) -> PathBatch:
    """Sample paths uniformly and independently from each FLOPs bucket that is not empty (Alg. 1 line 4).

    Args:
        buckets: FLOPs buckets.
        per_bucket: paths per bucket.
        rng: random generator.
        space: search space to sample from.
        note: called with a message for each empty bucket.
    """
    found = [buckets.sample(bucket, per_bucket, rng, space) for bucket in _filled(buckets, space, note)]
    return PathBatch.concatenate(found)


def distinct_in_buckets(
    buckets: Buckets,
    per_bucket: int,
    seed: int,
    name: str,
    space: SearchSpace,
    exclude: Container[Path],
    note: Callable[[str], None],
) -> PathBatch:
    """Sample distinct paths from each FLOPs bucket that is not empty.

    A larger `per_bucket` adds paths to those of a smaller one. A bucket yields fewer paths if `CHUNKS` chunks of samples
    do not contain enough distinct ones.

    Args:
        buckets, per_bucket, space: see `sample_in_buckets`.
        seed, name: determine the random generator, see `rng_for`.
        exclude: paths to leave out.
        note: called with a message for each bucket that is empty or yields fewer paths.
    """
    found: list[Path] = []
    for bucket in _filled(buckets, space, note):
        here: dict[Path, None] = {}
        rng = rng_for(seed, f"{name} {bucket}")
        for _ in range(CHUNKS):
            drawn = buckets.sample(bucket, CHUNK, rng, space)
            here |= dict.fromkeys(path for path in drawn if path not in exclude)
            if len(here) >= per_bucket:
                break
        else:
            note(f"FLOPs bucket {bucket + 1} of the space {space.name} gave {len(here)} of {per_bucket} paths")
        found += list(here)[:per_bucket]
    return PathBatch.from_paths(found, space.geometry)


def _filled(buckets: Buckets, space: SearchSpace, note: Callable[[str], None]) -> list[int]:
    """Return the buckets that contain a path of the space; report the others to `note`."""
    empty = [bucket for bucket in range(buckets.n) if not buckets.count(bucket, space)]
    for bucket in empty:
        note(f"FLOPs bucket {bucket + 1} is empty in the space {space.name}")
    return [bucket for bucket in range(buckets.n) if bucket not in empty]
