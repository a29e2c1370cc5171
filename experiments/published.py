"""The accuracies that the MixMo authors publish, in %, on their page and in arXiv 2103.06132."""

from mixmo_jax.config import flatten
from mixmo_jax.configs import cifar10, cifar100, tiny_imagenet
from mixmo_jax.runs.workdir import NEUTRAL_FIELDS

# By method: CIFAR-100 and CIFAR-10, WRN-28-10. Two numbers are the ends of a range.
_CIFAR = {
    "vanilla": ((81.79,), (96.37,)),
    "mixup": ((83.43,), (97.07,)),
    "cutmix": ((83.95,), (97.28,)),
    "mimo": ((82.92,), (96.71,)),
    "linear_mixmo": ((82.96,), (96.88,)),
    "cut_mixmo": ((85.52, 85.59), (97.52,)),
    "linear_mixmo+cutmix": ((85.36, 85.57), (97.73,)),
    "cut_mixmo+cutmix": ((85.77, 85.92), (97.83,)),
}
# By method: Tiny ImageNet, PreActResNet-18 of width 1, 2, 3.
_TINY_IMAGENET = {
    "vanilla": ((62.75,), (64.91,), (65.84,)),
    "linear_mixmo": ((62.91,), (67.03,), (68.36,)),
    "cut_mixmo": ((64.32,), (69.12,), (70.23,)),
}
# By method: the ensemble of three networks, CIFAR-100.
_THREE_NETWORKS = {"cut_mixmo+cutmix": ((86.81,),)}

# The paper's config, its width, the number of networks, and the column of their numbers.
_CONFIGS = [
    (cifar100, 10, 1, _CIFAR, 0),
    (cifar100, 10, 3, _THREE_NETWORKS, 0),
    (cifar10, 10, 1, _CIFAR, 1),
    *((tiny_imagenet, i + 1, 1, _TINY_IMAGENET, i) for i in range(3)),
]
# What may differ from the paper: it changes no score of the last epoch, or only by rounding; the
# method is a record, and the width is looked up.
_FREE = {
    *NEUTRAL_FIELDS,
    "method",
    "seed",
    "model.dtype",
    "model.width",
    "dataset.split_seed",
    "evaluation.every_epochs",
    "optimizer.ema_decay",
}


def find(fields: dict[str, object], networks: int = 1) -> tuple[float, ...] | None:
    """Returns the published accuracy of a flat config, or the ends of a range; None without one.

    Args:
      fields: The flat config.
      networks: The number of networks of an ensemble.
    """
    method = fields["method"]
    for config, width, count, accuracies, column in _CONFIGS:
        paper = flatten(config.get_config(method))
        same = all(fields[name] == paper[name] for name in paper.keys() - _FREE)
        if same and fields["model.width"] == width and count == networks and method in accuracies:
            return accuracies[method][column]
    return None
