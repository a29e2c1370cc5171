"""From a dataset to the inputs of a training step.

plan.py     everything random about a batch, drawn before any pixel
feed.py     training images resident on the devices, or streamed to them
augment.py  crops, flips, normalization
augmix.py   AugMix
"""
