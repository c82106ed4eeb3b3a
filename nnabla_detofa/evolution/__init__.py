"""Evolutionary search: the path with the best score within a budget (Eq. 3), and Pareto fronts of cost and score (NSGA-II)."""
