"""A metric writer for Weights & Biases."""

import wandb


class WandbWriter:
    def __init__(self, **options):  # of wandb.init
        self._options = options

    def start(self, epochs):
        self._run = wandb.init(**self._options)

    def write(self, epoch_metrics):
        self._run.log(epoch_metrics, step=epoch_metrics["epoch"])

    def close(self):
        self._run.finish()
