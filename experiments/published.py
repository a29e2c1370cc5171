"""The accuracies that the MixMo authors publish, in %, on their page and in arXiv 2103.06132."""

_CIFAR = {"model.name": "wide_resnet", "model.depth": 28, "model.width": 10, "num_epochs": 300}
_TINY = {"dataset.name": "tiny_imagenet", "model.name": "preact_resnet", "num_epochs": 1200}

# The fields of a config, and the lowest and highest number by method.
PUBLISHED = [
    (
        {**_CIFAR, "dataset.name": "cifar100"},
        {
            "vanilla": (81.79, 81.79),
            "mixup": (83.43, 83.43),
            "cutmix": (83.95, 83.95),
            "mimo": (82.92, 82.92),
            "linear_mixmo": (82.96, 82.96),
            "cut_mixmo": (85.52, 85.59),
            "linear_mixmo+cutmix": (85.36, 85.57),
            "cut_mixmo+cutmix": (85.77, 85.92),
        },
    ),
    (
        {**_CIFAR, "dataset.name": "cifar10"},
        {
            "vanilla": (96.37, 96.37),
            "mixup": (97.07, 97.07),
            "cutmix": (97.28, 97.28),
            "mimo": (96.71, 96.71),
            "linear_mixmo": (96.88, 96.88),
            "cut_mixmo": (97.52, 97.52),
            "linear_mixmo+cutmix": (97.73, 97.73),
            "cut_mixmo+cutmix": (97.83, 97.83),
        },
    ),
    *(
        (
            {**_TINY, "model.width": width},
            {name: (value, value) for name, value in row.items()},
        )
        for width, row in {
            1: {"vanilla": 62.75, "linear_mixmo": 62.91, "cut_mixmo": 64.32},
            2: {"vanilla": 64.91, "linear_mixmo": 67.03, "cut_mixmo": 69.12},
            3: {"vanilla": 65.84, "linear_mixmo": 68.36, "cut_mixmo": 70.23},
        }.items()
    ),
]


def find(fields: dict[str, object]) -> tuple[float, float] | None:
    """Returns the published accuracy of a flat config, as a range; None if there is none."""
    for described, accuracies in PUBLISHED:
        if all(fields[name] == value for name, value in described.items()):
            return accuracies.get(fields["method"])
    return None
