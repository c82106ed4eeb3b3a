"""Datasets, augmentation, CenterNet's training targets, and the loader that stacks them into batches."""
