"""Evolutionary search: the path with the best score within a budget (Eq. 3), and Pareto fronts of cost and score (NSGA-II)."""

from .constraints import Constraint, NoPath, at_most, between
from .operators import crossover_many, mutate_many
from .pareto import Front, front
from .population import first_population
from .search import SearchResult, search

__all__ = [
    "Constraint",
    "Front",
    "NoPath",
    "SearchResult",
    "at_most",
    "between",
    "crossover_many",
    "first_population",
    "front",
    "mutate_many",
    "search",
]
