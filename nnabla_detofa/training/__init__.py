"""Training of a run: the loop that all methods share, phases with checkpoints, and the NNablaNAS runner.

`runner.SupernetRunner` is the base class of the methods; `start_up.start` locks the folder of a run and runs it.
"""
