"""Training methods: the paper's Algorithm 1, its baselines, and the pre-training, with the search after them.

`build.build` creates the supernet, the datasets and the cost model of a config; each method has a function `run`.
"""
