"""A run's folder as seen from below: its phases, lock, cost ledger and provenance, and the schemas and readers of its files."""
