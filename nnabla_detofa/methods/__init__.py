"""What the paper proposes (Algorithm 1), what it is compared with (the baselines), and the pre-training."""
