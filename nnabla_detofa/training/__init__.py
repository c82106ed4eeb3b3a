"""The one training loop, its checkpoints, and the NNablaNAS runner that all methods share."""
