"""What a user does with a run: evaluate, detect, search, fine-tune, export, compare, inspect, report, and check beforehand."""
