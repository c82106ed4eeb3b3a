"""Training loop, checkpoints, and the NNablaNAS runner that all methods share."""
