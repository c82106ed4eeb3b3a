"""From files to batches: data sets, augmentation, CenterNet's targets, and the loader that stacks them."""
