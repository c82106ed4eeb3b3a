"""Training methods: the paper's Algorithm 1, its baselines, and the pre-training."""
