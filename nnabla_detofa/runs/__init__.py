"""Run folders: training phases, lock, cost ledger, provenance, and the schemas and readers of the files."""
