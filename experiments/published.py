"""The accuracies that the MixMo authors publish, in %, on their page and in arXiv 2103.06132."""

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

# The fields of the paper's configs, and the column of their numbers.
_CIFAR_FIELDS = {
    "model.name": "wide_resnet",
    "model.depth": 28,
    "model.width": 10,
    "num_epochs": 300,
}
_TINY_FIELDS = {
    "dataset.name": "tiny_imagenet",
    "model.name": "preact_resnet",
    "num_epochs": 1200,
}
_CONFIGS = [
    ({**_CIFAR_FIELDS, "dataset.name": "cifar100"}, _CIFAR, 0),
    ({**_CIFAR_FIELDS, "dataset.name": "cifar10"}, _CIFAR, 1),
    *(({**_TINY_FIELDS, "model.width": i + 1}, _TINY_IMAGENET, i) for i in range(3)),
]


def find(fields: dict[str, object]) -> tuple[float, ...] | None:
    """Returns the published accuracy of a flat config, or the ends of a range; None without one."""
    for described, accuracies, column in _CONFIGS:
        if all(fields[name] == value for name, value in described.items()):
            row = accuracies.get(fields["method"])
            return row and row[column]
    return None
