"""The search space A and the spaces cut out of it: CompOFA*, the stages of progressive shrinking, pruned spaces.

A space says which operations (D, W, E) each stage may use; a path is one choice of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ..common.errors import UserError
from .geometry import OFA_RESNET50, Geometry, choice_word
from .paths import Path, PathBatch


@dataclass(frozen=True, order=True)
class Operation:
    """One operation candidate: stage `stage` (0-based) at depth D, width W, with E in its layers (section 3.2)."""

    stage: int
    depth: int
    width: float
    ratio: float

    def __str__(self) -> str:
        return f"stage {self.stage + 1} (D{self.depth}, W{self.width:g}, {choice_word(self.ratio)})"


class _Tables(NamedTuple):
    """A space as arrays, for vectorised draws. A row of the last three is one (stage, D, W), numbered in that order.

    Attributes:
        pair_depths, pair_widths: (stages, most pairs) D, and index of W, of each stage's pairs.
        pair_counts: (stages,) how many pairs each stage has.
        allowed: (rows, ratios + 1) bool; the last column, which index -1 finds, is False.
        ratio_choices: (rows, ratios) the allowed ratio indices first.
        ratio_counts: (rows,) how many are allowed.
    """

    pair_depths: np.ndarray
    pair_widths: np.ndarray
    pair_counts: np.ndarray
    allowed: np.ndarray
    ratio_choices: np.ndarray
    ratio_counts: np.ndarray


@dataclass(frozen=True)
class SearchSpace:
    """Which operations each stage may use, and which stems there are.

    A path of the space has, in each stage, a pair (D, W) that has an allowed E, and in each active layer an E allowed
    with that pair. Uniform sampling means independently uniform choices: (D, W) among the stage's pairs, then E in each
    layer among those allowed with the pair. In A that is the independent uniform choice of D, W and every E.

    Attributes:
        name: what tables and logs call it.
        operations: the allowed operations of all stages.
        stem_depths: the allowed depths of the stem.
        stem_widths: the allowed widths of the stem's first convolutions and of its output.
        geometry: the supernet the space belongs to.
    """

    name: str
    operations: frozenset[Operation]
    stem_depths: tuple[int, ...] = OFA_RESNET50.stem_depths
    stem_widths: tuple[tuple[float, ...], tuple[float, ...]] = (OFA_RESNET50.widths, OFA_RESNET50.widths)
    geometry: Geometry = OFA_RESNET50

    def __post_init__(self):
        geometry = self.geometry
        for op in sorted(self.operations):
            allowed = (range(geometry.stages), geometry.depths, geometry.widths, geometry.ratios)
            if any(value not in choices for value, choices in zip(astuple(op), allowed)):
                raise UserError(f"the space {self.name} holds {op}, which is not a choice of its geometry")
        stems = (self.stem_depths, *self.stem_widths)
        choices = (geometry.stem_depths, geometry.widths, geometry.widths)
        if len(stems) != 3 or any(not _is_choice(chosen, every) for chosen, every in zip(stems, choices)):
            raise UserError(f"the stem of the space {self.name} has the choices {stems}; allowed are some of {choices}, rising")
        for stage, pairs in enumerate(self.pairs):
            if not pairs:
                raise UserError(f"the space {self.name} has no operation left in stage {stage + 1}; each needs one")

    @cached_property
    def pairs(self) -> tuple[dict[tuple[int, float], tuple[float, ...]], ...]:
        """For each stage: (D, W) -> the ratios E allowed with it, everything in ascending order."""
        found: list[dict] = [{} for _ in range(self.geometry.stages)]
        for operation in sorted(self.operations):
            found[operation.stage].setdefault((operation.depth, operation.width), []).append(operation.ratio)
        return tuple({pair: tuple(ratios) for pair, ratios in stage.items()} for stage in found)

    @cached_property
    def largest(self) -> Path:
        """The largest path: in each stage the greatest D, then W, then E. In A it is the fullnet a_max."""
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
        )

    def sample(self, rng: np.random.Generator) -> Path:
        """One path, drawn uniformly (see the class)."""
        return self.sample_many(rng, 1)[0]

    def sample_many(self, rng: np.random.Generator, n: int) -> PathBatch:
        """`n` paths, drawn independently and uniformly (see the class)."""
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
        return PathBatch.canonical(depths, widths, self.draw_ratios(depths, widths, rng), geometry)

    def draw_ratios(self, depths: np.ndarray, widths: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(n, layers) ratio indices, each uniform among those allowed with its stage's (D, W); inactive layers too.

        Args:
            depths, widths: as in `PathBatch`; every stage's (D, W) must be a pair of the space.
        """
        codes = self._pair_codes(depths, widths)
        drawn = rng.random(codes.shape) * self._tables.ratio_counts[codes]
        return self._tables.ratio_choices[codes, drawn.astype(np.intp)]

    def allows_ratios(self, depths: np.ndarray, widths: np.ndarray, ratios: np.ndarray) -> np.ndarray:
        """(n, layers) bool: whether each ratio index is allowed with its stage's (D, W); -1 never is."""
        return self._tables.allowed[self._pair_codes(depths, widths), ratios]

    def contains_many(self, batch: PathBatch) -> np.ndarray:
        """(n,) bool: whether each path of the batch is in the space."""
        inside = np.isin(batch.depths[:, 0], self.stem_depths)
        for place, allowed in enumerate(self.stem_widths):
            inside &= np.isin(batch.widths[:, place], [self.geometry.widths.index(w) for w in allowed])
        allowed = self.allows_ratios(batch.depths, batch.widths, batch.ratios)
        return inside & (allowed | (batch.ratios < 0)).all(axis=1)

    def _pair_codes(self, depths: np.ndarray, widths: np.ndarray) -> np.ndarray:
        """(n, layers) the row of `_tables` that holds each layer's stage and (D, W)."""
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
        """The exact number of canonical paths."""
        total = len(self.stem_depths) * len(self.stem_widths[0]) * len(self.stem_widths[1])
        for pairs, base in zip(self.pairs, self.geometry.base_depths):
            total *= sum(len(ratios) ** (base + depth) for (depth, _), ratios in pairs.items())
        return total

    def __contains__(self, path: Path) -> bool:
        if path.stem_depth not in self.stem_depths or any(w not in a for w, a in zip(path.stem_widths, self.stem_widths)):
            return False
        stages = list(zip(path.stage_depths, path.stage_widths, path.expand_ratios))
        if len(stages) != self.geometry.stages:
            return False
        for pairs, base, (depth, width, ratios) in zip(self.pairs, self.geometry.base_depths, stages):
            if len(ratios) != base + depth or not set(ratios) <= set(pairs.get((depth, width), ())):
                return False
        return True

    def without(self, operations: Iterable[Operation]) -> PrunedSpace:
        """This space with these operations removed (section 3.2). Pruning a pruned space adds to what is removed.

        Raises:
            UserError: an operation is not in the space, or a stage would have none left.
        """
        removed = frozenset(operations)
        if unknown := removed - self.operations:
            raise UserError(f"{min(unknown)} is not an operation of the space {self.name}")
        return PrunedSpace(self, removed)

    def to_json(self) -> dict:
        """The space as plain JSON values, for `from_json`."""
        return {
            "name": self.name,
            "operations": _by_stage(self.operations, self.geometry.stages),
            "stem_depths": list(self.stem_depths),
            "stem_widths": [list(widths) for widths in self.stem_widths],
            "geometry": {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self.geometry).items()},
        }

    @staticmethod
    def from_json(data: Mapping, geometry_type: type[Geometry] = Geometry) -> SearchSpace:
        """The space that `to_json` wrote; a `PrunedSpace` where it wrote one.

        Args:
            geometry_type: class of the space's geometry, which JSON does not name.

        Raises:
            UserError: an entry is missing or malformed, or the space breaks a rule of its class.
        """
        try:
            if "parent" in data:
                parent = SearchSpace.from_json(data["parent"], geometry_type)
                return parent.without(_from_stages(data["removed"], parent.geometry))
            geometry = geometry_type.from_json(data["geometry"])
            return SearchSpace(
                str(data["name"]),
                _from_stages(data["operations"], geometry),
                tuple(data["stem_depths"]),
                tuple(tuple(widths) for widths in data["stem_widths"]),
                geometry,
            )
        except UserError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"a search space in JSON lacks or misspells an entry: {error!r}") from error


class PrunedSpace(SearchSpace):
    """A space with operations removed, as Figure 3 shows it. Made by `SearchSpace.without`.

    Attributes:
        parent: the space before any pruning.
        removed: the operations of `parent` that are not in this space.
    """

    parent: SearchSpace
    removed: frozenset[Operation]

    def __init__(self, space: SearchSpace, removed: frozenset[Operation]):
        parent = space.parent if isinstance(space, PrunedSpace) else space
        # A frozen dataclass lets attributes be set only this way.
        object.__setattr__(self, "parent", parent)
        object.__setattr__(self, "removed", parent.operations - space.operations | removed)
        super().__init__(
            f"{parent.name} pruned", space.operations - removed, space.stem_depths, space.stem_widths, space.geometry
        )

    def to_json(self) -> dict:
        return {"parent": self.parent.to_json(), "removed": _by_stage(self.removed, self.geometry.stages)}

    def __str__(self) -> str:
        """The kept operations in the notation of Figure 3; * stands for all that the parent has there."""
        lines = [f"{self.name}: {len(self.operations)} of {len(self.parent.operations)} operations"]
        for stage, (kept, full) in enumerate(zip(self.pairs, self.parent.pairs), 1):
            groups = ["(*, *, *)"] if kept == full else _figure3(kept, full)
            lines.append(f"  stage {stage}: {', '.join(groups)}")
        return "\n".join(lines)


def _figure3(kept: Mapping, full: Mapping) -> list[str]:
    """The pairs of one stage -> groups such as "(D1, {W0.65, W0.8}, *)": per D, the W with equal sets of E together."""

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
    """Whether `chosen` is one or more of `every`, each once, in ascending order."""
    return bool(chosen) and set(chosen) <= set(every) and list(chosen) == sorted(set(chosen))


def _by_stage(operations: Iterable[Operation], stages: int) -> list[list[list]]:
    """For each stage its operations as [D, W, E], in ascending order."""
    found: list[list[list]] = [[] for _ in range(stages)]
    for operation in sorted(operations):
        found[operation.stage].append([operation.depth, operation.width, operation.ratio])
    return found


def _from_stages(stages: Sequence[Sequence[Sequence]], geometry: Geometry) -> frozenset[Operation]:
    """The inverse of `_by_stage`."""
    return frozenset(
        Operation(stage, depth, width, geometry.choice(ratio))
        for stage, operations in enumerate(stages)
        for depth, width, ratio in operations
    )


def product_space(
    name: str,
    depths: Sequence[int],
    widths: Sequence[float],
    ratios: Sequence[float],
    geometry: Geometry = OFA_RESNET50,
    elastic_stem: bool = True,
) -> SearchSpace:
    """The space in which every stage may combine any of these D, W and E.

    Args:
        elastic_stem: let the stem choose its depth among the smallest and largest D and its widths among `widths`, as
            the code of OFA and NNablaNAS does (Table 1 does not mention the stem); otherwise it is the largest.
    """
    operations = frozenset(
        Operation(stage, d, w, e) for stage in range(geometry.stages) for d in depths for w in widths for e in ratios
    )
    stem_depths = tuple(sorted(set(geometry.stem_depths) & set(depths))) if elastic_stem else ()
    stem_widths = tuple(sorted(set(widths))) if elastic_stem else (max(geometry.widths),)
    return SearchSpace(name, operations, stem_depths or (max(geometry.depths),), (stem_widths, stem_widths), geometry)


def ofa_resnet50(geometry: Geometry = OFA_RESNET50, elastic_stem: bool = True) -> SearchSpace:
    """The paper's search space A (Table 1): every D, W and E of the geometry, and the stem's choices."""
    return product_space("A", geometry.depths, geometry.widths, geometry.ratios, geometry, elastic_stem)


def compofa(geometry: Geometry = OFA_RESNET50, elastic_stem: bool = True) -> SearchSpace:
    """CompOFA* (Table 1): D and W coupled in each stage, (0, 0.65), (1, 0.8), (2, 1.0); E free in each layer.

    Raises:
        UserError: the geometry has not as many D as W.
    """
    if len(geometry.depths) != len(geometry.widths):
        raise UserError(
            f"CompOFA* couples each D with a W; the geometry has the depths {geometry.depths} and the widths {geometry.widths}"
        )
    operations = frozenset(
        Operation(stage, d, w, e)
        for stage in range(geometry.stages)
        for d, w in zip(geometry.depths, geometry.widths)
        for e in geometry.ratios
    )
    free = ofa_resnet50(geometry, elastic_stem)
    return SearchSpace("CompOFA*", operations, free.stem_depths, free.stem_widths, geometry)


def shrinking_stages(geometry: Geometry = OFA_RESNET50, elastic_stem: bool = True) -> tuple[SearchSpace, ...]:
    """The five spaces of OFA's progressive shrinking, small to large (Table A1)."""
    widths, ratios = sorted(geometry.widths), sorted(geometry.ratios)
    chosen = [
        (widths[-1:], ratios[-1:]),
        (widths[-2:], ratios[-1:]),
        (widths, ratios[-1:]),
        (widths, ratios[-2:]),
        (widths, ratios),
    ]
    return tuple(
        product_space(f"PS stage {number}", geometry.depths, w, e, geometry, elastic_stem)
        for number, (w, e) in enumerate(chosen, 1)
    )
