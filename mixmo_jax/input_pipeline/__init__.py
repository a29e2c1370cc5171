"""From a dataset to what a training step takes: plans, augmented images, masks and targets."""
