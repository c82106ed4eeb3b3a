"""Tools for runs: evaluation, detection, search, fine-tuning, export, comparison, inspection, reports and dry runs."""
