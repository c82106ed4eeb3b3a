"""Paths as values: `Path` is one path, `PathBatch` holds many paths as arrays.

The expand ratio of an inactive layer does not change the network, so neither class stores it: both are canonical.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral
from typing import Any, overload

import numpy as np

from ..common.checked import listed, nearest
from ..common.errors import UserError
from ..common.reading import shown
from .geometry import OFA_RESNET50, RESOLUTION, Geometry, equal_choice


@dataclass(frozen=True)
class Path:
    """One path of the supernet. Equal paths have equal networks.

    Attributes:
        stem_depth: smallest or largest D; the stem has its residual convolution only at the largest.
        stem_widths: W of the stem's first convolutions and of its output.
        stage_depths: D of each stage.
        stage_widths: W of each stage.
        expand_ratios: for each stage, E (see `Geometry.ratios`) of each active layer: base depth + D values.
        named: name and value of each choice of `Geometry.named`, in the same order.
    """

    stem_depth: int
    stem_widths: tuple[float, float]
    stage_depths: tuple[int, ...]
    stage_widths: tuple[float, ...]
    expand_ratios: tuple[tuple[float, ...], ...]
    named: tuple[tuple[str, Any], ...] = ()

    @property
    def resolution(self) -> int | None:
        """Side of the path's square input in pixels; None if paths do not choose it: then it is that of the dataset."""
        return dict(self.named).get(RESOLUTION)

    @classmethod
    def from_ofa(cls, arch: Mapping[str, Sequence], geometry: Geometry = OFA_RESNET50) -> Path:
        """Convert a path from OFA's notation.

        Args:
            arch: "d": D of the stem and of each stage; "e": E of every layer, active or not; "w": indices into
                `geometry.widths`, two of the stem and one of each stage; "named": name -> value of the named choices, if the
                geometry has any.
            geometry: geometry of the supernet.

        Raises:
            UserError: a key is missing, or a list has the wrong length or holds a value that is not a choice of `geometry`.
        """
        stages, per_stage = geometry.stages, geometry.layers_per_stage
        lengths = {"d": stages + 1, "e": geometry.layers, "w": stages + 2}
        if not isinstance(arch, Mapping):
            raise UserError(f"a path in OFA's notation must be a mapping with the keys d, e and w, got {shown(arch)}")
        for key, length in lengths.items():
            if key not in arch:
                raise UserError(f"a path in OFA's notation has the keys d, e and w; {key} is missing")
            values = arch[key]
            if isinstance(values, (str, bytes)) or not isinstance(values, (Sequence, np.ndarray)) or len(values) != length:
                raise UserError(f"{key} of a path must be a list of {length} values, got {shown(values)}")
        ratios = [geometry.choice(value) for value in arch["e"]]
        allowed = {"d": geometry.depths, "e": geometry.ratios, "w": tuple(range(len(geometry.widths)))}
        hint = {"d": "", "e": "", "w": f"; these are indices of the widths {listed(geometry.widths, 'and')}"}
        for key, choices in allowed.items():
            for value in ratios if key == "e" else arch[key]:
                width = key == "w" and not isinstance(value, Integral)  # 1.0 equals an index, but means the width
                if isinstance(value, bool) or width or value not in choices:
                    raise UserError(f"{key} of a path must hold only {listed(choices, 'or')}, got {shown(value)}{hint[key]}")
        if arch["d"][0] not in geometry.stem_depths:
            raise UserError(f"the stem's depth must be one of {geometry.stem_depths}, got {arch['d'][0]!r}")
        named = _named(arch.get("named", {}), geometry)
        first = np.cumsum((0, *per_stage[:-1]))
        widths = [geometry.widths[int(index)] for index in arch["w"]]
        depths = [int(depth) for depth in arch["d"]]
        return cls(
            stem_depth=depths[0],
            stem_widths=(widths[0], widths[1]),
            stage_depths=tuple(depths[1:]),
            stage_widths=tuple(widths[2:]),
            expand_ratios=tuple(
                tuple(ratios[start : start + base + depth])
                for start, base, depth in zip(first, geometry.base_depths, depths[1:])
            ),
            named=named,
        )

    def to_ofa(self, geometry: Geometry = OFA_RESNET50) -> dict[str, Any]:
        """Convert the path to OFA's notation (see `from_ofa`); inactive layers get the largest expand ratio."""
        ratios: list[float] = []
        for stage, layers in zip(self.expand_ratios, geometry.layers_per_stage):
            ratios += [*stage, *[max(geometry.ratios)] * (layers - len(stage))]
        widths = (*self.stem_widths, *self.stage_widths)
        return {
            "d": [self.stem_depth, *self.stage_depths],
            "e": ratios,
            "w": [geometry.widths.index(width) for width in widths],
            **({"named": dict(self.named)} if self.named else {}),
        }


def _named(values: Any, geometry: Geometry) -> tuple[tuple[str, Any], ...]:
    """Return the named choices of a path from name -> value; see `Path.from_ofa`."""
    names = [name for name, _ in geometry.named]
    if not isinstance(values, Mapping):
        raise UserError(f"named of a path must be an object of names and values, got {shown(values)}")
    for name in values:
        if name not in names:
            known = (
                f"must hold only {listed(names, 'and')}" if names else "must be left out, since its space has no named choices"
            )
            raise UserError(f"named of a path {known}, got {shown(name)}{nearest(str(name), names)}")
    found = []
    for name, allowed in geometry.named:
        value = equal_choice(values.get(name), allowed)
        if isinstance(value, (list, dict)) or value not in allowed:
            got = shown(value) if name in values else "no value"
            raise UserError(f"the choice {name} of a path must be {listed(allowed, 'or')}, got {got}")
        found.append((name, value))
    return tuple(found)


@dataclass(frozen=True, eq=False)
class PathBatch(Sequence[Path]):
    """Many paths as arrays, for vectorized operations on thousands of paths.

    Attributes:
        depths: (n, 1 + stages) int8, D of the stem and of each stage.
        widths: (n, 2 + stages) int8, indices into `geometry.widths`: two of the stem, then one of each stage.
        ratios: (n, layers) int8, indices into `geometry.ratios`; -1 for inactive layers.
        geometry: geometry of the supernet, which defines the indices.
        named: (n, named choices) int8, indices into the values of each; by default the largest ones.
    """

    depths: np.ndarray
    widths: np.ndarray
    ratios: np.ndarray
    geometry: Geometry = OFA_RESNET50
    named: np.ndarray = field(default=None)  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        if self.named is None:
            largest = [len(values) - 1 for _, values in self.geometry.named]
            object.__setattr__(self, "named", np.tile(np.array(largest, np.int8), (len(self.depths), 1)))

    @classmethod
    def from_paths(cls, paths: Iterable[Path], geometry: Geometry = OFA_RESNET50) -> PathBatch:
        """Create a batch of paths, in the same order. A `PathBatch` is returned unchanged."""
        if isinstance(paths, PathBatch):
            return paths
        archs = [path.to_ofa(geometry) for path in paths]
        ratio_index = {ratio: index for index, ratio in enumerate(geometry.ratios)}
        depths = np.array([arch["d"] for arch in archs], np.int8).reshape(len(archs), geometry.stages + 1)
        widths = np.array([arch["w"] for arch in archs], np.int8).reshape(len(archs), geometry.stages + 2)
        ratios = np.array([[ratio_index[e] for e in arch["e"]] for arch in archs], np.int8)
        named = np.array([[values.index(arch["named"][name]) for name, values in geometry.named] for arch in archs], np.int8)
        ratios, named = ratios.reshape(len(archs), geometry.layers), named.reshape(len(archs), len(geometry.named))
        return cls.canonical(depths, widths, ratios, geometry, named)

    @classmethod
    def canonical(
        cls,
        depths: np.ndarray,
        widths: np.ndarray,
        ratios: np.ndarray,
        geometry: Geometry,
        named: np.ndarray | None = None,
    ) -> PathBatch:
        """Create a batch from arrays as in the class, with the ratios of inactive layers replaced by -1."""
        active = layer_positions(geometry) < layer_counts(depths, geometry)
        return cls(
            depths.astype(np.int8),
            widths.astype(np.int8),
            np.where(active, ratios, -1).astype(np.int8),
            geometry,
            None if named is None else named.astype(np.int8),  # type: ignore[arg-type]
        )

    @classmethod
    def concatenate(cls, batches: Sequence[PathBatch]) -> PathBatch:
        """Concatenate batches of one geometry."""
        return cls(
            np.concatenate([batch.depths for batch in batches]),
            np.concatenate([batch.widths for batch in batches]),
            np.concatenate([batch.ratios for batch in batches]),
            batches[0].geometry,
            np.concatenate([batch.named for batch in batches]),
        )

    def __len__(self) -> int:
        return len(self.depths)

    @overload
    def __getitem__(self, index: int | np.integer) -> Path: ...
    @overload
    def __getitem__(self, index: slice | np.ndarray | list[int]) -> PathBatch: ...
    def __getitem__(self, index: int | np.integer | slice | np.ndarray | list[int]) -> Path | PathBatch:
        """Return a `Path` for an integer, or a `PathBatch` for a slice, a mask or an array of indices."""
        if not isinstance(index, (int, np.integer)):
            return PathBatch(self.depths[index], self.widths[index], self.ratios[index], self.geometry, self.named[index])
        geometry = self.geometry
        depths = [int(depth) for depth in self.depths[index]]
        widths = [geometry.widths[i] for i in self.widths[index]]
        stages = np.split(self.ratios[index], np.cumsum(geometry.layers_per_stage)[:-1])
        return Path(
            stem_depth=depths[0],
            stem_widths=(widths[0], widths[1]),
            stage_depths=tuple(depths[1:]),
            stage_widths=tuple(widths[2:]),
            expand_ratios=tuple(tuple(geometry.ratios[i] for i in stage if i >= 0) for stage in stages),
            named=tuple((name, values[i]) for (name, values), i in zip(geometry.named, self.named[index])),
        )

    def __iter__(self) -> Iterator[Path]:
        return (self[index] for index in range(len(self)))

    @cached_property
    def keys(self) -> np.ndarray:
        """(n,) opaque, sortable keys; two paths have equal keys if and only if they are equal."""
        rows = np.ascontiguousarray(np.concatenate([self.depths, self.widths, self.ratios, self.named], axis=1))
        return rows.view(np.dtype((np.void, rows.shape[1]))).ravel()


def layer_stages(geometry: Geometry) -> np.ndarray:
    """Return the stage of each layer, 0-based, (layers,)."""
    return np.repeat(np.arange(geometry.stages), geometry.layers_per_stage)


def layer_positions(geometry: Geometry) -> np.ndarray:
    """Return the position of each layer in its stage, 0-based, (layers,)."""
    return np.concatenate([np.arange(layers) for layers in geometry.layers_per_stage])


def layer_counts(depths: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Return for each layer the number of active layers in its stage, (n, layers), from depths (n, 1 + stages)."""
    counts = depths[:, 1:] + np.asarray(geometry.base_depths)
    return counts[:, layer_stages(geometry)]
