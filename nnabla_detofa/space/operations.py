"""Operation candidates of a search space: (D, W, E) of a stage, and values of named choices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .geometry import Geometry, choice_word, equal_choice


@dataclass(frozen=True, order=True)
class Operation:
    """One operation candidate (section 3.2): stage `stage` (0-based) with depth D, width W, and E in its layers."""

    stage: int
    depth: int
    width: float
    ratio: float

    def __str__(self) -> str:
        return f"stage {self.stage + 1} (D{self.depth}, W{self.width:g}, {choice_word(self.ratio)})"


@dataclass(frozen=True)
class Option:
    """One value of a named choice (`Geometry.named`), an operation candidate of no stage; options follow the operations."""

    name: str
    value: Any

    def __str__(self) -> str:
        return f"{self.name} {self.value}"

    def __lt__(self, other: Operation | Option) -> bool:
        return isinstance(other, Option) and (self.name, self.value) < (other.name, other.value)

    def __gt__(self, other: Operation | Option) -> bool:
        return not isinstance(other, Option) or other < self


def by_stage(operations: Iterable[Operation | Option], stages: int) -> list[list[list]]:
    """Return for each stage its operations as [D, W, E], in ascending order, and after them the options as [name, value]."""
    found: list[list[list]] = [[] for _ in range(stages)]
    options = []
    for operation in sorted(operations):
        if isinstance(operation, Option):
            options.append([operation.name, operation.value])
        else:
            found[operation.stage].append([operation.depth, operation.width, operation.ratio])
    return [*found, options] if options else found


def from_stages(stages: Sequence[Sequence[Sequence]], geometry: Geometry) -> frozenset[Operation | Option]:
    """Return the operations from the result of `by_stage`."""
    return frozenset(
        operation_from(entry if len(entry) == 2 else (stage, *entry), geometry)
        for stage, operations in enumerate(stages)
        for entry in operations
    )


def operation_from(entry: Sequence, geometry: Geometry) -> Operation | Option:
    """Return the operation of a list [stage, D, W, E] or [name, value], as in JSON (see `operation_list`)."""
    if len(entry) == 2:
        name, value = entry
        return Option(name, equal_choice(value, dict(geometry.named).get(name, ())))
    stage, depth, width, ratio = entry
    return Operation(stage, depth, width, geometry.choice(ratio))


def operation_list(operation: Operation | Option) -> list:
    """Return an operation as a list for JSON: [stage, D, W, E], or [name, value] of a named choice."""
    if isinstance(operation, Option):
        return [operation.name, operation.value]
    return [operation.stage, operation.depth, operation.width, operation.ratio]


def options(geometry: Geometry, values: int | None = None) -> frozenset[Operation | Option]:
    """Return the `values` largest values, or all, of each named choice of a geometry."""
    return frozenset(Option(name, value) for name, every in geometry.named for value in every[-(values or len(every)) :])
