"""Trained networks to predict with, and the checkpoints of the authors' program."""
