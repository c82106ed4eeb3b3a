"""A run's folder as seen from below: its training phases, lock, cost ledger, provenance, and the schemas and readers of its files."""
