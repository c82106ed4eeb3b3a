"""Evolutionary search: the best path by score within a budget (Eq. 3), and Pareto fronts of several costs (NSGA-II)."""
