"""The paper's search space A and its subspaces: CompOFA*, the stages of progressive shrinking, pruned spaces.

A space defines which operations (D, W, E) each stage may use, and the values of its named choices, if it has any. A path
chooses one (D, W) in each stage, one E in each layer, and one value of each named choice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ..common.errors import UserError
from .geometry import OFA_RESNET50, Choices, Geometry, choice_word
from .operations import Operation, Option, by_stage, from_stages, options
from .paths import Path, PathBatch


class _Tables(NamedTuple):
    """A space as arrays, for vectorized sampling. A row of the last three is one (stage, D, W), in C order.

    Attributes:
        pair_depths, pair_widths: (stages, most pairs) D, and index of W, of each stage's pairs (D, W).
        pair_counts: (stages,) number of pairs of each stage.
        allowed: (rows, ratios + 1) bool; the last column, selected by index -1, is False.
        ratio_choices: (rows, ratios) the allowed ratio indices first.
        ratio_counts: (rows,) number of allowed ratios.
    """

    pair_depths: np.ndarray
    pair_widths: np.ndarray
    pair_counts: np.ndarray
    allowed: np.ndarray
    ratio_choices: np.ndarray
    ratio_counts: np.ndarray


@dataclass(frozen=True)
class SearchSpace:
    """Set of paths, defined by the operations that each stage may use and the choices of the stem.

    A path of the space has, in each stage, a pair (D, W) with at least one allowed E, and in each active layer an E allowed
    with that pair. Uniform sampling chooses independently and uniformly: (D, W) among the stage's pairs, then E in each
    layer among those allowed with the pair, and the value of each named choice. In the space A, this is the independent
    uniform choice of D, W and every E.

    Attributes:
        name: name in tables and logs.
        operations: allowed operations of all stages, and the allowed values of the named choices.
        stem_depths: allowed depths of the stem.
        stem_widths: allowed widths of the stem's first convolutions and of its output.
        geometry: geometry of the supernet.

    Raises:
        UserError: an operation or a choice of the stem is not in the geometry, or a stage or a named choice has no operation.
    """

    name: str
    operations: frozenset[Operation | Option]
    stem_depths: tuple[int, ...] = OFA_RESNET50.stem_depths
    stem_widths: tuple[tuple[float, ...], tuple[float, ...]] = (OFA_RESNET50.widths, OFA_RESNET50.widths)
    geometry: Geometry = OFA_RESNET50

    def __post_init__(self) -> None:
        geometry = self.geometry
        for op in sorted(self.operations):
            if isinstance(op, Option):
                inside = op.value in dict(geometry.named).get(op.name, ())
            else:
                allowed = (range(geometry.stages), geometry.depths, geometry.widths, geometry.ratios)
                inside = all(value in choices for value, choices in zip(astuple(op), allowed))
            if not inside:
                raise UserError(f"the space {self.name} holds {op}, which is not a choice of its geometry")
        stems = (self.stem_depths, *self.stem_widths)
        choices = (geometry.stem_depths, geometry.widths, geometry.widths)
        if len(stems) != 3 or any(not _is_choice(chosen, every) for chosen, every in zip(stems, choices)):
            raise UserError(
                f"the stem of the space {self.name} must have some of the choices {choices}, in ascending order, got {stems}"
            )
        for stage, pairs in enumerate(self.pairs):
            if not pairs:
                raise UserError(f"the space {self.name} has no operation left in stage {stage + 1}; each needs one")
        for name, values in self.named:
            if not values:
                raise UserError(f"the space {self.name} has no value left of the choice {name}; each needs one")

    @cached_property
    def pairs(self) -> tuple[dict[tuple[int, float], tuple[float, ...]], ...]:
        """For each stage, the allowed ratios E of each pair (D, W), all in ascending order."""
        found: list[dict] = [{} for _ in range(self.geometry.stages)]
        for operation in sorted(operation for operation in self.operations if isinstance(operation, Operation)):
            found[operation.stage].setdefault((operation.depth, operation.width), []).append(operation.ratio)
        return tuple({pair: tuple(ratios) for pair, ratios in stage.items()} for stage in found)

    @cached_property
    def named(self) -> tuple[Choices, ...]:
        """The allowed values of each named choice, in the order of the geometry."""
        return tuple(
            Choices(name, tuple(value for value in values if Option(name, value) in self.operations))
            for name, values in self.geometry.named
        )

    @cached_property
    def named_indices(self) -> tuple[list[int], ...]:
        """The allowed values of each named choice as indices into those of the geometry."""
        every = self.geometry.named
        return tuple([all_.values.index(v) for v in some.values] for some, all_ in zip(self.named, every))

    @cached_property
    def largest(self) -> Path:
        """The largest path: in each stage the largest D, then W, then E. In the space A it is the fullnet a_max."""
        pairs = [max(stage) for stage in self.pairs]
        return Path(
            stem_depth=max(self.stem_depths),
            stem_widths=(max(self.stem_widths[0]), max(self.stem_widths[1])),
            stage_depths=tuple(depth for depth, _ in pairs),
            stage_widths=tuple(width for _, width in pairs),
            expand_ratios=tuple(
                (max(stage[pair]),) * (base + pair[0])
                for stage, pair, base in zip(self.pairs, pairs, self.geometry.base_depths)
            ),
            named=tuple((name, max(values)) for name, values in self.named),
        )

    def sample(self, rng: np.random.Generator) -> Path:
        """Sample one path uniformly (see the class)."""
        return self.sample_many(rng, 1)[0]

    def sample_many(self, rng: np.random.Generator, n: int) -> PathBatch:
        """Sample `n` paths independently and uniformly (see the class)."""
        geometry, tables = self.geometry, self._tables
        depths = np.empty((n, geometry.stages + 1), np.int8)
        widths = np.empty((n, geometry.stages + 2), np.int8)
        depths[:, 0] = rng.choice(np.array(self.stem_depths, np.int8), n)
        for place, allowed in enumerate(self.stem_widths):
            widths[:, place] = rng.choice(np.array([geometry.widths.index(w) for w in allowed], np.int8), n)
        chosen = rng.integers(tables.pair_counts, size=(n, geometry.stages))
        stages = np.arange(geometry.stages)
        depths[:, 1:] = tables.pair_depths[stages, chosen]
        widths[:, 2:] = tables.pair_widths[stages, chosen]
        ratios = self.sample_ratios(depths, widths, rng)
        return PathBatch.canonical(depths, widths, ratios, geometry, self.sample_named(n, rng))

    def sample_named(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Sample the named choices of `n` paths uniformly: (n, named choices) indices as in `PathBatch`."""
        sampled = [rng.choice(np.array(indices, np.int8), n) for indices in self.named_indices]
        return np.array(sampled, np.int8).reshape(len(sampled), n).T

    def sample_ratios(self, depths: np.ndarray, widths: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Sample the ratio of every layer uniformly among those allowed with its stage's (D, W).

        Args:
            depths, widths: as in `PathBatch`; every stage's (D, W) must be a pair of the space.
            rng: random generator.

        Returns:
            (n, layers) ratio indices, of inactive layers too.
        """
        codes = self._pair_codes(depths, widths)
        numbers = rng.random(codes.shape) * self._tables.ratio_counts[codes]
        return self._tables.ratio_choices[codes, numbers.astype(np.intp)]

    def allows_ratios(self, depths: np.ndarray, widths: np.ndarray, ratios: np.ndarray) -> np.ndarray:
        """Return whether each ratio index is allowed with its stage's (D, W), (n, layers) bool; -1 is never allowed."""
        return self._tables.allowed[self._pair_codes(depths, widths), ratios]

    def contains_many(self, batch: PathBatch) -> np.ndarray:
        """Return whether each path of the batch is in the space, (n,) bool."""
        inside = np.isin(batch.depths[:, 0], self.stem_depths)
        for place, stem_widths in enumerate(self.stem_widths):
            inside &= np.isin(batch.widths[:, place], [self.geometry.widths.index(w) for w in stem_widths])
        for column, indices in enumerate(self.named_indices):
            inside &= np.isin(batch.named[:, column], indices)
        allowed = self.allows_ratios(batch.depths, batch.widths, batch.ratios)
        return inside & (allowed | (batch.ratios < 0)).all(axis=1)

    def _pair_codes(self, depths: np.ndarray, widths: np.ndarray) -> np.ndarray:
        """Return the row of `_tables` for each layer's stage and (D, W), (n, layers)."""
        geometry = self.geometry
        stages = np.arange(geometry.stages)
        codes = (stages * (max(geometry.depths) + 1) + depths[:, 1:]) * len(geometry.widths) + widths[:, 2:]
        return np.repeat(codes, geometry.layers_per_stage, axis=1)

    @cached_property
    def _tables(self) -> _Tables:
        geometry = self.geometry
        most = max(len(pairs) for pairs in self.pairs)
        pair_depths = np.zeros((geometry.stages, most), np.int8)
        pair_widths = np.zeros((geometry.stages, most), np.int8)
        shape = (geometry.stages, max(geometry.depths) + 1, len(geometry.widths))
        allowed = np.zeros((*shape, len(geometry.ratios) + 1), bool)
        choices = np.zeros((*shape, len(geometry.ratios)), np.int8)
        for stage, pairs in enumerate(self.pairs):
            for row, ((depth, width), ratios) in enumerate(pairs.items()):
                place = geometry.widths.index(width)
                indices = [geometry.ratios.index(ratio) for ratio in ratios]
                pair_depths[stage, row], pair_widths[stage, row] = depth, place
                allowed[stage, depth, place, indices] = True
                choices[stage, depth, place, : len(indices)] = indices
        allowed = allowed.reshape(-1, allowed.shape[-1])
        return _Tables(
            pair_depths=pair_depths,
            pair_widths=pair_widths,
            pair_counts=np.array([len(pairs) for pairs in self.pairs]),
            allowed=allowed,
            ratio_choices=choices.reshape(-1, choices.shape[-1]),
            ratio_counts=allowed.sum(axis=1),
        )

    def size(self) -> int:
        """Return the exact number of canonical paths."""
        total = len(self.stem_depths) * len(self.stem_widths[0]) * len(self.stem_widths[1])
        for pairs, base in zip(self.pairs, self.geometry.base_depths):
            total *= sum(len(ratios) ** (base + depth) for (depth, _), ratios in pairs.items())
        return total * math.prod(len(values) for _, values in self.named)

    def __contains__(self, path: Path) -> bool:
        if path.stem_depth not in self.stem_depths or any(w not in a for w, a in zip(path.stem_widths, self.stem_widths)):
            return False
        if len(path.named) != len(self.named) or any(
            name != own or value not in values for (name, value), (own, values) in zip(path.named, self.named)
        ):
            return False
        stages = list(zip(path.stage_depths, path.stage_widths, path.expand_ratios))
        if len(stages) != self.geometry.stages:
            return False
        for pairs, base, (depth, width, ratios) in zip(self.pairs, self.geometry.base_depths, stages):
            if len(ratios) != base + depth or not set(ratios) <= set(pairs.get((depth, width), ())):
                return False
        return True

    def without(self, operations: Iterable[Operation | Option]) -> PrunedSpace:
        """Return this space without some operations (section 3.2). In a pruned space, they are removed in addition.

        Raises:
            UserError: an operation is not in the space, or a stage or a named choice would have none left.
        """
        removed = frozenset(operations)
        if unknown := removed - self.operations:
            raise UserError(f"{min(unknown)} is not an operation of the space {self.name}")
        return PrunedSpace(self, removed)

    def to_json(self) -> dict:
        """Return the space as plain JSON values, for `from_json`."""
        return {
            "name": self.name,
            "operations": by_stage(self.operations, self.geometry.stages),
            "stem_depths": list(self.stem_depths),
            "stem_widths": [list(widths) for widths in self.stem_widths],
            "geometry": self.geometry.to_json(),
        }

    @staticmethod
    def from_json(data: Mapping, geometry_type: type[Geometry] = Geometry) -> SearchSpace:
        """Create a space, or a `PrunedSpace`, from the result of its `to_json`.

        Args:
            data: the result of `to_json`.
            geometry_type: class of the space's geometry, which is not stored in JSON.

        Raises:
            UserError: a key is missing, or a value is malformed or not valid for the class.
        """
        try:
            if "parent" in data:
                parent = SearchSpace.from_json(data["parent"], geometry_type)
                return parent.without(from_stages(data["removed"], parent.geometry))
            geometry = geometry_type.from_json(data["geometry"])
            stem_widths: Any = tuple(tuple(widths) for widths in data["stem_widths"])
            return SearchSpace(
                str(data["name"]),
                from_stages(data["operations"], geometry),
                tuple(data["stem_depths"]),
                stem_widths,
                geometry,
            )
        except UserError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"a search space in JSON has a missing or malformed key: {error!r}") from error


class PrunedSpace(SearchSpace):
    """A space with operations removed (Figure 3), created by `SearchSpace.without`.

    Attributes:
        parent: the space before any pruning.
        removed: operations of `parent` that are not in this space.
    """

    parent: SearchSpace
    removed: frozenset[Operation | Option]

    def __init__(self, space: SearchSpace, removed: frozenset[Operation | Option]):
        parent = space.parent if isinstance(space, PrunedSpace) else space
        # Attributes of a frozen dataclass can only be set this way.
        object.__setattr__(self, "parent", parent)
        object.__setattr__(self, "removed", parent.operations - space.operations | removed)
        super().__init__(
            f"{parent.name} pruned", space.operations - removed, space.stem_depths, space.stem_widths, space.geometry
        )

    def to_json(self) -> dict:
        return {"parent": self.parent.to_json(), "removed": by_stage(self.removed, self.geometry.stages)}

    def __str__(self) -> str:
        """Format the kept operations in the notation of Figure 3; * means all choices of the parent."""
        lines = [f"{self.name}: {len(self.operations)} of {len(self.parent.operations)} operations"]
        for stage, (kept, full) in enumerate(zip(self.pairs, self.parent.pairs), 1):
            groups = ["(*, *, *)"] if kept == full else _figure3(kept, full)
            lines.append(f"  stage {stage}: {', '.join(groups)}")
        for some, every in zip(self.named, self.parent.named):
            lines.append(f"  {some.name}: {'*' if some == every else ', '.join(map(str, some.values))}")
        return "\n".join(lines)


def _figure3(kept: Mapping, full: Mapping) -> list[str]:
    """Format the pairs of one stage as groups such as "(D1, {W0.65, W0.8}, *)": for each D, all W with equal sets of E."""

    def one_of(words: Sequence[str]) -> str:
        return words[0] if len(words) == 1 else f"{{{', '.join(words)}}}"

    groups = []
    for depth in sorted({depth for depth, _ in kept}):
        all_widths = [w for d, w in full if d == depth]
        by_ratios: dict[str, list[float]] = {}
        for d, w in kept:
            if d == depth:
                ratios = "*" if kept[d, w] == full[d, w] else one_of([*map(choice_word, kept[d, w])])
                by_ratios.setdefault(ratios, []).append(w)
        for ratios, widths in by_ratios.items():
            groups.append(f"(D{depth}, {'*' if widths == all_widths else one_of([f'W{w}' for w in widths])}, {ratios})")
    return groups


def _is_choice(chosen: Sequence[float], every: Sequence[float]) -> bool:
    """Return whether `chosen` is a non-empty subset of `every`, without duplicates, in ascending order."""
    return bool(chosen) and set(chosen) <= set(every) and list(chosen) == sorted(set(chosen))


def product_space(
    name: str,
    depths: Sequence[int],
    widths: Sequence[float],
    ratios: Sequence[float],
    geometry: Geometry = OFA_RESNET50,
    elastic_stem: bool = True,
    values: int | None = None,
) -> SearchSpace:
    """Create the space in which every stage may combine any of the given D, W and E.

    Args:
        name: name of the space.
        depths, widths, ratios: allowed values of D, W and E.
        geometry: geometry of the supernet.
        elastic_stem: let the stem choose its depth between the smallest and largest D and its widths among `widths`, as in
            the code of OFA and NNablaNAS (Table 1 does not mention the stem); otherwise the stem is the largest.
        values: number of values of each named choice of the geometry, the largest ones; None: all.

    Raises:
        UserError: a value is not a choice of the geometry.
    """
    operations = options(geometry, values) | frozenset(
        Operation(stage, d, w, e) for stage in range(geometry.stages) for d in depths for w in widths for e in ratios
    )
    stem_depths = tuple(sorted(set(geometry.stem_depths) & set(depths))) if elastic_stem else ()
    stem_widths = tuple(sorted(set(widths))) if elastic_stem else (max(geometry.widths),)
    return SearchSpace(name, operations, stem_depths or (max(geometry.depths),), (stem_widths, stem_widths), geometry)


def ofa_resnet50(geometry: Geometry = OFA_RESNET50, elastic_stem: bool = True) -> SearchSpace:
    """Create the paper's search space A (Table 1): every D, W and E of the geometry, and the choices of the stem."""
    return product_space("A", geometry.depths, geometry.widths, geometry.ratios, geometry, elastic_stem)


def compofa(geometry: Geometry = OFA_RESNET50, elastic_stem: bool = True) -> SearchSpace:
    """Create CompOFA* (Table 1): (D, W) coupled in each stage, (0, 0.65), (1, 0.8), (2, 1.0); E free in each layer.

    Raises:
        UserError: the geometry has different numbers of D and W.
    """
    if len(geometry.depths) != len(geometry.widths):
        raise UserError(
            f"CompOFA* couples each D with a W; the geometry has the depths {geometry.depths} and the widths {geometry.widths}"
        )
    operations = options(geometry) | frozenset(
        Operation(stage, d, w, e)
        for stage in range(geometry.stages)
        for d, w in zip(geometry.depths, geometry.widths)
        for e in geometry.ratios
    )
    free = ofa_resnet50(geometry, elastic_stem)
    return SearchSpace("CompOFA*", operations, free.stem_depths, free.stem_widths, geometry)


def shrinking_stages(geometry: Geometry = OFA_RESNET50, elastic_stem: bool = True) -> tuple[SearchSpace, ...]:
    """Create the five spaces of OFA's progressive shrinking, small to large (Table A1); named choices shrink like W."""
    widths, ratios = sorted(geometry.widths), sorted(geometry.ratios)
    chosen = [
        (widths[-1:], ratios[-1:], 1),
        (widths[-2:], ratios[-1:], 2),
        (widths, ratios[-1:], None),
        (widths, ratios[-2:], None),
        (widths, ratios, None),
    ]
    return tuple(
        product_space(f"PS stage {number}", geometry.depths, w, e, geometry, elastic_stem, values)
        for number, (w, e, values) in enumerate(chosen, 1)
    )
