"""Independent random generators for the purposes of a run, from its seed and a name."""

from __future__ import annotations

import zlib

import numpy as np


def rng_for(seed: int, name: str) -> np.random.Generator:
    """Return the random generator for the purpose `name` in a run with this seed."""
    return np.random.default_rng(seed_for(seed, name))


def seed_for(seed: int, name: str) -> tuple[int, int]:
    """Return the seed of the random generator for the purpose `name` in a run with this seed."""
    return seed, zlib.crc32(name.encode())
